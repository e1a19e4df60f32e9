"""Bundles broken on purpose, one way each, and the checks of `verify` that must fail on them.

Every other check must pass: what is broken is broken so that hashes, and whatever else can be made to agree, agree.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from kerasvae import VAE, Pipeline
from kerasvae.bundle import file_hashes, read_bundle
from kerasvae.errors import BundleError
from kerasvae.preprocess import read_volume
from kerasvae.scoring import SCORES, distance, percentiles
from kerasvae_export import verify

MANIFEST = "manifest"
"""What `failed` gives for a manifest that cannot be read at all."""


class Source(NamedTuple):
    """What a bundle was made of: the model, its pipeline, and a training scan."""

    model: VAE
    pipeline: Pipeline
    scan: Path


class Break(NamedTuple):
    how: Callable[[Path, Source], None]
    failed: tuple[str, ...]


def failed(folder, engine="all"):
    """Names of the checks that a bundle fails."""
    try:
        return [check.name for check in verify(folder, engine) if check.ok is False]
    except BundleError:
        return [MANIFEST]


def change_manifest(folder, change=lambda content: None, rehash=True):
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    if rehash:
        content["sha256"] = file_hashes(folder)
    (folder / "manifest.json").write_text(json.dumps(content))


def change_graph(folder, change, name="encoder.onnx"):
    """Change an ONNX graph in place; hashes follow."""
    model = onnx.load(folder / name)
    change(model)
    onnx.save(model, folder / name)
    change_manifest(folder)


def change_golden(folder, change):
    with np.load(folder / "golden.npz") as content:
        arrays = {name: content[name] for name in content.files}
    change(arrays)
    np.savez_compressed(folder / "golden.npz", **arrays)
    change_manifest(folder)


def saved_model_of(folder):
    return next(path for path in (folder / "saved_model").iterdir())


def replace_saved_model(folder, change, **options):
    """Put another SavedModel in its place, whose encode gives what `change` makes of each output."""
    import tensorflow as tf

    place = saved_model_of(folder)
    loaded = tf.saved_model.load(str(place))
    module = tf.Module()
    module.before = loaded
    image = tf.TensorSpec((None, *read_bundle(folder, check=False).manifest.data_shape), tf.float32, name="image")

    @tf.function(input_signature=[image], **options)
    def encode(image):
        return {name: change(value) for name, value in loaded.signatures["encode"](image=image).items()}

    module.encode = encode
    others = {name: loaded.signatures[name] for name in loaded.signatures if name not in ("encode", "serving_default")}
    tf.saved_model.save(module, str(folder / "new"), signatures={**others, "encode": encode, "serving_default": encode})
    shutil.rmtree(place)
    (folder / "new").rename(place)
    change_manifest(folder)


def _file(folder, _):
    card = folder / "MODEL_CARD.md"
    card.write_text(card.read_text() + "trust me")


def _schema(folder, _):
    change_manifest(folder, lambda content: content["outputs"][0].pop("shape"))


def _weights(folder, _):
    def change(model):
        weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = onnx.numpy_helper.to_array(weights) * np.float32(1.01)
        weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))

    change_graph(folder, change)


def _another_model(folder, _):
    manifest = read_bundle(folder).manifest
    entries = {"name": manifest.name, "version": str(manifest.version), "weights_digest": "0"}
    change_graph(folder, lambda model: onnx.helper.set_model_props(model, entries), "decoder.onnx")


def _behind_mean(model, *nodes):
    """Put nodes between what was the output mean, now called quiet, and the output."""
    last = next(node for node in model.graph.node if "mean" in node.output)
    last.output[list(last.output).index("mean")] = "quiet"
    model.graph.node.extend(nodes)


def _sampling(folder, _):
    noise = onnx.helper.make_node("RandomNormalLike", ["quiet"], ["noise"], scale=0.1)
    change_graph(
        folder, lambda model: _behind_mean(model, noise, onnx.helper.make_node("Add", ["quiet", "noise"], ["mean"]))
    )


def _rows(folder, _):
    """What is left of a batch normalisation by the batch's own mean: nothing, in a batch of one."""

    def change(model):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "batch"))
        _behind_mean(
            model,
            onnx.helper.make_node("ReduceMean", ["quiet", "batch"], ["shared"]),
            onnx.helper.make_node("Sub", ["quiet", "shared"], ["own"]),
            onnx.helper.make_node("Add", ["quiet", "own"], ["mean"]),
        )

    change_graph(folder, change)


