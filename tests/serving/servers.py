"""Servers of their own process for tests, on loopback, with ports that the system chooses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

WAIT_S = 120.0
BINARY = {"content-type": "application/octet-stream"}


class Running:
    """A `kerasvae serve` that is ready to answer.

    Args:
        sources: Bundles, or folders of them.
        options: Of the command line.
    """

    def __init__(self, sources: Sequence[Path | str], *options: str) -> None:
        command = [sys.executable, "-m", "kerasvae.cli", "serve", *map(str, sources), "--port", "0", "--grpc-port", "0"]
        self._start([*command, *options])

    @classmethod
    def of(cls, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Running:
        """One that a command of its own starts, in this environment unless told."""
        made = cls.__new__(cls)
        made._start(command, environment)
        return made

    def _start(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        ports = self.wait_for("listening")
        scheme = "https" if "--tls-certificate" in command else "http"
        self.url, self.grpc = f"{scheme}://{ports['http']}", ports["grpc"]
        self.wait_for("ready")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    @property
    def log(self) -> list[dict[str, Any]]:
        """What it has said so far, a JSON object a line."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def wait_for(self, message: str, times: int = 1, **wanted: Any) -> dict[str, Any]:
        """The line of the log with this message, when it is there for the n-th time."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            found = [
                line
                for line in self.log
                if line["message"] == message and all(value in str(line.get(key)) for key, value in wanted.items())
            ]
            if len(found) >= times:
                return found[times - 1]
            if self.process.poll() is not None:
                self._reader.join(5)
                raise AssertionError("the server ended: " + " ".join(self.lines))
            time.sleep(0.02)
        raise AssertionError(f"no {message!r} within {WAIT_S:.0f} s: " + " ".join(self.lines))

    @property
    def memory_mb(self) -> float:
        """Resident memory."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no VmRSS")

    def get(self, path: str, **named: Any) -> httpx.Response:
        """GET."""
        return httpx.get(self.url + path, timeout=WAIT_S, **named)

    def post(self, path: str, **named: Any) -> httpx.Response:
        """POST."""
        return httpx.post(self.url + path, timeout=WAIT_S, **named)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, to this process alone, and wait for its end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(WAIT_S)
        self._reader.join(5)
        return code

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)
        self._reader.join(5)
        if self.process.stderr is not None:
            self.process.stderr.close()


def infer(server, image, model="blobs", post=httpx.post):
    tensor = {
        "name": "image",
        "shape": [1, *image.shape],
        "datatype": "FP32",
        "parameters": {"binary_data_size": image.nbytes},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    url = f"{server.url}/v2/models/{model}/infer"
    return post(url, content=head + image.tobytes(), headers=headers, timeout=WAIT_S)


def until(condition):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
