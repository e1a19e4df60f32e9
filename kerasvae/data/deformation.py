"""Smooth random fields and diffeomorphisms on a coarse lattice. No TensorFlow.

A deformation is the flow of a stationary velocity field, computed by scaling and squaring
(Arsigny, Commowick, Pennec and Ayache 2006, "A Log-Euclidean framework for statistics on diffeomorphisms",
MICCAI), so it is invertible however large it is. Fields live on one fixed lattice, `LATTICE`, whatever the spacing of
the images: the same person has the same shape at every resolution.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from kerasvae.types import Affine, Array, Grid

__all__ = [
    "BANDS_MM",
    "LATTICE",
    "band_rms",
    "exponential",
    "jacobian_determinant",
    "potential_flow",
    "random_velocity",
    "resample_lattice",
    "smooth_noise",
]

LATTICE = Grid.of((48, 60, 48), np.array([[4, 0, 0, -94], [0, 4, 0, -134], [0, 0, 4, -76], [0, 0, 0, 1]]), "MNI152")
"""Where velocities live: 4 mm, the MNI box with a margin."""

BANDS_MM = ((96.0, np.inf), (48.0, 96.0), (24.0, 48.0), (0.0, 24.0))
"""Bands of wavelength, in mm, that `band_rms` reports."""

_SQUARINGS = 6


@cache
def _wavenumber(shape: tuple[int, int, int], spacing: float) -> Array:
    """Length of the wave vector in rad/mm at each coefficient of a real FFT of `shape`."""
    axes = [2 * np.pi * np.fft.fftfreq(n, spacing) for n in shape[:2]] + [
        2 * np.pi * np.fft.rfftfreq(shape[2], spacing)
    ]
    kx, ky, kz = np.meshgrid(*axes, indexing="ij")
    return np.sqrt(kx**2 + ky**2 + kz**2).astype(np.float32)


def _filtered(noise: Array, transfer: Array) -> Array:
    """Noise of shape (..., x, y, z) times a transfer function, in the frequency domain."""
    axes = (-3, -2, -1)
    return fft.irfftn(fft.rfftn(noise, axes=axes) * transfer, s=noise.shape[-3:], axes=axes)


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int, int], *, spacing: float, width: float
) -> NDArray[np.float32]:
    """A stationary Gaussian field with mean 0, variance 1 and a Gaussian kernel as its smoother.

    Args:
        rng: Source of randomness.
        shape: Number of nodes along (x, y, z); the field is periodic.
        spacing: Distance of the nodes in mm.
        width: Standard deviation of the kernel in mm; the correlation falls as exp(−r²/(4·width²)).

    Returns:
        float32, shape (x, y, z).
    """
    k = _wavenumber(shape, spacing)
    transfer = np.exp(-0.5 * (k * width) ** 2)
    field = _filtered(rng.standard_normal(shape, dtype=np.float32), transfer)
    return field / np.float32(np.sqrt(_mean_power(transfer, shape)))


def random_velocity(rng: np.random.Generator, *, rms: float, scale: float, exponent: float, finest: float) -> Array:
    """A random velocity field on `LATTICE` with a power spectrum over all spatial scales.

    The power at wavenumber k is proportional to (1 + (k·scale)²)^(−exponent) · exp(−(k·finest)²): flat for waves much
    longer than `scale`, then a power law (a Matérn spectrum: Rasmussen and Williams 2006, "Gaussian Processes for
    Machine Learning", eq. 4.15), cut off smoothly where the lattice could no longer carry it.

    Args:
        rng: Source of randomness.
        rms: Root mean square of each component, in mm.
        scale: Length in mm at which the spectrum turns from flat to a power law.
        exponent: Half the slope of the power law.
        finest: Length in mm below which there is no power.

    Returns:
        float32, shape (3, x, y, z), in mm.
    """
    k = _wavenumber(LATTICE.shape, LATTICE.spacing[0])
    transfer = (1 + (k * scale) ** 2) ** (-0.5 * exponent) * np.exp(-0.5 * (k * finest) ** 2)
    transfer[0, 0, 0] = 0.0
    field = _filtered(rng.standard_normal((3, *LATTICE.shape), dtype=np.float32), transfer)
    return field * np.float32(rms / np.sqrt(_mean_power(transfer, LATTICE.shape)))


def _mean_power(transfer: Array, shape: tuple[int, int, int]) -> float:
    """Variance of unit white noise after the filter: the mean of |transfer|² over the full spectrum."""
    weight = np.full(transfer.shape[2], 2.0)
    weight[0] = 1.0
    if shape[2] % 2 == 0:
        weight[-1] = 1.0
    return float((transfer.astype(np.float64) ** 2 * weight).sum() / np.prod(shape))


def band_rms(velocity: Array) -> tuple[float, ...]:
    """Root mean square per component, in mm, of a velocity on `LATTICE` within each band of `BANDS_MM`."""
    spectrum = fft.rfftn(velocity, axes=(-3, -2, -1))
    power = (np.abs(spectrum) ** 2).sum(axis=0, dtype=np.float64)
    power[..., 1:-1] *= 2.0
    power /= 3.0 * float(np.prod(LATTICE.shape)) ** 2
    k = _wavenumber(LATTICE.shape, LATTICE.spacing[0])
    wavelength = np.full(k.shape, np.inf)
    np.divide(2 * np.pi, k, out=wavelength, where=k > 0)
    return tuple(float(np.sqrt(power[(wavelength >= low) & (wavelength < high)].sum())) for low, high in BANDS_MM)


def potential_flow(divergence: Array) -> Array:
    """The curl-free velocity with a given divergence: v = ∇ψ with ∇²ψ = divergence, on the periodic `LATTICE`.

    Args:
        divergence: float, shape of `LATTICE`; its mean is taken off (what flows out must flow in).

    Returns:
        float32, shape (3, x, y, z), in mm when the divergence is a log volume change.
    """
    axes = [2 * np.pi * np.fft.fftfreq(n, s) for n, s in zip(LATTICE.shape, LATTICE.spacing, strict=True)]
    waves = np.stack(np.meshgrid(*axes, indexing="ij"))
    square = (waves**2).sum(axis=0)
    square[0, 0, 0] = 1.0
    spectrum = np.fft.fftn(divergence)
    spectrum[0, 0, 0] = 0.0
    return np.fft.ifftn(-1j * waves * spectrum / square, axes=(1, 2, 3)).real.astype(np.float32)


def exponential(velocity: Array) -> Array:
    """The displacement u of the flow φ = exp(velocity), φ(x) = x + u(x), on `LATTICE`.

    Args:
        velocity: float32, shape (3, x, y, z), in mm.

    Returns:
        float32, shape (3, x, y, z), in mm. The inverse of φ is the exponential of −velocity.
    """
    shape = LATTICE.shape
    nodes = np.indices(shape, dtype=np.float32)
    step = np.asarray(velocity, dtype=np.float32) / np.float32(LATTICE.spacing[0] * 2**_SQUARINGS)
    for _ in range(_SQUARINGS):
        there = nodes + step
        step = step + np.stack(
            [ndimage.map_coordinates(component, there, order=1, mode="nearest") for component in step]
        )
    return step * np.float32(LATTICE.spacing[0])


def jacobian_determinant(displacement: Array) -> NDArray[np.float64]:
    """Determinant of ∂φ/∂x at the inner nodes of `LATTICE`, by central differences; positive where φ does not fold."""
    gradient = np.stack(
        [np.stack(np.gradient(component.astype(np.float64), *LATTICE.spacing)) for component in displacement]
    )
    matrix = np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3)
    return np.linalg.det(matrix)[1:-1, 1:-1, 1:-1]


def resample_lattice(field: Array, shape: tuple[int, int, int], affine: Affine) -> Array:
    """A field on `LATTICE` at the voxels of another axis-parallel grid, by linear interpolation.

    The interpolation is a product of one small matrix per axis, which is much faster than point by point.

    Args:
        field: float32, shape (..., x, y, z) of `LATTICE`.
        shape: Number of voxels of the other grid.
        affine: Its voxel-to-mm matrix, diagonal apart from the origin.

    Returns:
        float32, shape (..., *shape).
    """
    out = field
    for axis in range(3):
        start, step = LATTICE.matrix[axis, 3], LATTICE.spacing[axis]
        where = (affine[axis, 3] + affine[axis, axis] * np.arange(shape[axis]) - start) / step
        where = np.clip(where, 0, LATTICE.shape[axis] - 1)
        low = np.minimum(where.astype(int), LATTICE.shape[axis] - 2)
        weights = np.zeros((shape[axis], LATTICE.shape[axis]), dtype=np.float32)
        rows = np.arange(shape[axis])
        weights[rows, low] = 1 - (where - low)
        weights[rows, low + 1] += where - low
        out = np.moveaxis(np.tensordot(out, weights, axes=([out.ndim - 3 + axis], [1])), -1, out.ndim - 3 + axis)
    return out
