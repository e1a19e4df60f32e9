"""The HTTP side of a server: the Open Inference Protocol, scans as files, TF Serving's REST, metrics, OpenAPI."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version as version_of
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from kerasvae.errors import (
    ArgumentError,
    KerasVAEError,
    TooLargeError,
    UnauthorizedError,
)
from kerasvae_serving import open_inference as oip
from kerasvae_serving import tf_rest
from kerasvae_serving.answers import BINARY, JSON, Made, as_json, refuse
from kerasvae_serving.batching import Batches
from kerasvae_serving.body import Bodies
from kerasvae_serving.metrics import CONTENT_TYPE, Metrics
from kerasvae_serving.openapi import describe, page
from kerasvae_serving.repository import DECODER, Repository, Version
from kerasvae_serving.scans import Scans
from kerasvae_serving.settings import Keys, Settings, key_of
from kerasvae_serving.signatures import Signature
from kerasvae_serving.work import Work

__all__ = ["EXTENSIONS", "PLATFORM", "SERVER", "App"]

log = logging.getLogger("kerasvae.serving")
SERVER = "kerasvae"
PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ("binary_tensor_data",)
OPEN = ("/v2/health", "/openapi.json", "/docs")
"""What needs no key: it says nothing of people."""


class _Name(StringConvertor):
    """Of a model or version in a path: what a verb follows after a colon."""

    regex = "[^/:]+"


register_url_convertor("name", _Name())


class App:
    """The application, and what its two protocols share.

    Args:
        repository: Models.
        settings: See `Settings`.
    """

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self.repository, self.settings = repository, settings
        self.work = Work(settings.workers, settings.queue, settings.deadline)
        self.metrics = Metrics(repository, self.work)
        self._batches = Batches(settings.batch, settings.batch_wait, self.metrics.batch.observe)
        self.draining = False
        self.bodies = Bodies(settings.max_body, 4 * settings.max_body, settings.patience)
        self._keys = None if settings.keys is None else Keys(settings.keys)
        self.scans = Scans(repository, settings, self.work, self.metrics, self.bodies)
        verbs: dict[str, Callable[[Request, str, str | None], Awaitable[Response]]] = {
            **self.scans.verbs,
            "predict": self._predict,
            "rollback": self._rollback,
            "activate": self._activate,
        }
        routes = [
            ("GET", "/v2", "server_metadata", self._server),
            ("GET", "/v2/health/live", "live", self._live),
            ("GET", "/v2/health/ready", "ready", self._ready),
            ("POST", "/v2/repository/index", "index", self._index),
            ("GET", "/metrics", "metrics", self._metrics),
            ("GET", "/openapi.json", "openapi", self._openapi),
            ("GET", "/docs", "docs", self._docs),
            ("GET", "/v1/models", "models", self._models),
        ]
        for place in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                ("GET", place, "model_metadata", self._metadata),
                ("GET", f"{place}/ready", "model_ready", self._model_ready),
                ("POST", f"{place}/infer", "infer", self._infer),
            ]
        for place in ("/v1/models/{model:name}", "/v1/models/{model:name}/versions/{version:name}"):
            routes += [("POST", f"{place}:{verb}", verb, self._verb(handler)) for verb, handler in verbs.items()]
            routes += [("GET", place, "status", self._status), ("GET", f"{place}/metadata", "tf_metadata", self._tf)]
        self._rest = Starlette(
            routes=[
                Route(path, self._guarded(name, handler), methods=[method]) for method, path, name, handler in routes
            ],
            exception_handlers={HTTPException: self._lost},
        )
        self._rest.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""
        await self._rest(scope, receive, send)

    @property
    def ready(self) -> bool:
        """Whether a request would be answered."""
        return not self.draining and bool(self.repository.names)

    def admit(self, key: str | None) -> None:
        """Let a caller in.

        Raises:
            UnauthorizedError: If keys are asked for and this is none.
        """
        if self._keys is not None and not self._keys.know(key or ""):
            raise UnauthorizedError(
                "Authorization", rule="be `Bearer` and a key of this server", got="none or another", fix="Add it"
            )

    def run(self, signature: Signature, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a graph on arrays that were checked, within a piece of work.

        Raises:
            TooLargeError: If the answer would have more bytes than a body may.
        """
        rows = len(next(iter(given.values())))
        size = rows * sum(math.prod(t.shape) * np.dtype(t.dtype).itemsize for t in signature.outputs)
        if size > self.settings.max_body:
            rule = f"have at most {self.settings.max_body} bytes"
            raise TooLargeError("The answer", rule=rule, got=f"{size}, for {rows} rows", fix="Ask for fewer at a time")
        return self._batches.run(signature, given)

    # The Open Inference Protocol

    async def _live(self, request: Request) -> Response:
        return as_json({"live": True})

    async def _ready(self, request: Request) -> Response:
        return as_json({"ready": self.ready}, 200 if self.ready else 503)

    async def _server(self, request: Request) -> Response:
        return as_json({"name": SERVER, "version": version_of("kerasvae"), "extensions": list(EXTENSIONS)})

    async def _index(self, request: Request) -> Response:
        body = await self.bodies.read(request.headers, request.receive)
        asked = oip.json_of(body) if body else {}
        ready = isinstance(asked, dict) and asked.get("ready") is True
        return as_json([vars(each) for each in self.repository.index() if each.state == "READY" or not ready])

    async def _metadata(self, request: Request) -> Response:
        name = request.path_params["model"]
        found, signature = self.repository.resolve(name, request.path_params.get("version"))
        versions = [str(number) for number in self.repository.versions(found.name)]
        described = {
            part: [
                {"name": t.name, "datatype": oip.datatype(t.dtype), "shape": [-1, *t.shape]}
                for t in getattr(signature, part)
            ]
            for part in ("inputs", "outputs")
        }
        return as_json({"name": name, "versions": versions, "platform": PLATFORM} | described)

    async def _model_ready(self, request: Request) -> Response:
        self.repository.resolve(*_place(request))
        return as_json({"ready": not self.draining}, 503 if self.draining else 200)

    async def _infer(self, request: Request) -> Response:
        name, version = _place(request)
        found, signature = self.repository.resolve(name, version)
        body = await self.bodies.read(request.headers, request.receive)
        json_length = request.headers.get(oip.JSON_LENGTH)
        made = await self.work.run(lambda: self.infer(found, signature, name, body, json_length))
        return made.response()

    def infer(
        self, found: Version, signature: Signature, name: str, body: bytes | memoryview, json_length: str | None
    ) -> Made:
        """The answer to an inference request; a piece of work.

        Raises:
            ArgumentError: If the request is outside the protocol.
        """
        asked = oip.parse(body, json_length, signature.inputs)
        made = self.run(signature, asked.inputs)
        content, length = oip.respond(asked, made, model=name, version=str(found.number))
        return Made(content) if length is None else Made(content, BINARY, {oip.JSON_LENGTH: str(length)})

    # TF Serving's REST, and versions

    async def _models(self, request: Request) -> Response:
        about = []
        for entry in self.repository.index():
            more: dict[str, Any] = {"covariates": []}
            if entry.state == "READY":
                engine = self.repository.get(entry.name, entry.version).engine
                names = list(engine.covariates.names) if engine.covariates else []
                default = int(entry.version) == self.repository.get(entry.name).number
                more = {"default": default, "covariates": names, "identity": engine.identity}
            about.append(vars(entry) | more)
        return as_json({"models": about})

    async def _status(self, request: Request) -> Response:
        model, version = _place(request)
        return as_json(tf_rest.status(self.repository, model, version))

    async def _tf(self, request: Request) -> Response:
        return as_json(tf_rest.metadata(self.repository.get(*_place(request))))

    @staticmethod
    def _verb(handler: Callable[[Request, str, str | None], Awaitable[Response]]) -> Any:
        return lambda request: handler(request, *_place(request))

    async def _predict(self, request: Request, name: str, version: str | None) -> Response:
        found = self.repository.get(name, version)
        body = await self.bodies.read(request.headers, request.receive)

        def work() -> bytes:
            asked = tf_rest.parse(body, found.signatures)
            return tf_rest.respond(asked, self.run(asked.signature, asked.inputs))

        return Response(await self.work.run(work), media_type=JSON)

    async def _rollback(self, request: Request, name: str, version: str | None) -> Response:
        self._at_home(request)
        if version is not None:
            raise ArgumentError("The path", rule="name no version to roll back", got=version, fix="Leave it out")
        return self._changed(name, self.repository.rollback(name))

    async def _activate(self, request: Request, name: str, version: str | None) -> Response:
        self._at_home(request)
        if version is None:
            raise ArgumentError("The path", rule="name a version", got="none", fix="POST …/versions/N:activate")
        return self._changed(name, self.repository.activate(name, version))

    @staticmethod
    def _changed(name: str, now: Version) -> Response:
        log.info("models", extra={"news": f"{name} {now.number} answers by default"})
        return as_json({"model_name": name, "model_version": str(now.number)})

    # The rest

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def _openapi(self, request: Request) -> Response:
        return as_json(describe(self.repository, self.settings))

    async def _docs(self, request: Request) -> Response:
        return HTMLResponse(page())

    def _at_home(self, request: Request) -> None:
        """Who may change what is served: callers with a key, or on this machine where there are none."""
        local = request.client is not None and request.client.host in ("127.0.0.1", "::1")
        # what a proxy passes on, or a page in this machine's browser asks
        local = local and not {"forwarded", "x-forwarded-for", "x-real-ip", "via", "origin", "sec-fetch-site"} & set(
            request.headers
        )
        if self._keys is None and not local:
            raise UnauthorizedError(
                "A change of versions",
                rule="come from this machine, or with a key",
                got="another",
                fix="Use --api-keys",
            )

    def _guarded(self, name: str, handler: Callable[[Request], Awaitable[Response]]) -> Any:
        """A handler whose errors become answers, and whose answers are counted."""

        async def endpoint(request: Request) -> Response:
            path = request.scope["path"]
            begun = time.perf_counter()
            try:
                if not path.startswith(OPEN) and name != "model_ready":
                    self.admit(key_of(request.headers.get("authorization", ""), request.headers.get("x-api-key")))
                response = await handler(request)
            except ClientDisconnect:
                response = Response(status_code=499)
            except Exception as error:
                response = self.failure(name, error)
            quiet = path.startswith((*OPEN, "/metrics"))
            asked = request.path_params.get("model", "")
            self.count(name, asked, response.status_code, time.perf_counter() - begun, quiet=quiet)
            if self.draining:
                response.headers["connection"] = "close"
            return response

        return endpoint

    def failure(self, endpoint: str, error: BaseException) -> Response:
        """The answer that an error becomes."""
        if isinstance(error, KerasVAEError):
            return refuse(error)
        # the type alone: a message may hold what the client sent
        log.error("failed", extra={"endpoint": endpoint, "error": type(error).__name__})
        return as_json({"error": "The server failed. Its log says more."}, 500)

    def count(self, endpoint: str, asked: str, status: int, seconds: float, *, quiet: bool = False) -> None:
        """Count an answer, and log it."""
        model = asked if asked.removesuffix(DECODER) in self.repository.names else ""
        self.metrics.answered(model, endpoint, "http", str(status), seconds)
        level = logging.INFO if status >= 400 and not quiet else logging.DEBUG
        if log.isEnabledFor(level):
            about = {"endpoint": endpoint, "model": model, "status": status, "ms": round(1000 * seconds, 3)}
            log.log(level, "answered", extra=about)

    async def _lost(self, request: Request, error: Exception) -> Response:
        """No such path, or not by this method."""
        status = getattr(error, "status_code", 404)
        headers = getattr(error, "headers", None)
        sentence = {404: "There is nothing at this path. See /docs.", 405: "This path takes another method. See /docs."}
        self.count("none", "", status, 0.0)
        return as_json({"error": sentence.get(status, "The request was refused.")}, status, headers)


def _place(request: Request) -> tuple[str, str | None]:
    """Model and version of a path."""
    return request.path_params["model"], request.path_params.get("version")
