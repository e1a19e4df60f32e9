"""Codes beside known factors: what is discrete, what is refused, and how much one tells about the other.

Codes are (n, d), factors (n, f), rows people. A factor is discrete or continuous: say which by `discrete`, one boolean
for all or one for each factor; where it is None, a factor is discrete if its values are whole numbers, at most 20
different ones, each of them held by two people or more on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasvae.errors import ArgumentError

__all__ = ["Discrete", "FactorTable", "Numbers", "binned", "factor_table", "information", "numbered"]

MOST_LEVELS = 20
"""A factor with more different values is not taken as discrete unless it is said to be."""

Discrete = bool | Sequence[bool] | None
Numbers = NDArray[np.float64]


class FactorTable(NamedTuple):
    """Codes beside factors, float64.

    Attributes:
        codes: (n, d), in an order and orientation that depend on their values alone, so that nothing computed from them
            depends on the order and signs of the dimensions as they were given.
        factors: (n, f).
        discrete: (f,).
        order: Column that each column of `codes` was, (d,).
    """

    codes: Numbers
    factors: Numbers
    discrete: NDArray[np.bool_]
    order: NDArray[np.intp]


def factor_table(
    codes: ArrayLike,
    factors: ArrayLike,
    discrete: Discrete,
    *,
    people: int = 4,
    dimensions: int = 1,
    of_factors: int = 1,
) -> FactorTable:
    """Check codes and factors.

    Args:
        codes: (n, d).
        factors: (n, f); none may be constant.
        discrete: Which factors are discrete; see the module.
        people: The fewest rows that will do.
        dimensions: The fewest dimensions.
        of_factors: The fewest factors.

    Raises:
        ArgumentError: If one of them is not such a table of finite numbers.
    """
    z = _matrix("codes", codes, people, dimensions)
    v = _matrix("factors", factors, people, of_factors)
    if len(z) != len(v):
        raise ArgumentError(
            "factors", rule=f"have a row for each of the {len(z)} rows of codes", got=len(v), fix="Give the same people"
        )
    constant = np.flatnonzero(np.ptp(v, axis=0) == 0)
    if len(constant):
        raise ArgumentError(
            f"Factor {constant[0]}", rule="differ between people", got="one value for all", fix="Leave it out"
        )
    flags = _which_are_discrete(v, discrete)
    first = np.argmax(z != 0, axis=0)
    oriented = z * np.where(z[first, np.arange(z.shape[1])] < 0, -1.0, 1.0)
    order = np.lexsort(oriented[::-1])
    return FactorTable(oriented[:, order], v, flags, order)


def _matrix(name: str, values: ArrayLike, rows: int, columns: int) -> Numbers:
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ArgumentError(name, rule="be numbers", got="something else", fix="Code levels as whole numbers") from None
    if matrix.ndim != 2 or matrix.shape[0] < rows or matrix.shape[1] < columns:
        raise ArgumentError(
            name,
            rule=f"be a table of {rows} rows or more and {columns} columns or more",
            got=f"shape {matrix.shape}",
            fix="Give one row a person",
        )
    if not np.isfinite(matrix).all():
        raise ArgumentError(name, rule="be finite", got="NaN or infinity", fix="Leave out people with missing values")
    return matrix


def _which_are_discrete(factors: Numbers, discrete: Discrete) -> NDArray[np.bool_]:
    n, f = factors.shape
    counts = np.array([len(np.unique(values)) for values in factors.T])
    if discrete is None:
        return (factors == np.round(factors)).all(axis=0) & (counts <= MOST_LEVELS) & (2 * counts <= n)
    flags = np.asarray(discrete)
    if flags.dtype != bool or flags.shape not in ((), (f,)):
        raise ArgumentError("discrete", rule=f"be a boolean, or {f} of them", got=repr(discrete), fix="Or leave it out")
    flags = np.broadcast_to(flags, (f,))
    bad = np.flatnonzero(flags & (2 * counts > n))
    if len(bad):
        raise ArgumentError(
            f"The discrete factor {bad[0]}",
            rule="have levels that two people or more hold on average",
            got=f"{counts[bad[0]]} levels for {n} people",
            fix="Call it continuous",
        )
    return flags


def numbered(values: Numbers) -> NDArray[np.int64]:
    """Levels numbered from 0."""
    return np.unique(values, return_inverse=True)[1].reshape(-1)


def binned(values: Numbers, bins: int) -> NDArray[np.int64]:
    """The bin of each value: `bins` of equal width; no more than `bins` different values are a bin each."""
    labels = numbered(values)
    if labels.max() < bins:
        return labels
    part = (values - values.min()) / np.ptp(values)
    return np.minimum((part * bins).astype(np.int64), bins - 1)


def information(table: FactorTable, bins: int) -> tuple[Numbers, Numbers]:
    """I(zᵢ; vₖ), (d, f), and H(vₖ) = I(vₖ; vₖ), (f,), in nats, from counts; continuous values are put in bins."""
    if bins < 2:
        raise ArgumentError("bins", rule="be 2 or more", got=bins, fix="Use 20")
    codes = [binned(column, bins) for column in table.codes.T]
    pairs = zip(table.factors.T, table.discrete, strict=True)
    factors = [numbered(values) if is_discrete else binned(values, bins) for values, is_discrete in pairs]
    shared = np.array([[_shared(code, factor) for factor in factors] for code in codes])
    return shared, np.array([_shared(factor, factor) for factor in factors])


def _shared(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Σ p(a, b) log p(a, b) / p(a) p(b)."""
    shape = (int(a.max()) + 1, int(b.max()) + 1)
    joint = np.bincount(a * shape[1] + b, minlength=shape[0] * shape[1]).reshape(shape) / len(a)
    product = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return max(float(np.sum(joint[seen] * np.log(joint[seen] / product[seen]))), 0.0)
