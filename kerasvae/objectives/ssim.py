"""Structural similarity of images of one, two or three dimensions, and an objective that adds it to another.

Wang, Bovik, Sheikh & Simoncelli 2004, Image Quality Assessment, IEEE Trans. Image Processing 13(4), equations 6 and
9–13: SSIM = l·cs with l = (2 μ_a μ_b + C₁)/(μ_a² + μ_b² + C₁) and cs = (2 σ_ab + C₂)/(σ_a² + σ_b² + C₂), C = (K·L)²,
from means, variances and covariance under a Gaussian window around each voxel.
Wang, Simoncelli & Bovik 2003, Multiscale Structural Similarity, Asilomar: the product over scales of the
mean cs and, at the coarsest, of the mean l·cs, each to the power of its weight.

Border: the image is continued by its mirror image, the edge voxel included (`mode="reflect"` of scipy.ndimage), so the
map has a value at every voxel and nothing is cut off. Between scales, neighbours are averaged in twos along each axis;
the last one of an odd number stands for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError
from kerasvae.objectives.base import Draws, Objective, Terms
from kerasvae.objectives.wrapper import Wrapper
from kerasvae.types import Mask, pack_mask, unpack_mask

__all__ = ["WEIGHTS", "WithMSSSIM", "ms_ssim", "scale_weights", "ssim", "ssim_maps"]

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the scales, finest first (Wang et al. 2003, calibrated across scales)."""

FLOOR = 1e-4
"""What a mean cs or l·cs below it counts as: fractional powers have no gradient at 0 and no value below."""


def gaussian_window(sigma: float, taps: int) -> NDArray[np.float64]:
    """Gaussian weights at whole distances from the centre, summing to 1, (taps,)."""
    distance = np.arange(taps) - taps // 2
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    return weights / weights.sum()


