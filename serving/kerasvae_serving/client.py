"""Clients of a server: kerasvae's own, Triton, TF Serving; over HTTP; one at a time or many.

A call is retried while nothing can have gone wrong but the time: where no connection could be made, or the server said
429 or 503. The attempts end by the deadline, and so does each step of one: sending, waiting, and every piece received.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import AnswerError, ArgumentError, DeadlineError, ServingError
from kerasvae_serving import open_inference as oip

__all__ = ["AsyncClient", "Client", "Encoded"]

Scan = str | os.PathLike[str] | bytes
Server = Literal["kerasvae", "triton", "tf-serving"]
SERVERS = ("kerasvae", "triton", "tf-serving")
AGAIN = (429, 503)
FIRST_WAIT_S = 0.1


@dataclass(frozen=True)
class Encoded:
    """What a server says of a scan.

    Args:
        outputs: The encoder's outputs by name, without a batch axis.
        in_distribution: Whether the model knows its like; None: nothing is said of it.
        reasons: Why not.
        scores: Of `kerasvae.scoring`, by name.
        percentiles: Theirs among the reference people.
    """

    outputs: dict[str, NDArray[Any]]
    in_distribution: bool | None = None
    reasons: tuple[str, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    percentiles: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Call:
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], Any]
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def request(self) -> dict[str, Any]:
        """The arguments of httpx's `request`."""
        return {
            "method": self.method,
            "url": self.path,
            "content": self.content,
            "headers": self.headers,
            "params": self.parameters,
        }


