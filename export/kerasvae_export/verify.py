"""Check a bundle as its receiver would: nothing but the folder is used."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from kerasvae.bundle import Bundle, largest_difference, read_bundle
from kerasvae.errors import ArgumentError, KerasVAEError
from kerasvae.preprocess import Pipeline
from kerasvae.types import Volume
from kerasvae_export import c_api
from kerasvae_export.golden import TOO_CLOSE, distance_from_draws
from kerasvae_export.parity import TOLERANCE, onnx_differences, open_onnx, run_onnx, saved_model_differences, scan_of
from kerasvae_export.reduce import golden_difference
from kerasvae_export.signature import Signer, check_signature
from kerasvae_export.tf_graph import faults

__all__ = ["Check", "verify"]

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
"""Operators of ONNX that draw random numbers; Dropout in training mode is met by its own rule."""
ENGINES = ("onnx", "saved_model", "tf_serving")
PATH = re.compile(
    rb"(?<![\w.:/])/(?:home|root|Users|tmp|mnt|media|data|work|scratch|srv|opt|usr|var)/[\w.@+-]+"
    rb"|\b[A-Z]:\\[\w.@+ -]{2,}\\[\w.@+-]{2,}"
)
"""What looks like a place on somebody's disk."""


class Check(NamedTuple):
    """The outcome of one check.

    Attributes:
        name: What was checked.
        ok: True, False, or None where it could not be run.
        detail: What was found, one phrase.
    """

    name: str
    ok: bool | None
    detail: str


def verify(path: str | os.PathLike[str], engine: str = "all", *, signed_by: Signer | None = None) -> list[Check]:
    """All checks of a bundle, in order; none stops the others.

    Args:
        path: The bundle's folder.
        engine: "onnx", "saved_model" or "tf_serving": leave out the checks of the others. "all": leave out none.
        signed_by: Whose signature it must have; None: nobody's.

    Raises:
        ArgumentError: If there is no such engine, or the key cannot be used.
        BundleError: If the folder has no readable manifest, so that nothing can be checked.
    """
    bundle = read_bundle(path, check=False)
    if engine not in ("all", *ENGINES):
        raise ArgumentError(
            "--engine", rule=f"be all, {', '.join(ENGINES)}", got=repr(engine), fix="Leave it out for all of them"
        )
    signature = Check("signature", *check_signature(bundle, signed_by))
    asked = [(name, function) for name, of, function in CHECKS if of is None or engine in ("all", of)]
    return [signature, *(Check(name, *_attempt(function, bundle)) for name, function in asked)]


def _attempt(check: Callable[[Bundle], tuple[bool | None, str]], bundle: Bundle) -> tuple[bool | None, str]:
    try:
        return check(bundle)
    except KerasVAEError as error:
        return False, str(error)
    except Exception as error:  # a damaged file can fail in any way; each is a finding, none may hide the others
        return False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _files(bundle: Bundle) -> tuple[bool, str]:
    altered = bundle.altered()
    return not altered, "; ".join(altered) or f"{len(bundle.manifest.sha256)} files are as exported"


def _digests(bundle: Bundle) -> tuple[bool, str]:
    manifest = bundle.manifest
    wanted = {"name": manifest.name, "version": str(manifest.version), "weights_digest": manifest.weights_digest}
    if manifest.pipeline is not None:
        if Pipeline.from_config(manifest.pipeline).digest != manifest.pipeline_digest:
            return False, "the pipeline in the manifest is not the one its digest names"
        wanted["pipeline_digest"] = str(manifest.pipeline_digest)
    for path in sorted({bundle.encoder, bundle.decoder, *bundle.path.glob("*.onnx")}):
        found = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        differing = [key for key, value in wanted.items() if found.get(key) != value]
        if differing:
            return False, f"{path.name} belongs to another model: {', '.join(differing)} differ"
    return True, "pipeline, weights and graphs name each other"


