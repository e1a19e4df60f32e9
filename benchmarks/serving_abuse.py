"""What a server bears: its largest memory, and answers that are wrong or do not come.

A bomb of 400 MB in two ways, uploads that end early, clients that say nothing, and ten times as many requests at once
as there is room for; after each, the readiness probe must answer, and an image must have its latents.
"""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
from load import answer
from rows import Row, as_row

from kerasvae_serving import Engine

WORKERS, QUEUE = 2, 32
BOMB = 400 * 2**20
SOON = 5.0


def abuse_rows(bundle: Path, image: np.ndarray) -> list[Row]:
    """Rows of the benchmark.

    Args:
        bundle: Served as ``bench``.
        image: A preprocessed image, (x, y, z).
    """
    expected = Engine(bundle).encode(image[None])
    wrong: list[str] = []
    with tempfile.TemporaryFile() as log:
        options = [
            "--port",
            str(port := _free()),
            "--grpc-port",
            "-1",
            "--workers",
            str(WORKERS),
            "--queue",
            str(QUEUE),
        ]
        call = [sys.executable, "-m", "kerasvae.cli", "serve", str(bundle), *options, "--drain", "0", "--patience", "2"]
        server = subprocess.Popen(call, stderr=log)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                end = time.monotonic() + 60
                while not _ready(client):
                    assert time.monotonic() < end
                    time.sleep(0.02)
                first = _memory(server.pid, "VmRSS")
                for trial in (_bombs, _cut, _silent, _overload):
                    wrong += trial(client, port, image, expected)
                    begun = time.monotonic()
                    if not _ready(client) or time.monotonic() - begun > SOON:
                        wrong.append(f"not ready after {trial.__name__}")
                    if not _right(client, image, expected):
                        wrong.append(f"a wrong answer after {trial.__name__}")
                most = _memory(server.pid, "VmHWM")
        finally:
            server.terminate()
            server.wait(60)
    for each in wrong:
        print(each, flush=True)
    return [
        as_row(f"largest memory under abuse (at rest {first:.0f} MB)", most, "MB", None, 400, None, most < 400),
        as_row("answers that were wrong or did not come under abuse", len(wrong), "answers", None, 0, None, not wrong),
    ]


def _bombs(client: httpx.Client, port: int, image: np.ndarray, expected: Any) -> list[str]:
    header = nibabel.Nifti1Header()
    header.set_data_shape((512, 512, 400))
    header.set_data_dtype("<f4")
    header["magic"], header["vox_offset"] = b"n+1", 352
    header.set_sform(np.diag([1.0, 1, 1, 1]), 4)
    packer = zlib.compressobj(9, wbits=31)
    block = bytes(2**20)
    parts = [packer.compress(header.binaryblock + bytes(4)), *(packer.compress(block) for _ in range(BOMB // 2**20))]
    bomb = b"".join([*parts, packer.flush()])
    kind = {"content-type": "application/octet-stream"}
    found = []
    for name, body, headers in (
        ("as a file", bomb, kind),
        ("as a packed body", gzip.compress(bytes(BOMB), 9), kind | {"content-encoding": "gzip"}),
    ):
        status = client.post("/v1/models/bench:encode", content=body, headers=headers).status_code
        if status not in (413, 422):
            found.append(f"a bomb {name}: {status}")
    return found


def _cut(client: httpx.Client, port: int, image: np.ndarray, expected: Any) -> list[str]:
    request = _request(image)
    for share in np.linspace(0.01, 0.99, 40):
        with socket.create_connection(("127.0.0.1", port)) as made:
            made.sendall(request[: int(share * len(request))])
    return []


def _silent(client: httpx.Client, port: int, image: np.ndarray, expected: Any) -> list[str]:
    """Fifty connections that send half a head, or half a body, and no more: all are closed."""
    made = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(50)]
    request = _request(image)
    for number, each in enumerate(made):
        each.sendall(request[: 40 if number % 2 else len(request) // 2])
    found = []
    for each in made:
        with each:
            try:
                while each.recv(2**16):
                    pass
            except ConnectionResetError:
                pass
            except TimeoutError:
                found.append("a silent connection stays open")
    return found


def _overload(client: httpx.Client, port: int, image: np.ndarray, expected: Any) -> list[str]:
    request = _request(image)
    found: list[str] = []
    gate = threading.Barrier(10 * (WORKERS + QUEUE))

    def ask() -> None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as made:
                made.sendall(request[:-1])
                gate.wait()
                made.sendall(request[-1:])
                answer(made)
        except RuntimeError as error:
            if " 429 " not in str(error):
                found.append(str(error)[:80])
        except OSError as error:
            found.append(f"overload: {error}")

    threads = [threading.Thread(target=ask) for _ in range(gate.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def _request(image: np.ndarray) -> bytes:
    tensor = {"name": "image", "shape": [1, *image.shape], "datatype": "FP32"}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": image.nbytes}}]}).encode()
    length = len(head) + image.nbytes
    return (
        f"POST /v2/models/bench/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\n\r\n"
    ).encode() + head + image.astype("<f4").tobytes()  # fmt: skip


def _right(client: httpx.Client, image: np.ndarray, expected: Any) -> bool:
    head, _, body = _request(image).partition(b"\r\n\r\n")
    length = head.split(b"Content-Length: ")[2].decode()
    done = client.post("/v2/models/bench/infer", content=body, headers={"Inference-Header-Content-Length": length})
    if done.status_code != 200:
        return False
    outputs = {each["name"]: np.reshape(each["data"], each["shape"]) for each in done.json()["outputs"]}
    return all(np.allclose(outputs[name], value, atol=1e-5 * np.abs(value).max()) for name, value in expected.items())


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def _memory(process: int, what: str) -> float:
    """Of a process, MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def _free() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])
