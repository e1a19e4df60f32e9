"""To RAS+ order and back, by flips and permutations of axes only: no value is changed or interpolated."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from kerasvae.types import Affine

__all__ = ["Orientation", "orientation_of"]


@dataclass(frozen=True)
class Orientation:
    """How the axes of a stored array become (x, y, z) in RAS+ order.

    Args:
        axes: Stored axis that becomes x, y and z.
        flips: Whether x, y and z run against the stored direction.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def to_ras(self, data: NDArray, affine: Affine) -> tuple[NDArray, Affine]:
        """The array and affine in RAS+ order.

        Args:
            data: Stored array, 3-D.
            affine: Its affine, stored voxel indices to mm.

        Returns:
            A view of `data` with axes (x, y, z) and the affine of that view; every voxel keeps its place in mm.
        """
        step = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        return data.transpose(self.axes)[step], affine @ self._ras_to_stored(data.shape)

    def from_ras(self, data: NDArray) -> NDArray:
        """The array in stored order, as a view; the inverse of `to_ras`."""
        step = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        return data[step].transpose(tuple(int(axis) for axis in np.argsort(self.axes)))

    def _ras_to_stored(self, shape: tuple[int, ...]) -> Affine:
        """RAS+ voxel indices to stored voxel indices."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1.0
        for new, (old, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            matrix[old, new] = -1.0 if flip else 1.0
            matrix[old, 3] = shape[old] - 1 if flip else 0.0
        return matrix


def orientation_of(affine: Affine) -> Orientation:
    """The orientation whose RAS+ axes lie closest to the anatomical axes.

    Of the six assignments of stored axes to (x, y, z) it is the one with the largest sum of absolute cosines
    between stored and anatomical axes (the first in lexical order when several are equal).

    Args:
        affine: Stored voxel indices to mm, non-singular.

    >>> orientation_of(np.diag([-2.0, 2.0, 2.0, 1.0]))
    Orientation(axes=(0, 1, 2), flips=(True, False, False))
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    best = max(permutations(range(3)), key=lambda axes: round(sum(abs(directions[i, axes[i]]) for i in range(3)), 9))
    x, y, z = best
    flips = tuple(bool(directions[axis, stored] < 0) for axis, stored in enumerate(best))
    return Orientation((x, y, z), (flips[0], flips[1], flips[2]))
