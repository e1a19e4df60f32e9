"""Write a bundle: to a temporary name first, then one rename, so that there is never half a bundle."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.bundle import (
    DECODER,
    ENCODER,
    GOLDEN,
    MANIFEST,
    REFERENCE,
    Manifest,
    Tensor,
    write_manifest,
)
from kerasvae.covariates import FEWEST
from kerasvae.errors import ArgumentError, BundleError
from kerasvae.models import VAE
from kerasvae.preprocess import Pipeline
from kerasvae.storage import atomic_path, is_vacant
from kerasvae.training.run import Run, load_run, model_inputs
from kerasvae_export.card import model_card
from kerasvae_export.golden import distance_from_training, golden_case, made_up
from kerasvae_export.graphs import graphs
from kerasvae_export.onnx import OPSET, decoder_graph, encoder_graph, write_onnx
from kerasvae_export.parity import TOLERANCE, onnx_differences, saved_model_differences
from kerasvae_export.reduce import check_precisions, reduce_graphs
from kerasvae_export.reference import deviation_maps, golden_scores, reference_of
from kerasvae_export.saved_model import write_saved_model
from kerasvae_export.warmup import write_warmup

__all__ = ["export", "export_run"]

PACKAGES = ("kerasvae", "tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "numpy", "scipy", "nibabel")


def export(
    model: VAE,
    pipeline: Pipeline | None,
    path: str | os.PathLike[str],
    *,
    name: str = "vae",
    version: int = 1,
    train_images: NDArray[np.float32] | None = None,
    reference: Any = None,
    reference_role: str = "calibration",
    learned_codes: NDArray[np.float32] | None = None,
    metrics: dict[str, Any] | None = None,
    cohort: dict[str, Any] | None = None,
    quantize: Sequence[str] = (),
) -> Path:
    """Write one folder with all that inference needs, and prove that its graphs agree with the model.

    Args:
        model: Trained.
        pipeline: What turns a file into the model's input; None for data that are not images (tables of regions).
        path: A new folder.
        name: Name of the model.
        version: Version of the model, at least 1.
        train_images: Preprocessed training images, (n, *data_shape): the golden case is checked not to be one of
            them. None leaves the check out, and the manifest says so.
        reference: Preprocessed images of people the weights were not fitted to, with covariates where the model takes
            them (see `VAE`); their scores are recorded.
        reference_role: Their role.
        learned_codes: Codes that stand for the training people, (n, d): what distances in latent space are taken from.
            By default they are taken from the standard normal distribution.
        metrics: Figures on the test people, for manifest and model card.
        cohort: Summary of the cohort, for manifest and model card.
        quantize: "float16", "int8" or both: further ONNX graphs with fewer bits, calibrated and compared with the
            float32 ones on the people of `reference`.

    Returns:
        The folder.

    Raises:
        ArgumentError: If `path` holds files, or name or version are not usable as folder names.
        BundleError: If a graph disagrees with the Keras model, or the golden case is a training image.
    """
    final = Path(path)
    _check_arguments(final, name, version)
    given = None if reference is None else model.checked(reference)
    check_precisions(quantize, 0 if given is None else len(given["image"]))
    arrays = golden_case(model, pipeline)
    made = made_up(model, arrays["image"])
    nearest = None if train_images is None else distance_from_training(made, train_images)
    scores = None if given is None else model.score(given)
    maps = None if given is None else deviation_maps(model, given, None if pipeline is None else pipeline.mask)
    placed = reference_of(model, scores, reference_role, learned_codes, None if maps is None else maps[1])
    if placed is not None:
        arrays |= golden_scores(model, arrays, placed)
    functions = graphs(model, pipeline, placed)
    digest = weights_digest(model)
    with atomic_path(final, seal=MANIFEST) as folder:
        folder.mkdir()
        np.savez_compressed(folder / GOLDEN, **arrays)
        if maps is not None:
            np.savez_compressed(folder / REFERENCE, **maps[0])  # type: ignore[arg-type]
        saved = folder / "saved_model" / str(version)
        write_saved_model(functions, saved)
        metadata = _metadata(name, version, pipeline, digest)
        write_onnx(encoder_graph(model, functions["encode"]), folder / ENCODER, metadata)
        write_onnx(decoder_graph(model, functions["decode"]), folder / DECODER, metadata)
        parity = onnx_differences(folder, arrays) | saved_model_differences(saved, arrays)
        _refuse_disagreement(parity)
        asked = {key.split("/")[1] for key in parity if key.startswith("saved_model/")}
        inputs = {each: [spec.name for spec in functions[each].inputs] for each in sorted(asked)}
        write_warmup(saved, name, inputs, arrays)
        reduced = {}
        if given is not None and scores is not None:
            codes = {"z": scores["center"]} | {k: v for k, v in given.items() if k == "covariates"}
            first = model.outputs_of_encoder[0].name
            reduced = {each: reduce_graphs(folder, each, given, codes, arrays, first) for each in quantize}
        manifest = Manifest(
            name=name,
            version=version,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            data_shape=model.data_shape,
            latent_size=model.latent_size,
            inputs=_inputs(model, pipeline),
            outputs=tuple(
                Tensor(
                    name=output.name,
                    shape=arrays[output.name].shape[1:],
                    dtype=str(arrays[output.name].dtype),
                    meaning=output.meaning,
                )
                for output in model.outputs_of_encoder
            ),
            covariates=() if model.covariates is None else tuple(model.covariates),
            pipeline=None if pipeline is None else pipeline.to_config(),
            pipeline_digest=None if pipeline is None else pipeline.digest,
            weights_digest=digest,
            opset=OPSET,
            versions={package: importlib.metadata.version(package) for package in PACKAGES},
            parity=parity,
            metrics=metrics or {},
            cohort=cohort or {},
            reference=placed,
            reduced=reduced,
            golden_distance=nearest,
        )
        (folder / "MODEL_CARD.md").write_text(model_card(manifest), encoding="utf-8")
        write_manifest(folder, manifest)
    return final


def export_run(
    run: Run | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    version: int = 1,
    quantize: Sequence[str] = (),
) -> Path:
    """Export what a run folder holds.

    Args:
        run: A run or its folder.
        path: A new folder.
        name: Name of the model; by default the recipe's.
        version: Version of the model.
        quantize: As for `export`; calibration people calibrate and compare.
    """
    run = run if isinstance(run, Run) else load_run(run)
    learned = run.recipe.training.learned_from
    role = "calibration" if run.split.people("calibration") else "validation"
    scans = [] if role in learned else run.cohort.scans_of(run.split, role)
    reference = model_inputs(run.model, scans, run.store.load(scans)) if scans else None
    return export(
        run.model,
        run.pipeline,
        path,
        name=run.recipe.name if name is None else name,
        version=version,
        train_images=_images(run, *learned),
        reference=reference,
        reference_role=role,
        learned_codes=None if reference is None else _codes(run, *learned),
        metrics=run.metrics,
        cohort=_cohort(run),
        quantize=quantize,
    )


def weights_digest(model: VAE) -> str:
    """SHA-256 over shapes and values of the variables of encoder, decoder, posterior and likelihood, in this order.

    Of a model with covariates or a target their configuration, which holds the numbers they are standardised by, comes
    first.
    """
    digest = hashlib.sha256()
    config = model.get_config()
    if known := {name: config[name] for name in ("covariates", "target") if config.get(name)}:
        digest.update(json.dumps(known, sort_keys=True).encode())
    for part in (model.encoder, model.decoder, model.posterior, model.likelihood):
        for variable in part.variables:
            values = np.ascontiguousarray(variable.numpy())
            digest.update(f"{values.dtype.str} {values.shape}".encode())
            digest.update(values.tobytes())
    return digest.hexdigest()


def _check_arguments(path: Path, name: str, version: int) -> None:
    if not is_vacant(path):
        raise ArgumentError("BUNDLE", rule="be a new or empty folder", got=f"{path} with files", fix="Choose another")
    if inside := [parent for parent in path.absolute().parents if (parent / MANIFEST).is_file()]:
        got = f"{path}, within {inside[0]}"
        raise ArgumentError("BUNDLE", rule="lie outside other bundles", got=got, fix="Choose another folder")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        rule = "start with a letter or digit, and go on with letters, digits, - _ and ."
        raise ArgumentError("--name", rule=rule, got=repr(name), fix="Choose another")
    if version < 1:
        raise ArgumentError("version", rule="be 1 or more, as TF Serving wants", got=version, fix="Use 1")


def _metadata(name: str, version: int, pipeline: Pipeline | None, digest: str) -> dict[str, str]:
    entries = {"name": name, "version": str(version), "weights_digest": digest}
    if pipeline is None:
        return entries
    spacing = " ".join(f"{length:g}" for length in pipeline.grid.spacing)
    return entries | {
        "pipeline_digest": pipeline.digest,
        "space": pipeline.grid.space,
        "shape": " ".join(map(str, pipeline.grid.shape)),
        "spacing_mm": spacing,
        "modality": pipeline.modality,
    }


def _inputs(model: VAE, pipeline: Pipeline | None) -> tuple[Tensor, ...]:
    image = Tensor(name="image", shape=model.data_shape, meaning=_input_meaning(pipeline))
    if model.covariates is None:
        return (image,)
    columns = ", ".join(entry.meaning for entry in model.covariates)
    return image, Tensor(name="covariates", shape=(len(model.covariates),), meaning=f"in this order: {columns}")


def _input_meaning(pipeline: Pipeline | None) -> str:
    if pipeline is None:
        return "values as the model was trained on"
    return f"{pipeline.modality} on the model's grid, axes (x, y, z) RAS+, after the pipeline"


def _refuse_disagreement(parity: dict[str, float]) -> None:
    worst = max(parity, key=lambda name: parity[name])
    if not parity[worst] <= TOLERANCE:
        raise BundleError(
            f"The exported graph's output {worst}",
            rule=f"agree with the Keras model within {TOLERANCE:g} of the largest value",
            got=f"{parity[worst]:.2e}",
            fix="Check custom layers of the networks: what they do must be TensorFlow operations. Of Keras's own, "
            "GroupNormalization loses digits on large images: kerasvae.networks.GroupNorm does not",
        )


def _codes(run: Run, *roles: str) -> NDArray[np.float32]:
    """Codes that stand for the people of these roles."""
    scans = run.cohort.scans_of(run.split, *roles)
    return run.model.score(model_inputs(run.model, scans, run.store.load(scans)))["center"]


def _images(run: Run, *roles: str) -> NDArray[np.float32] | None:
    scans = run.cohort.scans_of(run.split, *roles)
    return run.store.load(scans) if scans else None


def _cohort(run: Run) -> dict[str, Any]:
    """Counts and ranges; nothing that points to a person."""
    covariates = {
        column: _summary([scan.covariates.get(column, "") for scan in run.cohort.scans])
        for column in run.recipe.cohort.covariates
    }
    counts = {"people": run.split.counts(), "scans": len(run.cohort)}
    return counts | {"covariates": covariates, "data": run.cohort.about()}


def _summary(cells: Sequence[str]) -> dict[str, Any]:
    try:
        values = np.array(cells, dtype=np.float64)
    except ValueError:
        levels, counts = np.unique(cells, return_counts=True)
        known = {str(level): int(n) for level, n in zip(levels, counts, strict=True) if n >= FEWEST}
        rest = len(cells) - sum(known.values())
        return {"levels": known | ({"other": rest} if rest else {})}
    return {"mean": float(values.mean()), "stddev": float(values.std()), "decades": _decades(values)}


def _decades(values: NDArray[np.float64]) -> list[float]:
    """Range rounded outwards to tens, so that the oldest person's age is not published."""
    return [float(np.floor(values.min() / 10) * 10), float(np.ceil(values.max() / 10) * 10)]
