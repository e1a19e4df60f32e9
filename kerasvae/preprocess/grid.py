"""Named grids, and crop or pad for images that stay on their own grid."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError, nearest
from kerasvae.types import Grid, Volume

__all__ = ["fit_to_shape", "grid_of", "named_grid", "unfit_from_shape"]

_BOX = np.array([[-90.0, 90.0], [-126.0, 90.0], [-72.0, 108.0]])
"""The FSL MNI152 box: mm of the first and last voxel centre along x, y, z (RAS+)."""
_NAMES = ("mni-1mm", "mni-1.5mm", "mni-2mm", "mni-3mm", "mni-4mm", "mni-6mm", "mni-8mm")


def named_grid(name: str) -> Grid:
    """The grid with this name: ``mni-<r>mm`` for any spacing r from 0.5 to 20 mm.

    It covers the box of FSL's MNI152NLin6Asym template, voxel centres at x = -90, -90 + r, … ≤ 90,
    y = -126, … ≤ 90 and z = -72, … ≤ 108 mm, in RAS+ order (FSL's own files store x flipped: the same voxels).
    "mni-2mm" has 91 × 109 × 91 voxels, "mni-4mm" 46 × 55 × 46.

    Raises:
        ArgumentError: If the name is unknown.

    >>> named_grid("mni-2mm").shape
    (91, 109, 91)
    """
    match = re.fullmatch(r"mni-(\d+(?:\.\d+)?)mm", name)
    spacing = float(match.group(1)) if match else 0.0
    if not 0.5 <= spacing <= 20.0:
        close = nearest(name, _NAMES) or "mni-4mm"
        raise ArgumentError("grid", rule="be mni-<r>mm with r from 0.5 to 20", got=repr(name), fix=f"Try {close!r}")
    # the small addend keeps the last voxel when the extent divides by the spacing up to rounding
    counts = np.floor((_BOX[:, 1] - _BOX[:, 0]) / spacing + 1e-9).astype(int) + 1
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = _BOX[:, 0]
    return Grid.of(tuple(counts), affine, "MNI152NLin6Asym")


def grid_of(image: str | os.PathLike[str] | Volume | Any, *, space: str = "native") -> Grid:
    """The grid of an image, in RAS+ order: of a template file, or of the first image of a cohort.

    Args:
        image: A path, a `Volume` or a nibabel image.
        space: Name of its coordinate space, e.g. ``"MNI152NLin2009cAsym"`` for a template.

    Raises:
        VolumeError: If the image cannot be read.
    """
    from kerasvae.preprocess.nifti import as_volume

    volume = as_volume(image)
    return Grid.of(volume.data.shape, volume.affine, space)


def fit_to_shape(data: NDArray, shape: tuple[int, ...]) -> NDArray:
    """Crop or pad each axis to `shape`, centred, with zeros.

    Along an axis of n voxels fitted to m, voxel i moves to i + floor((m - n) / 2); what falls outside is dropped.
    `unfit_from_shape` reverses it (zeros where something was dropped).

    Args:
        data: Array of any rank.
        shape: Wanted shape, same rank.

    Raises:
        ArgumentError: If the ranks differ.

    >>> fit_to_shape(np.array([1, 2, 3]), (5,))
    array([0, 1, 2, 3, 0])
    >>> fit_to_shape(np.array([1, 2, 3, 4]), (2,))
    array([2, 3])
    """
    return _moved(data, tuple(shape), [(m - n) // 2 for n, m in zip(data.shape, _same_rank(data, shape), strict=True)])


def unfit_from_shape(data: NDArray, original: tuple[int, ...]) -> NDArray:
    """Put an array that `fit_to_shape` made back on the original shape.

    >>> unfit_from_shape(fit_to_shape(np.array([1, 2, 3, 4]), (2,)), (4,))
    array([0, 2, 3, 0])
    """
    shifts = [-((n - m) // 2) for n, m in zip(data.shape, _same_rank(data, original), strict=True)]
    return _moved(data, tuple(original), shifts)


def _same_rank(data: NDArray, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != data.ndim:
        raise ArgumentError("shape", rule=f"have {data.ndim} entries", got=shape, fix="Give one size per axis")
    return tuple(shape)


def _moved(data: NDArray, shape: tuple[int, ...], shifts: list[int]) -> NDArray:
    """A zero array of `shape` that holds `data` moved by whole voxels."""
    out = np.zeros(shape, dtype=data.dtype)
    spans = [(max(0, s), max(max(0, s), min(m, n + s))) for n, m, s in zip(data.shape, shape, shifts, strict=True)]
    target = tuple(slice(first, last) for first, last in spans)
    source = tuple(slice(first - s, last - s) for (first, last), s in zip(spans, shifts, strict=True))
    out[target] = data[source]
    return out
