"""A load for a server: one request over and over, on connections that stay open.

    python load.py HOST PORT REQUEST_FILE CLIENTS SECONDS

The file holds the whole HTTP request. Prints one line of JSON: requests a second, and the median time of one in ms.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import threading
import time
from pathlib import Path


def answer(client: socket.socket) -> None:
    """Read one answer; anything but 200 is an error."""
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        block = client.recv(2**16)
        if not block:
            raise ConnectionError("the server closed the connection")
        data += block
    head = data[:end].lower()
    if b" 200" not in head.split(b"\r\n")[0]:
        raise RuntimeError(data[:300].decode(errors="replace"))
    rest = int(head.split(b"content-length:")[1].split(b"\r\n")[0]) - (len(data) - end - 4)
    while rest > 0:
        rest -= len(client.recv(min(rest, 2**18)))


def main(host: str, port: str, path: str, clients: str, seconds: str) -> None:
    request = Path(path).read_bytes()
    times: list[float] = []
    end = time.perf_counter() + float(seconds)

    def work() -> None:
        with socket.create_connection((host, int(port))) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while (begun := time.perf_counter()) < end:
                client.sendall(request)
                answer(client)
                times.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=work) for _ in range(int(clients))]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed = time.perf_counter() - begun
    print(json.dumps({"rate": len(times) / passed, "median_ms": 1000 * statistics.median(times)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
