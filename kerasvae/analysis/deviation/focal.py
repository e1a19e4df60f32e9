"""Maps at several sizes: what is as large as a lesion, and neither a voxel's noise nor a whole lobe's shade.

A band is the map smoothed by a Gaussian less the map smoothed by one two and a half times as wide: for a spot of its
size nearly the filter of the greatest signal-to-noise ratio when the background is smooth (Lindeberg 1998, Feature
detection with automatic scale selection, Int. J. Comput. Vis. 30:79; the difference of Gaussians stands for the
Laplacian). Smoothing stays in the mask: weights of voxels outside are left out, and the others sum to 1. No TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from kerasvae.errors import ArgumentError
from kerasvae.types import Mask, box_of

__all__ = ["WIDTHS_MM", "Bands"]

WIDTHS_MM = (8.0, 12.0, 16.0)
"""Full widths at half maximum: spots of about 1, 4 and 9 cm³."""
WIDER = 2.5
FWHM = 2 * np.sqrt(2 * np.log(2))
"""Full width at half maximum of a Gaussian of standard deviation 1."""


class Bands:
    """The filter.

    Args:
        mask: (x, y, z), voxels that count.
        spacing: Of its voxels along each axis, mm.
        widths: Full widths at half maximum of the narrower Gaussians, mm.
    """

    def __init__(self, mask: Mask, spacing: Sequence[float], widths: Sequence[float] = WIDTHS_MM) -> None:
        if not widths or not all(np.isfinite(width) and width > 0 for width in widths):
            raise ArgumentError("widths", rule="be numbers above 0, mm", got=tuple(widths), fix="Leave them out")
        self._box = tuple(slice(*ends) for ends in box_of(mask))
        self.inside = np.asarray(mask[self._box], bool)
        self.spacing, self.widths = tuple(map(float, spacing)), tuple(map(float, widths))

    def __call__(self, values: ArrayLike) -> Iterator[NDArray[np.float64]]:
        """The maps of people, (n, v), in each band, from the narrowest: (n, v)."""
        rows = np.asarray(values, np.float64)
        for width in self.widths:
            yield np.stack([self._smooth(row, width) - self._smooth(row, WIDER * width) for row in rows])

    def _smooth(self, row: NDArray[np.float64], width: float) -> NDArray[np.float64]:
        grid = np.zeros(self.inside.shape)
        grid[self.inside] = row
        return np.asarray(self._filter(grid, width)[self.inside] / self._weights[width])

    @cached_property
    def _weights(self) -> dict[float, NDArray[np.float64]]:
        ones, used = self.inside.astype(np.float64), {w * f for w in self.widths for f in (1.0, WIDER)}
        return {width: self._filter(ones, width)[self.inside] for width in used}

    def _filter(self, grid: NDArray[np.float64], width: float) -> NDArray[np.float64]:
        return np.asarray(gaussian_filter(grid, [width / FWHM / step for step in self.spacing], mode="constant"))
