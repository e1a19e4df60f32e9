"""The calls over gRPC: the Open Inference Protocol of kerasvae and Triton, and TF Serving's services."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from kerasvae.errors import ArgumentError
from kerasvae_serving import open_inference as oip
from kerasvae_serving import tf_tensors
from kerasvae_serving.client.calls import Arrays, Covariates, Encoded, Part, Scan, Server, nifti_for, numbers_of, refuse
from kerasvae_serving.messages import message

__all__ = ["GrpcCall", "GrpcCalls"]

OPEN_INFERENCE = "inference.GRPCInferenceService"
PREDICTION, MODEL = "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"
AVAILABLE = 30


@dataclass(frozen=True)
class GrpcCall:
    """A request to a method of a service, and how its answer is read."""

    service: str
    method: str
    request: Any
    read: Callable[[Any], Any]


@dataclass(frozen=True)
class GrpcCalls:
    """See `Calls`."""

    model: str
    version: int | None
    server: Server

    def of_version(self, version: int) -> Self:
        """See `Calls.of_version`."""
        return replace(self, version=version)

    def ready(self) -> GrpcCall:
        """See `Calls.ready`."""
        if self.server != "tf-serving":
            request = message("inference.ServerReadyRequest")()
            return GrpcCall(OPEN_INFERENCE, "ServerReady", request, lambda answer: answer.ready)
        request = message("tensorflow.serving.GetModelStatusRequest")()
        self._specify(request.model_spec)
        return GrpcCall(MODEL, "GetModelStatus", request, _available)

    def models(self) -> GrpcCall:
        """See `Calls.models`."""
        raise self._no_files("covariates")

    def encode(self, scan: Scan, covariates: Covariates | None) -> GrpcCall:
        """See `Calls.encode`."""
        if self.server != "tf-serving":
            raise self._no_files("encode")
        content = nifti_for(scan, covariates)
        request = self._predict("encode_nifti")
        tensor = request.inputs["nifti"]
        tensor.dtype = tf_tensors.STRING
        tensor.tensor_shape.dim.add(size=1)
        tensor.string_val.append(content)

        def read(answer: Any) -> Encoded:
            return Encoded({name: value[0] for name, value in _tf_outputs(answer).items()})

        return GrpcCall(PREDICTION, "Predict", request, read)

    def score(self, scan: Scan, covariates: Covariates | None) -> GrpcCall:
        """See `Calls.score`."""
        raise self._no_files("score")

    def map_of(self, kind: str, scan: Scan, covariates: Covariates | None, space: str) -> GrpcCall:
        """See `Calls.map_of`."""
        raise self._no_files(kind)

    def infer(self, part: Part, arrays: Arrays) -> GrpcCall:
        """See `Calls.infer`."""
        given = numbers_of(arrays)
        if self.server == "tf-serving":
            request = self._predict({"encoder": "encode", "decoder": "decode"}[part])
            for name, value in given.items():
                tf_tensors.fill(request.inputs[name], value)
            return GrpcCall(PREDICTION, "Predict", request, _tf_outputs)
        model = self.model if part == "encoder" else f"{self.model}-decoder"
        request = message("inference.ModelInferRequest")(model_name=model, model_version=str(self.version or ""))
        for name, value in given.items():
            request.inputs.add(name=name, datatype="FP32", shape=value.shape)
            request.raw_input_contents.append(value.astype("<f4", copy=False).tobytes())
        return GrpcCall(OPEN_INFERENCE, "ModelInfer", request, _outputs)

    def _no_files(self, what: str) -> ArgumentError:
        if self.server != "kerasvae":
            return refuse(self.server, what)
        rule = f"begin with http:// or https:// for {what}: kerasvae takes files over HTTP, over gRPC prepared arrays"
        return ArgumentError("url", rule=rule, got="one of gRPC", fix="Use the server's HTTP port, or `infer`")

    def _predict(self, signature: str) -> Any:
        request = message("tensorflow.serving.PredictRequest")()
        self._specify(request.model_spec)
        request.model_spec.signature_name = signature
        return request

    def _specify(self, spec: Any) -> None:
        spec.name = self.model
        if self.version is not None:
            spec.version.value = self.version


def _available(answer: Any) -> bool:
    return any(entry.state == AVAILABLE for entry in answer.model_version_status)


def _tf_outputs(answer: Any) -> Arrays:
    return {name: tf_tensors.read(name, tensor) for name, tensor in answer.outputs.items()}


def _outputs(answer: Any) -> Arrays:
    return {
        entry.name: np.frombuffer(content, oip.DATATYPES[entry.datatype]).reshape(tuple(entry.shape))
        for entry, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }
