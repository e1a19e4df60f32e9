"""Intensity normalisation: y = (x − offset) / scale, with offset and scale recorded so that it can be undone.

Statistics are taken over the mask's voxels where the pipeline has a mask, otherwise over voxels above 0. Every voxel
is then transformed alike; the pipeline sets those outside the mask to 0 afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from kerasvae.errors import ArgumentError, VolumeError
from kerasvae.types import Array, Mask

__all__ = ["Intensity", "PercentileIntensity", "RangeIntensity", "Scaling", "ZScoreIntensity"]


@dataclass(frozen=True)
class Scaling:
    """The line y = (x − offset) / scale, and its limits.

    Args:
        offset: In units of the image.
        scale: In units of the image, > 0.
        clip: Whether y is held within 0..1 (what was beyond cannot be restored).

    >>> line = Scaling(offset=10.0, scale=20.0, clip=True)
    >>> line.apply(np.array([10.0, 20.0, 50.0], dtype=np.float32))
    array([0. , 0.5, 1. ], dtype=float32)
    >>> line.invert(np.array([0.5], dtype=np.float32))
    array([20.], dtype=float32)
    """

    offset: float
    scale: float
    clip: bool

    def apply(self, data: Array) -> Array:
        """Image units to model units; float32, a new array."""
        out = (data - np.float32(self.offset)) * np.float32(1.0 / self.scale)
        if self.clip:
            np.clip(out, 0.0, 1.0, out=out)
        return out

    def invert(self, data: Array) -> Array:
        """Model units to image units; float32, a new array."""
        return data * np.float32(self.scale) + np.float32(self.offset)


MOST_OUTSIDE = 0.5
"""Share of the voxels that may lie outside a fixed range and be clipped."""


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PercentileIntensity(_Step):
    """The `low` percentile becomes 0 and the `high` percentile 1.

    Args:
        low: Percentile, 0 ≤ low < high (numpy's linear interpolation between order statistics).
        high: Percentile, at most 100.
        clip: Hold the result within 0..1.
    """

    kind: Literal["percentile"] = "percentile"
    low: float = Field(default=1.0, ge=0.0)
    high: float = Field(default=99.0, le=100.0)
    clip: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> PercentileIntensity:
        _check_order(self.low, self.high)
        return self

    def scaling(self, data: Array, mask: Mask | None = None, *, source: str = "image") -> Scaling:
        """The line for one image; see `Scaling`."""
        low, high = np.percentile(_chosen(data, mask, source), [self.low, self.high])
        if not high > low:
            raise _flat(source, f"percentiles {self.low:g} and {self.high:g} both {low:g}")
        return Scaling(float(low), float(high - low), self.clip)


class ZScoreIntensity(_Step):
    """Mean 0 and (population) standard deviation 1; nothing is clipped."""

    kind: Literal["zscore"] = "zscore"

    def scaling(self, data: Array, mask: Mask | None = None, *, source: str = "image") -> Scaling:
        """The line for one image; see `Scaling`."""
        values = _chosen(data, mask, source)
        mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
        # rounding alone leaves a tiny deviation in a constant image
        if not deviation > 1e-6 * max(abs(mean), 1e-30):
            raise _flat(source, f"{mean:g} everywhere")
        return Scaling(mean, deviation, False)


class RangeIntensity(_Step):
    """The fixed value `low` becomes 0 and `high` 1, the same for every image: fractions, CT, quantitative maps.

    Args:
        low: In units of the image.
        high: In units of the image, above `low`.
        clip: Hold the result within 0..1.
    """

    kind: Literal["range"] = "range"
    low: float = 0.0
    high: float = 1.0
    clip: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> RangeIntensity:
        _check_order(self.low, self.high)
        return self

    def scaling(self, data: Array, mask: Mask | None = None, *, source: str = "image") -> Scaling:
        """The line, which is the same for every image; see `Scaling`.

        Raises:
            VolumeError: If the image is constant where it counts, or most of it lies outside the range.
        """
        values = data.ravel() if mask is None else data[mask]
        lowest, highest = float(values.min()), float(values.max())
        if not highest > lowest:
            raise _flat(source, f"{lowest:g} everywhere")
        outside = float(((values < self.low) | (values > self.high)).mean())
        if self.clip and outside > MOST_OUTSIDE:
            raise VolumeError(
                source,
                rule=f"have most of its values within {self.low:g} and {self.high:g}, the range of the intensity step",
                got=f"{outside:.0%} outside, from {lowest:g} to {highest:g}",
                fix="Check its unit, or change low and high",
            )
        return Scaling(self.low, self.high - self.low, self.clip)


Intensity = Annotated[PercentileIntensity | ZScoreIntensity | RangeIntensity, Field(discriminator="kind")]
"""Any of the three, told apart by ``kind``."""


def _check_order(low: float, high: float) -> None:
    if not low < high:
        raise ArgumentError("low", rule="be below high", got=f"{low:g} and {high:g}", fix="Swap the two")


def _chosen(data: Array, mask: Mask | None, source: str) -> NDArray[np.float32]:
    """The voxels that the statistics are taken over."""
    values: NDArray[np.float32] = data[data > 0] if mask is None else data[mask]
    if values.size == 0:
        raise VolumeError(source, rule="have voxels above 0", got="none on the grid", fix="Check its position")
    return values


def _flat(source: str, got: str) -> VolumeError:
    return VolumeError(source, rule="vary inside the brain", got=got, fix="Check the image or the intensity step")
