"""What predictions of people are worth: of numbers and of categories, with what a bootstrap over people needs.

Figures are computed for many weightings of the people at once: weights (b, n) say how often each counts, as drawing
people with replacement does (Efron 1979, Bootstrap methods: another look at the jackknife, Ann. Stat. 7:1); without
weights each counts once, and b is 1. All are computed in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Calibration", "category_figures", "line_calibration", "logistic_calibration", "number_figures"]

Numbers = NDArray[np.float64]
BINS = 10
"""Of probabilities, as wide as each other."""
SURE = float(np.finfo(np.float64).eps)
"""Probabilities are held so far from 0 and 1 in logarithms."""


class Calibration(NamedTuple):
    """Whether predictions are as far out as they say.

    Attributes:
        slope: 1 as it should be; below, predictions are too far out.
        intercept: 0 as it should be, at a slope of 1.
        error: Expected calibration error of probabilities; None of numbers.
        bins: Of each bin that holds somebody: ``low``, ``high``, ``people``, their mean ``probability``, and the
            ``share`` of them with the level. None of numbers.
    """

    slope: float
    intercept: float
    error: float | None = None
    bins: list[dict[str, float]] | None = None


def number_figures(
    observed: ArrayLike, predicted: ArrayLike, expected: ArrayLike, weights: ArrayLike | None = None
) -> dict[str, Numbers]:
    """Figures of predicted numbers, each (b,).

    ``r``, Pearson's correlation, 0 where predictions are all alike; ``r2``, 1 − Σ(y − ŷ)² / Σ(y − ȳ)²; ``mae``, the
    mean absolute error in the target's unit.

    Args:
        observed: y, (n,).
        predicted: ŷ, (n,).
        expected: ȳ, the mean of those that each prediction was learned from, (n,).
        weights: (b, n).
    """
    y, guess, mean = (np.asarray(each, np.float64) for each in (observed, predicted, expected))
    w = _weights(weights, len(y))
    away, out = y - y.mean(), guess - guess.mean()
    if np.ptp(guess) == 0:
        out = np.zeros_like(out)
    columns = np.stack([away, out, away * out, away**2, out**2, (y - guess) ** 2, (y - mean) ** 2, abs(y - guess)])
    a, o, both, aa, oo, lost, spread, mae = (w @ columns.T).T / w.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.sqrt(np.maximum(aa - a**2, 0) * np.maximum(oo - o**2, 0))
        r = np.where(size > 0, (both - a * o) / size, 0.0)
        return {"r": r, "r2": 1 - lost / spread, "mae": mae}


def category_figures(
    observed: NDArray[np.int64], probabilities: Numbers, weights: ArrayLike | None = None
) -> dict[str, Numbers]:
    """Figures of predicted levels, each (b,).

    ``balanced_accuracy``, the mean over levels of the share of their people who are given them (the level with the
    largest probability is given); ``accuracy``; ``log_loss``, −log of the probability of what is the case, nats; of two
    levels ``auc``, the chance that somebody of the second has a higher probability of it than somebody of the first,
    ties counting half, and ``brier``, (Brier 1950, Mon. Weather Rev. 78:1), the mean of (p − y)². NaN where a weighting
    leaves out a level that they need.

    Args:
        observed: Level of each person, from 0, (n,).
        probabilities: (n, levels).
        weights: (b, n).
    """
    y, p = np.asarray(observed), np.asarray(probabilities, np.float64)
    w = _weights(weights, len(y))
    right = (p.argmax(axis=1) == y).astype(np.float64)
    total = w.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.stack([w @ (right * (y == level)) / (w @ (y == level)) for level in np.unique(y)])
        log = np.log(np.clip(p[np.arange(len(y)), y], SURE, 1.0))
        found = {
            "balanced_accuracy": shares.mean(axis=0),
            "accuracy": w @ right / total,
            "log_loss": -(w @ log) / total,
        }
        if p.shape[1] == 2:
            found |= {"auc": _auc(y, p[:, 1], w), "brier": w @ np.square(p[:, 1] - y) / total}
    return found


def line_calibration(observed: ArrayLike, predicted: ArrayLike) -> Calibration:
    """The line of least squares of observed on predicted numbers; NaN where predictions are all alike."""
    y, guess = np.asarray(observed, np.float64), np.asarray(predicted, np.float64)
    if np.ptp(guess) == 0:
        return Calibration(np.nan, np.nan)
    slope, intercept = np.polyfit(guess, y, 1)
    return Calibration(float(slope), float(intercept))


def logistic_calibration(observed: NDArray[np.int64], probability: ArrayLike) -> Calibration:
    """How often the second of two levels is the case where it is said to be likely.

    Slope b and intercept a of logit P(y = 1) = a + b logit p, by maximum likelihood (Cox 1958, Two further applications
    of a model for binary regression, Biometrika 45:562); NaN where p tells the levels apart without an error, or is one
    number. The expected calibration error is Σ n_b/n |share_b − p̄_b| over ten bins as wide as each other (Guo et al.
    2017, On Calibration of Modern Neural Networks, ICML, equation 3, for the probability of one level).

    Args:
        observed: 0 or 1, (n,).
        probability: Of 1, (n,).
    """
    from sklearn.linear_model import LogisticRegression

    y, p = np.asarray(observed), np.clip(np.asarray(probability, np.float64), SURE, 1 - SURE)
    slope = intercept = np.nan
    ones, zeros = p[y == 1], p[y == 0]
    if np.ptp(p) > 0 and len(ones) and len(zeros) and ones.min() < zeros.max() and zeros.min() < ones.max():
        logits = np.log(p / (1 - p))[:, None]
        fit = LogisticRegression(C=np.inf, solver="newton-cholesky", max_iter=200, tol=1e-8).fit(logits, y)
        slope, intercept = float(fit.coef_[0, 0]), float(fit.intercept_[0])
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    bins = [
        {
            "low": index / BINS,
            "high": (index + 1) / BINS,
            "people": int((place == index).sum()),
            "probability": float(p[place == index].mean()),
            "share": float(y[place == index].mean()),
        }
        for index in np.unique(place).tolist()
    ]
    error = sum(row["people"] * abs(row["share"] - row["probability"]) for row in bins) / len(y)
    return Calibration(slope, intercept, float(error), bins)


def _auc(y: NDArray[np.int64], p: Numbers, w: Numbers) -> Numbers:
    """Weighted Mann-Whitney statistic over the number of pairs, (b,)."""
    order = np.argsort(p, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(p[order]) > 0])
    first, second = (np.add.reduceat(w[:, order] * (y[order] == level), starts, axis=1) for level in (0, 1))
    below = np.cumsum(first, axis=1) - first / 2
    return (second * below).sum(axis=1) / (first.sum(axis=1) * second.sum(axis=1))


def _weights(weights: Any, people: int) -> Numbers:
    return np.ones((1, people)) if weights is None else np.asarray(weights, np.float64)
