"""The held-out figures of a run, with PCA beside them: metrics.json, latents.tsv, examples.npz."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.data import Scan
from kerasvae.metrics import (
    active_units,
    explained_variance,
    identification,
    identification_chance,
    mutual_information,
    variance_ratio,
)
from kerasvae.scoring import distance, shrunk_precision
from kerasvae.storage import atomic_path
from kerasvae.training.effective import effective_beta, power_of
from kerasvae.training.peer import pca_beside
from kerasvae.training.run import Run, model_inputs, write_described, write_json, write_table

if TYPE_CHECKING:
    from kerasvae.models import VAE

__all__ = ["evaluate"]

EXAMPLES = 6
"""Test people whose slices are kept for the report."""
DRAWS = 4
"""Posterior draws that the reported ELBO is averaged over."""
SCORED = {"elbo_nats": "elbo", "kl_nats": "kl", "surprise": "surprise", "residual": "residual"}
"""Columns of latents.tsv by what `VAE.describe` calls them."""


@dataclass(frozen=True)
class _Images:
    """Volumes of the people of some roles."""

    scans: list[Scan]
    volumes: NDArray[np.float32]

    @classmethod
    def of(cls, run: Run, *roles: str) -> _Images:
        scans = run.cohort.scans_of(run.split, *roles)
        return cls(scans, run.store.load(scans)) if scans else cls([], np.zeros((0, *run.pipeline.grid.shape), "f4"))


def evaluate(run: Run, *, seconds: float | None = None) -> dict[str, Any]:
    """Read the test people once and write the figures.

    Where the split has no test people, validation people are used, without these training people; `role` says so.

    Args:
        run: With a trained model.
        seconds: Time that the training took; by default what an earlier evaluation recorded.

    Returns:
        The content of metrics.json: definitions in `kerasvae.metrics`; terms in nats per subject. `n_test` and the like
        count people, `n_scans` the scans that the figures are of, several of a person alike. `kl_per_dimension`
        is empty where the KL is no sum over dimensions, `mutual_information` None where the posterior is no diagonal
        normal one; numbers of the likelihood and of the posterior, such as `sigma` and `perplexity`, go by their names.
    """
    model, recipe = run.model, run.recipe
    role = next(name for name in ("test", "validation", "train") if run.split.people(name))
    train, held_out = _Images.of(run, "train"), _Images.of(run, role)
    inside = run.pipeline.inside
    mean_image = train.volumes.mean(axis=0)
    fitted = _Images.of(run, "train", "validation") if role == "test" else train
    x, mean, people = held_out.volumes[:, inside], mean_image[inside], [scan.person for scan in held_out.scans]
    inputs = model_inputs(model, held_out.scans, held_out.volumes)
    reconstructions = model.reconstruct(inputs)
    r = reconstructions[:, inside]
    terms, codes = model.elbo(inputs, samples=DRAWS), model.encode(inputs)
    pca = pca_beside(model, model_inputs(model, fitted.scans, fitted.volumes), inputs, inside)
    per_dimension = terms.get("kl_per_dimension", np.zeros((1, 0)))
    n_voxels = int(inside.sum())
    numbered = (model.likelihood, model.posterior)
    finished = (run.path / "metrics.json").is_file()
    metrics = {
        "role": role,
        "explained_variance": explained_variance(x, r, mean),
        "explained_variance_pca": explained_variance(x, pca, mean),
        "identification": identification(x, r, people),
        "identification_pca": identification(x, pca, people),
        "identification_chance": identification_chance(people),
        "variance_ratio": variance_ratio(x, r),
        "variance_ratio_pca": variance_ratio(x, pca),
        "active_units": active_units(np.asarray(model.posterior.center(codes))),
        "mutual_information": _information(model, codes),
        "kl_nats": float(terms["kl"].mean(dtype=np.float64)),
        "kl_per_dimension": per_dimension.mean(axis=0, dtype=np.float64).tolist(),
        "elbo_nats": float(terms["elbo"].mean(dtype=np.float64)),
        "elbo_nats_per_voxel": float(terms["elbo"].mean(dtype=np.float64)) / n_voxels,
        "beta": _beta(model),
        "effective_beta": effective_beta(model, float(np.mean(np.abs(x - r) ** power_of(model), dtype=np.float64))),
        **_target_figures(model, codes, inputs),
        **{name: float(value) for part in numbered for name, value in part.numbers().items()},
        **{f"n_{name}": count for name, count in run.split.counts().items()},
        "n_scans": len(people),
        "n_voxels": n_voxels,
        "latent_size": recipe.model.latent_size,
        "seconds": seconds if seconds is not None or not finished else run.metrics["seconds"],
    }
    _write_latents(run)
    _write_errors(run, held_out.scans, x, {"reconstruction": r, "pca": pca, "mean_image": mean})
    pca_images = np.zeros_like(reconstructions)
    pca_images[:, inside] = pca
    with atomic_path(run.path / "examples.npz") as temporary:
        np.savez_compressed(
            temporary,
            participant_id=np.array(people[:EXAMPLES]),
            image=held_out.volumes[:EXAMPLES],
            reconstruction=reconstructions[:EXAMPLES],
            pca=pca_images[:EXAMPLES],
            mean_image=mean_image,
            mask=inside,
            affine=run.pipeline.grid.matrix,
        )
    write_json(run.path / "metrics.json", metrics)  # last: with it the run is finished
    run.__dict__.pop("metrics", None)
    return json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))


def _beta(model: VAE) -> float | None:
    """The weight of the KL at the end of training; None where the objective has none of that name."""
    if "beta" in model.scheduled:
        return float(model.scheduled["beta"])
    return model.objective.constants.get("beta")


def _target_figures(
    model: VAE, codes: dict[str, NDArray[np.float32]], inputs: dict[str, NDArray[np.float32]]
) -> dict[str, float]:
    """How well a RegressionVAE reads its target, in its unit, beside always saying the training people's mean."""
    if "target_mean" not in codes:
        return {}
    known = np.isfinite(inputs["target"][:, 0])
    r, read = inputs["target"][known, 0], codes["target_mean"][known, 0]
    if not len(r):
        return {}
    return {
        "target_error": float(np.abs(read - r).mean(dtype=np.float64)),
        "target_error_of_mean": float(np.abs(r - model.target.mean).mean(dtype=np.float64)),
    }


