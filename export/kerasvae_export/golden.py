"""The golden case: a subject that never lived, and what the Keras model makes of it.

The subject is a draw from the prior, decoded: an image like those the model knows, for any modality and grid. Where the
draw breaks the alignment contract, it is moved towards the mean of many draws until it keeps it. It is put on a lattice
of its own, so that the whole preprocessing has work to do when it is read back. The codes that were drawn stand beside
it, so that whoever has the decoder can make it again and see that it is nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.bundle import largest_difference
from kerasvae.covariates import Covariates
from kerasvae.errors import BundleError, VolumeError
from kerasvae.models import VAE
from kerasvae.preprocess import Pipeline, RangeIntensity, Scaling, resample
from kerasvae.types import Array, Grid, Volume

__all__ = ["TOO_CLOSE", "distance_from_draws", "distance_from_training", "golden_case", "made_up"]

SEED = 152
DRAWS = 32
PARTS = (1.0, 0.5, 0.25, 0.0)
"""Of the draw in what is tried in turn; the rest is the mean of many."""
OFFSETS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Of the darkest voxel of a brain over its background, in standard deviations of its voxels."""
TOO_CLOSE = 0.2
"""An image nearer to a training image than this part of that image's distance from the mean is refused."""


def golden_case(model: VAE, pipeline: Pipeline | None) -> dict[str, Any]:
    """Arrays for `golden.npz`; see `kerasvae.bundle.Bundle.golden`."""
    typical = _typical(model)
    drawn = np.concatenate([model.sample_codes(1, SEED, **typical), model.sample_codes(DRAWS, SEED + 1, **typical)])
    decoded = model.decode(drawn, covariates=model.rows_for(len(drawn), typical.get("covariates")))
    image, arrays = decoded[:1], {}
    if pipeline is not None:
        raw = _scan(decoded, pipeline)
        arrays = {"raw": raw.data, "raw_affine": raw.affine}
        image = pipeline.apply(raw, check=False)[None]
    codes = model.encode({"image": image, **typical})
    center = np.asarray(model.posterior.center(codes))
    reconstruction = model.decode(center, **typical)
    arrays |= {"drawn": drawn, "image": image, **typical}
    return {**arrays, **codes, "z": center, "reconstruction": reconstruction}


def distance_from_draws(golden: dict[str, NDArray], decoded: Array, pipeline: Pipeline | None) -> float:
    """How far the golden subject is from what can be made of the codes that it is said to be drawn from.

    Args:
        golden: The arrays of `golden_case`.
        decoded: What the decoder makes of its `drawn`, (m, *data_shape).
        pipeline: The model's preprocessing, or None.

    Returns:
        Largest difference, relative to the largest value; infinite where shapes differ.
    """
    if pipeline is None:
        return largest_difference(golden["image"], decoded[:1])
    return min(largest_difference(golden["raw"], scan.data) for scan in _scans(decoded, pipeline))


def _scan(decoded: Array, pipeline: Pipeline) -> Volume:
    """The draw as a scan, moved towards the mean as far as the alignment contract asks for it."""
    for scan in _scans(decoded, pipeline):
        try:
            pipeline.apply(scan)
        except VolumeError:
            continue
        return scan
    return next(_scans(decoded, pipeline))  # a model that cannot draw what it takes: of use without the contract only


def _scans(decoded: Array, pipeline: Pipeline) -> Iterator[Volume]:
    """What is tried in turn: the first image as a scan, moved towards the mean of the others, on a background."""
    own, inside = _own_grid(pipeline), 1.0 if pipeline.mask is None else pipeline.mask
    mean = decoded[1:].mean(axis=0)
    for part, offset in product(PARTS, OFFSETS):
        image = _in_image_units(part * decoded[0] + (1 - part) * mean, pipeline, offset) * inside
        yield Volume(resample(image, pipeline.grid.matrix, own), own.matrix)


