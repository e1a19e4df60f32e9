"""What one side of a residual map says about the other. No TensorFlow.

Much of what a model misses of a person it misses on both sides: a wide fissure, a shade of the coil. What is expected
of a voxel given its mirror image is r̂ᵥ = ρᵥ r_m(v), with ρ the regression over people, Σ rᵥ r_m / Σ r_m², smoothed over
voxels; what is left has the part 1 − ρ² of the variance, and a lesion on one side stands out more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from kerasvae.networks.covariance_map import mirror_index
from kerasvae.types import Mask

__all__ = ["Symmetry", "fit_symmetry"]

Numbers = NDArray[np.float64]
SMOOTHING, MOST = 1.5, 0.9
"""Standard deviation of the smoothing, voxels; and the largest share of the other side that is taken off."""


@dataclass(frozen=True)
class Symmetry:
    """Of the v voxels of a mask.

    Args:
        mirror: (v,): index of each voxel's mirror image.
        share: (v,): ρ, from 0 to 0.9; about 0 where the grid is not symmetric.
    """

    mirror: NDArray[np.intp]
    share: Numbers

    def less_mirror(self, values: ArrayLike) -> Numbers:
        """Maps less what is expected from the other side, (n, v)."""
        rows = np.asarray(values, np.float64)
        return np.asarray(rows - self.share * rows[:, self.mirror])


def fit_symmetry(residual: ArrayLike, mask: Mask) -> Symmetry:
    """Learn the shares.

    Args:
        residual: Of people the model learned from, (n, v).
        mask: (x, y, z), first axis left to right.
    """
    rows, mirror = np.asarray(residual, np.float64), mirror_index(mask)
    rows = rows - rows.mean(axis=0)  # what everybody has on both sides says nothing about one person
    other = rows[:, mirror]
    both, own = (rows * other).sum(axis=0), np.square(other).sum(axis=0)
    smooth = []
    for values in (both, own):  # both, so that voxels count by their variance
        grid = np.zeros(mask.shape)
        grid[mask] = values
        smooth.append(gaussian_filter(grid, SMOOTHING)[mask])
    share = np.divide(smooth[0], smooth[1], out=np.zeros_like(both), where=smooth[1] > 0)
    middle = mirror == np.arange(len(mirror))  # its own mirror image says nothing
    return Symmetry(mirror, np.where(middle, 0.0, np.clip(share, 0.0, MOST)))
