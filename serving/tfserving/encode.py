"""Encode prepared images by TF Serving: over gRPC, or over REST where the address begins with http.

    python encode.py localhost:8500 NAME image.npy
    python encode.py http://localhost:8501 NAME image.npy

The array is (n, x, y, z), after the bundle's pipeline. Prints a JSON object: the encoder's outputs by name, a row for
each image.
"""

from __future__ import annotations

import json
import sys
import urllib.request

import numpy as np

SECONDS = 60


def over_rest(url: str, model: str, image: np.ndarray) -> dict[str, list]:
    """Numbers as text: simple, and about five times as large."""
    body = json.dumps({"signature_name": "encode", "inputs": {"image": image.tolist()}}).encode()
    request = urllib.request.Request(f"{url}/v1/models/{model}:predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        outputs = json.load(answer)["outputs"]
    return outputs if isinstance(outputs, dict) else {"mean": outputs}  # an output that is alone comes without a name


def over_grpc(address: str, model: str, image: np.ndarray) -> dict[str, list]:
    """Numbers as they lie in memory."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, "encode"
    request.inputs["image"].CopyFrom(tf.make_tensor_proto(image))
    with grpc.insecure_channel(address) as channel:
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, SECONDS)
    return {name: tf.make_ndarray(tensor).tolist() for name, tensor in answer.outputs.items()}


if __name__ == "__main__":
    place, name, path = sys.argv[1:]
    encode = over_rest if place.startswith("http") else over_grpc
    print(json.dumps(encode(place, name, np.load(path).astype(np.float32))))
