"""A bundle in the folders of TF Serving and Triton: configurations by their own schemas, requests that are answered."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

from kerasvae import VAE, Pipeline, dense_decoder, dense_encoder
from kerasvae.bundle import read_bundle
from kerasvae.cli import main
from kerasvae.errors import ArgumentError, BundleError, StorageError
from kerasvae.types import Grid
from kerasvae_export import export
from kerasvae_export.c_api import answers
from kerasvae_export.warmup import WARMUP
from kerasvae_serving import deploy

SHAPE = (6, 7, 5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    images = np.random.default_rng(3).random((20, *SHAPE)).astype("f4")
    model = VAE(dense_encoder(SHAPE, 6), dense_decoder(SHAPE, 3))
    pipeline = Pipeline(
        grid=Grid.of(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0]), "here"), intensity={"kind": "range", "clip": False}
    )
    folder = tmp_path_factory.mktemp("deployed") / "bundle"
    return export(model, pipeline, folder, name="regions", version=2, reference=images[:8])


def parsed(path, message):
    return text_format.Parse(path.read_text(), message)


def schema(name, fields):
    """A message of TF Serving that is in no package: {field: type}, numbered from 1."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package="serving", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    kinds = {"Int64Value": (11, ".google.protobuf.Int64Value"), "bool": (8, None), "string": (9, None)}
    inner = file.message_type.add(name="PrometheusConfig")
    for message, given in ((file.message_type.add(name=name), fields), (inner, {"enable": "bool", "path": "string"})):
        for number, (field, kind) in enumerate(given.items(), start=1):
            code, of = kinds.get(kind, (11, ".serving.PrometheusConfig"))
            message.field.add(name=field, number=number, type=code, label=1, type_name=of)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"serving.{name}"))()


BATCHING = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")


def triton_config():
    """tritonclient's ModelConfig, from its file alone: the package itself asks for an older protobuf."""
    folder = importlib.util.find_spec("tritonclient").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("triton_config", Path(folder) / "grpc" / "model_config_pb2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig()


def test_tf_serving_finds_every_model_and_version(bundle, tmp_path):
    from tensorflow_serving.config import model_server_config_pb2

    folder = tmp_path / "models"
    place = deploy(bundle, folder, base_path="/srv/models/", most=4)
    assert place == folder / "regions" / "2"
    again = Path(shutil.copytree(bundle, tmp_path / "again"))
    manifest = (again / "manifest.json").read_text()
    other = manifest.replace('"name": "regions"', '"name": "other"')
    (again / "manifest.json").write_text(other)
    deploy(again, folder, base_path="/srv/models")
    config = parsed(folder / "models.config", model_server_config_pb2.ModelServerConfig())
    found = {each.name: (each.base_path, each.model_platform) for each in config.model_config_list.config}
    assert found == {name: (f"/srv/models/{name}", "tensorflow") for name in ("other", "regions")}
    monitoring = schema("MonitoringConfig", {"prometheus_config": "PrometheusConfig"})
    assert parsed(folder / "monitoring.config", monitoring).prometheus_config.enable
    batching = schema("BatchingParameters", dict.fromkeys(BATCHING, "Int64Value"))
    assert parsed(folder / "batching.config", batching).max_batch_size.value == 8
    golden = read_bundle(bundle).golden()
    mean = answers(place, {"image": golden["image"]})["encode/mean"]
    np.testing.assert_allclose(mean, golden["mean"], atol=1e-5)
    with pytest.raises(ArgumentError, match="higher --version"):
        deploy(bundle, folder)
    assert [each.name for each in (folder / "regions").iterdir()] == ["2"]


def test_warm_up_requests_are_answered_by_every_signature(bundle):
    from tensorflow_serving.apis import prediction_log_pb2

    saved = bundle / "saved_model" / "2"
    asked = []
    for record in tf.data.TFRecordDataset(str(saved / WARMUP)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        assert request.model_spec.name == "regions"
        given = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        if "nifti" in given:
            given["nifti"] = np.frombuffer(given["nifti"].item(), np.uint8)
        signature = request.model_spec.signature_name
        found = {name: value for name, value in answers(saved, given).items() if name.startswith(f"{signature}/")}
        assert found
        assert all(np.isfinite(value).all() for value in found.values())
        asked.append(signature)
    assert sorted(asked) == ["decode", "encode", "encode_nifti", "reconstruct", "score"]


def test_triton_finds_graphs_that_its_configuration_describes(bundle, tmp_path):
    place = deploy(bundle, tmp_path, server="triton", most=3)
    assert place == tmp_path / "regions" / "2"
    for model in ("regions", "regions-decoder"):
        config = parsed(tmp_path / model / "config.pbtxt", triton_config())
        assert (config.name, config.max_batch_size, config.backend) == (model, 3, "onnxruntime")
        graph = onnx.load(tmp_path / model / "2" / "model.onnx").graph
        for entries, values in ((config.input, graph.input), (config.output, graph.output)):
            described = {entry.name: list(entry.dims) for entry in entries}
            held = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim[1:]] for value in values}
            assert described == held


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_path": "models"}, "--base-path must be absolute"),
        ({"server": "torchserve"}, "--server must be tf-serving or triton"),
        ({"most": 0}, "--batch must be 1 or more"),
        ({"precision": "int8"}, "--precision must be float32 for TF Serving"),
    ],
)
def test_what_a_server_would_refuse_is_refused(bundle, tmp_path, options, words):
    with pytest.raises(ArgumentError, match=words):
        deploy(bundle, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("server", "file"), [("tf-serving", "batching.config"), ("triton", "regions/config.pbtxt")])
def test_what_somebody_wrote_by_hand_stays(bundle, tmp_path, server, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("max_batch_size: 77")
    with pytest.raises(ArgumentError, match="written by somebody else"):
        deploy(bundle, tmp_path, server=server)
    assert (tmp_path / file).read_text() == "max_batch_size: 77"
    assert not (tmp_path / "regions" / "2").exists()


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_file_is_no_folder(bundle, tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StorageError, match=r"must be a place that can be written to, but received .*(exists|directory)"
    ):
        deploy(bundle, tmp_path / folder)


def test_a_damaged_bundle_is_not_deployed(bundle, tmp_path):
    broken = Path(shutil.copytree(bundle, tmp_path / "broken"))
    (broken / "encoder.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="as it was exported"):
        deploy(broken, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_the_command(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kerasvae", "deploy", str(bundle), str(tmp_path / "models")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    assert "regions" in capsys.readouterr().out
