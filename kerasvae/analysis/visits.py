"""Repeated visits: the linear model with an intercept of its own for each person, by generalised least squares.

Of visit j of person i, yᵢⱼ = xᵢⱼᵀβ + bᵢ + εᵢⱼ with variances σ_b² and σ_e² (Laird & Ware 1982, Random-effects models
for longitudinal data, Biometrics 38:963). With λ = σ_b² / σ_e² and ψᵢ = 1 / (1 + nᵢλ) least squares of outcomes and
columns from which (1 − √ψᵢ) of the person's mean is taken is generalised least squares (Fuller & Battese 1973,
Transformations for estimation of linear models with nested-error structure, J. Am. Stat. Assoc. 68:626). λ is that of
the greatest restricted likelihood (Harville 1977, Maximum likelihood approaches to variance component estimation,
J. Am. Stat. Assoc. 72:320), of many outcomes at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Sums", "Visits"]

Numbers = NDArray[np.float64]
MOST = 1e4
"""Greatest λ: of people who do not differ between visits it has no bound."""
GRID, STEPS = 25, 30
TINY = 1e-12
"""Of its squares, an outcome that is explained has less left."""


@dataclass(frozen=True)
class Visits:
    """Which rows are whose.

    Args:
        whose: (n,): number of the person, from 0.
        counts: (people,): rows of each.
        first: (people,): first row of each.
    """

    whose: NDArray[np.intp]
    counts: NDArray[np.intp]
    first: NDArray[np.intp]

    @classmethod
    def of(cls, names: ArrayLike) -> Visits:
        """Of a name or number in each row."""
        _, first, whose, counts = np.unique(
            np.asarray(names), return_index=True, return_inverse=True, return_counts=True
        )
        return cls(whose, counts, first)

    @property
    def people(self) -> int:
        """How many."""
        return len(self.counts)

    @property
    def sizes(self) -> NDArray[np.intp]:
        """(s,): how many visits people have, each number once."""
        return np.unique(self.counts)

    @property
    def rows(self) -> list[NDArray[np.intp]]:
        """Of each part (see `parts`) a row of the table for each of its own."""
        return [np.arange(len(self.whose)), *(self.first[self.counts == size] for size in self.sizes)]

    @property
    def places(self) -> list[NDArray[np.intp]]:
        """Of each part, (n,): which of its own stands for a row; of use where its person is in the part."""
        within = [np.cumsum(self.counts == size) - 1 for size in self.sizes]
        return [np.arange(len(self.whose)), *(each[self.whose] for each in within)]

    def means(self, columns: Numbers) -> Numbers:
        """(people, c)."""
        rows = np.argsort(self.whose, kind="stable")
        starts = np.cumsum(self.counts) - self.counts
        return np.asarray(np.add.reduceat(columns[rows], starts, axis=0) / self.counts[:, None])

    def parts(self, columns: Numbers) -> list[Numbers]:
        """Columns, (n, c), as what visits differ from their people's means by, and √size times the means.

        The means are those of people with as many visits each, a part for each of `sizes`. Inner products of columns
        are the sums of those of parts; of whitened ones they have the weights 1, and ψ.
        """
        means = self.means(columns)
        of_size = [math.sqrt(size) * means[self.counts == size] for size in self.sizes]
        return [columns - means[self.whose], *of_size]

    def weights(self, ratio: Numbers) -> Numbers:
        """Of parts for λ, (d,): (1 + s, d)."""
        return np.concatenate([np.ones((1, len(ratio))), 1 / (1 + np.multiply.outer(self.sizes, ratio))])

    def whiten(self, columns: Numbers, ratio: float) -> Numbers:
        """Columns, (n, c), whose least squares are generalised ones."""
        share = 1 - 1 / np.sqrt(1 + self.counts * ratio)
        return np.asarray(columns - (share[:, None] * self.means(columns))[self.whose])

    def volume(self, ratio: Numbers, gram: Numbers) -> Numbers:
        """ln|V| + ln|XᵀV⁻¹X| of the restricted likelihood, (d,).

        Args:
            ratio: λ, (d,).
            gram: XᵀV⁻¹X, (d, p, p).
        """
        return np.asarray(np.log1p(np.multiply.outer(ratio, self.counts)).sum(axis=1) + np.linalg.slogdet(gram)[1])

    def ratios(self, design: Numbers, outcomes: Numbers) -> Numbers:
        """λ of each outcome, (d,).

        Args:
            design: (n, p), of rank p.
            outcomes: (n, d).
        """
        sums = Sums.of(self.parts(design), self.parts(outcomes))
        floor = TINY * np.maximum(np.square(outcomes).sum(axis=0), np.finfo(float).tiny)

        def lost(ratio: Numbers) -> Numbers:
            fit, gram, along = sums.at(self.weights(ratio))
            left = fit - (along * np.linalg.solve(gram, along[:, :, None])[:, :, 0]).sum(axis=1)
            return self.volume(ratio, gram) + (len(design) - design.shape[1]) * np.log(np.maximum(left, floor))

        return _least(lost, outcomes.shape[1])

    def ratio(self, design: Numbers, outcomes: Numbers) -> float:
        """One λ of all outcomes, as if σ_b² and σ_e² were matrices of which one is λ times the other.

        It is the same of any mix of the outcomes that loses none. 0 where they are not fewer than the degrees of
        freedom.

        Args:
            design: (n, p), of rank p.
            outcomes: (n, d), of rank d.
        """
        d, free = outcomes.shape[1], len(design) - design.shape[1]
        if not 0 < d < free:
            return 0.0
        parts = self.parts(outcomes)
        sums, squares = Sums.of(self.parts(design), parts), np.stack([part.T @ part for part in parts])

        def lost(ratio: Numbers) -> Numbers:
            weights = self.weights(ratio)
            _, gram, along = sums.at(np.repeat(weights, d, axis=1))
            left = np.tensordot(weights[:, 0], squares, 1) - along @ np.linalg.solve(gram[0], along.T)
            return d * self.volume(ratio, gram[:1]) + free * np.linalg.slogdet(left)[1]

        return float(_least(lost, 1)[0])


@dataclass(frozen=True)
class Sums:
    """Sums of squares and products of p columns and d outcomes, of each part (see `Visits.parts`).

    Args:
        grams: (parts, p, p): of the columns.
        alongs: (parts, p, d): of columns and outcomes.
        squares: (parts, d): of the outcomes.
    """

    grams: Numbers
    alongs: Numbers
    squares: Numbers

    @classmethod
    def of(cls, design: list[Numbers], outcomes: list[Numbers]) -> Sums:
        """Of the parts of a table."""
        pairs = list(zip(design, outcomes, strict=True))
        return cls(
            np.stack([x.T @ x for x, _ in pairs]),
            np.stack([x.T @ y for x, y in pairs]),
            np.stack([np.square(y).sum(axis=0) for _, y in pairs]),
        )

    def at(self, weights: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """Sums of whitened columns, of weights for each outcome, (parts, d): yᵀy (d,), XᵀX (d, p, p) and Xᵀy (d, p)."""
        return (
            np.einsum("sd,sd->d", weights, self.squares),
            np.einsum("sd,spq->dpq", weights, self.grams),
            np.einsum("sd,spd->dp", weights, self.alongs),
        )


def _least(lost: Callable[[Numbers], Numbers], number: int) -> Numbers:
    """λ, (number,), of the least of each function: on a grid of ln(1 + λ), then by golden sections."""
    grid = np.linspace(0, math.log1p(MOST), GRID)
    best = np.argmin([lost(np.full(number, math.expm1(each))) for each in grid], axis=0)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, GRID - 1)]
    share = (math.sqrt(5) - 1) / 2
    for _ in range(STEPS):
        first, second = high - share * (high - low), low + share * (high - low)
        lower = lost(np.expm1(first)) <= lost(np.expm1(second))
        low, high = np.where(lower, low, first), np.where(lower, second, high)
    return np.asarray(np.expm1((low + high) / 2))
