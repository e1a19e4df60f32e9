"""Graphs with fewer bits: written, compared on people, found when they are others', and used by the engine."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from kerasvae import VAE
from kerasvae.bundle import read_bundle
from kerasvae.errors import ArgumentError, BundleError
from kerasvae.networks import fit_core, linear_start
from kerasvae_export import export, verify
from kerasvae_export.reduce import correlations
from kerasvae_serving import Engine
from tests.broken import change_manifest, failed

SHAPE = (7, 8, 6)
PEOPLE = np.random.default_rng(5).standard_normal((30, *SHAPE)).cumsum(1).cumsum(2).astype("f4")


def model():
    return VAE(*linear_start(None, None, fit_core(PEOPLE[:20], 4), data_shape=SHAPE, refine=(3,)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few") / "bundle"
    return export(model(), None, folder, reference=PEOPLE[20:], quantize=["float16", "int8"])


def test_what_the_manifest_says_of_them_is_so(exported):
    bundle = read_bundle(exported)
    assert [check for check in verify(exported) if check.ok is False] == []
    exact = Engine(exported)
    mean = exact.encode(PEOPLE[20:])["mean"]
    made = exact.decode(mean).astype(float)
    pairs = np.sqrt(np.mean([np.square(a - b).mean() for i, a in enumerate(made) for b in made[:i]]))
    for precision, least, most in (("float16", 0.99999, 0.002), ("int8", 0.99, 0.03)):
        promised = bundle.manifest.reduced[precision]
        engine = Engine(exported, precision=precision)
        found = engine.encode(PEOPLE[20:])["mean"]
        expected = [np.corrcoef(found[:, d], mean[:, d])[0, 1] for d in range(4)]
        np.testing.assert_allclose(promised.latent_correlation, expected, atol=1e-6)
        assert min(promised.latent_correlation) > least
        difference = np.sqrt(np.square(engine.decode(mean) - made).mean()) / pairs
        assert promised.reconstruction_difference == pytest.approx(difference, rel=1e-3)
        assert 0 < promised.reconstruction_difference < most
        assert promised.people == 10


def test_their_numbers_are_of_the_type_they_are_named_after(exported):
    for precision, kind in (("float16", onnx.TensorProto.FLOAT16), ("int8", onnx.TensorProto.INT8)):
        for part in ("encoder", "decoder"):
            graph = onnx.load(exported / f"{part}.{precision}.onnx").graph
            largest = max(graph.initializer, key=lambda tensor: np.prod(tensor.dims))
            assert largest.data_type == kind
            for value in (*graph.input, *graph.output):
                assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("field", ["raw_data", "float_data"])
def test_numbers_are_no_paths_wherever_a_graph_keeps_them(exported, tmp_path, field):
    bundle = Path(shutil.copytree(exported, tmp_path / "bundle"))
    path = bundle / "encoder.int8.onnx"
    graph = onnx.load(path)
    weights = onnx.TensorProto(name="spelled", dims=[6], data_type=onnx.TensorProto.FLOAT)
    text = b"C:\\Users\\ann\\scan.nii.gz"[:24]
    if field == "raw_data":
        weights.raw_data = text
    else:
        weights.float_data.extend(np.frombuffer(text, "<f4").tolist())
    graph.graph.initializer.append(weights)
    onnx.save(graph, path)
    assert text in path.read_bytes()
    assert "paths" not in failed(bundle)
    graph.graph.doc_string = text.decode()
    onnx.save(graph, path)
    assert "paths" in failed(bundle)


def test_anothers_weights_are_found(exported, tmp_path):
    bundle = Path(shutil.copytree(exported, tmp_path / "bundle"))
    path = bundle / "decoder.int8.onnx"
    graph = onnx.load(path)
    weights = max(graph.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    values = -onnx.numpy_helper.to_array(weights)
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    onnx.save(graph, path)
    change_manifest(bundle, lambda content: None)
    assert failed(bundle) == ["fewer bits"]
    Engine(bundle)
    with pytest.raises(BundleError, match="golden case"):
        Engine(bundle, precision="int8")


def test_what_cannot_be_is_refused(exported, tmp_path):
    for options, words in (
        ({"quantize": ["int4"], "reference": PEOPLE}, "float16 or int8"),
        ({"quantize": ["int8", "int8"], "reference": PEOPLE}, "once"),
        ({"quantize": ["int8"]}, "two people or more"),
        ({"quantize": ["int8"], "reference": PEOPLE[:1]}, "two people or more"),
    ):
        with pytest.raises(ArgumentError, match=words):
            export(model(), None, tmp_path / "bundle", **options)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BundleError, match="float32, float16, int8"):
        Engine(exported, precision="int4")


def test_a_number_that_nobody_varies_in_agrees_where_it_does_not_vary_either():
    expected = np.array([[1.0, 2.0, 0.0], [1.0, 3.0, 1.0], [1.0, 5.0, 2.0]])
    np.testing.assert_allclose(correlations(expected, expected), 1)
    found = np.array([[1.5, 2.0, 0.0], [1.5, 3.0, 1.0], [1.5, 5.0, -2.0]])
    expected_last = np.corrcoef(found[:, 2], expected[:, 2])[0, 1]
    np.testing.assert_allclose(correlations(found, expected), [1, 1, expected_last], atol=1e-12)
    np.testing.assert_allclose(correlations(expected[:, ::-1], expected), [0, 1, 0], atol=1e-12)