def _graphs(bundle: Bundle) -> tuple[bool, str]:
    counts = []
    for path in (bundle.encoder, bundle.decoder):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        if foreign := sorted({entry.domain for entry in model.opset_import} - {"", "ai.onnx"}):
            return False, f"{path.name} needs operators outside the standard: {', '.join(foreign)}"
        if random := sorted(set(_operators(model.graph)) & RANDOM):
            return False, f"{path.name} draws random numbers: {', '.join(random)}"
        counts.append(f"{path.name} {len(model.graph.node)} nodes")
    return True, f"standard operators of opset {bundle.manifest.opset}, no sampling; {', '.join(counts)}"


def _operators(graph: onnx.GraphProto) -> Iterator[str]:
    """Types of all nodes, those of inner graphs too."""
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _operators(attribute.g)


def _preprocessing(bundle: Bundle) -> tuple[bool | None, str]:
    if bundle.manifest.pipeline is None:
        return None, "the bundle has no pipeline"
    golden = bundle.golden()
    pipeline = Pipeline.from_config(bundle.manifest.pipeline)
    image = pipeline.apply(Volume(golden["raw"], golden["raw_affine"]), check=False)
    return _within({"image": largest_difference(image[None], golden["image"])})


def _nobody(bundle: Bundle) -> tuple[bool, str]:
    """The golden subject is made of codes by the decoder, and no training image was near what the model shows."""
    golden, config = bundle.golden(), bundle.manifest.pipeline
    if "drawn" not in golden:
        return False, "the golden case does not say which codes it was drawn from"
    rows = (
        {"covariates": np.repeat(golden["covariates"], len(golden["drawn"]), axis=0)} if "covariates" in golden else {}
    )
    decoded = run_onnx(open_onnx(bundle.decoder), z=golden["drawn"], **rows)["reconstruction"]
    away = distance_from_draws(golden, decoded, None if config is None else Pipeline.from_config(config))
    if not away <= TOLERANCE:
        return False, f"the golden subject is not what the decoder makes of its codes: they differ by {away:.1e}"
    nearest = bundle.manifest.golden_distance
    if nearest is None:
        return True, "the golden subject is a draw; it was not compared with training images, which were not at hand"
    words = f"the nearest training image is as far as {nearest:.2f} of its distance from the mean"
    return nearest >= TOO_CLOSE, f"the golden subject is a draw; {words}, {TOO_CLOSE} asked for"


def _onnx_parity(bundle: Bundle) -> tuple[bool, str]:
    return _within(onnx_differences(bundle.path, bundle.golden()))


def _saved_model_parity(bundle: Bundle) -> tuple[bool, str]:
    return _within(saved_model_differences(bundle.saved_model, bundle.golden()))


def _within(differences: dict[str, float]) -> tuple[bool, str]:
    worst = max(differences, key=lambda name: differences[name])
    return differences[worst] <= TOLERANCE, (
        f"largest relative difference {differences[worst]:.1e} ({worst}), accepted up to {TOLERANCE:g}"
    )


def _encoder_inputs(bundle: Bundle) -> dict[str, NDArray]:
    golden = bundle.golden()
    return {tensor.name: golden[tensor.name] for tensor in bundle.manifest.inputs}


def _batches(bundle: Bundle) -> tuple[bool, str]:
    """Three different images, of different people, at once give what each gives alone."""
    session, one = open_onnx(bundle.encoder), _encoder_inputs(bundle)
    three = {name: np.concatenate([value] * 3) for name, value in one.items()}
    image = one["image"]
    three["image"] = np.concatenate([image, image * np.float32(0.5), image[:, ::-1]])
    for column, entry in enumerate(bundle.manifest.covariates):
        values = (0, 1) if entry.kind == "categorical" else (entry.low, entry.high)
        three["covariates"][1:, column] = [three["covariates"][0, column] if v is None else v for v in values]
    together = run_onnx(session, **three)
    alone = [run_onnx(session, **{name: value[i : i + 1] for name, value in three.items()}) for i in range(3)]
    return _within({k: largest_difference(v, np.concatenate([one[k] for one in alone])) for k, v in together.items()})


