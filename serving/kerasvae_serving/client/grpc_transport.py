"""gRPC, by a channel whose answers any event loop can wait for."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

from kerasvae.errors import AnswerError, ArgumentError
from kerasvae_serving.client.calls import plain, understood
from kerasvae_serving.client.grpc_calls import GrpcCall
from kerasvae_serving.client.transports import AttemptError, Verify, unreachable
from kerasvae_serving.messages import service

__all__ = ["GrpcTransport"]

STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""What a status is in HTTP; any other is 500."""
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),  # when to ask again is the client's to say
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class GrpcTransport:
    """See `Transport`.

    Raises:
        ArgumentError: If the URL or the certificates cannot be used.
    """

    def __init__(self, url: str, key: str | None, verify: Verify) -> None:
        self._url = url
        self._metadata = () if key is None else (("authorization", f"Bearer {key}"),)
        target = _target(url)
        if url.startswith("grpcs://"):
            self._channel = grpc.secure_channel(target, _credentials(verify), OPTIONS)
        else:
            self._channel = grpc.insecure_channel(target, OPTIONS)

    async def ask(self, call: GrpcCall, seconds: float) -> object:
        """See `Transport.ask`."""
        asked, answered = service(call.service)[call.method]
        method = self._channel.unary_unary(
            f"/{call.service}/{call.method}", asked.SerializeToString, answered.FromString
        )
        sent = method.future(call.request, timeout=seconds, metadata=self._metadata)
        try:
            await _ended(sent)
        except asyncio.CancelledError:
            sent.cancel()
            raise
        try:
            answer = sent.result()
        except grpc.RpcError as error:
            raise self._error(error) from error
        return understood(call.read, answer)

    async def close(self) -> None:
        """Close its connections."""
        self._channel.close()

    def _error(self, error: Any) -> Exception:
        code, words = error.code(), plain(error.details() or error.code().name)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and words == "Deadline Exceeded":  # said on this side
            return TimeoutError(words)
        if code is grpc.StatusCode.UNAVAILABLE:
            lost = unreachable(self._url, words[:200])
            return lost if "handshake" in words else AttemptError(lost, _pushback(error))
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            wait = _pushback(error)
            if "larger than max" in words or (wait is not None and wait < 0):  # too much at once, not too many
                return AnswerError(413, words)
            return AttemptError(AnswerError(429, words), wait)
        return AnswerError(STATUS.get(code, 500), words)


async def _ended(sent: Any) -> None:
    """Wait for the end of a call, which its channel's own thread tells."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not told.done():
            told.set_result(None)

    def ended(_: Any) -> None:
        with suppress(RuntimeError):  # nobody waits any more: the loop is closed
            loop.call_soon_threadsafe(tell)

    sent.add_done_callback(ended)
    await told


def _pushback(error: Any) -> float | None:
    """Seconds that the server asks for; below 0: never again (gRPC's proposal A6)."""
    given = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms", "")
    return int(given) / 1000 if str(given).lstrip("-").isdecimal() else None


def _target(url: str) -> str:
    try:
        parts = urlsplit(url)
        whole = bool(parts.hostname and parts.port)
    except ValueError:
        whole = False
    if not whole or parts.path or parts.query or parts.username:
        rule = "be a host and a port, as in grpc://localhost:8001"
        raise ArgumentError("url", rule=rule, got=repr(url), fix="Correct it")
    return parts.netloc


def _credentials(verify: Verify) -> grpc.ChannelCredentials:
    if verify is True:
        return grpc.ssl_channel_credentials()
    if not isinstance(verify, str | os.PathLike):
        rule = "be True or a file of certificates for grpcs://"
        raise ArgumentError("verify", rule=rule, got=type(verify).__name__, fix="Give the PEM file")
    try:
        return grpc.ssl_channel_credentials(Path(verify).read_bytes())
    except OSError as error:
        raise ArgumentError("verify", rule="be a file of certificates", got=str(error), fix="Check it") from error
