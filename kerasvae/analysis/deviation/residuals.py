"""What a run's model misses of its people, voxel by voxel, and what its posterior leaves open there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.latents import Latents, scans_of
from kerasvae.analysis.maps.decoded import jacobian
from kerasvae.analysis.maps.run import decoder_of
from kerasvae.errors import RunError
from kerasvae.training.run import Run, model_inputs
from kerasvae.types import Mask

__all__ = ["Residuals", "residuals_of"]

FEW = 32
"""Images at once."""


@dataclass(frozen=True)
class Residuals:
    """Of n scans, in the v voxels of a mask.

    Args:
        images: Preprocessed, (n, v), model units.
        missed: Image less reconstruction, (n, v).
        open: Variance of the reconstruction over the posterior, (n, v): the diagonal of J S Jᵀ, S the posterior's
            covariance, J the decoder's Jacobian at the mean code; None where the posterior has no standard deviation or
            codes cannot be moved along a line.
    """

    images: NDArray[np.float32]
    missed: NDArray[np.float32]
    open: NDArray[np.float32] | None


def residuals_of(
    run: Run,
    latents: Latents,
    rows: Sequence[int] | NDArray[np.intp],
    inside: Mask,
    *,
    uncertain: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Residuals:
    """Encode and decode scans of a run.

    Args:
        run: Finished.
        latents: All of its codes.
        rows: Which of them.
        inside: (x, y, z).
        uncertain: Whether `Residuals.open` is wanted.
        progress: Told how many scans of all are done.
    """
    chosen = scans_of(run, latents.scans, rows)
    images = np.empty((len(chosen), int(inside.sum())), np.float32)
    missed = np.empty_like(images)
    for start in range(0, len(chosen), FEW):
        part = chosen[start : start + FEW]
        volumes = run.store.load(part)
        made = run.model.reconstruct(model_inputs(run.model, part, volumes))
        images[start : start + len(part)] = volumes[:, inside]
        missed[start : start + len(part)] = (volumes - made)[:, inside]
        progress(start + len(part), len(chosen))
    return Residuals(images, missed, _open(run, latents, rows, inside) if uncertain else None)


def _open(
    run: Run, latents: Latents, rows: Sequence[int] | NDArray[np.intp], inside: Mask
) -> NDArray[np.float32] | None:
    if latents.stddev is None:
        return None
    try:
        decode = decoder_of(run, inside)
    except RunError:  # codes on a sphere, or whole numbers
        return None
    size = latents.codes.shape[1]
    gradient = jacobian(decode, latents.codes.mean(axis=0), np.eye(size))[:, inside]
    spread = latents.take(np.asarray(rows).tolist()).stddev_along(gradient)
    return None if spread is None else np.asarray(np.square(spread), np.float32)
