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
import uvicorn
import uvloop
from starlette.types import ASGIApp

from kerasvae.errors import ServingError
from kerasvae_serving.app import App
from kerasvae_serving.connection import Connection
from kerasvae_serving.engine import Engine
from kerasvae_serving.express import Express
from kerasvae_serving.grpc_app import grpc_server
from kerasvae_serving.logs import logging_to
from kerasvae_serving.repository import Repository
from kerasvae_serving.settings import Settings
from kerasvae_serving.telemetry import traced

__all__ = ["serve"]

log = logging.getLogger("kerasvae.serving")


def serve(sources: Sequence[str | PathLike[str]], settings: Settings) -> None:
    """Serve bundles until SIGTERM or SIGINT.

    Args:
        sources: Bundles, or folders of bundles.
        settings: See `Settings`.

    Raises:
        ServingError: If a port is taken, or none of the bundles can be loaded.
        ArgumentError: If a source or a setting is wrong.
    """
    with logging_to(sys.stderr, verbose=settings.verbose):
        uvloop.run(_serve(sources, settings))


async def _serve(sources: Sequence[str | PathLike[str]], settings: Settings) -> None:
    def load(path: Path) -> Engine:
        engine = Engine(path, provider=settings.provider, precision=settings.precision)
        for reason in engine.passed_over:
            log.warning("models", extra={"news": reason})
        engine.warm()  # no request waits for it, and it is of this bundle and not of one that takes its place
        return engine

    repository = Repository(sources, keep=settings.keep, load=load)
    app = App(repository, settings)
    listening = _listen(settings.host, settings.port)
    answering, stop_tracing = traced(app, lambda: repository.names) if settings.telemetry else (app, lambda: None)
    http = uvicorn.Server(_config(answering, None if settings.telemetry else Express(app), settings))
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
        app.draining = True  # probes say so; requests are still answered
        log.info("leaving")
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
        await loop.run_in_executor(None, stop_tracing)
    log.info("gone")


def _config(app: ASGIApp, express: Express | None, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=partial(Connection, express=express, patience=settings.patience),  # type: ignore[arg-type]
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
