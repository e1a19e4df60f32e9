"""Encode scans by TF Serving as they are: the graph reads the file and does the whole preprocessing.

    python encode_nifti.py localhost:8500 NAME sub-01_T1w.nii.gz sub-02_T1w.nii.gz

Takes NIfTI, packed or not. Prints a line for each scan: its name, a tab, and a JSON object with the encoder's outputs.
A scan that is refused is named on the error stream, and makes the exit status 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

SECONDS = 60


def main(address: str, model: str, *scans: str) -> int:
    """One request for each scan."""
    refused = 0
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for scan in scans:
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = model, "encode_nifti"
            request.inputs["nifti"].CopyFrom(tf.make_tensor_proto([Path(scan).read_bytes()]))
            try:
                answer = stub.Predict(request, SECONDS)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                    raise
                print(f"{scan}: {error.details().splitlines()[0]}", file=sys.stderr)  # the rest is a place in the graph
                refused = 1
                continue
            outputs = {name: tf.make_ndarray(tensor)[0].tolist() for name, tensor in answer.outputs.items()}
            print(scan, json.dumps(outputs), sep="\t")
    return refused


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
