"""Permutation tests of the general linear model: which of many outcomes go with a variable, given covariates?

Freedman & Lane (1983, A nonstochastic interpretation of reported significance levels, J. Bus. Econ. Stat. 1:292), which
keeps how the variable and the covariates go together. In the notation of Winkler et al. (2014, Permutation inference
for the general linear model, NeuroImage 92:381, table 2 and algorithm 1) outcomes are Y = Xβ + Zγ + ε, the residuals
of Y given Z are permuted, and Y* = P R_Z Y + H_Z Y is fitted by the whole model anew. Its statistic is that of
R_Z P R_Z Y, so nothing of size n × n is ever made.

Family-wise error over the outcomes is controlled by the largest statistic of each permutation (Westfall & Young 1993,
Resampling-Based Multiple Testing, section 2.8), which needs no assumption about how outcomes go together.

People with several visits are exchanged as a whole, each with those who have as many (whole-block exchangeability:
Winkler et al. 2015, Multi-level block permutation, NeuroImage 123:253, section "Exchangeability blocks"). That alone
does not move what goes with the variable within people: visits at the same distances are the same whoever had them. So
what a person's visits differ from their mean by is turned about, all together and at random (sign flipping: Winkler et
al. 2014, section "Permutations and sign flipping"). This supposes that without the variable it is as often the reverse,
whatever the dependence between visits: true of two visits that might have been the other way round, and of slopes of
people's own around the mean's. The statistic is that of generalised least squares with an intercept for each person, of
a variance ratio of each outcome's own; `kerasvae.analysis.statistic` says how it is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasvae.analysis.statistic import Statistic
from kerasvae.analysis.visits import Visits
from kerasvae.errors import ArgumentError

__all__ = ["SAME", "Permuted", "orders", "orthonormal", "permute"]

Numbers = NDArray[np.float64]
CHUNK = 2**21
"""Numbers of one matrix that is permuted at once."""
FEWEST = 20
"""Arrangements of a variable over people with visits: with fewer p is above 0.05 whatever the outcomes."""
SAME = 1e-9
"""Statistics that differ by less, relatively, are the same: else those that tie would differ by how they are summed."""


@dataclass(frozen=True)
class Permuted:
    """What a variable has to do with d outcomes.

    Args:
        statistic: (d,): Student's t for one column, its sign that of the slope; F for several. With blocks those of
            generalised least squares.
        degrees: Degrees of freedom of the residual.
        p: (d,): of each outcome alone, two-sided.
        p_family: (d,): the same, with the family-wise error over the d outcomes controlled.
        joint: Of all outcomes together, Pillai's trace (R² of the variable on all outcomes, for one column); NaN where
            there are not more residual degrees of freedom than outcomes.
        p_joint: Its p.
        permutations: How many were drawn.
    """

    statistic: Numbers
    degrees: int
    p: Numbers
    p_family: Numbers
    joint: float
    p_joint: float
    permutations: int


def permute(
    outcomes: ArrayLike,
    variable: ArrayLike,
    covariates: ArrayLike | None = None,
    *,
    blocks: ArrayLike | None = None,
    permutations: int = 10_000,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    watch: Callable[[Numbers], None] | None = None,
    name: str = "The variable",
) -> Permuted:
    """Test a variable against many outcomes at once. An intercept is added.

    Args:
        outcomes: Y, (n, d).
        variable: X, (n,) or (n, k): numbers, or indicators of a category's levels but one.
        covariates: Z, (n, c); None: the intercept alone.
        blocks: (n,): whom each row is of, where some have several; they are exchanged as a whole, rows in their order,
            and differences between them turned about.
        permutations: How many to draw. The least p is 1 / (1 + permutations).
        seed: Of the draws.
        progress: Told how many are done.
        watch: Given the statistics of a few permutations, (m, d), as `Permuted.statistic` has those of the true order;
            for what is not asked of each outcome alone, such as the size of clusters.
        name: Of the variable, for errors.

    Returns:
        See `Permuted`.

    Raises:
        ArgumentError: If a number is not finite, lengths differ, the variable is a mix of the covariates, no degrees of
            freedom are left, there is nothing to exchange, or the number of rows a person has decides the variable.
    """
    y, x, z = _checked(outcomes, variable, covariates)
    n, d = y.shape
    base = orthonormal(z)
    y, scale = y - base @ (base.T @ y), np.square(y).sum(axis=0)
    y[:, np.square(y).sum(axis=0) <= SAME**2 * scale] = 0.0  # what is left of an outcome that covariates explain
    across = x - base @ (base.T @ x)
    along = orthonormal(across, least=x)
    k = along.shape[1]
    degrees = n - base.shape[1] - k
    if k < x.shape[1]:
        raise ArgumentError(name, rule="be no mix of the covariates", got="one", fix="Leave a covariate out")
    if degrees < 1:
        rule = f"leave residual degrees of freedom of {n} rows"
        raise ArgumentError("The model", rule=rule, got=f"{degrees}", fix="Use fewer covariates, or more people")
    known = None if blocks is None else np.asarray(blocks)
    if known is not None:
        _refuse_fixed(x, _groups(n, known), name)
    span = orthonormal(y)
    span = span if 0 < span.shape[1] < degrees else span[:, :0]
    test = Statistic.of(y, span, np.concatenate([base, along], axis=1), k, None if known is None else Visits.of(known))
    turn = along[:, 0] @ across[:, 0]
    (f,), (signs,), (joint,) = test(np.arange(n)[None])
    alone, family, together = np.zeros(d), np.zeros(d), 0
    bound = f * (1 - SAME)
    rng = np.random.default_rng(seed)
    few = max(1, CHUNK // max(test.size, (n - degrees) * d))
    done = 0
    for order in orders(n, permutations, rng, blocks=known, few=few):
        found, turned, joints = test(order, rng)
        if watch is not None:
            watch(np.sqrt(found) * np.sign(turn * turned) if k == 1 else found)
        alone += (found >= bound).sum(axis=0)
        family += (found.max(axis=1)[:, None] >= bound).sum(axis=0)
        together += int((joints >= joint * (1 - SAME)).sum())
        done += len(order)
        progress(done, permutations)
    return Permuted(
        statistic=np.sqrt(f) * np.sign(turn * signs) if k == 1 else f,
        degrees=degrees,
        p=(1 + alone) / (1 + permutations),
        p_family=(1 + family) / (1 + permutations),
        joint=float(joint),
        p_joint=(1 + together) / (1 + permutations) if span.shape[1] else math.nan,
        permutations=permutations,
    )


def _refuse_fixed(x: Numbers, groups: list[NDArray[np.intp]], name: str) -> None:
    """Refuse a variable, (n, k), that has hardly another arrangement over people with as many visits each."""
    log, moving = 0.0, np.empty_like(x)
    for group in groups:
        values = x[group]  # (people, visits, k)
        moving[group] = values - values.mean(axis=(0, 1))
        _, alike = np.unique(values.reshape(len(group), -1), axis=0, return_counts=True)
        log += math.lgamma(len(group) + 1) - sum(math.lgamma(count + 1) for count in alike)
        log += math.log(2) * int((np.ptp(values, axis=1) > 0).any(axis=1).sum())
    fixed = orthonormal(moving, least=x).shape[1] < x.shape[1]
    if fixed or log < math.log(FEWEST):
        rule = "vary among people who have as many scans as one another, as these are exchanged"
        got = "what their number of scans decides" if fixed else f"{math.exp(log):.0f} different arrangements"
        raise ArgumentError(name, rule=rule, got=got, fix="Keep one scan of each person")


def orders(
    n: int, number: int, rng: np.random.Generator, *, blocks: NDArray | None = None, few: int = 1000
) -> Iterator[NDArray[np.intp]]:
    """Random orders of n rows, a few at a time: (m, n) each, m at most `few`, `number` in all.

    Args:
        n: Rows.
        number: Orders.
        rng: Draws them.
        blocks: (n,): rows with the same entry stay together and in order; blocks change places with others as long.
        few: Orders at a time.

    Raises:
        ArgumentError: If no row can change its place.
    """
    groups = _groups(n, blocks)
    if all(len(group) < 2 for group in groups):
        rule = "have two people or more with as many rows, who can be exchanged"
        raise ArgumentError("The rows", rule=rule, got="none", fix="Leave visits out, so that more have as many")
    for start in range(0, number, few):
        count = min(few, number - start)
        found = np.empty((count, n), np.intp)
        for group in groups:  # (blocks, rows of each)
            drawn = rng.permuted(np.tile(np.arange(len(group)), (count, 1)), axis=1)
            found[:, group.ravel()] = group[drawn].reshape(count, -1)
        yield found


def _groups(n: int, blocks: NDArray | None) -> list[NDArray[np.intp]]:
    """Rows of the blocks of each size, (blocks, size)."""
    if blocks is None:
        return [np.arange(n)[:, None]]
    if blocks.shape != (n,):
        raise ArgumentError("blocks", rule=f"have {n} entries, one a row", got=blocks.shape, fix="Correct them")
    rows: dict[object, list[int]] = {}
    for row, block in enumerate(blocks.tolist()):
        rows.setdefault(block, []).append(row)
    sizes = sorted({len(each) for each in rows.values()})
    return [np.array([each for each in rows.values() if len(each) == size]) for size in sizes]


def _checked(
    outcomes: ArrayLike, variable: ArrayLike, covariates: ArrayLike | None
) -> tuple[Numbers, Numbers, Numbers]:
    y = np.asarray(outcomes, np.float64)
    x, z = (np.asarray(np.empty((len(y), 0)) if each is None else each, np.float64) for each in (variable, covariates))
    x, z = (each[:, None] if each.ndim == 1 else each for each in (x, z))
    for name, each in (("outcomes", y), ("variable", x), ("covariates", z)):
        if each.ndim != 2 or len(each) != len(y):
            rule = f"be a table of {len(y)} rows, as outcomes are"
            raise ArgumentError(name, rule=rule, got=f"shape {each.shape}", fix="Correct it")
        if not np.isfinite(each).all():
            raise ArgumentError(name, rule="hold finite numbers", got="NaN or infinity", fix="Leave these rows out")
    return y, x, np.concatenate([np.ones((len(y), 1)), z], axis=1)


def orthonormal(columns: Numbers, least: Numbers | None = None) -> Numbers:
    """An orthonormal basis of columns, without those that hold nothing new.

    Args:
        columns: (n, c).
        least: What they were before something was taken off: what is left is to be told from rounding.
    """
    sizes = np.linalg.norm(columns if least is None else least, axis=0)
    scaled = columns / np.where(sizes > 0, sizes, 1.0)
    left, values, _ = np.linalg.svd(scaled, full_matrices=False)
    return left[:, values > 1e-8 * max(1.0, math.sqrt(columns.shape[1]))]
