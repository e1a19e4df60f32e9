"""Resampling between grids: a stated Gaussian, then linear or nearest interpolation with zeros outside.

The formulas are simple on purpose, so that a graph in another framework can repeat them to rounding error:

1. *Gaussian* (linear interpolation only). Along source voxel axis a with spacing s_a (mm), the standard deviation is
   σ_a = sqrt(v_a) / s_a voxels, where v_a is `gaussian_variance`. The kernel is
   w_k = exp(-k² / 2σ_a²) / Σ_j exp(-j² / 2σ_a²) for |k|, |j| ≤ floor(4 σ_a + ½); the image is zero outside its
   array. Axes with σ_a < 10⁻³ are left alone.
2. *Coordinates*. Target voxel i lies at source coordinate c = A_source⁻¹ A_target (i, 1).
3. *Linear*: the sum over the eight neighbours floor(c) + {0, 1}³ with weights Π (1 − |c − n|); a neighbour outside
   the array counts as zero. *Nearest*: the voxel at floor(c + ½), zero outside the array.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kerasvae.types import Affine, Array, Grid

__all__ = ["Interpolation", "gaussian_variance", "resample", "smooth"]

Interpolation = Literal["linear", "nearest"]
_TRUNCATE = 4.0
_FWHM_SQUARED = 8.0 * math.log(2.0)
"""FWHM² = 8 ln 2 · σ² for a Gaussian."""
_NO_BLUR = 1e-3
"""Standard deviation in voxels below which the kernel is a single 1 in float32."""


def gaussian_variance(source: Affine, target: Affine, smooth_fwhm_mm: float = 0.0) -> NDArray[np.float64]:
    """Variance of the Gaussian along each source voxel axis, in mm².

    v = max(0, t² − s²) / (8 ln 2) + smooth_fwhm_mm² / (8 ln 2), where s is the source spacing along the axis and t
    that of the target seen along it. Voxels are taken as Gaussian point spread functions whose FWHM is their
    spacing, and the source's is widened to the target's (Cardoso et al. 2015, Scale factor point spread function
    matching: beyond aliasing in image resampling, MICCAI). With u the unit vector of the source axis in mm and A the
    3 × 3 part of the target affine, t = |Aᵀ u|: the target's spread projected on u, equal to the spacing when the
    target is isotropic. The spread along and across source axes is treated as separable.

    Args:
        source: Affine of the image, voxel indices to mm.
        target: Affine of the grid.
        smooth_fwhm_mm: Further smoothing, full width at half maximum in mm, ≥ 0.

    >>> v = gaussian_variance(np.diag([2.0, 2, 2, 1]), np.diag([4.0, 4, 4, 1]))
    >>> bool(np.allclose(v, 12 / (8 * np.log(2))))
    True
    """
    spacing = np.linalg.norm(source[:3, :3], axis=0)
    seen = np.linalg.norm(target[:3, :3].T @ (source[:3, :3] / spacing), axis=0)
    # a difference within rounding of equal spacings is no downsampling
    widened = np.where(seen > spacing * (1 + 1e-6), seen**2 - spacing**2, 0.0)
    return (widened + smooth_fwhm_mm**2) / _FWHM_SQUARED


def smooth(data: Array, affine: Affine, variance: NDArray) -> Array:
    """Apply the separable Gaussian of step 1.

    Args:
        data: float32, shape (x, y, z).
        affine: Voxel indices to mm.
        variance: Along each voxel axis, mm², shape (3,).

    Returns:
        float32, same shape; `data` itself where no axis needs it.
    """
    from scipy.ndimage import gaussian_filter1d

    deviations = np.sqrt(variance) / np.linalg.norm(affine[:3, :3], axis=0)
    for axis, sigma in enumerate(deviations):
        if sigma >= _NO_BLUR:
            data = gaussian_filter1d(data, sigma, axis=axis, mode="constant", cval=0.0, truncate=_TRUNCATE)
    return data


def resample(
    data: Array,
    affine: Affine,
    grid: Grid,
    *,
    interpolation: Interpolation = "linear",
    smooth_fwhm_mm: float = 0.0,
) -> Array:
    """Bring an image to a grid.

    Args:
        data: float32, shape (x, y, z).
        affine: Voxel indices to mm, any orientation.
        grid: Where to.
        interpolation: "linear", with the Gaussian before; "nearest" for labels, without any smoothing.
        smooth_fwhm_mm: Smoothing added to the anti-aliasing, mm; not used by "nearest".

    Returns:
        float32, C-contiguous, `grid.shape`; zero where the image does not reach.
    """
    from scipy.ndimage import affine_transform

    matrix = np.asarray(np.linalg.solve(affine, grid.matrix), dtype=np.float64)
    linear = interpolation == "linear"
    variance = gaussian_variance(affine, grid.matrix, smooth_fwhm_mm) if linear else np.zeros(3)
    window, matrix = _window(data, affine, matrix, grid.shape, variance)
    if window.size == 0:
        return np.zeros(grid.shape, dtype=np.float32)
    window = smooth(window, affine, variance)
    if data.shape == grid.shape == window.shape and np.allclose(matrix, np.eye(4), atol=1e-6):
        return np.array(window, dtype=np.float32, order="C")
    if not linear:
        matrix = matrix.copy()
        matrix[:3, 3] += 1e-9  # a coordinate of n + ½ goes up whatever the rounding
    sampled: Array = affine_transform(
        window,
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=grid.shape,
        output=np.float32,
        order=1 if linear else 0,
        mode="grid-constant",
        cval=0.0,
        prefilter=False,
    )
    return sampled


def _window(
    data: Array, affine: Affine, matrix: Affine, shape: tuple[int, ...], variance: NDArray
) -> tuple[Array, Affine]:
    """The part of the image that the grid can see, so that a wide field of view costs nothing.

    The result is the same as without: the margin covers the Gaussian's reach and the interpolation's.
    """
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    seen = matrix[:3, :3] @ corners + matrix[:3, 3:]
    sigma = np.sqrt(variance) / np.linalg.norm(affine[:3, :3], axis=0)
    margin = np.floor(_TRUNCATE * sigma + 0.5) + 2
    first = np.clip(np.floor(seen.min(axis=1)) - margin, 0, data.shape).astype(int)
    last = np.clip(np.ceil(seen.max(axis=1)) + margin + 1, 0, data.shape).astype(int)
    part = data[first[0] : last[0], first[1] : last[1], first[2] : last[2]]
    moved = matrix.copy()
    moved[:3, 3] -= first
    return part, moved
