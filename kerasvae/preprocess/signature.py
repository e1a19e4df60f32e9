"""What is measured of an image's position on a grid: signal, centre, block averages, mirror difference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import AlignmentError
from kerasvae.types import Array, Grid, Mask

__all__ = ["Signature", "block_of", "padding_of", "signal"]

_COARSE = 24
"""Blocks along the longest side of a block-averaged image."""


@dataclass(frozen=True)
class Signature:
    """What is measured of one image on the grid.

    Args:
        coverage: Fraction of mask voxels with signal, or None without a mask.
        outside: Fraction of signal outside the mask, or None without a mask.
        centre_mm: Intensity-weighted centre (x, y, z), mm.
        image: Block averages with norm 1.
        mirror: Block-averaged signal minus that of the mirrored image.
    """

    coverage: float | None
    outside: float | None
    centre_mm: NDArray[np.float64]
    image: NDArray[np.float32]
    mirror: NDArray[np.float32]

    @classmethod
    def of(cls, data: Array, mask: Mask | None, grid: Grid, *, source: str = "image") -> Signature:
        """Measure an image.

        Args:
            data: Image on the grid before intensity and mask, shape (x, y, z).
            mask: The model's mask, or None.
            grid: The model's grid.
            source: Name for messages.

        Raises:
            AlignmentError: If the image has no positive value on the grid.
        """
        bright = signal(data, source=source)
        image = _coarse(np.maximum(data, 0.0))
        count, step = bright.sum(), block_of(data.shape)
        weights = image / image.sum()
        # centre of the block with index 0, in voxels
        starts = [(step - 1) / 2 - padding_of(n, step) for n in data.shape]
        voxel = [
            starts[axis] + step * float((weights.sum(axis=tuple({0, 1, 2} - {axis})) * np.arange(n)).sum())
            for axis, n in enumerate(image.shape)
        ]
        centre = grid.matrix[:3, :3] @ np.array(voxel) + grid.matrix[:3, 3]
        share = bright.astype(np.float32)
        inside = None if mask is None else int((bright & mask).sum())
        return cls(
            coverage=None if mask is None or inside is None else float(inside / mask.sum()),
            outside=None if inside is None else float(1 - inside / count),
            centre_mm=centre,
            image=image / np.linalg.norm(image),
            mirror=_coarse(share) - _coarse(share[::-1]),
        )


def signal(data: Array, *, source: str = "image") -> Mask:
    """Voxels above a tenth of the 98th percentile of the positive values.

    Raises:
        VolumeError: If no value is positive.
    """
    positive = data[data > 0]
    if positive.size == 0:
        raise AlignmentError(
            source, rule="have signal on the model's grid", got="none", fix="Check its position in space (its affine)"
        )
    return data > 0.1 * np.percentile(positive, 98)


def block_of(shape: tuple[int, ...]) -> int:
    """Voxels along the side of a block."""
    return max(1, round(max(shape) / _COARSE))


def padding_of(size: int, step: int) -> int:
    """Zeros put before an axis so that whole blocks cover it."""
    return (-size % step) // 2


def _coarse(data: Array) -> NDArray[np.float32]:
    """Averages over cubic blocks; the array is centred in zeros where blocks do not fit."""
    step = block_of(data.shape)
    before = [padding_of(n, step) for n in data.shape]
    padded = np.pad(data, [(b, -n % step - b) for b, n in zip(before, data.shape, strict=True)])
    x, y, z = (n // step for n in padded.shape)
    return padded.reshape(x, step, y, step, z, step).mean(axis=(1, 3, 5), dtype=np.float32)