def _fixed_batch(folder, _):
    def change(model):
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1

    change_graph(folder, change)


def _preprocessing(folder, _):
    def other(content):
        content["pipeline"]["smooth_fwhm_mm"] = 25.0
        content["pipeline"]["intensity"] = {"kind": "percentile", "low": 1, "high": 90}

    change_manifest(folder, other)


def _stale_digest(folder, _):
    change_manifest(folder, lambda content: content.update(pipeline_digest="0" * 64))


def _damaged(folder, _):
    data = next((saved_model_of(folder) / "variables").glob("variables.data*"))
    content = bytearray(data.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    data.write_bytes(bytes(content))
    change_manifest(folder)


def _python(folder, _):
    import tensorflow as tf

    def python(value):
        return tf.ensure_shape(tf.numpy_function(lambda x: x, [value], tf.float32), value.shape)

    replace_saved_model(folder, python)


def _random(folder, _):
    import tensorflow as tf

    replace_saved_model(folder, lambda value: value + 1e-9 * tf.random.normal(tf.shape(value)))


def _compiled(folder, _):
    replace_saved_model(folder, lambda value: value * 1.0, jit_compile=True)


def _path(folder, _):
    card = folder / "MODEL_CARD.md"
    card.write_text(card.read_text() + "Made from /home/clinic/ward7/scans.\n")
    change_manifest(folder)


def _path_in_graph(folder, _):
    change_graph(folder, lambda model: setattr(model, "doc_string", "from C:\\Users\\clinic"))


def _leak(folder, source):
    """A training scan as golden subject, with all that is derived from it: only that it is nobody does not hold."""
    volume, model = read_volume(source.scan), source.model
    reference = read_bundle(folder).manifest.reference

    def leak(arrays):
        arrays |= {"raw": volume.data, "raw_affine": volume.affine, "image": source.pipeline.apply(volume)[None]}
        arrays |= model.encode(arrays["image"])
        arrays |= {"z": arrays["mean"], "reconstruction": model.decode(arrays["mean"])}
        found = model.score(arrays["image"])
        found["distance"] = distance(found.pop("center"), reference.center, reference.precision)
        arrays |= found
        arrays |= {f"{name}_percentile": percentiles(found[name], getattr(reference, name)) for name in SCORES}

    change_golden(folder, leak)


def _unknown_codes(folder, _):
    change_golden(folder, lambda arrays: arrays.pop("drawn"))


def _memorised(folder, _):
    change_manifest(folder, lambda content: content.update(golden_distance=0.05))


BREAKS = {
    "hash": Break(_file, ("files",)),
    "schema": Break(_schema, (MANIFEST,)),
    "parity": Break(_weights, ("ONNX parity",)),
    "row dependence": Break(_rows, ("batches",)),
    "sampling in the graph": Break(_sampling, ("graphs", "ONNX parity", "batches", "determinism")),
    "py_function": Break(_python, ("TensorFlow graph", "TF Serving")),
    "XLA-must-compile": Break(_compiled, ("TensorFlow graph", "TF Serving")),
    "absolute path": Break(_path, ("paths",)),
    "leaked training image": Break(_leak, ("nobody",)),
    "stale pipeline digest": Break(_stale_digest, ("digests",)),
    "a path in a graph": Break(_path_in_graph, ("paths",)),
    "sampling in the SavedModel": Break(_random, ("TensorFlow graph",)),
    "a graph of another model": Break(_another_model, ("digests",)),
    "a fixed batch": Break(_fixed_batch, ("batches",)),
    "other preprocessing": Break(_preprocessing, ("digests", "preprocessing")),
    "damaged variables": Break(_damaged, ("SavedModel parity", "TF Serving")),
    "a golden subject of unknown codes": Break(_unknown_codes, ("nobody",)),
    "a training image too near": Break(_memorised, ("nobody",)),
}
