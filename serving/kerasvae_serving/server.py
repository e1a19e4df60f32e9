"""A server's life: listen, load, answer, look for new bundles, and go without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import grpc
import orjson
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kerasvae.errors import ServingError
from kerasvae_serving.app import App
from kerasvae_serving.engine import Engine
from kerasvae_serving.grpc_app import grpc_server
from kerasvae_serving.repository import Repository
from kerasvae_serving.settings import Settings

__all__ = ["serve"]

log = logging.getLogger("kerasvae.serving")
TOGETHER = 2**20
"""Bytes that are read, or handed on of a body, at once."""
LOG_KEYS = ("endpoint", "model", "status", "ms", "error", "news", "http", "grpc")
"""What a line of the log may hold beside its message: nothing that a request brought."""


def serve(sources: Sequence[str | PathLike[str]], settings: Settings) -> None:
    """Serve bundles until SIGTERM or SIGINT.

    Args:
        sources: Bundles, or folders of bundles.
        settings: See `Settings`.

    Raises:
        ServingError: If a port is taken, or none of the bundles can be loaded.
        ArgumentError: If a source or a setting is wrong.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if settings.verbose else logging.INFO)
    try:
        uvloop.run(_serve(sources, settings))
    finally:
        log.removeHandler(handler)


async def _serve(sources: Sequence[str | PathLike[str]], settings: Settings) -> None:
    def load(path: Path) -> Engine:
        engine = Engine(path, providers=settings.providers, precision=settings.precision)
        engine.warm()  # no request waits for it, and it is of this bundle and not of one that takes its place
        return engine

    repository = Repository(sources, keep=settings.keep, load=load)
    app = App(repository, settings)
    listening = _listen(settings.host, settings.port)
    http = uvicorn.Server(_config(app, settings))
    try:
        http.config.load()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ServingError(
            "--tls-certificate and --tls-key", rule="be a PEM pair", got=str(error), fix="Check the files"
        ) from error
    http.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]  # handled below
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave.set)
    rpc = grpc_server(app) if settings.grpc_port is not None else None
    tasks = [asyncio.create_task(http.serve(sockets=[listening]))]
    try:
        ports: dict[str, Any] = {"http": f"{settings.host}:{listening.getsockname()[1]}"}
        if rpc is not None:
            ports["grpc"] = f"{settings.host}:{_bind(rpc, settings)}"
            await rpc.start()
        log.info("listening", extra=ports)
        await _look(app, loop)
        if not repository.names:
            failed = "; ".join(entry.reason for entry in repository.index()) or "none found"
            raise ServingError(
                "BUNDLE", rule="hold one bundle that can be served", got=failed.rstrip("."), fix="Run kerasvae verify"
            )
        log.info("ready")
        tasks.append(asyncio.create_task(_watch(app, loop, settings.poll)))
        waiting = asyncio.create_task(leave.wait())
        await asyncio.wait({waiting, tasks[0]}, return_when=asyncio.FIRST_COMPLETED)
        log.info("leaving")
        app.draining = True  # probes say so; requests are still answered
        with contextlib.suppress(TimeoutError):
            leave.clear()
            await asyncio.wait_for(leave.wait(), settings.drain)  # a second signal does not wait
    finally:
        http.should_exit = True
        if rpc is not None:
            await rpc.stop(settings.deadline)
        await tasks[0]
        for task in tasks[1:]:
            task.cancel()
        app.work.close()
    log.info("gone")


def _config(app: App, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=partial(_Reader, patience=settings.patience),  # type: ignore[arg-type]
        ws="none",
        proxy_headers=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=max(5, int(settings.patience)),
        timeout_graceful_shutdown=max(1, int(settings.deadline)),
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.private_key,
    )


class _Reader(asyncio.BufferedProtocol):
    """Reads into one buffer that all connections share, as each hands on what it read before another reads.

    Without it every 64 kB of a body are an object of their own, and copied once more.
    """

    _buffer = memoryview(bytearray(TOGETHER))

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._to = _Patient(*arguments, **named)
        for name in ("connection_made", "connection_lost", "eof_received", "pause_writing", "resume_writing"):
            setattr(self, name, getattr(self._to, name))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._to.data_received(self._buffer[:nbytes])  # type: ignore[arg-type]


class _Patient(HttpToolsProtocol):
    """HTTP whose headers must come in time: a connection that sends them drop by drop is closed."""

    def __init__(self, *arguments: Any, patience: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None
        self._pieces: list[bytes] = []
        self._size, self._woken = 0, 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._timer is None and self.cycle is not None and self.cycle.response_complete:
            self._wait()  # uvicorn has just stopped its own clock

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait()

    def on_body(self, body: bytes) -> None:
        """Wake the application for a good piece of a body, or once a second, and not for each packet."""
        self._pieces.append(body)
        self._size += len(body)
        if self._size >= TOGETHER or self.loop.time() >= self._woken + 1:
            self._hand_on()

    def on_message_complete(self) -> None:
        self._hand_on()
        super().on_message_complete()

    def _hand_on(self) -> None:
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces, self._size, self._woken = [], 0, self.loop.time()
        if not self.cycle.response_complete and body:
            # bytes in the place of uvicorn's bytearray, as long as it holds nothing: they are handed on uncopied
            self.cycle.body = self.cycle.body + body if self.cycle.body else body  # type: ignore[assignment]
            if len(self.cycle.body) > TOGETHER:
                self.flow.pause_reading()
            self.cycle.message_event.set()

    def on_headers_complete(self) -> None:
        self._stop()
        self._pieces, self._size, self._woken = [], 0, self.loop.time()
        super().on_headers_complete()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop()
        super().connection_lost(error)

    def _wait(self) -> None:
        self._stop()
        self._timer = self.loop.call_later(self._patience, self._close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        kind = socket.AF_INET6 if ":" in host else socket.AF_INET
        # by its name: asyncio sets TCP_NODELAY on sockets of this protocol alone
        made = socket.socket(kind, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        reason = f"{host}:{port}, {error.strerror or error}"
        raise ServingError("--port", rule="be free on --host", got=reason, fix="Choose another") from error
    return made


def _bind(rpc: grpc.aio.Server, settings: Settings) -> int:
    address = f"[{settings.host}]" if ":" in settings.host else settings.host
    place = f"{address}:{settings.grpc_port}"
    try:
        if settings.certificate is None or settings.private_key is None:
            return rpc.add_insecure_port(place)
        pair = (settings.private_key.read_bytes(), settings.certificate.read_bytes())
        return rpc.add_secure_port(place, grpc.ssl_server_credentials([pair]))
    except (OSError, RuntimeError) as error:
        raise ServingError("--grpc-port", rule="be free on --host", got=place, fix="Choose another") from error


async def _look(app: App, loop: asyncio.AbstractEventLoop) -> None:
    """Look the bundles over, outside the threads that answer."""
    for sentence in await loop.run_in_executor(None, app.repository.scan):
        failed = sentence.startswith("not loaded")
        if failed:
            app.metrics.errors.inc()
        log.log(logging.WARNING if failed else logging.INFO, "models", extra={"news": sentence})


async def _watch(app: App, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await _look(app, loop)
        except Exception as error:  # a disk that fails must not end the watch
            log.error("models", extra={"error": type(error).__name__})


class _Lines(logging.Formatter):
    """A JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        known = {key: getattr(record, key) for key in LOG_KEYS if hasattr(record, key)}
        head = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower()}
        return orjson.dumps(head | {"message": record.getMessage()} | known).decode()
