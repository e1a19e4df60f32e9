"""What is known about a person beside the image, as part of a model's contract. No TensorFlow.

A model with covariates takes one number for each, in its own unit: years, or the place of a category in its list of
levels. `Covariates` turns tables into these numbers and refuses what the model was not made for. The model itself
standardises them, in its graph, where a level that does not exist, or a missing value that must not be missing, makes
every output NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from kerasvae.errors import ArgumentError, nearest

__all__ = ["MISSING", "Covariate", "Covariates"]

MISSING = frozenset({"", "n/a", "na", "nan", "<na>", "nat"})
"""Cells of a table, in lower case, that mean "not known" (BIDS writes n/a, pandas <NA> and NaT)."""
FEWEST = 5
"""Scans of a level that there must be to learn from: of fewer, a model gives away what they look like."""


class Covariate(BaseModel):
    """One covariate: its name, unit, coding, range, and what is done where it is missing.

    Args:
        name: Of the column.
        kind: ``"continuous"``, a number in its unit, or ``"categorical"``, the place in `levels`, from 0.
        unit: Of a continuous one, e.g. ``"years"``.
        mean: Mean of a continuous one over the training scans, in its unit; it is subtracted in the model.
        stddev: Its standard deviation, positive; the model divides by it.
        low: Smallest value that the model takes: below its cohort's smallest by a part of a round step.
        high: Largest value, likewise.
        levels: Of a categorical one.
        shares: Share of the training scans that have each level; the model subtracts it from the level's 0 or 1.
        missing: ``"refuse"``, or ``"mean"``: a missing value counts as the training scans' mean.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    kind: Literal["continuous", "categorical"]
    unit: str = ""
    mean: float = 0.0
    stddev: float = 1.0
    low: float | None = None
    high: float | None = None
    levels: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    missing: Literal["refuse", "mean"] = "refuse"

    @model_validator(mode="after")
    def _whole(self) -> Covariate:
        if self.kind == "continuous" and not (self.stddev > 0 and math.isfinite(self.mean)):
            raise ValueError(f"the standard deviation of {self.name} must be positive and its mean finite")
        if self.kind == "categorical" and not len(self.levels) == len(self.shares) >= 2:
            raise ValueError(f"the categories of {self.name} must be two or more, with a share for each")
        return self

    @property
    def width(self) -> int:
        """Columns of its coding: one number, or one for each level but the first."""
        return 1 if self.kind == "continuous" else len(self.levels) - 1

    @property
    def rule(self) -> str:
        """What a value must be, in words."""
        if self.kind == "categorical":
            return f"be one of {', '.join(self.levels)}"
        ends = "" if self.low is None else f" between {self.low:g} and {self.high:g}"
        return f"be a number{ends}{' ' + self.unit if self.unit else ''}"

    @property
    def meaning(self) -> str:
        """Name and what its numbers mean: the unit, or the number of each level."""
        codes = ", ".join(f"{number} = {level}" for number, level in enumerate(self.levels))
        return f"{self.name} ({codes or self.unit or 'a number'})"

    @property
    def typical(self) -> float:
        """The mean, or the place of the most frequent level."""
        return self.mean if self.kind == "continuous" else float(np.argmax(self.shares))

    def number(self, cell: Any) -> float:
        """The number for one cell of a table, before `check`; NaN where it is missing.

        Raises:
            ArgumentError: If the cell is no level, or no number.
        """
        text = _text(cell)
        if text.casefold() in MISSING:
            value = math.nan
        elif self.kind == "categorical":
            if text not in self.levels:
                close = nearest(text, self.levels)
                raise ArgumentError(
                    f"The covariate {self.name!r}",
                    rule=self.rule,
                    got=repr(text),
                    fix=f"Did you mean {close!r}?" if close else "Recode it",
                )
            value = float(self.levels.index(text))
        else:
            try:
                value = float(text)
            except ValueError:
                raise ArgumentError(
                    f"The covariate {self.name!r}", rule=self.rule, got=repr(text), fix="Give it as a number"
                ) from None
        return value

    def check(self, values: NDArray[np.float64]) -> None:
        """Refuse numbers, (n,), that the model was not made for.

        Raises:
            ArgumentError: Naming the first.
        """
        missing = np.isnan(values)
        if self.missing == "refuse" and missing.any():
            raise ArgumentError(
                f"The covariate {self.name!r}",
                rule="be known",
                got=f"a missing value in row {int(np.argmax(missing))}",
                fix="Leave that scan out, or train a model that may do without it",
            )
        if self.kind == "categorical":
            bad = ~missing & ~np.isin(values, np.arange(len(self.levels)))
            rule = f"be a whole number from 0 to {len(self.levels) - 1}, the place among {', '.join(self.levels)}"
        else:
            low = np.float32(-np.inf if self.low is None else self.low)  # as the model takes them
            high = np.float32(np.inf if self.high is None else self.high)
            values = values.astype(np.float32)
            bad, rule = ~missing & ~((values >= low) & (values <= high) & np.isfinite(values)), self.rule
        if bad.any():
            row = int(np.argmax(bad))
            raise ArgumentError(
                f"The covariate {self.name!r}",
                rule=rule,
                got=f"{values[row]:g} in row {row}",
                fix="Check its unit; the model was made for people within these limits",
            )


