"""The two clients: one for event loops, and one that waits, which is the same run by a loop of its own."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from functools import cached_property, partial, wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from numpy.typing import NDArray

from kerasvae.errors import ArgumentError, DeadlineError, ServingError
from kerasvae_serving.client.calls import SERVERS, Arrays, Calls, Covariates, Encoded, Scan, Server
from kerasvae_serving.client.loop import run
from kerasvae_serving.client.transports import AttemptError, Transport, Verify

__all__ = ["AsyncClient", "Client"]

FIRST_WAIT_S = 0.1
P = ParamSpec("P")
T = TypeVar("T")


class AsyncClient:
    """A client of one model on one server, for use with `await`.

    Args:
        url: Of the server: ``http://localhost:8000``, ``grpc://localhost:8001``, or https and grpcs.
        model: The model's name.
        version: Of the model; None: the server's default.
        server: "kerasvae", "triton" or "tf-serving".
        key: API key.
        deadline: Seconds for a call with all its retries.
        verify: For certificates of one's own: the PEM file of who issued them. For https also False, which checks
            nothing, or an `ssl.SSLContext`.

    Raises:
        ArgumentError: If an argument is outside its rule.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: int | None = None,
        server: Server = "kerasvae",
        key: str | None = None,
        deadline: float = 30.0,
        verify: Verify = True,
    ) -> None:
        if server not in SERVERS:
            raise ArgumentError("server", rule=f"be {', '.join(SERVERS)}", got=repr(server), fix="Choose one")
        if not deadline > 0:
            raise ArgumentError("deadline", rule="be above 0 seconds", got=deadline, fix="Use 30")
        self._url, self._model, self._version, self._server = url.rstrip("/"), model, version, server
        self._deadline = deadline
        self._calls, self._transport = _line(self._url, model, version, server, key, verify)
        self._open: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def ready(self) -> bool:
        """Whether the server would answer; False also where nobody listens."""
        try:
            async with asyncio.timeout(self._deadline):
                return bool(await self._kept(self._transport.ask(self._calls.ready(), self._deadline)))
        except (ServingError, TimeoutError, AttemptError):
            return False

    async def encode(self, scan: Scan, covariates: Covariates | None = None) -> Encoded:
        """A scan's latents, and whether the model knows its like.

        Args:
            scan: A file, or the bytes of one.
            covariates: Of the person, by name.

        Raises:
            ArgumentError: If the server takes no scans, or not over gRPC.
            AnswerError: What the server refused, in its words.
            DeadlineError: If there is no answer in time.
            ServingError: If nobody answers.
        """
        found: Encoded = await self._ask(self._calls.encode(scan, covariates))
        return found

    async def score(self, scan: Scan, covariates: Covariates | None = None) -> Encoded:
        """How unusual a scan is; as `encode`, without latents."""
        found: Encoded = await self._ask(self._calls.score(scan, covariates))
        return found

    async def reconstruct(self, scan: Scan, covariates: Covariates | None = None, *, space: str = "native") -> bytes:
        """The model's reconstruction as the bytes of a .nii.gz file, in the scan's own space or on the model's grid."""
        found: bytes = await self._ask(self._calls.map_of("reconstruct", scan, covariates, space))
        return found

    async def deviation(self, scan: Scan, covariates: Covariates | None = None, *, space: str = "native") -> bytes:
        """Where the scan deviates, as `reconstruct`."""
        found: bytes = await self._ask(self._calls.map_of("deviation", scan, covariates, space))
        return found

    async def infer(self, **arrays: NDArray[Any]) -> Arrays:
        """The encoder's outputs for preprocessed images, ``infer(image=…)``; ``covariates=…`` where it takes them."""
        found: Arrays = await self._ask(self._calls.infer("encoder", arrays))
        return found

    async def decode(self, **arrays: NDArray[Any]) -> NDArray[Any]:
        """Images of codes: ``decode(z=…)``."""
        found: Arrays = await self._ask(self._calls.infer("decoder", arrays))
        return found["reconstruction"]

    async def settle(self) -> dict[str, str]:
        """Keep to the version that answers by now, and tell what decides its answers.

        Returns:
            The engine's `identity`, of kerasvae's own server; of another the address, the model and its version.

        Raises:
            ServingError: As `encode`.
        """
        known = None
        if self._server == "kerasvae":
            models = await self._ask(self._calls.models())
            ready = {int(m["version"]): m for m in models if m["name"] == self._model and m["state"] == "READY"}
            if self._version is None and ready:
                self._version = _default(ready)
                self._calls = self._calls.of_version(self._version)
            known = ready.get(self._version or 0, {}).get("identity")
        if known is None:
            return {"server": self._url, "model": f"{self._model} {self._version or 'default'}"}
        return {"server": "kerasvae", **known}

    async def close(self) -> None:
        """Give up the calls that are under way, which fail with a `ServingError`, and close its connections."""
        self._closed = True
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)
        await self._transport.close()

    async def __aenter__(self) -> Self:
        """Itself; closed at the end of the block."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    async def _taken(self) -> tuple[str, ...]:
        """Names of what the model takes beside the image."""
        models = await self._ask(self._calls.models())
        ready = {int(m["version"]): m for m in models if m["name"] == self._model and m["state"] == "READY"}
        return tuple(ready.get(self._version or _default(ready), {}).get("covariates", ()))

    async def _ask(self, call: Any) -> Any:
        return await self._kept(self._attempts(call))

    async def _kept(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a coroutine gives, unless the client is closed meanwhile: a connection made after that would stay."""
        over = ServingError("The client", rule="be open until its calls end", got="closed", fix="Close it later")
        if self._closed:
            coroutine.close()
            raise over
        task = asyncio.ensure_future(coroutine)
        self._open.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if (caller := asyncio.current_task()) and caller.cancelling():
                raise
            raise over from None
        finally:
            self._open.discard(task)

    async def _attempts(self, call: Any) -> Any:
        """An answer, by as many attempts as the deadline allows."""
        late = DeadlineError(
            "The answer",
            rule=f"come within {self._deadline:g} s",
            got="none",
            fix="Raise the deadline, or look at the server",
        )
        end, wait = time.monotonic() + self._deadline, FIRST_WAIT_S
        while True:
            left = end - time.monotonic()
            try:
                async with asyncio.timeout(left):
                    return await self._transport.ask(call, left)
            except TimeoutError:
                raise late from None
            except AttemptError as failed:
                pause = max(wait, failed.wait or 0.0)
                if time.monotonic() + pause >= end:
                    raise failed.error from None
            await asyncio.sleep(pause)
            wait *= 2