def blur_matrix(size: int, window: NDArray[np.float64]) -> NDArray[np.float32]:
    """Weighted means along an axis with mirrored borders, as a matrix from it to itself, (size, size)."""
    matrix = np.zeros((size, size))
    voxels = np.arange(size)
    for offset, weight in enumerate(window, start=-(len(window) // 2)):
        place = (voxels + offset) % (2 * size)
        np.add.at(matrix, (voxels, np.minimum(place, 2 * size - 1 - place)), weight)
    return matrix.astype(np.float32)


def halve_matrix(size: int) -> NDArray[np.float32]:
    """Means of two neighbours along an axis as a matrix, (⌈size/2⌉, size); the last of an odd number alone."""
    matrix = np.repeat(np.eye((size + 1) // 2), 2, axis=1)[:, :size]
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def along_axes(images: tf.Tensor, matrix: Callable[[int], NDArray[np.float32]]) -> tf.Tensor:
    """The matrix that belongs to the length of each axis but the first, applied along it."""
    for axis in range(1, images.shape.rank):
        product = tf.tensordot(images, tf.constant(matrix(images.shape[axis])), [[axis], [1]])
        order = list(range(images.shape.rank - 1))
        order.insert(axis, images.shape.rank - 1)
        images = tf.transpose(product, order)
    return images


def ssim_maps(
    a: tf.Tensor,
    b: tf.Tensor,
    data_range: float,
    *,
    sigma: float = 1.5,
    taps: int = 11,
    k1: float = 0.01,
    k2: float = 0.03,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Luminance l and contrast-structure cs around each voxel; their product is the SSIM.

    Args:
        a: Images, (B, *shape) of 1 to 3 axes of known lengths.
        b: Images to compare them with, of the same shape.
        data_range: L, the range of the intensities, > 0.
        sigma: Standard deviation of the window in voxels, > 0.
        taps: Length of the window in voxels, odd.
        k1: Constant of l, > 0.
        k2: Constant of cs, > 0.

    Returns:
        Both (B, *shape), float32, at most 1.
    """
    _check(a, b, data_range, sigma, taps, k1, k2)
    a, b = tf.cast(a, tf.float32), tf.cast(b, tf.float32)
    window = gaussian_window(sigma, taps)

    def blur(images: tf.Tensor) -> tf.Tensor:
        return along_axes(images, lambda size: blur_matrix(size, window))

    # second moments about a number near the mean: float32 would lose small variances of bright images
    level = tf.stop_gradient(tf.reduce_mean(a, axis=list(range(1, a.shape.rank)), keepdims=True))
    a, b = a - level, b - level
    mean_a, mean_b = blur(a), blur(b)
    variances = blur(a**2 + b**2) - mean_a**2 - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    structure = (2 * covariance + c2) / (variances + c2)
    mean_a, mean_b = mean_a + level, mean_b + level
    return (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1), structure


def ssim(
    a: tf.Tensor, b: tf.Tensor, data_range: float, *, mask: Mask | tf.Tensor | None = None, **window: Any
) -> tf.Tensor:
    """Mean SSIM of each pair of images over all voxels or those of the mask, (B,), at most 1.

    Args:
        a: See `ssim_maps`, like all that is not named here.
        b: See `ssim_maps`.
        data_range: See `ssim_maps`.
        mask: Which voxels are averaged over, (*shape), boolean or weights. The window around a voxel of the mask sees
            the image outside it.
        **window: See `ssim_maps`.
    """
    luminance, structure = ssim_maps(a, b, data_range, **window)
    return _mean(luminance * structure, _weights(mask, luminance.shape[1:]))


def scale_weights(shape: Iterable[int], taps: int = 11, weights: Iterable[float] = WEIGHTS) -> tuple[float, ...]:
    """Weights of the scales that fit an image, finest first, summing to 1.

    A scale fits where every axis is at least as long as the window; an axis of n voxels has ⌈n/2⌉ at the next. The
    first always takes part.
    """
    sizes = list(shape)
    fitting: list[float] = []
    for weight in weights:
        if fitting and min(sizes) < taps:
            break
        fitting.append(float(weight))
        sizes = [(size + 1) // 2 for size in sizes]
    if not fitting or min(fitting) <= 0:
        raise ArgumentError("weights", rule="be one or more positive numbers", got=tuple(weights), fix="Use WEIGHTS")
    return tuple(weight / sum(fitting) for weight in fitting)


def ms_ssim(
    a: tf.Tensor,
    b: tf.Tensor,
    data_range: float,
    *,
    mask: Mask | tf.Tensor | None = None,
    weights: Iterable[float] = WEIGHTS,
    taps: int = 11,
    **window: Any,
) -> tf.Tensor:
    """Multi-scale SSIM of each pair of images, (B,), in (0, 1].

    As many scales take part as fit the image, and their weights are made to sum to 1 (`scale_weights`): values from
    grids with another number of scales do not compare. At a coarser scale a voxel of the mask counts by the part of it
    that the mask covers.

    Args:
        a: See `ssim`, like all that is not named here.
        b: See `ssim`.
        data_range: See `ssim`.
        mask: See `ssim`.
        weights: Weights of the scales, finest first.
        taps: See `ssim_maps`.
        **window: See `ssim_maps`.
    """
    _check(a, b, data_range, 1.0, taps, 1.0, 1.0)
    exponents = scale_weights(a.shape[1:], taps, weights)
    inside = _weights(mask, a.shape[1:])
    product = tf.ones(())
    a, b = tf.cast(a, tf.float32), tf.cast(b, tf.float32)
    for scale, exponent in enumerate(exponents, start=1):
        luminance, structure = ssim_maps(a, b, data_range, taps=taps, **window)
        coarsest = scale == len(exponents)
        mean = _mean(luminance * structure if coarsest else structure, inside)
        product *= tf.maximum(mean, FLOOR) ** exponent
        if not coarsest:
            a, b, inside = (along_axes(images, halve_matrix) for images in (a, b, inside))
    return product


def _weights(mask: Mask | tf.Tensor | None, shape: tf.TensorShape) -> tf.Tensor:
    """The mask as weights, (1, *shape)."""
    if mask is None:
        return tf.ones((1, *shape))
    if tuple(mask.shape) != tuple(shape):
        raise ArgumentError("mask", rule=f"have the images' shape {tuple(shape)}", got=mask.shape, fix="Refit it")
    if isinstance(mask, np.ndarray) and not mask.any():
        raise ArgumentError("mask", rule="contain at least one True voxel", got="none", fix="Check the brain mask")
    return tf.cast(mask, tf.float32)[None]


def _mean(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    axes = list(range(1, values.shape.rank))
    return tf.reduce_sum(values * weights, axis=axes) / tf.reduce_sum(weights, axis=axes)


def _check(a: Any, b: Any, data_range: float, sigma: float, taps: int, k1: float, k2: float) -> None:
    shape = tuple(a.shape[1:])
    if not 1 <= len(shape) <= 3 or None in shape:
        raise ArgumentError(
            "a", rule="have shape (B, *shape) with 1 to 3 axes of known lengths", got=tuple(a.shape), fix="Reshape it"
        )
    if tuple(b.shape[1:]) != shape:
        raise ArgumentError("b", rule=f"have a's shape (B, {shape})", got=tuple(b.shape), fix="Bring both to one grid")
    if taps < 1 or taps % 2 != 1:
        raise ArgumentError("taps", rule="be odd and positive", got=taps, fix="Use 11")
    for name, value in (("data_range", data_range), ("sigma", sigma), ("k1", k1), ("k2", k2)):
        if not 0 < value < math.inf:
            raise ArgumentError(name, rule="be positive and finite", got=value, fix="See Wang et al. 2004")


@keras.saving.register_keras_serializable("kerasvae")
class WithMSSSIM(Wrapper):
    """Another objective plus weight·(1 − MS-SSIM of image and reconstruction), per subject.

    The addition is not a log-likelihood of anything: what is minimised is no bound on log p(x), while elbo,
    log_likelihood and kl are reported as ever.

    Args:
        objective: What is added to; its schedules stay.
        weight: Of 1 − MS-SSIM, nats, > 0. It counts beside a log-likelihood summed over all voxels.
        data_range: Range of the images' intensities, > 0.
        mask: Voxels whose similarity counts, of the data's shape; None counts all.
    """

    kind = "with_ms_ssim"

    def __init__(
        self,
        objective: Objective | dict[str, Any],
        weight: float,
        data_range: float,
        mask: Mask | dict[str, Any] | None = None,
    ) -> None:
        for name, value in (("weight", weight), ("data_range", data_range)):
            if not 0 < value < math.inf:
                raise ArgumentError(name, rule="be positive and finite", got=value, fix="Give a positive number")
        self.mask = unpack_mask(mask) if isinstance(mask, dict) else None if mask is None else np.asarray(mask, bool)
        if self.mask is not None and not self.mask.any():
            raise ArgumentError("mask", rule="contain at least one True voxel", got="none", fix="Check the brain mask")
        super().__init__(objective, weight=float(weight), data_range=float(data_range))
        self.weight, self.data_range = float(weight), float(data_range)
        self._report(extras=("ms_ssim",))

    def terms(self, draws: Draws) -> Terms:
        """The terms of the objective within, and ms_ssim, the mean over draws."""
        assert draws.image is not None  # the model gives both
        assert draws.reconstruction is not None
        terms = self.objective.terms(draws)
        reconstruction = draws.reconstruction()
        shape = reconstruction.shape[2:]
        images = tf.broadcast_to(draws.image()[None], tf.shape(reconstruction))
        flat = ms_ssim(
            tf.reshape(images, (-1, *shape)),
            tf.reshape(reconstruction, (-1, *shape)),
            self.data_range,
            mask=self.mask,
        )
        similarity = tf.reduce_mean(tf.reshape(flat, tf.shape(reconstruction)[:2]), axis=0)
        return terms._replace(
            loss=terms.loss + self.weight * (1 - similarity),
            per_subject=terms.per_subject | {"ms_ssim": similarity},
        )

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments: the objective serialised by Keras, the mask packed as bits."""
        return {
            "objective": keras.saving.serialize_keras_object(self.objective),
            "weight": self.weight,
            "data_range": self.data_range,
            "mask": None if self.mask is None else pack_mask(self.mask),
        }