class Covariates(Sequence[Covariate]):
    """The covariates of a model, in the order of its input's columns.

    Args:
        entries: One or more, of different names.

    >>> known = Covariates.fit({"age": range(20, 80), "sex": ["F", "M"] * 30}, units={"age": "years"})
    >>> known.matrix({"age": ["35"], "sex": ["M"]})
    array([[35.,  1.]], dtype=float32)
    """

    def __init__(self, entries: Sequence[Covariate]) -> None:
        self.entries = tuple(entries)
        if len({entry.name for entry in self.entries}) != len(self.entries) or not self.entries:
            raise ArgumentError(
                "covariates",
                rule="be one or more, of different names",
                got=", ".join(entry.name for entry in self.entries) or "none",
                fix="Name each once",
            )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:
        return self.entries[index]

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(entry.name for entry in self.entries)

    @property
    def width(self) -> int:
        """Columns of the coding, c."""
        return sum(entry.width for entry in self.entries)

    @classmethod
    def fit(
        cls,
        columns: Mapping[str, Sequence[Any]],
        *,
        categorical: Sequence[str] = (),
        units: Mapping[str, str] | None = None,
        missing: Literal["refuse", "mean"] = "refuse",
        limits: Mapping[str, Sequence[Any]] | None = None,
    ) -> Covariates:
        """Covariates of training scans.

        Args:
            columns: Name to one cell a scan, or a data frame. A column of numbers is continuous, any other categorical.
            categorical: Columns whose numbers are codes of categories.
            units: Of continuous ones.
            missing: What is done where a value is missing, here and later.
            limits: Cells of everyone whom the model is meant for, e.g. of the whole cohort, from which the smallest and
                largest values come; by default the columns.

        Raises:
            ArgumentError: If a column does not vary, has a missing value that it must not have, or a few cells that are
                no numbers; if a level has fewer than five scans, or scans in `limits` only.
        """
        columns, everyone = _table(columns), _table(limits or {})
        if absent := [name for name in categorical if name not in columns]:
            raise ArgumentError(
                "categorical",
                rule=f"name covariates: {', '.join(columns)}",
                got=", ".join(absent),
                fix="Correct the name",
            )
        return cls(
            [
                _fit(name, cells, name in categorical, units or {}, missing, everyone.get(name, ()))
                for name, cells in columns.items()
            ]
        )

    def matrix(
        self, values: ArrayLike | Mapping[str, Sequence[Any]], *, rows: int | None = None
    ) -> NDArray[np.float32]:
        """The model's input: a number for each covariate of each scan, (n, k) float32, NaN where missing.

        Args:
            values: A table, column name to cells, or a data frame, whose other columns are not looked at; or numbers of
                shape (n, k).
            rows: The number n that is wanted.

        Raises:
            ArgumentError: If a column is missing, a value is outside its rule, or n is another.
        """
        values = _table(values)
        if isinstance(values, Mapping):
            absent = [name for name in self.names if name not in values]
            if absent:
                raise ArgumentError(
                    "covariates",
                    rule=f"have the columns {', '.join(self.names)}",
                    got=f"no {', '.join(absent)}",
                    fix="Add what is missing",
                )
            cells = [values[entry.name] for entry in self.entries]
            cells = [[column] if isinstance(column, str) or np.ndim(column) == 0 else column for column in cells]
            if len({len(column) for column in cells}) > 1:
                raise ArgumentError(
                    "covariates",
                    rule="have as many cells in every column",
                    got=", ".join(f"{len(column)} of {name}" for name, column in zip(self.names, cells, strict=True)),
                    fix="Give one cell a scan",
                )
            numbers = [[entry.number(cell) for cell in column] for entry, column in zip(self, cells, strict=True)]
            array = np.array(numbers, dtype=np.float64).T
        else:
            try:
                array = np.asarray(values, dtype=np.float64)
            except (TypeError, ValueError):
                raise ArgumentError(
                    "covariates", rule="be a table or numbers", got=repr(values)[:60], fix="Name the columns"
                ) from None
        if array.ndim != 2 or array.shape[1] != len(self) or (rows is not None and len(array) != rows):
            raise ArgumentError(
                "covariates",
                rule=f"have shape ({'n' if rows is None else rows}, {len(self)}): {', '.join(self.names)}",
                got=array.shape,
                fix="Give one row a scan",
            )
        for index, entry in enumerate(self.entries):
            entry.check(array[:, index])
        return array.astype(np.float32)

    def typical(self) -> NDArray[np.float32]:
        """Mean or most frequent level of each, (1, k)."""
        return np.array([[entry.typical for entry in self.entries]], dtype=np.float32)

    def to_config(self) -> list[dict[str, Any]]:
        """A JSON-serialisable description; `from_config` reverses it."""
        return [entry.model_dump(mode="json") for entry in self.entries]

    @classmethod
    def from_config(cls, config: Sequence[Mapping[str, Any]]) -> Covariates:
        """The covariates that `to_config` described."""
        return cls([Covariate.model_validate(dict(entry)) for entry in config])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Covariates) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.entries)


