"""Axes of people without some of them, so that each person is met as a new one.

The axes of a core pass close to the people whom they were fitted to: their reconstructions are better than those of new
people, and wrong in another way. What is to hold of new people has to be judged on people left out (Stone 1974,
Cross-Validatory Choice and Assessment of Statistical Predictions, J. R. Stat. Soc. B 36(2):111-147): whether mirror
images help, the variances along axes, σ², and what networks beside a core learn from (cross-fitting).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import isotonic_regression

from kerasvae.errors import ArgumentError
from kerasvae.types import Array

__all__ = [
    "Find",
    "Fit",
    "energy_around",
    "explained_by",
    "fits_without",
    "fitted_to",
    "folds_of",
    "residuals_of",
    "scale_by",
    "tempered",
    "turn_to",
]

FOLDS = 5
MOST_ENERGY = 10.0
"""Times the median sum of squares; a person who differs more from the mean is scaled down to it."""

Index = NDArray[np.intp]
Fold = tuple[Index, Index]
Find = Callable[[Array, NDArray[np.float64]], tuple[Array, Array, Array]]
"""From images (n, v) and design (n, c) to coefficients (c, v), residuals (n, v) and axes (q, v)."""


class Fit(NamedTuple):
    """What was found without some people, and how far it holds for them.

    Attributes:
        rows: The people left out, (m,), as positions in what was given.
        coefficients: Of the design, (c, v).
        axes: Orthonormal, as rows, (q, v).
        along: Sums over people left out of squared scores, (q,).
        around: Sum over people and voxels of what is left, squared.
        voxels: Number of voxels.
        background: Mean image, (w,), where axes are coarser than images.
    """

    rows: Index
    coefficients: Array
    axes: Array
    along: NDArray[np.float64]
    around: float
    voxels: int
    background: Array | None = None


def folds_of(groups: Sequence[Any] | NDArray[Any], seed: int = 0, count: int = FOLDS) -> list[Fold]:
    """Rows to learn from and rows left out, `count` times or once for each group; a group is never divided.

    Raises:
        ArgumentError: With fewer than three groups.
    """
    names, number = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 3:
        raise ArgumentError("groups", rule="be three people or more", got=len(names), fix="Leave out the prior")
    count = min(count, len(names))
    fold = np.random.default_rng(seed).permutation(np.arange(len(names)) % count)[number]
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(count)]


def fitted_to(flat: Array, design: NDArray[np.float64]) -> Array:
    """Coefficients, (c, v), of the least squares of images (n, v) on a design (n, c)."""
    return np.linalg.pinv(design).astype(np.float32) @ flat


def residuals_of(flat: Array, design: NDArray[np.float64]) -> tuple[Array, Array]:
    """Least squares of images (n, v) on a design (n, c): coefficients (c, v) and residuals (n, v)."""
    coefficients = fitted_to(flat, design)
    return coefficients, flat - design.astype(np.float32) @ coefficients


def tempered(residuals: Array, reference: Array | None = None) -> Array:
    """Residuals in which no person counts for more than `MOST_ENERGY` ordinary ones.

    One damaged image can hold more variance than all people together; the prior's strength, the choice and σ² would be
    about it alone. Where nobody is so far out, as is usual, nothing changes.

    Args:
        residuals: (n, v).
        reference: Residuals whose median says what is ordinary; by default the same.
    """
    energy, ordinary = (_energy(rows) for rows in (residuals, residuals if reference is None else reference))
    factor = np.sqrt(np.minimum(1.0, MOST_ENERGY * np.median(ordinary) / np.maximum(energy, 1e-30)))
    return residuals if (factor == 1).all() else residuals * factor.astype(np.float32)[:, None]


def fits_without(
    flat: Array, design: NDArray[np.float64], find: Find, folds: Sequence[Fold], whole: Array | None = None
) -> list[Fit]:
    """What is found without the people of each fold.

    Args:
        flat: Images over mask voxels, (n, v).
        design: A column of ones and covariates, (n, c).
        find: How axes are found.
        folds: From `folds_of`.
        whole: The images, (n, w), where `flat` are coefficients of them.
    """
    fits = []
    for learn, left in folds:
        coefficients, residuals, axes = find(flat[learn], design[learn])
        raw = flat[left] - design[left].astype(np.float32) @ coefficients
        others = tempered(raw, residuals)
        along = np.square((others @ axes.T).astype(np.float64)).sum(axis=0)
        energy, voxels, background = _energy(others), flat.shape[1], None
        if whole is not None:
            fitted, voxels = fitted_to(whole[learn], design[learn]), whole.shape[1]
            energy = energy_around(whole, design, fitted, left) * (energy / np.maximum(_energy(raw), 1e-30))
            background = fitted[0]
        around = float(energy.sum() - along.sum())
        fits.append(Fit(left, coefficients, axes, along, around, voxels, background))
    return fits


def energy_around(
    whole: Array, design: NDArray[np.float64], fitted: Array, rows: Sequence[int] | Index
) -> NDArray[np.float64]:
    """Sum of squares of what is left of some images, (m,), one image at a time."""
    expected = design.astype(np.float32)
    return np.array([float(np.square(whole[i] - expected[i] @ fitted, dtype=np.float64).sum()) for i in rows])


def _energy(rows: Array) -> NDArray[np.float64]:
    """Sum of squares of each row."""
    return np.asarray(np.square(rows, dtype=np.float64).sum(axis=1))


def explained_by(fits: Sequence[Fit]) -> float:
    """Part of left-out people's variance that the axes explain."""
    along, around = sum(float(fit.along.sum()) for fit in fits), sum(fit.around for fit in fits)
    return along / max(along + around, 1e-30)


def scale_by(fits: Sequence[Fit]) -> tuple[NDArray[np.float64], float]:
    """Mean squared score along the first, second, … axis, and residual σ² per remaining dimension, of left-out people.

    Variances are made decreasing by isotonic regression, (q,).
    """
    people, count, voxels = sum(len(fit.rows) for fit in fits), len(fits[0].axes), fits[0].voxels
    along = np.sum([fit.along for fit in fits], axis=0) / people
    around = sum(fit.around for fit in fits)
    return isotonic_regression(along, increasing=False).x, around / (people * (voxels - count))


def turn_to(axes: Array, others: Array, scale: NDArray[np.float64]) -> Array:
    """The rotation of codes, (q, q), that brings loadings on some axes nearest to those on others (Procrustes).

    Args:
        axes: (q, v).
        others: The same.
        scale: Length of each loading, (q,).
    """
    rows = scale[:, None]
    return np.asarray(orthogonal_procrustes((rows * axes).T, (rows * others).T)[0].T, dtype=np.float32)
