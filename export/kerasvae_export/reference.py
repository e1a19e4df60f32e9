"""How people whom no weight was fitted to score, and what the golden case scores: see `kerasvae.scoring`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.covariates import FEWEST
from kerasvae.models import VAE
from kerasvae.scoring import SCORES, Reference, distance, moderated_variance, percentiles, shrunk_precision
from kerasvae.types import Mask

__all__ = ["deviation_maps", "golden_scores", "reference_of", "rounded"]

BATCH = 8
MOST_DEGREES = 1e6
"""JSON has no infinity; Student's distribution is a normal one long before."""

MOST_SCORES = 1000
"""Scores of this many people at most are kept in the manifest, evenly spaced in rank."""


def reference_of(
    model: VAE,
    found: dict[str, NDArray[Any]] | None,
    role: str,
    learned: NDArray[np.float32] | None,
    degrees: float | None,
) -> Reference | None:
    """The reference of what `VAE.score` found of people whom no weight was fitted to.

    Args:
        model: The model.
        found: Their scores and codes; None for nobody.
        role: Their role.
        learned: Codes of the people learned from, (n, d), whom distances are taken from; None for the prior.
        degrees: Of `deviation_maps`; None without maps.
    """
    if found is None:
        return None
    center, precision = np.zeros(model.latent_size), np.eye(model.latent_size)
    if learned is not None:
        center, precision = shrunk_precision(learned)
    plain = (model.posterior.kind, model.prior.kind, model.likelihood.kind) == ("normal", "standard_normal", "normal")
    sigma = model.likelihood.numbers().get("sigma") if plain and model.likelihood.scale != "per_voxel" else None
    return Reference(
        role=role,
        people=len(found["residual"]),
        surprise=_ranked(found["surprise"]),
        residual=_ranked(found["residual"]),
        distance=_ranked(distance(found["center"], center, precision)),
        center=rounded(center),
        precision=tuple(rounded(row) for row in precision),
        sigma=None if sigma is None else float(sigma),
        degrees=degrees,
    )


def deviation_maps(
    model: VAE, given: dict[str, NDArray[Any]], mask: Mask | None
) -> tuple[dict[str, NDArray[np.float32]], float] | None:
    """Mean and standard deviation of what reconstructions of new people miss, voxel by voxel.

    Args:
        model: The model.
        given: Inputs of n people whom no weight was fitted to.
        mask: Voxels that count, (*data_shape); None: all.

    Returns:
        `mean` and `stddev` for `kerasvae.scoring.deviation`, (*data_shape), and their degrees of freedom. None where
        there are too few people for a map not to point to one of them.
    """
    people = len(given["image"])
    if people < FEWEST:
        return None
    total, squares = (np.zeros(model.data_shape) for _ in range(2))
    for start in range(0, people, BATCH):
        part = {name: value[start : start + BATCH] for name, value in given.items()}
        missed = part["image"].astype(np.float64) - model.reconstruct(part)
        total += missed.sum(axis=0)
        squares += np.square(missed).sum(axis=0)
    inside = np.ones(model.data_shape, bool) if mask is None else mask
    mean = np.where(inside, total / people, 0)
    variance = np.maximum(squares - people * np.square(mean), 0)[inside] / (people - 1)
    moderated, degrees = moderated_variance(variance, people - 1)
    stddev = np.zeros(model.data_shape)
    stddev[inside] = np.sqrt(moderated * (1 + 1 / people))  # the mean is uncertain too
    return {"mean": mean.astype(np.float32), "stddev": stddev.astype(np.float32)}, min(degrees, MOST_DEGREES)


def golden_scores(model: VAE, golden: dict[str, Any], reference: Reference) -> dict[str, NDArray[np.float32]]:
    """What the signature ``score`` shall give, by numpy."""
    found = model.score({name: golden[name] for name in model.input_names})
    found["distance"] = distance(found.pop("center"), reference.center, reference.precision).astype(np.float32)
    places = {f"{name}_percentile": percentiles(found[name], getattr(reference, name)) for name in SCORES}
    return found | {name: place.astype(np.float32) for name, place in places.items()}


def _ranked(values: NDArray[Any]) -> tuple[float, ...]:
    ranked = np.sort(values)
    if len(ranked) > MOST_SCORES:
        ranked = np.quantile(ranked, np.linspace(0, 1, MOST_SCORES))
    return rounded(ranked)


def rounded(values: NDArray[Any]) -> tuple[float, ...]:
    """Seven digits of each number, for the manifest."""
    return tuple(float(f"{value:.7g}") for value in values)
