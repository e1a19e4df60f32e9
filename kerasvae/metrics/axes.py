"""Do two trainings find the same axes of a latent space?

Spaces may agree (`kerasvae.metrics.stability`) while their axes do not, and of axes alone something can be said about
single dimensions. Each axis of one is paired with one of the other, so that the sum of |correlations| over people is
largest (Kuhn 1955, The Hungarian method for the assignment problem, Nav. Res. Logist. Q. 2:83). Pairing finds something
to pair in noise, too: the same is done with the people of one permuted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasvae.errors import ArgumentError
from kerasvae.metrics.stability import same_people

__all__ = ["AxesAgreement", "MatchedAxes", "match_axes"]

Numbers = NDArray[np.float64]


class MatchedAxes(NamedTuple):
    """A pair of axes.

    Attributes:
        first: Axis of one, from 0.
        second: Axis of the other.
        r: Correlation of codes along them, with its sign.
        chance: Mean of |r| over permutations, of the pair that comes at the same place among pairs by |r|.
        p: Part of the permutations, the people as they are among them, whose *best* pair is as good: family-wise.
    """

    first: int
    second: int
    r: float
    chance: float
    p: float


class AxesAgreement(NamedTuple):
    """All pairs of axes.

    Attributes:
        pairs: As many as the narrower space has axes, the best first.
        mean: Of |r| over them.
        chance: Its mean over permutations.
        p: Part of the permutations, the people as they are among them, with as large a mean.
    """

    pairs: list[MatchedAxes]
    mean: float
    chance: float
    p: float


def match_axes(a: ArrayLike, b: ArrayLike, *, permutations: int = 100, seed: int = 0) -> AxesAgreement:
    """Pair the axes of two codes of the same people.

    Args:
        a: (n, d), a row a person; axes that do not vary correlate with none.
        b: (n, e), the same people.
        permutations: Number, 1 or more; a p-value is at least 1 / (permutations + 1).
        seed: Of the permutations.

    Raises:
        ArgumentError: If people do not match, or there are no permutations.
    """
    if permutations < 1:
        raise ArgumentError("permutations", rule="be 1 or more", got=permutations, fix="Use 100")
    a, b = map(_standardised, same_people(a, b))
    first, second, r = _matched(a, b)
    orders = (np.random.default_rng((seed, k)).permutation(len(a)) for k in range(permutations))
    null = np.array([abs(_matched(a, b[order])[2]) for order in orders])
    size, means = abs(r), null.mean(axis=1)
    p = (1 + (null[:, :1] >= size).sum(axis=0)) / (1 + permutations)
    pairs = zip(first.tolist(), second.tolist(), r.tolist(), null.mean(axis=0).tolist(), p.tolist(), strict=True)
    reached = int((means >= size.mean()).sum())
    return AxesAgreement(
        [MatchedAxes(*pair) for pair in pairs],
        float(size.mean()),
        float(means.mean()),
        (1 + reached) / (1 + permutations),
    )


def _matched(a: Numbers, b: Numbers) -> tuple[NDArray[np.intp], NDArray[np.intp], Numbers]:
    """Axes of both, and their correlations, (k,), the best first."""
    from scipy.optimize import linear_sum_assignment

    r = a.T @ b
    first, second = linear_sum_assignment(abs(r), maximize=True)
    order = np.argsort(-abs(r[first, second]), kind="stable")
    first, second = first[order], second[order]
    return first, second, r[first, second]


def _standardised(codes: Numbers) -> Numbers:
    """Columns of mean 0 and length 1; those that do not vary are 0."""
    away = codes - codes.mean(axis=0)
    away[:, np.ptp(codes, axis=0) == 0] = 0.0
    length = np.linalg.norm(away, axis=0)
    return away / np.where(length > 0, length, 1.0)