class _Calls:
    """What both clients ask, as requests that neither has sent yet."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: int | None = None,
        server: Server = "kerasvae",
        key: str | None = None,
        deadline: float = 30.0,
        verify: Any = True,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ArgumentError("url", rule="begin with http:// or https://", got=repr(url), fix="Correct it")
        if server not in SERVERS:
            raise ArgumentError("server", rule=f"be {', '.join(SERVERS)}", got=repr(server), fix="Choose one")
        if not deadline > 0:
            raise ArgumentError("deadline", rule="be above 0 seconds", got=deadline, fix="Use 30")
        self._url, self._model, self._version, self._server = url.rstrip("/"), model, version, server
        self._deadline, self._verify = deadline, verify
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def _place(self, api: str, model: str) -> str:
        path = f"/{api}/models/{quote(model, safe='')}"
        return path if self._version is None else f"{path}/versions/{self._version}"

    def _ready(self) -> _Call:
        path = self._place("v1", self._model) if self._server == "tf-serving" else "/v2/health/ready"
        return _Call("GET", path, lambda answer: True)

    def _encode(self, scan: Scan, covariates: Mapping[str, Any] | None) -> _Call:
        content = _content(scan)
        if self._server == "kerasvae":
            return self._file("encode", content, covariates, _encoded)
        if self._server == "triton":
            raise ArgumentError(
                "server",
                rule="be kerasvae or tf-serving for scans: Triton gets the graphs alone",
                got="triton",
                fix="Prepare the scan by Engine.pipeline, and use `infer`",
            )
        if covariates is not None:
            raise ArgumentError("covariates", rule="be left out for tf-serving", got="some", fix="Use `infer`")
        packed = base64.b64encode(content).decode("ascii")
        body = {"signature_name": "encode_nifti", "instances": [{"nifti": {"b64": packed}}]}

        def read(answer: httpx.Response) -> Encoded:
            row = answer.json()["predictions"][0]
            return Encoded({name: np.asarray(value, np.float32) for name, value in row.items()})

        return _Call("POST", f"{self._place('v1', self._model)}:predict", read, json.dumps(body).encode())

    def _score(self, scan: Scan, covariates: Mapping[str, Any] | None) -> _Call:
        self._ours("score")
        return self._file("score", _content(scan), covariates, _encoded)

    def _map(self, kind: str, scan: Scan, covariates: Mapping[str, Any] | None, space: str) -> _Call:
        self._ours(kind)
        given = {**(covariates or {}), "space": space}
        return self._file(kind, _content(scan), given, lambda answer: answer.content)

    def _ours(self, what: str) -> None:
        if self._server != "kerasvae":
            raise ArgumentError("server", rule=f"be kerasvae for {what}", got=self._server, fix="Use `kerasvae serve`")

    def _file(self, verb: str, content: bytes, given: Mapping[str, Any] | None, read: Callable[..., Any]) -> _Call:
        parameters = {name: str(value) for name, value in (given or {}).items()}
        headers = {"Content-Type": "application/octet-stream"}
        return _Call("POST", f"{self._place('v1', self._model)}:{verb}", read, content, headers, parameters)

    def _infer(self, part: str, arrays: Mapping[str, NDArray[Any]]) -> _Call:
        given = {name: np.ascontiguousarray(value, np.float32) for name, value in arrays.items()}
        if self._server == "tf-serving":
            signature = {"encoder": "encode", "decoder": "decode"}[part]
            body = {"signature_name": signature, "inputs": {name: value.tolist() for name, value in given.items()}}

            def read(answer: httpx.Response) -> dict[str, NDArray[Any]]:
                found = answer.json()["outputs"]
                found = found if isinstance(found, dict) else {"reconstruction": found}
                return {name: np.asarray(value, np.float32) for name, value in found.items()}

            return _Call("POST", f"{self._place('v1', self._model)}:predict", read, json.dumps(body).encode())
        entries = [
            {"name": name, "shape": list(value.shape), "datatype": "FP32"}
            | {"parameters": {"binary_data_size": value.nbytes}}
            for name, value in given.items()
        ]
        head = json.dumps({"inputs": entries, "parameters": {"binary_data_output": True}}).encode()
        content = b"".join([head, *(value.astype("<f4", copy=False).tobytes() for value in given.values())])
        model = self._model if part == "encoder" else f"{self._model}-decoder"
        headers = {oip.JSON_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
        return _Call("POST", f"{self._place('v2', model)}/infer", _tensors, content, headers)


class Client(_Calls):
    """A client that waits for its answers; safe to share between threads.

    Args:
        url: Of the server, e.g. ``http://localhost:8000``.
        model: The model's name.
        version: Of the model; None: the server's default.
        server: "kerasvae", "triton" or "tf-serving".
        key: API key.
        deadline: Seconds for a call with all its retries.
        verify: As in httpx: False, or an `ssl.SSLContext`, for certificates of one's own.

    Raises:
        ArgumentError: If an argument is outside its rule.
    """

    def __init__(self, url: str, model: str, **options: Any) -> None:
        super().__init__(url, model, **options)
        self._http = httpx.Client(base_url=self._url, headers=self._headers, verify=self._verify)

    def ready(self) -> bool:
        """Whether the server would answer; False also where nobody listens."""
        try:
            call = self._ready()
            return self._http.request(call.method, call.path, timeout=self._deadline).status_code == 200
        except httpx.TransportError:
            return False

    @cached_property
    def covariates(self) -> tuple[str, ...]:
        """Names of what the model takes beside the image, of kerasvae's own server.

        Raises:
            ServingError: As `encode`.
        """
        self._ours("covariates")
        models = self._ask(_Call("GET", "/v1/models", lambda answer: answer.json()["models"]))
        return tuple(
            next((m["covariates"] for m in reversed(models) if m["name"] == self._model and m["state"] == "READY"), ())
        )

    def settle(self) -> dict[str, str]:
        """Keep to the version that answers by now, and tell what decides its answers.

        Returns:
            The engine's `identity`, of kerasvae's own server; of another the address, the model and its version.

        Raises:
            ServingError: As `encode`.
        """
        known = None
        if self._server == "kerasvae":
            models = self._ask(_Call("GET", "/v1/models", lambda answer: answer.json()["models"]))
            ready = {int(m["version"]): m for m in models if m["name"] == self._model and m["state"] == "READY"}
            if self._version is None and ready:
                self._version = max(ready, key=lambda number: (ready[number]["reason"] != "withdrawn", number))
            known = ready.get(self._version or 0, {}).get("identity")
        if known is None:
            return {"server": self._url, "model": f"{self._model} {self._version or 'default'}"}
        return {"server": "kerasvae", **known}

    def encode(self, scan: Scan, covariates: Mapping[str, Any] | None = None) -> Encoded:
        """A scan's latents, and whether the model knows its like.

        Args:
            scan: A file, or the bytes of one.
            covariates: Of the person, by name.

        Raises:
            AnswerError: What the server refused, in its words.
            DeadlineError: If there is no answer in time.
            ServingError: If nobody answers.
        """
        found: Encoded = self._ask(self._encode(scan, covariates))
        return found

    def score(self, scan: Scan, covariates: Mapping[str, Any] | None = None) -> Encoded:
        """How unusual a scan is; as `encode`, without latents."""
        found: Encoded = self._ask(self._score(scan, covariates))
        return found

    def reconstruct(self, scan: Scan, covariates: Mapping[str, Any] | None = None, *, space: str = "native") -> bytes:
        """The model's reconstruction as the bytes of a .nii.gz file, in the scan's own space or on the model's grid."""
        found: bytes = self._ask(self._map("reconstruct", scan, covariates, space))
        return found

    def deviation(self, scan: Scan, covariates: Mapping[str, Any] | None = None, *, space: str = "native") -> bytes:
        """Where the scan deviates, as `reconstruct`."""
        found: bytes = self._ask(self._map("deviation", scan, covariates, space))
        return found

    def infer(self, **arrays: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The encoder's outputs for preprocessed images, ``infer(image=…)``; ``covariates=…`` where it takes them."""
        found: dict[str, NDArray[Any]] = self._ask(self._infer("encoder", arrays))
        return found

    def decode(self, **arrays: NDArray[Any]) -> NDArray[Any]:
        """Images of codes: ``decode(z=…)``."""
        found: NDArray[Any] = self._ask(self._infer("decoder", arrays))["reconstruction"]
        return found

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """Itself; closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _ask(self, call: _Call) -> Any:
        tries = _Tries(self._url, self._deadline)
        while True:
            try:
                answer = self._http.request(**call.request, timeout=tries.left)
                if answer.status_code not in AGAIN:
                    return _read(call, answer)
                tries.refused(answer)
            except httpx.TransportError as error:
                tries.failed(error)
            except httpx.InvalidURL as error:
                raise ArgumentError("url", rule="be a URL", got=self._url, fix="Correct it") from error
            time.sleep(tries.pause())


class AsyncClient(_Calls):
    """The same with `await`; arguments as for `Client`."""

    def __init__(self, url: str, model: str, **options: Any) -> None:
        super().__init__(url, model, **options)
        self._http = httpx.AsyncClient(base_url=self._url, headers=self._headers, verify=self._verify)

    async def ready(self) -> bool:
        """See `Client.ready`."""
        try:
            call = self._ready()
            return (await self._http.request(call.method, call.path, timeout=self._deadline)).status_code == 200
        except httpx.TransportError:
            return False

    async def encode(self, scan: Scan, covariates: Mapping[str, Any] | None = None) -> Encoded:
        """See `Client.encode`."""
        found: Encoded = await self._ask(self._encode(scan, covariates))
        return found

    async def score(self, scan: Scan, covariates: Mapping[str, Any] | None = None) -> Encoded:
        """See `Client.score`."""
        found: Encoded = await self._ask(self._score(scan, covariates))
        return found

    async def reconstruct(
        self, scan: Scan, covariates: Mapping[str, Any] | None = None, *, space: str = "native"
    ) -> bytes:
        """See `Client.reconstruct`."""
        found: bytes = await self._ask(self._map("reconstruct", scan, covariates, space))
        return found

    async def deviation(
        self, scan: Scan, covariates: Mapping[str, Any] | None = None, *, space: str = "native"
    ) -> bytes:
        """See `Client.deviation`."""
        found: bytes = await self._ask(self._map("deviation", scan, covariates, space))
        return found

    async def infer(self, **arrays: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """See `Client.infer`."""
        found: dict[str, NDArray[Any]] = await self._ask(self._infer("encoder", arrays))
        return found

    async def decode(self, **arrays: NDArray[Any]) -> NDArray[Any]:
        """See `Client.decode`."""
        found: NDArray[Any] = (await self._ask(self._infer("decoder", arrays)))["reconstruction"]
        return found

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        """Itself; closed at the end of the block."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    async def _ask(self, call: _Call) -> Any:
        tries = _Tries(self._url, self._deadline)
        while True:
            try:
                async with asyncio.timeout(tries.left):
                    answer = await self._http.request(**call.request, timeout=tries.left)
                if answer.status_code not in AGAIN:
                    return _read(call, answer)
                tries.refused(answer)
            except TimeoutError as error:
                tries.failed(httpx.ReadTimeout(str(error)))
            except httpx.TransportError as error:
                tries.failed(error)
            await asyncio.sleep(tries.pause())


class _Tries:
    """The attempts at one call: when to try again, and when not any more."""

    def __init__(self, url: str, deadline: float) -> None:
        self._url, self._deadline = url, deadline
        self._end = time.monotonic() + deadline
        self._wait = FIRST_WAIT_S
        self._asked: float | None = None
        self._last: Exception = self._late()

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return max(0.001, self._end - time.monotonic())

    def refused(self, answer: httpx.Response) -> None:
        """The server is busy, or going."""
        given = answer.headers.get("retry-after", "")
        self._asked = float(given) if given.isdecimal() else None
        self._last = _error(answer)

    def failed(self, error: httpx.TransportError) -> None:
        """Nobody answered. A request that may have been taken up is not sent again.

        Raises:
            DeadlineError: If the time is over.
            ServingError: If the connection broke after it was made.
        """
        if isinstance(error, httpx.TimeoutException):
            raise self._late() from error
        reason = str(error) or type(error).__name__
        self._last = ServingError(
            "A server", rule=f"answer at {self._url}", got=reason, fix="Start it, or correct the address"
        )
        if not isinstance(error, httpx.ConnectError) or "CERTIFICATE" in reason.upper():
            raise self._last from error

    def pause(self) -> float:
        """Seconds until the next attempt.

        Raises:
            KerasVAEError: The last failure, if the deadline would pass.
        """
        wait = max(self._wait, self._asked or 0.0)
        self._wait, self._asked = 2 * self._wait, None
        if time.monotonic() + wait >= self._end:
            raise self._last
        return wait

    def _late(self) -> DeadlineError:
        rule = f"come within {self._deadline:g} s"
        return DeadlineError("The answer", rule=rule, got="none", fix="Raise the deadline, or look at the server")


def _content(scan: Scan) -> bytes:
    if isinstance(scan, bytes):
        return scan
    try:
        return Path(scan).read_bytes()
    except OSError as error:
        got = error.strerror or str(error)
        raise ArgumentError(f"{scan}", rule="be a readable file", got=got.lower(), fix="Check the path") from error


def _read(call: _Call, answer: httpx.Response) -> Any:
    if answer.status_code != 200:
        raise _error(answer)
    return call.read(answer)


def _error(answer: httpx.Response) -> AnswerError:
    try:
        sentence = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        sentence = f"The server answered {answer.status_code}."
    return AnswerError(answer.status_code, sentence)


def _encoded(answer: httpx.Response) -> Encoded:
    content = answer.json()
    outputs = {
        name: np.asarray(value, np.float32 if _has_fractions(value) else None)
        for name, value in content.get("outputs", {}).items()
    }
    return Encoded(
        outputs,
        content["in_distribution"],
        tuple(content["reasons"]),
        content["scores"],
        content["percentiles"],
    )


def _has_fractions(value: Any) -> bool:
    return np.asarray(value).dtype.kind == "f"


def _tensors(answer: httpx.Response) -> dict[str, NDArray[Any]]:
    """Outputs of the Open Inference Protocol, binary or not."""
    length = answer.headers.get(oip.JSON_LENGTH)
    place = len(answer.content) if length is None else int(length)
    found = {}
    for output in json.loads(answer.content[:place])["outputs"]:
        dtype = np.dtype(oip.DATATYPES[output["datatype"]])
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            value = np.asarray(output["data"], dtype)
        else:
            value = np.frombuffer(answer.content, dtype, size // dtype.itemsize, place)
            place += size
        found[output["name"]] = value.reshape(output["shape"])
    return found
