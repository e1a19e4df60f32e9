"""The server's gRPC side by other people's clients: Triton's, TF Serving's, OpenVINO Model Server's."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest

from kerasvae_serving.messages import message, parse, service

PROTOS = Path(importlib.util.find_spec("kerasvae_serving").submodule_search_locations[0]) / "protos"


@pytest.fixture(scope="session")
def channel(server):
    with grpc.insecure_channel(server.grpc, options=[("grpc.max_receive_message_length", -1)]) as made:
        yield made


def call(channel, method, request, kind="inference.GRPCInferenceService", metadata=()):
    asked, answered = service(kind)[method]
    made = channel.unary_unary(f"/{kind}/{method}", asked.SerializeToString, answered.FromString)
    return made(request, timeout=60, metadata=metadata)


def refused(channel, method, request, code, *words, kind="inference.GRPCInferenceService"):
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, request, kind)
    assert caught.value.code() == code
    for word in words:
        assert word in caught.value.details()


def infer(image, raw=True, model="blobs", **changes):
    request = message("inference.ModelInferRequest")(model_name=model, id="7")
    entry = request.inputs.add(**({"name": "image", "datatype": "FP32", "shape": image.shape} | changes))
    if raw:
        request.raw_input_contents.append(image.tobytes())
    else:
        entry.contents.fp32_contents.extend(image.ravel().tolist())
    return request


def test_health_and_metadata(channel, prepared):
    assert call(channel, "ServerLive", message("inference.ServerLiveRequest")()).live
    assert call(channel, "ServerReady", message("inference.ServerReadyRequest")()).ready
    assert call(channel, "ModelReady", message("inference.ModelReadyRequest")(name="blobs", version="1")).ready
    assert call(channel, "ServerMetadata", message("inference.ServerMetadataRequest")()).name == "kerasvae"
    found = call(channel, "ModelMetadata", message("inference.ModelMetadataRequest")(name="blobs"))
    assert (found.name, list(found.versions)) == ("blobs", ["1"])
    shapes = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in (*found.inputs, *found.outputs)}
    image = ("FP32", [-1, *prepared.shape[1:]])
    assert shapes == {"image": image, "mean": ("FP32", [-1, 3]), "stddev": ("FP32", [-1, 3])}
    index = call(channel, "RepositoryIndex", message("inference.RepositoryIndexRequest")(ready=True))
    assert {(model.name, model.version, model.state) for model in index.models} == {
        ("aged", "1", "READY"), ("blobs", "1", "READY"),
    }  # fmt: skip


@pytest.mark.parametrize("raw", [True, False])
def test_infer_takes_bytes_or_numbers(channel, engine, prepared, raw):
    found = call(channel, "ModelInfer", infer(prepared[:2], raw))
    assert (found.model_name, found.model_version, found.id) == ("blobs", "1", "7")
    for output, content in zip(found.outputs, found.raw_output_contents, strict=True):
        value = np.frombuffer(content, "<f4").reshape(list(output.shape))
        np.testing.assert_allclose(value, engine.encode(prepared[:2])[output.name], atol=1e-5)


def test_what_cannot_be_answered_has_a_code_and_a_sentence(channel, prepared):
    wrong = grpc.StatusCode.INVALID_ARGUMENT
    unknown = grpc.StatusCode.NOT_FOUND
    refused(channel, "ModelInfer", infer(prepared[:1], model="nobody"), unknown, "nobody")
    refused(channel, "ModelReady", message("inference.ModelReadyRequest")(name="nobody"), unknown)
    refused(channel, "ModelInfer", infer(prepared[:1], datatype="FP64"), wrong)
    refused(channel, "ModelInfer", infer(prepared[:1], datatype="FP33"), wrong, "FP33")
    refused(channel, "ModelInfer", infer(prepared[:1], name="picture"), wrong, "picture")
    refused(channel, "ModelInfer", infer(prepared[:1], shape=[2, *prepared.shape[1:]]), wrong, "bytes")
    refused(channel, "ModelInfer", infer(prepared[:1], shape=[-1, *prepared.shape[1:]]), wrong)
    refused(channel, "ModelInfer", infer(prepared[:1, :4]), wrong, "shape")
    refused(channel, "ModelInfer", infer(prepared[:1] * np.float32("nan")), wrong, "finite")
    twice = infer(prepared[:1])
    twice.raw_input_contents.append(b"")
    refused(channel, "ModelInfer", twice, wrong, "raw_input_contents")
    both = infer(prepared[:1])
    both.inputs[0].contents.fp32_contents.append(1.0)
    refused(channel, "ModelInfer", both, wrong, "both")
    other = infer(prepared[:1])
    other.outputs.add(name="nobody")
    refused(channel, "ModelInfer", other, wrong, "nobody")
    assert call(channel, "ModelInfer", infer(prepared[:1])).outputs


def test_tritons_client_over_http(server, engine, prepared):
    from tritonclient import http

    with http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_model_ready("blobs")
        given = http.InferInput("image", prepared.shape, "FP32")
        given.set_data_from_numpy(prepared)
        asked = [
            http.InferRequestedOutput("mean", binary_data=True),
            http.InferRequestedOutput("stddev", binary_data=False),
        ]
        found = client.infer("blobs", [given], outputs=asked, request_compression_algorithm="gzip")
        for name, value in engine.encode(prepared).items():
            np.testing.assert_allclose(found.as_numpy(name), value, atol=1e-5)
        codes = http.InferInput("z", [1, 3], "FP32")
        codes.set_data_from_numpy(np.zeros((1, 3), "f4"))
        made = client.infer("blobs-decoder", [codes]).as_numpy("reconstruction")
        np.testing.assert_allclose(made, engine.decode(np.zeros((1, 3))), atol=1e-5)


TRITON_GRPC = """
import sys, numpy as np
from tritonclient import grpc
image = np.load(sys.argv[2])
client = grpc.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("blobs", "1")
assert client.get_model_metadata("blobs").inputs[0].name == "image"
given = grpc.InferInput("image", image.shape, "FP32")
given.set_data_from_numpy(image)
found = client.infer("blobs", [given], client_timeout=60)
np.savez(sys.argv[3], **{name: found.as_numpy(name) for name in ("mean", "stddev")})
"""


def test_tritons_client_over_grpc(server, engine, prepared, tmp_path):
    """In a process of its own: its messages and TF Serving's must not meet."""
    np.save(tmp_path / "image.npy", prepared)
    call = [sys.executable, "-c", TRITON_GRPC, server.grpc, tmp_path / "image.npy", tmp_path / "found.npz"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        for name, value in engine.encode(prepared).items():
            np.testing.assert_allclose(found[name], value, atol=1e-5)


def test_tf_servings_stubs(channel, engine, prepared):
    import tensorflow as tf
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "blobs"
    request.inputs["image"].CopyFrom(tf.make_tensor_proto(prepared))
    found = stub.Predict(request, 60)
    assert (found.model_spec.version.value, found.model_spec.signature_name) == (1, "serving_default")
    for name, value in engine.encode(prepared).items():
        np.testing.assert_allclose(tf.make_ndarray(found.outputs[name]), value, atol=1e-5)
    request.model_spec.signature_name = "score"
    request.model_spec.version.value = 1
    request.output_filter.append("distance")
    found = stub.Predict(request, 60)
    assert list(found.outputs) == ["distance"]
    np.testing.assert_allclose(
        tf.make_ndarray(found.outputs["distance"]), engine.score(prepared)["distance"], rtol=1e-5
    )
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "blobs"
    described = get_model_metadata_pb2.SignatureDefMap()
    assert stub.GetModelMetadata(asked, 60).metadata["signature_def"].Unpack(described)
    assert sorted(described.signature_def) == ["decode", "encode", "reconstruct", "score", "serving_default"]
    entry = described.signature_def["encode"].inputs["image"]
    assert [dim.size for dim in entry.tensor_shape.dim] == [-1, *prepared.shape[1:]]
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "blobs"
    found = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status, 60)
    assert [(entry.version, entry.state) for entry in found.model_version_status] == [(1, 30)]
    request.model_spec.version.value = 9
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request, 60)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