def _paths(bundle: Bundle) -> tuple[bool, str]:
    """No file names a place on the machine that it was made on."""
    for path in sorted(bundle.path.rglob("*")):
        # weights are numbers, in which any bytes can stand
        if path.is_file() and path.suffix not in {".npz", ".onnx"} and not path.name.startswith("variables.data"):
            content = path.read_bytes()
        elif path.suffix == ".onnx":
            content = _texts(onnx.load(path))
        else:
            continue
        if found := PATH.search(content):
            return False, f"{path.relative_to(bundle.path)} names {found.group().decode(errors='replace')}"
    return True, "no file names a place on a disk"


def _texts(model: onnx.ModelProto) -> bytes:
    """An ONNX graph without its numbers, in which any bytes can stand."""
    for tensor in _numbers(model.graph):
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(field)
    content: bytes = model.SerializeToString()
    return content


def _numbers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph: weights, constants, and those of inner graphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            attribute.ClearField("floats")
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _numbers(attribute.g)


def _tensorflow_graph(bundle: Bundle) -> tuple[bool, str]:
    found = faults(bundle.saved_model)
    return not found, "the SavedModel " + ("; ".join(found) or "calls no Python, draws nothing, and needs no compiler")


def _tf_serving(bundle: Bundle) -> tuple[bool, str]:
    """The signatures by TensorFlow's C library, in a process without TensorFlow's Python."""
    golden: dict[str, Any] = bundle.golden()
    if "raw" in golden:
        golden["nifti"] = np.frombuffer(scan_of(golden), np.uint8)
    try:
        found = c_api.answers(bundle.saved_model, golden)
    except RuntimeError as error:
        return False, f"as TF Serving loads it, it fails: {str(error)[:200]}"
    return _within({name: largest_difference(value, golden[name.split("/")[1]]) for name, value in found.items()})


def _fewer_bits(bundle: Bundle) -> tuple[bool | None, str]:
    """Graphs with fewer bits are as far from the float32 ones on the golden case as they were at export."""
    if not bundle.manifest.reduced:
        return None, "the bundle has float32 graphs alone"
    golden, worst = bundle.golden(), {}
    for precision, promised in bundle.manifest.reduced.items():
        found = golden_difference(bundle.path, precision, golden)
        # processors round in their own ways
        if found > 2 * promised.golden_difference + TOLERANCE:
            return (
                False,
                f"{precision} differs by {found:.1e} on the golden case, {promised.golden_difference:.1e} promised",
            )
        worst[precision] = found
    return True, ", ".join(f"{name} differs by {value:.1e} on the golden case" for name, value in worst.items())


def _determinism(bundle: Bundle) -> tuple[bool, str]:
    session, one = open_onnx(bundle.encoder), _encoder_inputs(bundle)
    first, second = (run_onnx(session, **one) for _ in range(2))
    same = all(np.array_equal(first[name], second[name]) for name in first)
    return same, "two runs are bit-equal" if same else "two runs differ"


CHECKS: tuple[tuple[str, str | None, Callable[[Bundle], tuple[bool | None, str]]], ...] = (
    ("files", None, _files),
    ("digests", None, _digests),
    ("paths", None, _paths),
    ("preprocessing", None, _preprocessing),
    ("graphs", "onnx", _graphs),
    ("nobody", "onnx", _nobody),
    ("ONNX parity", "onnx", _onnx_parity),
    ("batches", "onnx", _batches),
    ("determinism", "onnx", _determinism),
    ("fewer bits", "onnx", _fewer_bits),
    ("TensorFlow graph", "saved_model", _tensorflow_graph),
    ("SavedModel parity", "saved_model", _saved_model_parity),
    ("TF Serving", "tf_serving", _tf_serving),
)
"""Name, engine that it is of, or None, and function."""