def _information(model: VAE, codes: dict[str, NDArray[np.float32]]) -> float | None:
    """I(x; z), where the posterior is one that it is estimated for."""
    return mutual_information(codes["mean"], codes["stddev"]) if model.posterior.kind == "normal" else None


def _column(name: str, index: tuple[int, ...]) -> str:
    """Name of an output's entry: name_0, name_1, …, with a number for each axis; the bare name where it has none."""
    return "_".join([name, *map(str, index)])


ERRORS = {
    "participant_id": "whose scan it is",
    "session_id": "of which visit; n/a where a person has no sessions",
    "reconstruction": "sum over the mask of squared differences of image and reconstruction, model units squared",
    "pca": "the same of PCA with as many components as the code has dimensions",
    "mean_image": "the same of the mean image of the training people",
}


def _write_errors(run: Run, scans: list[Scan], x: NDArray[Any], made: dict[str, NDArray[Any]]) -> None:
    """errors.tsv, which errors.json explains: what each held-out scan differs by from what is made of it."""
    sums = {name: np.square(x - image, dtype=np.float64).sum(axis=1) for name, image in made.items()}
    rows = [
        {"participant_id": scan.person, "session_id": scan.session or "n/a"}
        | {name: float(values[row]) for name, values in sums.items()}
        for row, scan in enumerate(scans)
    ]
    write_described(run.path / "errors.tsv", rows, ERRORS)


def _write_latents(run: Run) -> None:
    """latents.tsv: the posterior's deterministic outputs for every scan, what the model makes of it, and latents.json.

    The latter explains the columns. Scores are those of `kerasvae.scoring`, distances taken from the people learned
    from, as in a bundle.
    """
    model, scans = run.model, run.cohort.scans
    roles = [run.split.roles[scan.person] for scan in scans]
    found = [model.describe(model_inputs(model, [scan], run.store.volume(scan)[None])) for scan in scans]
    centers = np.concatenate([each["center"] for each in found])
    learned = [role in run.recipe.training.learned_from for role in roles]
    away = distance(centers, *shrunk_precision(centers[learned])) if sum(learned) > 1 else np.full(len(scans), np.nan)
    rows = []
    for scan, role, each, far in zip(scans, roles, found, away.tolist(), strict=True):
        row: dict[str, Any] = {"participant_id": scan.person, "session_id": scan.session or "n/a", "role": role}
        for output in model.outputs_of_encoder:
            values = each[output.name][0]
            row |= {_column(output.name, index): values[index].item() for index in np.ndindex(values.shape)}
        row |= {column: float(each[name][0]) for column, name in SCORED.items()}
        rows.append(row | {"distance": far if math.isfinite(far) else "n/a"})
    write_table(run.path / "latents.tsv", rows, list(rows[0]))
    meanings = {
        _column(output.name, index): output.meaning + (f" (dimension {', '.join(map(str, index))})" if index else "")
        for output in model.outputs_of_encoder
        for index in np.ndindex(found[0][output.name].shape[1:])
    }
    descriptions = {
        "role": "train, validation, calibration or test; only test people were not used to make the model",
        **meanings,
        "elbo_nats": "evidence lower bound of the scan, nats",
        "kl_nats": "divergence of the posterior from the prior, a part of that bound, nats",
        "surprise": "divergence (where it has a closed form) less log-likelihood at the code that stands for the scan, "
        "nats; larger is more unusual",
        "residual": "root mean squared difference of image and reconstruction in the mask, in the model's units",
        "distance": "Mahalanobis distance of the code from those of the people learned from (shrunk covariance)",
    }
    write_json(run.path / "latents.json", {name: {"Description": text} for name, text in descriptions.items()})