OVMS = """
import sys, numpy as np
from ovmsclient import make_grpc_client
image = np.load(sys.argv[2])
client = make_grpc_client(sys.argv[1])
assert client.get_model_status("blobs")[1]["state"] == "AVAILABLE"
assert client.get_model_metadata("blobs")["inputs"]["image"]["shape"] == [-1, *image.shape[1:]]
np.savez(sys.argv[3], **client.predict({"image": image}, "blobs", timeout=60))
"""


def test_openvinos_client(server, engine, prepared, tmp_path):
    np.save(tmp_path / "image.npy", prepared)
    call = [sys.executable, "-W", "ignore", "-c", OVMS, server.grpc, tmp_path / "image.npy", tmp_path / "found.npz"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        for name, value in engine.encode(prepared).items():
            np.testing.assert_allclose(found[name], value, atol=1e-5)


OFFICIAL = """
import json
from importlib import import_module
found = {}
for module in %r:
    for name, kind in import_module(module).DESCRIPTOR.message_types_by_name.items():
        waiting = [kind]
        while waiting:
            each = waiting.pop()
            waiting += each.nested_types
            found[each.full_name] = {f.name: [f.number, f.type, f.is_repeated,
                f.message_type.full_name if f.message_type else ""] for f in each.fields}
print(json.dumps(found))
"""
MODULES = {
    "open_inference": ["tritonclient.grpc.service_pb2"],
    "tensorflow_serving": [
        f"tensorflow_serving.apis.{name}_pb2" for name in (
            "predict", "model", "get_model_metadata", "get_model_status", "status",
        )
    ],
    "tensorflow_tensor": [
        "tensorflow.core.framework.tensor_pb2", "tensorflow.core.framework.tensor_shape_pb2",
        "tensorflow.core.protobuf.meta_graph_pb2",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_messages_are_the_official_ones(name):
    """Numbers, types and names of every field, from the clients' own descriptions."""
    call = [sys.executable, "-W", "ignore", "-c", OFFICIAL % MODULES[name]]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=True)
    official = json.loads(done.stdout.splitlines()[-1])
    ours = parse(f"{name}.proto", (PROTOS / f"{name}.proto").read_text())
    waiting = [f"{ours.package}.{each.name}" for each in ours.message_type]
    fields = 0
    while waiting:
        full = waiting.pop()
        described = message(full).DESCRIPTOR
        waiting += [each.full_name for each in described.nested_types]
        for field in described.fields:
            number, kind, repeated, inner = official[full][field.name]
            assert (field.number, field.is_repeated) == (number, repeated), f"{full}.{field.name}"
            # what is an enumeration there is the number that it travels as here
            assert field.type == (5 if kind == 14 else kind), f"{full}.{field.name}"
            assert (field.message_type.full_name if field.message_type else "") == inner
            fields += 1
    assert fields > 20


def test_they_are_read_by_the_compiler_too(tmp_path):
    """Whoever wants a client in another language compiles the files."""
    include = Path(importlib.util.find_spec("grpc_tools").submodule_search_locations[0]) / "_proto"
    files = [str(path) for path in sorted(PROTOS.glob("*.proto"))]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"-I{include}"]
    subprocess.run([*command, f"--descriptor_set_out={tmp_path / 'made'}", *files], check=True, timeout=120)
    from google.protobuf import descriptor_pb2

    made = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "made").read_bytes())
    for file in made.file:
        ours = parse(file.name, (PROTOS / file.name).read_text())
        names = [(m.name, [(f.name, f.number, f.label) for f in m.field]) for m in ours.message_type]
        assert names == [(m.name, [(f.name, f.number, f.label) for f in m.field]) for m in file.message_type]
        assert [(s.name, len(s.method)) for s in ours.service] == [(s.name, len(s.method)) for s in file.service]