def _fit(
    name: str,
    cells: Sequence[Any],
    categories: bool,
    units: Mapping[str, str],
    missing: Literal["refuse", "mean"],
    everyone: Sequence[Any],
) -> Covariate:
    known = _known(cells)
    if len(known) < len(cells) and missing == "refuse":
        raise ArgumentError(
            f"The covariate {name!r}",
            rule="be known for every scan",
            got=f"{len(cells) - len(known)} missing of {len(cells)}",
            fix='Leave these scans out, or let a missing value count as the mean (missing = "mean")',
        )
    if len(set(known)) < 2:
        raise _constant(name, known)
    numbers = None if categories else _numbers(name, known)
    if numbers is None:
        return _categorical(name, known, _known(everyone), missing)
    if not np.ptp(numbers):
        raise _constant(name, known)
    others = np.array(_known(everyone), dtype=np.float64)
    reach = np.concatenate([numbers, others])
    step = 10.0 ** math.floor(math.log10(np.ptp(reach)))
    return Covariate(
        name=name,
        kind="continuous",
        unit=units.get(name, ""),
        mean=float(f"{numbers.mean():.4g}"),
        stddev=float(f"{numbers.std():.4g}"),
        low=float(np.floor(reach.min() / step - 0.25) * step),
        high=float(np.ceil(reach.max() / step + 0.25) * step),
        missing=missing,
    )


def _categorical(
    name: str, known: Sequence[str], everyone: Sequence[str], missing: Literal["refuse", "mean"]
) -> Covariate:
    levels = sorted(set(known))
    for level in sorted({*levels, *everyone}):
        if known.count(level) < FEWEST:
            raise ArgumentError(
                f"The covariate {name!r}",
                rule=f"have {FEWEST} or more training scans of every level",
                got=f"{known.count(level)} of {level!r}",
                fix="Join levels, leave these scans out, or balance the roles by it (split.stratify)",
            )
    shares = tuple(round(known.count(level) / len(known), 2) for level in levels)
    return Covariate(name=name, kind="categorical", levels=tuple(levels), shares=shares, missing=missing)


def _constant(name: str, known: Sequence[str]) -> ArgumentError:
    return ArgumentError(
        f"The covariate {name!r}",
        rule="vary between the training scans",
        got=f"only {known[0]!r}" if known else "no value",
        fix="Leave it out",
    )


def _table(values: Any) -> Any:
    """A mapping from column to cells, where the values are a data frame; else the values."""
    return {str(name): list(values[name]) for name in values.columns} if hasattr(values, "columns") else values


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()


def _known(cells: Sequence[Any]) -> list[str]:
    return [text for text in map(_text, cells) if text.casefold() not in MISSING]


def _numbers(name: str, texts: Sequence[str]) -> NDArray[np.float64] | None:
    """The cells as numbers; None where most are none.

    Raises:
        ArgumentError: If most cells are numbers and some are not: a slip, not a category.
    """
    values = np.array([_number(text) for text in texts])
    finite = np.isfinite(values)
    if finite.all():
        return values
    if finite.mean() > 0.5:
        bad = texts[int(np.argmin(finite))]
        raise ArgumentError(
            f"The covariate {name!r}",
            rule="be numbers throughout, or categories",
            got=f"{bad!r} among numbers",
            fix="Correct the cell, or name the column as categorical",
        )
    return None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
