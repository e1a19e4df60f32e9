"""Conformal p-values: how unusual a person is, with a guarantee that needs no model of the scores. No TensorFlow.

If a new person's score is exchangeable with those of n calibration people, p = (1 + #{i: sᵢ ≥ s}) / (n + 1) is at most
α with a probability of at most α, over the draw of calibration people and of the person, for every n and every
distribution (Vovk, Gammerman & Shafer 2005, Algorithmic Learning in a Random World, section 2.2; Laxhammar & Falkman
2010, Conformal prediction for distribution-independent anomaly detection). The least p is 1 / (n + 1): with 29 people
nothing can be told at 0.03.

What makes a score must not know which people calibrate: a scale, a mean or a model is learned from others.

Of many persons at once, Benjamini and Hochberg's procedure (`scipy.stats.false_discovery_control`) on conformal p of
one calibration set controls the false discovery rate though they depend on one another (Bates, Candès, Lei, Romano &
Sesia 2023, Testing for outliers with conformal p-values, Ann. Stat. 51:149, theorem 2). Of the many voxels of one
person, the largest score is compared with the largest of each calibration person: whatever the voxels' dependence, a
healthy person has *any* voxel called deviant with a probability of at most α (`voxels`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasvae.errors import ArgumentError

__all__ = ["conformal_p", "fewest", "threshold", "voxels"]

Numbers = NDArray[np.float64]


def conformal_p(scores: ArrayLike, calibration: ArrayLike) -> Numbers:
    """p of each score, in its shape; higher scores are more unusual. One that is no number has p = 1/(n + 1).

    >>> conformal_p([0.5, 3.5, 9.0], [1.0, 2.0, 3.0, 4.0]).tolist()
    [1.0, 0.4, 0.2]

    Args:
        scores: Of new people.
        calibration: (n,): of the calibration people.

    Raises:
        ArgumentError: If there is no calibration person, or a score of theirs is no number.
    """
    known = np.sort(_calibration(calibration))
    values = np.asarray(scores, np.float64)
    # searchsorted puts NaN behind all numbers, so that nobody scores as high
    as_high = len(known) - np.searchsorted(known, values, side="left")
    return np.asarray((1.0 + as_high) / (len(known) + 1.0), np.float64)


def threshold(calibration: ArrayLike, alpha: float) -> float:
    """The score from which on p is at most alpha: ∞ where no score can be.

    A score is *above* it, not at it, to be so.

    >>> threshold([1.0, 2.0, 3.0, 4.0], 0.4)
    3.0

    Args:
        calibration: (n,).
        alpha: Between 0 and 1.

    Raises:
        ArgumentError: As `conformal_p`, or if alpha is outside its range.
    """
    if not 0 < alpha < 1:
        raise ArgumentError("alpha", rule="be between 0 and 1", got=alpha, fix="Use 0.05")
    known = np.sort(_calibration(calibration))
    above = int(np.floor(alpha * (len(known) + 1) * (1 + 1e-12))) - 1  # calibration people who may score as high
    return float(known[len(known) - 1 - above]) if above >= 0 else float("inf")


def voxels(scores: ArrayLike, calibration: ArrayLike) -> Numbers:
    """p of each voxel of people, (m, v), family-wise over the voxels: its score among the calibration people's maxima.

    The largest score of a person gives the person's own p; a person has any voxel with p ≤ α with a probability of at
    most α. A voxel's score must be the same function of every person's image, learned from other people.

    Args:
        scores: (m, v).
        calibration: (n, v): of the calibration people.

    Raises:
        ArgumentError: If voxels differ in number, or as `conformal_p`.
    """
    new, known = np.asarray(scores, np.float64), np.asarray(calibration, np.float64)
    if new.ndim != 2 or known.ndim != 2 or new.shape[1] != known.shape[1] or not new.shape[1]:
        rule = "be tables of people and the same voxels"
        raise ArgumentError(
            "scores and calibration", rule=rule, got=f"{new.shape} and {known.shape}", fix="Correct them"
        )
    return conformal_p(new, known.max(axis=1, initial=-np.inf))


def fewest(alpha: float) -> int:
    """Calibration people below whom nothing can be told at alpha.

    >>> fewest(0.05)
    19
    """
    return int(np.ceil(1 / alpha * (1 - 1e-12))) - 1


def _calibration(scores: ArrayLike) -> Numbers:
    known = np.asarray(scores, np.float64)
    if known.ndim != 1 or not len(known) or np.isnan(known).any():
        got = "NaN" if known.ndim == 1 and len(known) else f"shape {known.shape}"
        raise ArgumentError("calibration", rule="be one score or more, all numbers", got=got, fix="Add people")
    return known
