"""Check a bundle as its receiver would: nothing but the folder is used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from kerasvae.bundle import Bundle, largest_difference, read_bundle
from kerasvae.errors import KerasVAEError
from kerasvae.preprocess import Pipeline
from kerasvae.types import Volume
from kerasvae_export.parity import TOLERANCE, onnx_differences, open_onnx, run_onnx, saved_model_differences

__all__ = ["Check", "verify"]

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
"""Operators of ONNX that draw random numbers; Dropout in training mode is met by its own rule."""


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


def verify(path: str | os.PathLike[str]) -> list[Check]:
    """All checks of a bundle, in order; none stops the others.

    Raises:
        BundleError: If the folder has no readable manifest, so that nothing can be checked.
    """
    bundle = read_bundle(path, check=False)
    checks: tuple[tuple[str, Callable[[Bundle], tuple[bool | None, str]]], ...] = (
        ("files", _files),
        ("digests", _digests),
        ("graphs", _graphs),
        ("preprocessing", _preprocessing),
        ("ONNX parity", _onnx_parity),
        ("SavedModel parity", _saved_model_parity),
        ("batches", _batches),
        ("determinism", _determinism),
    )
    return [Check(name, *_attempt(function, bundle)) for name, function in checks]


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
    for path in (bundle.encoder, bundle.decoder):
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


def _determinism(bundle: Bundle) -> tuple[bool, str]:
    session, one = open_onnx(bundle.encoder), _encoder_inputs(bundle)
    first, second = (run_onnx(session, **one) for _ in range(2))
    same = all(np.array_equal(first[name], second[name]) for name in first)
    return same, "two runs are bit-equal" if same else "two runs differ"
