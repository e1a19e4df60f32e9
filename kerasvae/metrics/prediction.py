"""What codes say about people: a linear prediction, judged on people who had no part in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasvae.errors import ArgumentError

__all__ = ["PENALTIES", "Prediction", "Ridge", "nested_ridge", "ridge_of"]

Numbers = NDArray[np.float64]

PENALTIES = tuple(float(p) for p in np.logspace(-2, 6, 17))
"""Penalties among which is chosen, for codes with a standard deviation of 1; the largest leave nothing of n < 10⁵."""


class Prediction(NamedTuple):
    """Predictions of people left out, and what they are worth.

    Attributes:
        predicted: Of each row, in the target's unit, (n,).
        r: Pearson's correlation with the target; 0 where predictions are all alike. About 0 or below for codes that
            know nothing: people left out of a mean are on its other side.
        mae: Mean absolute error, in the target's unit.
        r2: 1 − Σ(y − ŷ)² / Σ(y − ȳ)², ȳ the mean of the people learned from: at most 1; 0 is as good as ȳ.
        r2_covariates: The same of least squares on the covariates alone; 0 without any.
        fold: Part that each row was left out in, (n,).
        penalties: The one chosen, for each part.
    """

    predicted: Numbers
    r: float
    mae: float
    r2: float
    r2_covariates: float
    fold: NDArray[np.int64]
    penalties: tuple[float, ...]


def nested_ridge(
    codes: ArrayLike,
    target: ArrayLike,
    *,
    folds: int = 5,
    seed: int = 0,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    covariates: ArrayLike | None = None,
    penalties: Sequence[float] = PENALTIES,
) -> Prediction:
    """Ridge regression of a target on codes, in nested cross-validation.

    Each part of the people is predicted from the others; the penalty is the one with the smallest mean squared error in
    a cross-validation of those others alone, with as many parts (Varma & Simon 2006, Bias in error estimation when
    using cross-validation for model selection, BMC Bioinformatics 7:91). Means, standard deviations and the fit on
    covariates are of those learned from, too. That holds from the codes on: the model that made them must not have
    learned from these people either, least of all with the target.

    Args:
        codes: (n, d); each dimension is divided by its standard deviation.
        target: (n,), known for all.
        folds: Parts, inside and outside; 2 or more.
        seed: Of the parts.
        groups: The person of each row; a person is never divided. By default each row is another.
        covariates: (n, c), fitted by least squares without a penalty, so that codes are worth what they add to
            `r2_covariates`.
        penalties: Multiples of the sum of squared weights, among which is chosen.

    Raises:
        ArgumentError: If rows do not match, a value is not finite, the target does not vary, or people are too few.
    """
    y = np.asarray(target, dtype=np.float64)
    z, known = _table("codes", codes, y), np.ones((len(y), 1))
    if covariates is not None:
        known = np.c_[known, _table("covariates", covariates, y)]
    if y.ndim != 1 or not np.isfinite(y).all() or not len(y) or np.ptp(y) == 0:
        raise ArgumentError(
            "target", rule="be finite numbers (n,) that vary", got=f"shape {y.shape}", fix="Leave out unknown ones"
        )
    who = np.arange(len(y)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(who) != len(y):
        raise ArgumentError("groups", rule=f"name the person of each of {len(y)} rows", got=len(who), fix="Match rows")
    people = len(np.unique(who))
    if not 2 <= folds or people - -(-people // folds) < 2 * folds:
        raise ArgumentError(
            "folds",
            rule="be 2 or more, and leave twice as many people to learn from",
            got=f"{folds} for {people} people",
            fix="Use 5, or add people",
        )
    if not penalties or not all(0 < p < np.inf for p in penalties):
        raise ArgumentError("penalties", rule="be positive numbers", got=penalties, fix="Leave them out")
    predicted, plain, mean = np.empty_like(y), np.empty_like(y), np.empty_like(y)
    part, chosen = np.empty(len(y), np.int64), []
    for k, (learn, left) in enumerate(_parts(who, folds, seed)):
        found = ridge_of(z, y, known, learn, left, who=who, folds=folds, seed=seed, penalties=penalties)
        predicted[left], plain[left], mean[left], part[left] = *found[:2], y[learn].mean(), k
        chosen.append(float(found.penalties))
    total = np.square(y - mean).sum()
    alike = np.ptp(predicted) == 0
    return Prediction(
        predicted=predicted,
        r=0.0 if alike else float(np.corrcoef(predicted, y)[0, 1]),
        mae=float(np.abs(predicted - y).mean()),
        r2=float(1 - np.square(predicted - y).sum() / total),
        r2_covariates=float(1 - np.square(plain - y).sum() / total),
        fold=part,
        penalties=tuple(chosen),
    )


class Ridge(NamedTuple):
    """What `ridge_of` says of m rows left out; of t targets at once, each has an axis of length t at its end.

    Attributes:
        predicted: In the target's unit, (m,).
        plain: The same by least squares on what is known alone, (m,).
        penalties: The one chosen, a number.
    """

    predicted: Numbers
    plain: Numbers
    penalties: Numbers


def ridge_of(
    z: Numbers,
    y: Numbers,
    known: Numbers,
    learn: NDArray[Any],
    left: NDArray[Any],
    *,
    who: NDArray[Any],
    folds: int = 5,
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
) -> Ridge:
    """Rows left out, predicted from others as in `nested_ridge`, the penalty chosen among those others.

    Decompositions serve all targets, so that a thousand permutations of one cost little more than one.

    Args:
        z: Codes, (n, d).
        y: (n,) or (n, t).
        known: What has weights without a penalty, (n, c), the intercept among it.
        learn: Rows to learn from.
        left: Rows to predict.
        who: The person of each row, (n,).
        folds: Parts of those learned from, by which the penalty is chosen.
        seed: Of the parts.
        penalties: Among which is chosen.
    """
    many = y if y.ndim == 2 else y[:, None]
    errors = []
    for fit, out in _parts(who[learn], folds, seed):
        guesses, _ = _predictions(z, many, known, learn[fit], learn[out], penalties)
        errors.append(np.square(guesses - many[learn[out], None]).mean(axis=0))
    best = np.mean(errors, axis=0).argmin(axis=0)
    predicted, plain = _predictions(z, many, known, learn, left, penalties, best)
    found = Ridge(predicted[:, 0], plain, np.asarray(penalties)[best])
    return found if y.ndim == 2 else Ridge(*(each[..., 0] for each in found))


def _table(name: str, given: ArrayLike, target: Numbers) -> Numbers:
    table = np.asarray(given, dtype=np.float64)
    if table.ndim != 2 or len(table) != len(np.atleast_1d(target)) or not np.isfinite(table).all():
        raise ArgumentError(
            name,
            rule="be finite numbers with a row for each value of the target",
            got=f"shape {table.shape} beside {np.shape(target)}",
            fix="Match rows, and leave out unknown ones",
        )
    return table


def _parts(groups: NDArray[Any], folds: int, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to learn from and rows left out, for each part."""
    from sklearn.model_selection import GroupKFold

    return list(GroupKFold(folds, shuffle=True, random_state=seed).split(groups, groups=groups))


