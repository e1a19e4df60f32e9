"""What `kerasvae deploy` lays out, as TF Serving serves it: every signature, by the clients that people have.

The server is `saved_model_server`: TF Serving's loader and interface, not its binary.
"""

from __future__ import annotations

import subprocess
import sys

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from kerasvae.bundle import largest_difference

CLOSE = 1e-5
"""Largest difference from ONNX Runtime, relative to the largest value."""


@pytest.fixture(scope="module")
def channel(tf_serving):
    with grpc.insecure_channel(tf_serving.grpc, options=[("grpc.max_receive_message_length", -1)]) as made:
        yield made


def asked(signature="encode", model="blobs", version=None, **inputs):
    import tensorflow as tf

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    if version is not None:
        request.model_spec.version.value = version
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def predict(channel, *arguments, **inputs):
    import tensorflow as tf

    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    answer = stub.Predict(asked(*arguments, **inputs), 60)
    return {name: tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()}


def test_every_signature_gives_what_the_engine_gives(channel, engine, prepared, scan_file):
    z = np.random.default_rng(0).normal(size=(4, 3)).astype("f4")
    expected = {
        "encode": (engine.encode(prepared), {"image": prepared}),
        "": (engine.encode(prepared), {"image": prepared}),
        "encode_nifti": (engine.encode([scan_file, scan_file]), {"nifti": [scan_file.read_bytes()] * 2}),
        "decode": ({"reconstruction": engine.decode(z)}, {"z": z}),
        "reconstruct": ({"reconstruction": engine.reconstruct(prepared)}, {"image": prepared}),
        "score": (engine.score(prepared), {"image": prepared}),
    }
    for signature, (outputs, inputs) in expected.items():
        found = predict(channel, signature, **inputs)
        assert found.keys() == outputs.keys()
        far = {name: largest_difference(found[name], outputs[name]) for name in outputs}
        assert max(far.values()) <= CLOSE, far


def test_a_model_with_covariates(channel, bundles, prepared, scan_file):
    from kerasvae_serving import Engine

    aged, covariates = Engine(bundles / "aged-1"), np.array([[63, 0], [41, 1]], "f4")
    for signature, key, given, scans in (
        ("encode", "image", prepared[:2], prepared[:2]),
        ("encode_nifti", "nifti", [scan_file.read_bytes()] * 2, [scan_file, scan_file]),
    ):
        found = predict(channel, signature, "aged", **{key: given}, covariates=covariates)
        for name, value in aged.encode(scans, covariates).items():
            assert largest_difference(found[name], value) <= CLOSE


def test_what_is_served_is_described(channel, prepared):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "blobs"
    described = get_model_metadata_pb2.SignatureDefMap()
    answer = stub.GetModelMetadata(request, 60)
    assert answer.metadata["signature_def"].Unpack(described)
    assert answer.model_spec.version.value == 1
    known = ["decode", "encode", "encode_nifti", "reconstruct", "score", "serving_default"]
    assert sorted(name for name in described.signature_def if not name.startswith("__")) == known
    image = described.signature_def["encode"].inputs["image"]
    assert (image.dtype, [dim.size for dim in image.tensor_shape.dim]) == (1, [-1, *prepared.shape[1:]])
    assert described.signature_def["encode_nifti"].inputs["nifti"].dtype == 7
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "blobs"
    answer = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, 60)
    assert [(each.version, each.state) for each in answer.model_version_status] == [(1, 30)]


def test_warm_up_requests_ran_before_it_was_ready(tf_serving):
    warmed = tf_serving.wait_for("ready")["warmed"]
    assert sorted(warmed["blobs"]) == ["decode", "encode", "encode_nifti", "reconstruct", "score"]
    assert sorted(warmed["aged"]) == ["decode", "encode", "encode_nifti", "reconstruct"]


@pytest.mark.parametrize(
    ("arguments", "change", "code", "words"),
    [
        (("encode", "nobody"), {}, "NOT_FOUND", "nobody"),
        (("encode", "blobs", 9), {}, "NOT_FOUND", "9"),
        (("segment",), {}, "FAILED_PRECONDITION", "segment"),
        ((), {"picture": None}, "INVALID_ARGUMENT", "picture"),
        ((), {"image": None, "z": None}, "INVALID_ARGUMENT", "2!=1"),
        ((), {"image": "float64"}, "INVALID_ARGUMENT", "image"),
        ((), {"image": "too few axes"}, "INVALID_ARGUMENT", ""),
        (("encode_nifti",), {"nifti": b"nothing of the kind"}, "INVALID_ARGUMENT", "NIfTI"),
    ],
)
def test_what_cannot_be_answered_has_its_code(channel, prepared, arguments, change, code, words):
    values = {None: prepared[:1], "float64": prepared[:1].astype("f8"), "too few axes": prepared[0, 0]}
    given = change or {"image": None}
    inputs = {name: [value] if isinstance(value, bytes) else values[value] for name, value in given.items()}
    with pytest.raises(grpc.RpcError) as caught:
        predict(channel, *arguments, **inputs)
    assert caught.value.code().name == code
    assert words in caught.value.details()


OVMS = """
import sys, numpy as np
from ovmsclient import make_grpc_client
image = np.load(sys.argv[2])
client = make_grpc_client(sys.argv[1])
assert client.get_model_status("blobs", model_version=1)[1]["state"] == "AVAILABLE"
assert client.get_model_metadata("blobs", model_version=1)["inputs"]["image"]["shape"] == [-1, *image.shape[1:]]
np.savez(sys.argv[3], **client.predict({"image": image}, "blobs", model_version=1, timeout=60))
"""


def test_openvinos_client(tf_serving, engine, prepared, tmp_path):
    """With the version: it says 0 for the default, which TF Serving takes for the number that it is."""
    np.save(tmp_path / "image.npy", prepared)
    call = [sys.executable, "-W", "ignore", "-c", OVMS, tf_serving.grpc, tmp_path / "image.npy", tmp_path / "found.npz"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        for name, value in engine.encode(prepared).items():
            assert largest_difference(found[name], value) <= CLOSE
