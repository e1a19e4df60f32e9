"""What the steps of a traversal are called, and which of them nobody of the cohort has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.maps.slopes import Contrast
from kerasvae.analysis.words import signed, significant

__all__ = ["MARK", "MEAN", "Steps", "beyond", "steps_of_contrast", "steps_of_dimension"]

MEAN = "mean"
"""The middle: the mean code's image."""
MARK = "*"
"""Beside the name of a step that is extrapolated."""
LONGEST = 18


@dataclass(frozen=True)
class Steps:
    """A line through the mean code.

    Args:
        along: What changes.
        step: What a step is, with its unit.
        positions: In steps from the middle.
        middle: Of what changes, at the mean code, in its unit: of a level the share of people who have it.
        size: Of a step, in the same unit.
        low: Least that anybody of the cohort has.
        high: Most.
        level: Whether it is a level against another, 1 against 0.
        dimension: Whether it is a dimension of the code.
    """

    along: str
    step: str
    positions: tuple[float, ...]
    middle: float
    size: float
    low: float
    high: float
    level: bool = False
    dimension: bool = False

    @property
    def values(self) -> list[float]:
        """What each step has, in the unit."""
        return [self.middle + position * self.size for position in self.positions]

    @property
    def extrapolated(self) -> list[bool]:
        """Which steps are outside what the cohort has."""
        return beyond(self.values, self.low, self.high)

    @property
    def titles(self) -> list[str]:
        """Of each step, in one or two lines."""
        name = self.along if len(self.along) <= LONGEST else self.along[: LONGEST - 1] + "…"
        found = []
        for position, out in zip(self.positions, self.extrapolated, strict=True):
            mark, change = MARK if out else "", signed(position * self.size)
            if not position:
                found.append(MEAN + mark)
            elif self.level:
                found.append(f"{change}{mark}\n({name})")
            elif self.dimension:
                found.append(f"{signed(position)} SD{mark}")
            else:
                found.append(f"{signed(position)} SD{mark}\n({name} {change})")
        return found

    @property
    def caption(self) -> str:
        """What stands below."""
        if self.level:
            said = f"{MEAN}: the mean code’s; 1: the whole difference of {self.along}"
        else:
            said = f"{MEAN}: the mean code’s, {self.along} = {significant(self.middle)}; "
            said += f"SD: standard deviation of {self.along} in the cohort, "
            said += significant(self.size)
        if not any(self.extrapolated):
            return f"{said}."
        return f"{said}. {MARK} extrapolated: {self._outside}."

    @property
    def _outside(self) -> str:
        if self.level:
            return "beyond either of the two, where nobody of the cohort is"
        return f"beyond the cohort’s {self.along} of {significant(self.low)} to {significant(self.high)}"

    def as_sidecar(self) -> dict[str, Any]:
        """Keys of the traversal's sidecar."""
        told: dict[str, Any] = {"Positions": list(self.positions), "Step": self.step, "Values": self.values}
        told |= {"CohortRange": [self.low, self.high], "Extrapolated": self.extrapolated}
        return told | ({"Warning": f"Extrapolated steps are {self._outside}"} if any(self.extrapolated) else {})


def beyond(values: Sequence[float], low: float, high: float) -> list[bool]:
    """Which values are outside a range.

    >>> beyond([3.6, 57.1, 85.0], 20.0, 85.0)
    [True, False, False]
    """
    slack = 1e-9 * max(abs(low), abs(high), 1.0)
    return [not low - slack <= value <= high + slack for value in values]


def steps_of_contrast(contrast: Contrast, positions: Sequence[float]) -> Steps:
    """Steps of the reach of a contrast: a standard deviation of a number, half the difference of two levels."""
    values = contrast.values
    return Steps(
        contrast.meaning if contrast.level else contrast.name,
        f"{contrast.reach:.4g} of {contrast.name}",
        tuple(positions),
        float(values.mean()),
        contrast.reach,
        float(values.min()),
        float(values.max()),
        level=contrast.level,
    )


def steps_of_dimension(dimension: int, codes: NDArray[np.float64], positions: Sequence[float]) -> Steps:
    """Steps of the standard deviation of a dimension of the codes, (n, d)."""
    own = codes[:, dimension]
    return Steps(
        f"dimension {dimension}",
        "standard deviation of the codes",
        tuple(positions),
        float(own.mean()),
        float(own.std(ddof=1)),
        float(own.min()),
        float(own.max()),
        dimension=True,
    )
