"""The HTTP side of a server: the Open Inference Protocol, scans as files, TF Serving's REST, metrics, OpenAPI."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.metadata import version as version_of
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from kerasvae.errors import (
    ArgumentError,
    KerasVAEError,
    ServingError,
    TooLargeError,
    UnauthorizedError,
    UnknownModelError,
)
from kerasvae_serving import open_inference as oip
from kerasvae_serving import tf_rest
from kerasvae_serving.body import Bodies, form
from kerasvae_serving.gate import Examined, examine
from kerasvae_serving.metrics import CONTENT_TYPE, Metrics
from kerasvae_serving.openapi import describe, page
from kerasvae_serving.repository import DECODER, Repository
from kerasvae_serving.scans import FORM, about, check_type, covariates_of, map_of
from kerasvae_serving.settings import Keys, Settings
from kerasvae_serving.signatures import Signature
from kerasvae_serving.work import Work

__all__ = ["EXTENSIONS", "PLATFORM", "SERVER", "App"]

log = logging.getLogger("kerasvae.serving")
SERVER = "kerasvae"
PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ("binary_tensor_data",)
_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
OPEN = ("/v2/health", "/openapi.json", "/docs")
"""What needs no key: it says nothing of people."""


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
        self.draining = False
        self._keys = None if settings.keys is None else Keys(settings.keys)
        self._verbs: dict[str, Callable[[Request, str, str | None], Awaitable[Response]]] = {
            "encode": self._encode,
            "score": self._score,
            "reconstruct": partial(self._map, "reconstruction"),
            "deviation": partial(self._map, "deviation"),
            "predict": self._predict,
            "rollback": self._rollback,
            "activate": self._activate,
        }
        self._bodies = Bodies(settings.max_body, 4 * settings.max_body, settings.patience)
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
            ]
        for place in ("/v1/models/{target}", "/v1/models/{model}/versions/{target}"):
            routes += [("GET", place, "status", self._status), ("POST", place, "verb", self._verb)]
            routes += [("GET", f"{place}/metadata", "tf_metadata", self._tf_metadata)]
        self._rest = Starlette(
            routes=[
                Route(path, self._guarded(name, handler), methods=[method]) for method, path, name, handler in routes
            ],
            exception_handlers={HTTPException: self._lost},
        )
        self._rest.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application: the request that comes most goes the short way, all others through Starlette."""
        found = None
        if scope["type"] == "http" and scope["method"] == "POST":
            found = _INFER.fullmatch(scope["path"])
        if found is None:
            await self._rest(scope, receive, send)
            return
        headers = Headers(scope=scope)
        name, version = found.groups()
        response = await self._attempt(
            "infer", scope["path"], headers, name, lambda: self._infer(name, version, headers, receive)
        )
        await response(scope, receive, send)

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
        return signature.run(given)

    # The Open Inference Protocol

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, request: Request) -> Response:
        return _json({"ready": self.ready}, 200 if self.ready else 503)

    async def _server(self, request: Request) -> Response:
        return _json({"name": SERVER, "version": version_of("kerasvae"), "extensions": list(EXTENSIONS)})

    async def _index(self, request: Request) -> Response:
        body = await self._bodies.read(request.headers, request.receive)
        asked = oip.json_of(body) if body else {}
        ready = isinstance(asked, dict) and asked.get("ready") is True
        return _json([vars(each) for each in self.repository.index() if each.state == "READY" or not ready])

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
        return _json({"name": name, "versions": versions, "platform": PLATFORM} | described)

    async def _model_ready(self, request: Request) -> Response:
        self.repository.resolve(request.path_params["model"], request.path_params.get("version"))
        return _json({"ready": not self.draining}, 503 if self.draining else 200)

    async def _infer(self, name: str, version: str | None, headers: Headers, receive: Receive) -> Response:
        found, signature = self.repository.resolve(name, version)
        body = await self._bodies.read(headers, receive)
        json_length = headers.get(oip.JSON_LENGTH)

        def work() -> tuple[bytes, int | None]:
            asked = oip.parse(body, json_length, signature.inputs)
            made = self.run(signature, asked.inputs)
            return oip.respond(asked, made, model=name, version=str(found.number))

        content, length = await self.work.run(work)
        if length is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={oip.JSON_LENGTH: str(length)}, media_type="application/octet-stream")

    # Scans as files, and TF Serving's REST

    async def _models(self, request: Request) -> Response:
        about = []
        for entry in self.repository.index():
            engine = self.repository.get(entry.name, entry.version).engine if entry.state == "READY" else None
            known = None if engine is None else engine.covariates
            told = {"covariates": list(known.names) if known else []}
            about.append(vars(entry) | told | ({} if engine is None else {"identity": engine.identity}))
        return _json({"models": about})

    async def _status(self, request: Request) -> Response:
        name, version = _place(request.path_params)
        return _json(tf_rest.status(self.repository, name, version))

    async def _tf_metadata(self, request: Request) -> Response:
        name, version = _place(request.path_params)
        return _json(tf_rest.metadata(self.repository.get(name, version)))

    async def _verb(self, request: Request) -> Response:
        """POST …:verb; the verb decides."""
        rest, _, verb = request.path_params["target"].rpartition(":")
        name, version = _place(request.path_params | {"target": rest})
        verbs = self._verbs
        if not rest or verb not in verbs:
            raise UnknownModelError(
                "The path", rule=f"end in one of :{', :'.join(verbs)}", got=repr(verb)[:60], fix="Correct it"
            )
        return await verbs[verb](request, name, version)

    async def _predict(self, request: Request, name: str, version: str | None) -> Response:
        found = self.repository.get(name, version)
        body = await self._bodies.read(request.headers, request.receive)

        def work() -> bytes:
            asked = tf_rest.parse(body, found.signatures)
            return tf_rest.respond(asked, self.run(asked.signature, asked.inputs))

        return Response(await self.work.run(work), media_type="application/json")

    async def _encode(self, request: Request, name: str, version: str | None) -> Response:
        found, seen = await self._scan(request, name, version)
        outputs = {key: value[0] for key, value in seen.codes.items()}
        return _json(about(found, seen) | {"outputs": outputs})

    async def _score(self, request: Request, name: str, version: str | None) -> Response:
        found = self.repository.get(name, version)
        _ = found.engine.reference  # without one there is nothing to answer
        return _json(about(*await self._scan(request, name, version)))

    async def _map(self, kind: str, request: Request, name: str, version: str | None) -> Response:
        space = request.query_params.get("space", "native")
        if space not in ("native", "model"):
            raise ArgumentError("space", rule="be native or model", got=repr(space)[:60], fix="Leave it out for native")
        found, seen, content = await self._scan(request, name, version, partial(map_of, kind, space))
        seen_headers = {
            "X-Kerasvae-In-Distribution": str(seen.in_distribution).lower(),
            "X-Kerasvae-Reasons": json.dumps(list(seen.reasons)),
            "X-Kerasvae-Percentiles": json.dumps(about(found, seen)["percentiles"]),
            "X-Kerasvae-Model-Version": str(found.number),
            "Content-Disposition": f'attachment; filename="{kind}.nii.gz"',
        }
        return Response(content, headers=seen_headers, media_type="application/gzip")

    async def _scan(self, request: Request, name: str, version: str | None, then: Any = None) -> Any:
        """Examine the scan of a request; with `then`, also what that makes of it."""
        found = self.repository.get(name, version)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        fields: Mapping[str, str] = {}
        check_type(kind)
        body = await self._bodies.read(request.headers, request.receive)
        if kind == FORM:
            body, fields = await form(request, body)
        given = {**request.query_params, **fields}
        covariates = covariates_of(found, {name: value for name, value in given.items() if name != "space"})

        def work() -> Any:
            seen = examine(
                found.engine,
                body,
                covariates,
                strict=self.settings.strict,
                max_voxels=self.settings.max_voxels,
            )
            return (found, seen) if then is None else (found, seen, then(found, seen, covariates))

        made = await self.work.run(work)
        seen: Examined = made[1]
        center = seen.codes[found.engine.manifest.outputs[0].name]
        self.metrics.scan(
            found.name, found.number, center, seen.scores, seen.in_distribution, found.engine.manifest.reference
        )
        return made

    async def _rollback(self, request: Request, name: str, version: str | None) -> Response:
        self._at_home(request)
        if version is not None:
            raise ArgumentError("The path", rule="name no version to roll back", got=version, fix="Leave it out")
        return _json({"model_name": name, "model_version": str(self.repository.rollback(name).number)})

    async def _activate(self, request: Request, name: str, version: str | None) -> Response:
        self._at_home(request)
        if version is None:
            raise ArgumentError("The path", rule="name a version", got="none", fix="POST …/versions/N:activate")
        return _json({"model_name": name, "model_version": str(self.repository.activate(name, version).number)})

    # The rest

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def _openapi(self, request: Request) -> Response:
        return _json(describe(self.repository, self.settings))

    async def _docs(self, request: Request) -> Response:
        return HTMLResponse(page())

    def _at_home(self, request: Request) -> None:
        """Who may change what is served: callers with a key, or on this machine where there are none."""
        local = request.client is not None and request.client.host in ("127.0.0.1", "::1")
        local = local and not {"forwarded", "x-forwarded-for"} & set(request.headers)  # what a proxy passes on
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
            target = request.path_params.get("target", "").rpartition(":")[0]
            asked = request.path_params.get("model") or target
            return await self._attempt(name, request.scope["path"], request.headers, asked, lambda: handler(request))

        return endpoint

    async def _attempt(
        self, name: str, path: str, headers: Headers, asked: str, call: Callable[[], Awaitable[Response]]
    ) -> Response:
        """An answer, whatever happens, counted and logged."""
        begun = time.perf_counter()
        try:
            if not (path.startswith(OPEN) or path.endswith("/ready")):
                self.admit(_key(headers))
            response = await call()
        except KerasVAEError as error:
            response = refuse(error)
        except ClientDisconnect:
            response = Response(status_code=499)
        except Exception as error:
            # the type alone: a message may hold what the client sent
            log.error("failed", extra={"endpoint": name, "error": type(error).__name__})
            response = _json({"error": "The server failed. Its log says more."}, 500)
        verb = path.rpartition(":")[2]
        endpoint = verb if name == "verb" and verb in self._verbs else name
        quiet = path.startswith((*OPEN, "/metrics"))
        self._count(endpoint, asked, response.status_code, time.perf_counter() - begun, quiet=quiet)
        if self.draining:
            response.headers["connection"] = "close"
        return response

    def _count(self, endpoint: str, asked: str, status: int, seconds: float, *, quiet: bool = False) -> None:
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
        self._count("none", "", status, 0.0)
        return _json({"error": sentence.get(status, "The request was refused.")}, status, headers)


def refuse(error: KerasVAEError) -> Response:
    """The answer that an error becomes."""
    headers = {}
    status = error.http_status
    if status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not read
    if status in (429, 503):
        headers["retry-after"] = "1"
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status >= 500 and not isinstance(error, ServingError):
        log.error("failed", extra={"error": type(error).__name__})
    return _json({"error": str(error)}, status, headers)


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(data, status, dict(headers or {}), "application/json")


def _key(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


def _place(parameters: Mapping[str, Any]) -> tuple[str, str | None]:
    """Model and version of a path of TF Serving's kind."""
    return (parameters["model"], parameters["target"]) if "model" in parameters else (parameters["target"], None)
