"""Cores of people without some of them, so that each person is met as a new one.

The axes of a core pass close to the people whom they were fitted to: their reconstructions are better than those of new
people, and wrong in another way. Networks beside the core that are trained on them learn what no new person will show.
Here people are divided into folds; the core of each fold is fitted to all others, and trains its networks on the
people of the fold alone (cross-fitting; Stone 1974, Cross-Validatory Choice and Assessment of Statistical Predictions,
J. R. Stat. Soc. B 36(2):111-147, for the principle that who judges must not have been learned from).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes

from kerasvae.networks.core import Core
from kerasvae.networks.covariance_map import (
    FOLDS,
    deviation_of,
    folds_of,
    leading_axes,
    mirror_index,
    residuals_of,
    sample_axes,
    tempered,
)
from kerasvae.networks.prior_covariance import PriorCovariance
from kerasvae.types import Mask

__all__ = ["LeftOut", "left_out_cores"]


class LeftOut(NamedTuple):
    """People, and a core that does not know them.

    Attributes:
        rows: Whose images they are, (m,), as positions in what was given.
        core: Of all others, its codes turned towards those of the core of all.
    """

    rows: NDArray[np.intp]
    core: Core


def left_out_cores(
    images: NDArray[np.float32],
    core: Core,
    mask: Mask | None = None,
    condition: NDArray[np.float32] | None = None,
    *,
    spacing_mm: Sequence[float] | None = None,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
    folds: int = FOLDS,
) -> list[LeftOut]:
    """The core of each fold's others, with the beliefs, variances and noise of the core of all.

    Codes are turned so that loadings come as near as they can to those of the core of all (orthogonal Procrustes);
    that changes no reconstruction.

    Args:
        images: (n, *data_shape), whom `core` was fitted to.
        core: From `fit_core`.
        mask: As given to `fit_core`, and so are the others.
        condition: Standardised covariates, (n, c).
        spacing_mm: Distance between voxels along each axis, mm; a core with a prior needs it.
        groups: The person of each image, (n,).
        seed: Of the division into folds.
        folds: How many, at most; no more than people.

    Returns:
        One for each fold; every row is in exactly one of them.

    Raises:
        ArgumentError: With fewer than three people.
    """
    inside = np.ones(images.shape[1:], bool) if mask is None else np.asarray(mask, bool)
    flat = images.reshape(len(images), -1) if mask is None else images[:, mask]
    design = np.ones((len(flat), 1)) if condition is None else np.column_stack([np.ones(len(flat)), condition])
    exchange = mirror_index(inside) if core.mirrored else None
    scale = np.sqrt(np.maximum(core.eigenvalues - core.noise_variance, 0.0))[:, None]
    supported = int((np.square(core.axes).sum(axis=1) > 0).sum())
    found = []
    for train, test in folds_of(np.arange(len(flat)) if groups is None else groups, seed, folds):
        fitted, residuals = residuals_of(flat[train], design[train])
        count = min(supported, len(train) - 1 - design.shape[1])
        if core.priors:
            residuals = tempered(residuals)
            deviation = deviation_of(residuals, exchange)
            prior = PriorCovariance(core.priors, fitted[0], deviation, inside, spacing_mm or ())
            axes = leading_axes(residuals, prior, count, exchange, seed)[1]
        else:
            axes = sample_axes(residuals, count, exchange)[1]
        whole = np.zeros_like(core.axes)
        whole[: len(axes)] = axes
        turn = orthogonal_procrustes((scale * whole).T, (scale * core.axes).T)[0].T
        other = core._replace(mean=fitted[0], axes=whole, slopes=fitted[1:], rotation=turn.astype(np.float32))
        found.append(LeftOut(test, other))
    return found
