"""From a recipe's `[augment]` to layers that know the grid and the training people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.data.augment import (
    Augmentation,
    MixNeighbours,
    RandomAffine,
    RandomBiasField,
    RandomBlur,
    RandomElastic,
    RandomFlip,
    RandomGamma,
    RandomLayer,
    RandomNoise,
)
from kerasvae.errors import ArgumentError, RecipeError
from kerasvae.models import VAE
from kerasvae.preprocess import Pipeline
from kerasvae.training.recipe import Recipe
from kerasvae.types import Grid

__all__ = ["augmentation_of"]

FADE_MM = 3.0
"""How fast a skull-stripped image is taken to become black outside the mask; see `Augmentation`."""


def augmentation_of(
    recipe: Recipe,
    pipeline: Pipeline,
    model: VAE,
    inputs: Mapping[str, NDArray[Any]],
    people: Sequence[str],
) -> Augmentation | None:
    """The recipe's layers, adapted to the training people; None where all are off.

    Values stay within those of the training images, and where the pipeline makes z-scores each image stays one. People
    are mixed with others of the same categories only.

    Args:
        recipe: Its section `augment`, and whether images are skull-stripped.
        pipeline: Its grid, mask and intensity step.
        model: Its covariates say which are categories, its likelihood which values are possible.
        inputs: What the model takes of the training people, each (n, …).
        people: The person of each image.

    Raises:
        RecipeError: If left and right are exchanged on a grid whose middle is not the person's, or augmented images
            have values that the likelihood refuses.
    """
    section, skull_stripped = recipe.augment, recipe.pipeline.skull_stripped
    images, spacing, mask = inputs["image"], pipeline.grid.spacing, pipeline.mask
    mix, noise = MixNeighbours(section.mix.share, section.mix.neighbours), RandomNoise(section.noise)
    if not noise.off:
        noise.adapt(images, mask)
    if not mix.off:
        mix.adapt(inputs, mask, groups=people, strata=_categories(model, inputs))
    if section.flip:
        _check_middle(pipeline.grid)
    layers: list[RandomLayer] = [
        mix,
        RandomFlip(0.5 if section.flip else 0.0),
        RandomAffine(**dict(section.affine), spacing_mm=spacing),
        RandomElastic(**dict(section.elastic), spacing_mm=spacing),
        RandomGamma(section.gamma),
        RandomBiasField(**dict(section.bias_field), spacing_mm=spacing),
        RandomBlur(section.blur_fwhm_mm, spacing_mm=spacing),
        noise,
    ]
    layers = [layer for layer in layers if not layer.off]
    if not layers:
        return None
    inside = images if mask is None else images[:, mask]
    chain = Augmentation(
        layers,
        mask,
        low=float(inside.min()),
        high=float(inside.max()),
        keep_moments=pipeline.intensity.kind == "zscore",
        fade_mm=FADE_MM if skull_stripped else None,
        spacing_mm=spacing,
    )
    rows = np.arange(min(4, len(images)))
    sample = {name: tf.constant(values[rows], tf.float32) for name, values in inputs.items()}
    try:
        model.likelihood.check(chain(sample, [0, 0], rows=rows)["image"].numpy())
    except ArgumentError as error:
        raise RecipeError(
            "augment",
            rule=f"leave values that the likelihood {model.likelihood.kind!r} takes: {error.rule}",
            got=f"{', '.join(type(layer).__name__ for layer in layers)}, of which follow {error.got}",
            fix="Keep flip alone, or take another likelihood",
        ) from error
    return chain


def _categories(model: VAE, inputs: Mapping[str, NDArray[Any]]) -> list[int] | None:
    """A number for each combination of categories of the training people; None without any categories."""
    which = [c.kind == "categorical" for c in model.covariates or ()]
    told = [inputs["covariates"][:, which]] if any(which) else []
    told += [inputs["site"]] if "site" in inputs else []
    if not told:
        return None
    codes = np.nan_to_num(np.concatenate(told, axis=1), nan=-1.0)
    return np.unique(codes, axis=0, return_inverse=True)[1].ravel().tolist()


def _check_middle(grid: Grid) -> None:
    """Left and right are exchanged about the array's middle: it must be x = 0 mm, to half a voxel."""
    ends = grid.matrix @ np.array([[0, grid.shape[0] - 1], *[[(n - 1) / 2] * 2 for n in grid.shape[1:]], [1, 1]])
    middle = float(ends[0].mean())
    if abs(middle) > grid.spacing[0] / 2:
        raise RecipeError(
            "augment.flip",
            rule="be false on a grid whose x axis is not centred at 0 mm",
            got=f"its middle at {middle:g} mm",
            fix="Take an MNI grid, or leave it out",
        )
