"""What is believed of a covariance between voxels before any person is seen: that it is smooth.

Two beliefs, as v × v matrices that are only ever applied to vectors. K is the squared-exponential covariance between
places, K_uv = exp(−|r_u − r_v|² / 2ℓ²), symmetric and positive definite, with ones on its diagonal:

- *variance*: diag(d) K diag(d), d the smoothed standard deviation of each voxel. Voxels vary as much as they are seen
  to, and together with their neighbours.
- *deformation*: Σ_a diag(g_a) K diag(g_a), g_a = ∂μ/∂a the gradient of the mean image along axis a. This is, to first
  order, the covariance of μ(r + t(r)), the mean image under a small random displacement t whose components are
  independent with covariance K: people have the same anatomy at slightly different places.

K is a product over axes, so that applying it costs three small matrix products, and the trace is exact: Σ_v d_v², or
Σ_v |g_v|².
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kerasvae.errors import ArgumentError
from kerasvae.types import Array, Mask, box_of

__all__ = ["PriorCovariance", "SmoothPrior"]

Kind = Literal["variance", "deformation"]


@dataclass(frozen=True)
class SmoothPrior:
    """Which belief, how smooth and how strong.

    Args:
        kind: "variance" or "deformation".
        width_mm: ℓ, over which voxels or displacements go together, mm, above 0.
        share: Trace of the prior part over the trace of the sample's scatter, above 0: 1 gives both the same say.

    >>> str(SmoothPrior("variance", 12.0, 0.6))
    'variance prior, 12 mm wide, share 0.6'
    """

    kind: Kind
    width_mm: float
    share: float

    def __post_init__(self) -> None:
        if self.kind not in ("variance", "deformation"):
            raise ArgumentError(
                "kind", rule="be 'variance' or 'deformation'", got=repr(self.kind), fix="Choose one of the two"
            )
        for name in ("width_mm", "share"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ArgumentError(name, rule="be a number above 0", got=value, fix="Use 12 mm and a share of 0.6")

    def __str__(self) -> str:
        return f"{self.kind} prior, {self.width_mm:g} mm wide, share {self.share:.2g}"


@dataclass(frozen=True)
class Term:
    """Σ_a diag(g_a) K diag(g_a) on the voxels of a mask, without its weight.

    Args:
        amplitudes: g_a as rows, (a, v).
        kernels: K along each axis of the box, (length, length) each.
        box: Mask cropped to the box that holds it, one to three axes.
    """

    amplitudes: Array
    kernels: tuple[Array, ...]
    box: Mask

    @property
    def trace(self) -> float:
        """Σ_a Σ_v g_av², for K has ones on its diagonal."""
        return float(np.square(self.amplitudes, dtype=np.float64).sum())

    def apply(self, values: Array) -> Array:
        """(v,) to (v,)."""
        result, grid = np.zeros(values.shape, np.float32), np.zeros(self.box.shape, np.float32)
        for amplitude in self.amplitudes:
            grid[self.box] = amplitude * values
            result += amplitude * _along_axes(self.kernels, grid)[self.box]
        return result


class PriorCovariance:
    """The sum of beliefs, each scaled to a trace equal to its share.

    Args:
        priors: One or more.
        mean: Mean image over mask voxels, (v,).
        stddev: Standard deviation of each voxel between people, (v,).
        mask: Voxels that count, two or three spatial axes.
        spacing_mm: Distance between neighbouring voxels along each axis, mm.

    Raises:
        ArgumentError: If the mask has no spatial axes, the spacing does not fit them, or a belief is empty: a mean
            image without contrast has no gradient, images that do not differ have no variance.
    """

    def __init__(
        self, priors: Sequence[SmoothPrior], mean: Array, stddev: Array, mask: Mask, spacing_mm: Sequence[float]
    ) -> None:
        spacing = checked_spacing(mask, spacing_mm)
        box = mask[tuple(slice(*ends) for ends in box_of(mask))]
        self.terms: list[tuple[float, Term]] = []
        for prior in priors:
            make = _deviation if prior.kind == "variance" else _gradients
            amplitudes = make(mean if prior.kind == "deformation" else stddev, box, spacing, prior.width_mm)
            term = Term(amplitudes, _kernels(box.shape, spacing, prior.width_mm), box)
            if not term.trace > 0:
                got = "a flat mean image" if prior.kind == "deformation" else "images that do not differ"
                raise ArgumentError(
                    f"The {prior.kind} prior", rule="have something to act on", got=got, fix="Leave it out"
                )
            self.terms.append((prior.share / term.trace, term))

    @property
    def trace(self) -> float:
        """The sum of the shares."""
        return sum(weight * term.trace for weight, term in self.terms)

    def apply(self, values: Array) -> Array:
        """The matrix times a vector over mask voxels, (v,) to (v,), or times each row, (r, v) to (r, v)."""
        if values.ndim == 2:
            return np.stack([self.apply(row) for row in values])
        result = np.zeros(values.shape, np.float32)
        for weight, term in self.terms:
            result += np.float32(weight) * term.apply(values)
        return result


def checked_spacing(mask: Mask, spacing_mm: Sequence[float]) -> tuple[float, ...]:
    """The spacing as floats; ArgumentError if there are no spatial axes or it does not fit them."""
    if mask.ndim not in (2, 3):
        raise ArgumentError(
            "images",
            rule="be slices or volumes for a smooth prior, which needs neighbours",
            got=f"{mask.ndim} axis" if mask.ndim == 1 else f"{mask.ndim} axes",
            fix="Leave out the prior",
        )
    spacing = tuple(float(length) for length in spacing_mm)
    if len(spacing) != mask.ndim or not all(math.isfinite(length) and length > 0 for length in spacing):
        raise ArgumentError(
            "spacing_mm",
            rule=f"be {mask.ndim} distances above 0, one for each axis",
            got=tuple(spacing_mm),
            fix="Give `pipeline.grid.spacing`",
        )
    return spacing


def _kernels(shape: tuple[int, ...], spacing: Sequence[float], width_mm: float) -> tuple[Array, ...]:
    """The squared-exponential covariance along each axis."""
    places = [np.arange(count) * step / width_mm for count, step in zip(shape, spacing, strict=True)]
    return tuple(np.exp(-0.5 * np.square(p[:, None] - p[None])).astype(np.float32) for p in places)


def _along_axes(kernels: Sequence[Array], grid: Array) -> Any:
    """(K₁ ⊗ K₂ ⊗ …) times an image; the kernels are symmetric."""
    result = grid @ kernels[-1]
    if grid.ndim == 3:
        result = np.matmul(kernels[1], result)
    return (kernels[0] @ result.reshape(len(result), -1)).reshape(grid.shape)


def _deviation(stddev: Array, box: Mask, spacing: Sequence[float], width_mm: float) -> Array:
    """The standard deviation smoothed within the mask, with a third of the prior's width, (1, v)."""
    kernels = _kernels(box.shape, spacing, width_mm / 3)
    grid = np.zeros(box.shape, np.float32)
    grid[box] = stddev
    return (_along_axes(kernels, grid)[box] / _along_axes(kernels, box.astype(np.float32))[box])[None]


def _gradients(mean: Array, box: Mask, spacing: Sequence[float], width_mm: float) -> Array:
    """The gradient of the mean image, which is 0 outside the mask, along each axis, per mm: (axes, v)."""
    grid = np.zeros(tuple(count + 2 for count in box.shape), np.float32)  # outside the box, too, it is 0
    inner = (slice(1, -1),) * box.ndim
    grid[inner][box] = mean
    return np.stack([np.gradient(grid, step, axis=axis)[inner][box] for axis, step in enumerate(spacing)])