def _default(ready: dict[int, Any]) -> int:
    """Of the versions in service that which answers; 0: there is none."""
    return max(ready, key=lambda number: (ready[number]["reason"] != "withdrawn", number), default=0)


def _waits(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    """A method of `AsyncClient` as one that waits."""

    @wraps(method)
    def wait(self: Client, *arguments: P.args, **named: P.kwargs) -> T:
        return run(method(self._client, *arguments, **named))

    return wait


class Client:
    """A client that waits for its answers; safe to share between threads. Arguments as for `AsyncClient`.

    Raises:
        ArgumentError: If an argument is outside its rule.
    """

    def __init__(self, url: str, model: str, **options: Any) -> None:
        self._make = partial(AsyncClient, url, model, **options)
        self._process, self._made = os.getpid(), self._make()

    ready = _waits(AsyncClient.ready)
    encode = _waits(AsyncClient.encode)
    score = _waits(AsyncClient.score)
    reconstruct = _waits(AsyncClient.reconstruct)
    deviation = _waits(AsyncClient.deviation)
    infer = _waits(AsyncClient.infer)
    decode = _waits(AsyncClient.decode)
    close = _waits(AsyncClient.close)

    def settle(self) -> dict[str, str]:
        """See `AsyncClient.settle`."""
        found = run(self._client.settle())
        self._make = partial(self._make, version=self._client._version)
        return found

    @cached_property
    def covariates(self) -> tuple[str, ...]:
        """Names of what the model takes beside the image, of kerasvae's own server over HTTP.

        Raises:
            ServingError: As `encode`.
        """
        return run(self._client._taken())

    @property
    def _client(self) -> AsyncClient:
        if self._process != os.getpid():  # connections cannot be shared with the process that this one was forked from
            self._process, self._made = os.getpid(), self._make()
        return self._made

    def __enter__(self) -> Self:
        """Itself; closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def _line(
    url: str, model: str, version: int | None, server: Server, key: str | None, verify: Verify
) -> tuple[Calls, Transport]:
    """What is asked, and what carries it; gRPC is imported by those alone who use it."""
    if url.startswith(("http://", "https://")):
        from kerasvae_serving.client.http_calls import HttpCalls
        from kerasvae_serving.client.http_transport import HttpTransport

        return HttpCalls(model, version, server), HttpTransport(url, key, verify)
    if url.startswith(("grpc://", "grpcs://")):
        from kerasvae_serving.client.grpc_calls import GrpcCalls
        from kerasvae_serving.client.grpc_transport import GrpcTransport

        return GrpcCalls(model, version, server), GrpcTransport(url, key, verify)
    rule = "begin with http://, https://, grpc:// or grpcs://"
    raise ArgumentError("url", rule=rule, got=repr(url), fix="Correct it")
