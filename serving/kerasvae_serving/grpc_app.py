"""The gRPC side of a server: the Open Inference Protocol and TF Serving's, over the same models and work."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version as version_of
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from kerasvae.bundle import Tensor
from kerasvae.errors import ArgumentError, KerasVAEError
from kerasvae_serving import open_inference as oip
from kerasvae_serving import tf_tensors
from kerasvae_serving.app import EXTENSIONS, PLATFORM, SERVER, App
from kerasvae_serving.messages import message, service
from kerasvae_serving.repository import DECODER
from kerasvae_serving.settings import key_of
from kerasvae_serving.signatures import Signature
from kerasvae_serving.tf_rest import DEFAULT, signature_of

__all__ = ["STATUS", "grpc_server"]

log = logging.getLogger("kerasvae.serving")
STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""What an error's HTTP status is in gRPC."""
PUSHBACK = {413: "-1", 429: "1000", 503: "1000"}
"""By HTTP status, after how many milliseconds to ask again (gRPC's proposal A6): below 0 never."""
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip
_FREE = ("ServerLive", "ServerReady", "ModelReady")
"""What needs no key."""


def grpc_server(app: App) -> grpc.aio.Server:
    """A server that has no port yet."""
    most = app.settings.max_body + 2**16
    server = grpc.aio.server(
        maximum_concurrent_rpcs=app.work.most + 16,  # each may hold a body
        options=[
            ("grpc.max_receive_message_length", most),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
    )
    answers = _Answers(app)
    for name in (
        "inference.GRPCInferenceService",
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
    ):
        handlers = {
            method: grpc.unary_unary_rpc_method_handler(
                answers.guarded(method, getattr(answers, _snake(method))),
                request_deserializer=asked.FromString,
                response_serializer=answered.SerializeToString,
            )
            for method, (asked, answered) in service(name).items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    return server


class _Answers:
    """One method for each of the services'."""

    def __init__(self, app: App) -> None:
        self._app = app

    def guarded(self, name: str, method: Callable[[Any, Any], Awaitable[Any]]) -> Any:
        """A method whose errors become statuses, and whose answers are counted."""

        async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
            begun = time.perf_counter()
            code, words, made, status = grpc.StatusCode.OK, "", None, 200
            try:
                if name not in _FREE:
                    self._app.admit(_key(context))
                made = await method(request, context)
            except KerasVAEError as error:
                status = error.http_status
                code, words = STATUS.get(status, grpc.StatusCode.INTERNAL), str(error)
            except Exception as error:
                log.error("failed", extra={"endpoint": name, "error": type(error).__name__})
                code, words = grpc.StatusCode.INTERNAL, "The server failed. Its log says more."
            seconds = time.perf_counter() - begun
            asked = getattr(request, "model_name", "") or getattr(getattr(request, "model_spec", None), "name", "")
            model = asked if asked.removesuffix(DECODER) in self._app.repository.names else ""
            self._app.metrics.answered(model, name, "grpc", code.name, seconds)
            level = logging.INFO if made is None else logging.DEBUG
            if log.isEnabledFor(level):
                about = {"endpoint": name, "model": model, "status": code.name, "ms": round(1000 * seconds, 3)}
                log.log(level, "answered", extra=about)
            if made is None:
                pushback = (("grpc-retry-pushback-ms", PUSHBACK[status]),) if status in PUSHBACK else ()
                await context.abort(code, words, pushback)
            return made

        return answer

    async def server_live(self, request: Any, context: Any) -> Any:
        return message("inference.ServerLiveResponse")(live=True)

    async def server_ready(self, request: Any, context: Any) -> Any:
        return message("inference.ServerReadyResponse")(ready=self._app.ready)

    async def model_ready(self, request: Any, context: Any) -> Any:
        self._app.repository.resolve(request.name, request.version)
        return message("inference.ModelReadyResponse")(ready=not self._app.draining)

    async def server_metadata(self, request: Any, context: Any) -> Any:
        made = message("inference.ServerMetadataResponse")
        return made(name=SERVER, version=version_of("kerasvae"), extensions=EXTENSIONS)

    async def model_metadata(self, request: Any, context: Any) -> Any:
        found, signature = self._app.repository.resolve(request.name, request.version)
        made = message("inference.ModelMetadataResponse")(name=request.name, platform=PLATFORM)
        made.versions.extend(str(number) for number in self._app.repository.versions(found.name))
        for part in ("inputs", "outputs"):
            for tensor in getattr(signature, part):
                entry = getattr(made, part).add(name=tensor.name, datatype=oip.datatype(tensor.dtype))
                entry.shape.extend([-1, *tensor.shape])
        return made

    async def repository_index(self, request: Any, context: Any) -> Any:
        made = message("inference.RepositoryIndexResponse")()
        for entry in self._app.repository.index():
            if entry.state == "READY" or not request.ready:
                made.models.add(**vars(entry))
        return made

    async def model_infer(self, request: Any, context: Any) -> Any:
        found, signature = self._app.repository.resolve(request.model_name, request.model_version)

        def work() -> Any:
            given = _inputs(request)
            oip.check_tensors(given, signature.inputs)
            outputs = self._app.run(signature, given)
            made = message("inference.ModelInferResponse")(
                model_name=request.model_name, model_version=str(found.number), id=request.id
            )
            for name in oip.chosen((entry.name for entry in request.outputs), outputs):
                value = np.ascontiguousarray(outputs[name])
                kind = oip.datatype(value.dtype.name)
                made.outputs.add(name=name, datatype=kind, shape=value.shape)
                made.raw_output_contents.append(value.astype(oip.DATATYPES[kind], copy=False).tobytes())
            return made

        return await self._app.work.run(work, deadline=context.time_remaining())

    async def predict(self, request: Any, context: Any) -> Any:
        found = self._found(request.model_spec)
        known = found.signatures
        signature = signature_of(request.model_spec.signature_name, known)

        def work() -> Any:
            given = {name: tf_tensors.read(name, value) for name, value in request.inputs.items()}
            oip.check_tensors(given, signature.inputs)
            outputs = self._app.run(signature, given)
            made = message("tensorflow.serving.PredictResponse")()
            self._spec(made.model_spec, found, request.model_spec.signature_name or DEFAULT)
            for name in oip.chosen(request.output_filter, outputs, "output_filter"):
                tf_tensors.fill(made.outputs[name], outputs[name])
            return made

        return await self._app.work.run(work, deadline=context.time_remaining())

    async def get_model_metadata(self, request: Any, context: Any) -> Any:
        found = self._found(request.model_spec)
        if list(request.metadata_field) not in ([], ["signature_def"]):
            got = ", ".join(request.metadata_field)[:60]
            raise ArgumentError("metadata_field", rule="be signature_def", got=got, fix="Correct it")
        described = message("tensorflow.serving.SignatureDefMap")()
        known = found.signatures
        for name, signature in {**known, DEFAULT: known["encode"]}.items():
            _describe(described.signature_def[name], signature)
        made = message("tensorflow.serving.GetModelMetadataResponse")()
        self._spec(made.model_spec, found, "")
        made.metadata["signature_def"].Pack(described)
        return made

    async def get_model_status(self, request: Any, context: Any) -> Any:
        spec = request.model_spec
        name = spec.name
        chosen = (
            [self._found(spec).number] if _number(spec) else sorted(self._app.repository.versions(name), reverse=True)
        )
        made = message("tensorflow.serving.GetModelStatusResponse")()
        for number in chosen:
            entry = made.model_version_status.add(version=number, state=30)  # AVAILABLE
            entry.status.error_code = 0
        return made

    def _found(self, spec: Any) -> Any:
        if spec.WhichOneof("version_choice") == "version_label":
            got = repr(spec.version_label)[:60]
            raise ArgumentError("version_label", rule="be left out: there are none here", got=got, fix="Give a version")
        return self._app.repository.get(spec.name, _number(spec))

    @staticmethod
    def _spec(spec: Any, found: Any, signature: str) -> None:
        spec.name, spec.signature_name = found.name, signature
        spec.version.value = found.number


def _number(spec: Any) -> int | None:
    """The version asked for; some clients say 0 for the default."""
    return spec.version.value or None if spec.WhichOneof("version_choice") == "version" else None


def _inputs(request: Any) -> dict[str, NDArray[Any]]:
    """Arrays of a ModelInferRequest, all raw or none."""
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        rule = f"have as many entries as inputs, {len(request.inputs)}"
        raise ArgumentError("raw_input_contents", rule=rule, got=len(raw), fix="Correct it")
    found: dict[str, NDArray[Any]] = {}
    for index, entry in enumerate(request.inputs):
        if entry.datatype not in oip.DATATYPES:
            rule = f"be one of {', '.join(oip.DATATYPES)}"
            raise ArgumentError(f"datatype of {entry.name}", rule=rule, got=repr(entry.datatype)[:60], fix="Correct it")
        if entry.name in found or min(entry.shape, default=0) < 0:
            rule = "name each tensor once, with a shape of whole numbers"
            raise ArgumentError("inputs", rule=rule, got=repr(entry.name)[:60], fix="Correct it")
        shape = tuple(entry.shape)
        if raw:
            if entry.HasField("contents"):
                raise ArgumentError(entry.name, rule="come raw or as contents", got="both", fix="Leave one out")
            found[entry.name] = oip.from_bytes(entry.name, memoryview(raw[index]), shape, entry.datatype)
            continue
        if entry.datatype not in _CONTENTS:
            rule = "come in raw_input_contents"
            raise ArgumentError(f"{entry.name}, which is {entry.datatype},", rule=rule, got="contents", fix="Do so")
        values = np.array(getattr(entry.contents, _CONTENTS[entry.datatype]))
        found[entry.name] = oip.tensor_of(entry.name, values, shape, entry.datatype)
    return found


def _describe(made: Any, signature: Signature) -> None:
    def tensors(entries: Mapping[str, Any], known: tuple[Tensor, ...]) -> None:
        for tensor in known:
            entry = entries[tensor.name]
            entry.name, entry.dtype = tensor.name, tf_tensors.NUMBERS[tensor.dtype]
            for size in (-1, *tensor.shape):
                entry.tensor_shape.dim.add(size=size)

    tensors(made.inputs, signature.inputs)
    tensors(made.outputs, signature.outputs)
    made.method_name = "tensorflow/serving/predict"


def _key(context: grpc.aio.ServicerContext) -> str | None:
    given = {name.lower(): value for name, value in context.invocation_metadata() or ()}
    return key_of(str(given.get("authorization", "")), str(given.get("x-api-key", "")))


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
