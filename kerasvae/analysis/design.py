"""Cells of a table as columns of a linear model: numbers as they are, categories as indicators of their levels."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kerasvae.covariates import MISSING
from kerasvae.errors import ArgumentError

__all__ = ["Model", "Term", "beside", "column_of", "columns_of", "held_same", "model_of", "term_of"]


@dataclass(frozen=True)
class Term:
    """A variable.

    Args:
        name: Of the column.
        levels: Of a category; the first is what the others are compared with. None of a number.
        values: (n, k): the number, or an indicator of each level but the first; NaN where it is not known.
    """

    name: str
    levels: tuple[str, ...]
    values: NDArray[np.float64]

    @property
    def known(self) -> NDArray[np.bool_]:
        """(n,): where it is known."""
        return np.asarray(np.isfinite(self.values).all(axis=1))

    @property
    def meaning(self) -> str:
        """What its slope is that of."""
        return _against(self.levels[1:], self.levels[0] if self.levels else "")


def _against(levels: Sequence[str], reference: str) -> str:
    return " or ".join(f"{level} against {reference}" for level in levels if level) or "a unit more"


def column_of(name: str) -> tuple[str, bool]:
    """The column that a name asks for, and whether as a category: C(site), as in the formulas of statsmodels.

    >>> column_of("C(site)")
    ('site', True)
    """
    asked = re.fullmatch(r"C\((.+)\)", name.strip())
    return (asked[1].strip(), True) if asked else (name, False)


def term_of(name: str, cells: Sequence[str], *, category: bool = False) -> Term:
    """A variable of its cells: a number where each that is known is one, else a category.

    >>> term_of("sex", ["M", "F", "n/a"]).values.ravel().tolist()
    [1.0, 0.0, nan]

    Args:
        name: Of the column.
        cells: One a row, as text.
        category: Whether numbers are names of groups.

    Raises:
        ArgumentError: If it does not vary, or is a category with a level for nearly each row.
    """
    texts = [cell.strip() for cell in cells]
    unknown = np.array([text.casefold() in MISSING for text in texts], bool)
    known = [text for text, gone in zip(texts, unknown, strict=True) if not gone]
    if len(set(known)) < 2:
        got = f"{set(known).pop()} everywhere" if known else "no value"
        raise ArgumentError(name, rule="have two values or more", got=got, fix="Name another column")
    numbers = [_number(text) for text in known]
    values = np.full((len(texts), 1), np.nan)
    if None not in numbers and not category:
        values[~unknown, 0] = numbers
        return Term(name, (), values)
    levels = tuple(sorted(set(known), key=lambda text: (_number(text) is None, _number(text) or 0.0, text)))
    if len(levels) > max(2, len(known) // 3):
        rule = "be numbers, or categories of three rows or more each on average"
        raise ArgumentError(
            name, rule=rule, got=f"{len(levels)} different texts, {levels[0]!r} first", fix="Correct it"
        )
    values = np.array([[float(text == level) for level in levels[1:]] for text in texts])
    values[unknown] = np.nan
    return Term(name, levels, values)


def columns_of(terms: Sequence[Term], rows: int) -> NDArray[np.float64]:
    """All their columns side by side, (n, k); of no term (n, 0)."""
    return np.concatenate([np.empty((rows, 0)), *(term.values for term in terms)], axis=1)


class Model(NamedTuple):
    """A variable beside covariates, of the m scans of n where all of them are known.

    Attributes:
        known: (n,): which scans.
        variable: (m, k): without levels that none of them has.
        covariates: (m, c).
        levels: Of the k columns; an empty text of a number.
        reference: The level that these are compared with: the first that one of the scans has.
    """

    known: NDArray[np.bool_]
    variable: NDArray[np.float64]
    covariates: NDArray[np.float64]
    levels: tuple[str, ...]
    reference: str = ""

    @property
    def meaning(self) -> str:
        """What slopes are those of."""
        return _against(self.levels, self.reference)


def beside(variable: Term, covariates: Sequence[Term]) -> list[Term]:
    """What is held the same for a variable: the covariates but itself."""
    return [term for term in covariates if term.name != variable.name]


def model_of(variable: Term, covariates: Sequence[Term]) -> Model:
    """The columns of a linear model.

    Raises:
        ArgumentError: If fewer than three scans are left, or one value of the variable.
    """
    known = np.logical_and.reduce([term.known for term in (variable, *covariates)])
    x, z = variable.values[known], columns_of(covariates, len(known))[known]
    levels: tuple[str, ...] = ("", "")
    if variable.levels:  # the first of all may be that of none of these
        every = np.c_[1 - x.sum(axis=1), x]
        there = np.flatnonzero(every.any(axis=0))
        levels, x = tuple(variable.levels[place] for place in there), every[:, there[1:]]
    if len(x) < 3 or not np.ptp(x, axis=0).any():
        names = ", ".join(term.name for term in (variable, *covariates))
        got = f"{len(x)} with {names} known" if len(x) < 3 else "one value among those with all known"
        raise ArgumentError(variable.name, rule="vary between three scans or more", got=got, fix="Name fewer columns")
    return Model(known, x, z, levels[1:], levels[0])


def held_same(variable: Term, covariates: Sequence[Term]) -> list[str]:
    """What `model_of` holds the same, in words: "age", "site (3 groups)", of which those that are there are counted."""
    known = np.logical_and.reduce([term.known for term in (variable, *covariates)])

    def words(term: Term) -> str:
        if not term.levels:
            return term.name
        columns = term.values[known]
        groups = int(columns.any(axis=0).sum()) + int((~columns.any(axis=1)).any())
        return f"{term.name} ({groups} group{'' if groups == 1 else 's'})"

    return [words(term) for term in covariates]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
