"""Logistic regression of a category on codes, its penalty chosen among the people learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FREE", "STRENGTHS", "logistic_of"]

Numbers = NDArray[np.float64]

STRENGTHS = tuple(float(p) for p in np.logspace(-2, 5, 8))
"""Penalties among which is chosen, for codes with a standard deviation of 1; the largest leave nothing of n < 10⁴."""
FREE = 1000.0
"""What covariates are multiplied by, so that a penalty on their weights counts a millionth."""
STEPS = 200
"""Newton's, at most."""


def logistic_of(
    z: Numbers,
    y: NDArray[np.int64],
    known: Numbers,
    learn: NDArray[Any],
    left: NDArray[Any],
    *,
    folds: int = 5,
    seed: int = 0,
    penalties: Sequence[float] = STRENGTHS,
) -> tuple[Numbers, float]:
    """Probabilities of the levels of a category, for people left out.

    −Σ log p(yᵢ) + ½ λ ‖w‖² is minimised (scikit-learn, Newton's method): two levels by logistic, more by multinomial
    regression. λ is the one with the smallest log loss in a cross-validation of the people learned from alone, in parts
    that have as much of each level. Codes and covariates are divided by the standard deviations of those learned from,
    too, covariates by so much less that their weights are as good as free.

    Args:
        z: Codes, (n, d), a row a person; d may be 0.
        y: Level of each person, from 0, (n,).
        known: Covariates, (n, c); c may be 0.
        learn: Rows to learn from; each level at least `folds` times.
        left: Rows to predict.
        folds: Parts of those learned from.
        seed: Of the parts.
        penalties: Among which λ is chosen; without codes the first is taken.

    Returns:
        (m, levels), and λ.
    """
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    tried = penalties if z.shape[1] else penalties[:1]
    errors = np.zeros(len(tried))
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for fit, out in parts.split(learn, y[learn]) if len(tried) > 1 else []:
        found = _probabilities(z, y, known, learn[fit], learn[out], tried)
        errors += [log_loss(y[learn[out]], each, labels=range(each.shape[1])) for each in found]
    best = float(tried[int(errors.argmin())])
    return _probabilities(z, y, known, learn, left, [best])[0], best


def _probabilities(
    z: Numbers,
    y: NDArray[np.int64],
    known: Numbers,
    learn: NDArray[Any],
    left: NDArray[Any],
    penalties: Sequence[float],
) -> list[Numbers]:
    from sklearn.linear_model import LogisticRegression

    columns = np.c_[z, known]
    mean, spread = columns[learn].mean(axis=0), columns[learn].std(axis=0)
    scale = np.where(spread > 0, spread, 1.0) / np.r_[np.ones(z.shape[1]), np.full(known.shape[1], FREE)]
    columns = (columns - mean) / scale
    return [
        LogisticRegression(C=1 / penalty, solver="newton-cholesky", max_iter=STEPS, tol=1e-6)
        .fit(columns[learn], y[learn])
        .predict_proba(columns[left])
        for penalty in penalties
    ]