def _in_image_units(drawn: Array, pipeline: Pipeline, offset: float) -> Array:
    """An image that the pipeline's intensity step would turn into the drawn one.

    z-scores and percentiles forget the unit and the level; a brain stands out from the background by one of `OFFSETS`.
    """
    if isinstance(pipeline.intensity, RangeIntensity):
        low, high = pipeline.intensity.low, pipeline.intensity.high
        return Scaling(low, high - low, clip=False).invert(np.clip(drawn, 0, 1) if pipeline.intensity.clip else drawn)
    return drawn - drawn.min() + offset * drawn.std()


def _typical(model: VAE) -> dict[str, Any]:
    """Covariates of the average person, where the model takes any."""
    return {} if model.covariates is None else {"covariates": model.covariates.typical()}


def _own_grid(pipeline: Pipeline) -> Grid:
    """A lattice over the same box, of another spacing where the pipeline resamples."""
    grid = pipeline.grid
    if pipeline.placement != "resample":
        return grid
    affine = grid.matrix
    affine[:3, :3] *= 1.1
    shape = tuple(int(np.ceil(n / 1.1)) for n in grid.shape)
    return Grid.of(shape, affine, "golden")


def made_up(model: VAE, golden: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a bundle shows of nobody.

    The golden image, the draw it was made from, and what the decoder makes of z = 0: for the average person, and for
    each level and limit of each covariate. Of a model with a codebook also each of its vectors, at every position.

    Args:
        model: The model.
        golden: The golden image, (1, *data_shape).

    Returns:
        (m, *data_shape).
    """
    codes = [np.zeros((1, model.latent_size), np.float32)]
    if hasattr(model.posterior, "codebook"):
        codes.append(np.tile(np.asarray(model.posterior.codebook), (1, model.posterior.positions)))
    given = _typical(model)
    images = [golden, model.sample(1, seed=SEED, **given)]
    for z in codes:
        rows = None if model.covariates is None else np.repeat(model.covariates.typical(), len(z), axis=0)
        images.append(model.decode(z, covariates=rows))
    if model.covariates is not None:
        rows = _extremes(model.covariates)
        images.append(model.decode(np.zeros((len(rows), model.latent_size), np.float32), covariates=rows))
    return np.concatenate(images)


def _extremes(covariates: Covariates) -> NDArray[np.float32]:
    """The average person, moved to each level and each limit of each covariate in turn, (m, k)."""
    rows = []
    for column, entry in enumerate(covariates):
        values = range(len(entry.levels)) if entry.kind == "categorical" else (entry.low, entry.high)
        for value in (float(each) for each in values if each is not None):
            row = covariates.typical()
            row[0, column] = value
            rows.append(row)
    return np.concatenate(rows) if rows else covariates.typical()


def distance_from_training(made: NDArray, images: NDArray) -> float:
    """How far the images that a bundle gives away are from the nearest training image.

    Args:
        made: From `made_up`, (m, *data_shape).
        images: Training images, (n, *data_shape).

    Returns:
        min over g and i of ‖g − xᵢ‖ / ‖xᵢ − x̄‖: 0 for a copy of a training image, about 1 or more for another person.

    Raises:
        BundleError: If a training image would be as good as published.
    """
    flat = images.reshape(len(images), -1).astype(np.float64)
    away = np.min([np.linalg.norm(flat - image.ravel(), axis=1) for image in made], axis=0)
    spread = np.linalg.norm(flat - flat.mean(axis=0), axis=1)
    nearest = float((away / np.maximum(spread, 1e-12)).min())
    if nearest < TOO_CLOSE:
        raise BundleError(
            "Every image that the decoder makes of nobody",
            rule=f"differ from every training image by {TOO_CLOSE} of that image's distance from the mean",
            got=f"{nearest:.3f}",
            fix="The model has memorised a person: train it with fewer latents or more people",
        )
    return nearest