def _predictions(
    z: Numbers,
    y: Numbers,
    known: Numbers,
    learn: NDArray[Any],
    left: NDArray[Any],
    penalties: Sequence[float],
    chosen: NDArray[np.intp] | None = None,
) -> tuple[Numbers, Numbers]:
    """Of rows left out and t targets: for each penalty, (m, p, t), and from `known` alone, (m, t).

    Where one of the penalties is chosen for each target, (t,), p is 1. What `known` explains is taken out of codes and
    target, which is the same as leaving its weights unpenalised.
    """
    both = np.c_[y, z]
    line = np.linalg.lstsq(known[learn], both[learn], rcond=None)[0]
    rest, targets = both - known @ line, y.shape[1]
    other = known[left] @ line[:, :targets]
    spread = np.std(z[learn], axis=0)
    codes = rest[:, targets:] / np.where(spread > 0, spread, 1.0)
    u, s, axes = np.linalg.svd(codes[learn], full_matrices=False)
    along, onto = u.T @ rest[learn, :targets], codes[left] @ axes.T
    shares = s[:, None] / (np.square(s)[:, None] + np.asarray(penalties))
    if chosen is not None:
        return (other + onto @ (shares[:, chosen] * along))[:, None], other
    return other[:, None] + np.stack([onto @ (share[:, None] * along) for share in shares.T], axis=1), other
