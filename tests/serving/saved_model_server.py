"""What TF Serving is for tests: its loader of SavedModels and its interface over gRPC, without its binary.

A process of its own. The loader is TensorFlow's C library, which TF Serving is built on, with XLA turned off as TF
Serving's main does; TensorFlow's Python is never run, only its compiled messages are read. The servicers are those of
`tensorflow-serving-api`. Codes and words of refusals, warm-up before a version is served, answers as lists of numbers
(`float_val`) and the policy that the latest version alone is served are as in TF Serving's sources. It does not watch
folders, does not batch, and knows no labels of versions. Argument: the `models.config` to serve.
"""
# ruff: noqa: E402

from __future__ import annotations

import importlib.util
import json
import signal
import struct
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import numpy as np


def module_of(name: str, path: Path | None = None) -> ModuleType:
    """A module that is found but not yet run."""
    spec = importlib.util.find_spec(name) if path is None else importlib.util.spec_from_file_location(name, path)
    return importlib.util.module_from_spec(spec)


if (
    __name__ == "__main__"
):  # a folder to find messages in, whose __init__ does not run; not where doctests are collected
    sys.modules["tensorflow"] = module_of("tensorflow")

from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

c_api = module_of("c_api", Path(*importlib.util.find_spec("kerasvae_export").submodule_search_locations) / "c_api.py")
c_api.__spec__.loader.exec_module(c_api)

CODES = {code.value[0]: code for code in grpc.StatusCode}
FIELDS = {1: "float_val", 3: "int_val", 9: "int64_val", 7: "string_val"}
TYPES = {1: "<f4", 3: "<i4", 9: "<i8"}
WARMUP = "assets.extra/tf_serving_warmup_requests"
AVAILABLE = 30


class Refused(Exception):
    def __init__(self, code: grpc.StatusCode, words: str) -> None:
        super().__init__(words)
        self.code, self.words = code, words


class Version:
    """The latest version in a model's folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.number = name, max(int(each.name) for each in folder.iterdir() if each.name.isdecimal())
        place = folder / str(self.number)
        (graph,) = saved_model_pb2.SavedModel.FromString((place / "saved_model.pb").read_bytes()).meta_graphs
        self.signatures = graph.signature_def
        self._model, self._lock = c_api.SavedModel(place), threading.Lock()
        self.warmed = [self._warm(record) for record in records(place / WARMUP)]

    def _warm(self, record: bytes) -> str:
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        self.predict(request)
        return request.model_spec.signature_name

    def predict(self, request: Any) -> Any:
        name = request.model_spec.signature_name or "serving_default"
        if name not in self.signatures:
            words = f'Serving signature key "{name}" not found.'
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, words)
        signature = self.signatures[name]
        if len(request.inputs) != len(signature.inputs):
            words = f"input size does not match signature: {len(request.inputs)}!={len(signature.inputs)}"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, words)
        given = {key: array_of(key, tensor, signature) for key, tensor in request.inputs.items()}
        for key in request.output_filter:
            if key not in signature.outputs:
                words = f"output tensor alias not found in signature: {key}"
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, words)
        try:
            with self._lock:
                found = self._model.run(name, given)
        except c_api.GraphError as error:
            raise Refused(CODES[error.code], str(error)) from error
        response = predict_pb2.PredictResponse()
        response.model_spec.CopyFrom(request.model_spec)
        response.model_spec.signature_name, response.model_spec.version.value = name, self.number
        for key in request.output_filter or found:
            tensor, value = response.outputs[key], found[key]
            tensor.dtype = signature.outputs[key].dtype
            for size in value.shape:
                tensor.tensor_shape.dim.add(size=size)
            getattr(tensor, FIELDS[tensor.dtype]).extend(value.ravel().tolist())
        return response


def array_of(name: str, tensor: Any, signature: Any) -> Any:
    """What the C library is given for a TensorProto: an array, or a list of bytes."""
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    if name not in signature.inputs:
        raise Refused(invalid, f"input tensor alias not found in signature: {name}")
    if tensor.dtype != signature.inputs[name].dtype:
        raise Refused(invalid, f"Expects {name} to be {signature.inputs[name].dtype} but {tensor.dtype} is provided")
    if tensor.dtype not in TYPES:
        return list(tensor.string_val)
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    content = np.frombuffer(tensor.tensor_content, TYPES[tensor.dtype])
    values = content if len(content) else np.array(getattr(tensor, FIELDS[tensor.dtype]), TYPES[tensor.dtype])
    if len(values) not in (1, int(np.prod(shape))):
        raise Refused(invalid, f"{name} could not be parsed as a tensor")
    return np.broadcast_to(values, shape) if len(values) == 1 else values.reshape(shape)


def records(path: Path) -> Iterator[bytes]:
    """Of a TFRecord file: length and its checksum, content and its checksum."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield data[place + 12 : place + 12 + length]
        place += length + 16


class Services(prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer):
    """Both of TF Serving's services; what is not here is answered by UNIMPLEMENTED, as the stubs do."""

    def __init__(self, models: dict[str, Version]) -> None:
        self._models = models

    def _found(self, spec: Any) -> Version:
        found = self._models.get(spec.name)
        wanted = spec.version.value if spec.WhichOneof("version_choice") == "version" else None
        if found is None or wanted not in (None, found.number):
            asked = "Latest" if wanted is None else "Specific"
            words = f"Servable not found for request: {asked}({spec.name}{'' if wanted is None else f', {wanted}'})"
            raise Refused(grpc.StatusCode.NOT_FOUND, words)
        return found

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
        try:
            return self._found(request.model_spec).predict(request)
        except Refused as error:
            context.abort(error.code, error.words)

    def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        if list(request.metadata_field) != ["signature_def"]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "metadata_field must be signature_def")
        try:
            found = self._found(request.model_spec)
        except Refused as error:
            context.abort(error.code, error.words)
        described = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in found.signatures.items():
            described.signature_def[name].CopyFrom(signature)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name, response.model_spec.version.value = found.name, found.number
        response.metadata["signature_def"].Pack(described)
        return response

    def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        try:
            found = self._found(request.model_spec)
        except Refused as error:
            context.abort(error.code, f"Could not find any versions of model {request.model_spec.name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        response.model_version_status.add(version=found.number, state=AVAILABLE).status.error_code = 0
        return response


def say(message: str, **about: Any) -> None:
    print(json.dumps({"message": message, **about}), file=sys.stderr, flush=True)


def main(config: str) -> None:
    parsed = text_format.Parse(Path(config).read_text(), model_server_config_pb2.ModelServerConfig())
    models = {each.name: Version(each.name, Path(each.base_path)) for each in parsed.model_config_list.config}
    assert not [name for name in sys.modules if name.startswith("tensorflow.python")]
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    services = Services(models)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(services, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(services, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    say("listening", http=None, grpc=f"127.0.0.1:{port}")
    say("ready", warmed={name: version.warmed for name, version in models.items()})
    stopped.wait()
    server.stop(1).wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
