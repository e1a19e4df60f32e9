"""Layers that change values: what scanners and their protocols do to an image.

Black is an image's own smallest value and white its largest, so that images in any unit, z-scores among them, are
treated alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.data.augment.fields import smooth_fields
from kerasvae.data.augment.random_layer import RandomLayer, bounded, check_images, normal, spacing_of, uniform
from kerasvae.types import Mask

__all__ = ["RandomBiasField", "RandomBlur", "RandomGamma", "RandomNoise"]

FWHM = math.sqrt(8 * math.log(2))
"""Full width at half maximum of a Gaussian, in standard deviations."""
REACH = 4.0
"""Standard deviations after which a Gaussian kernel ends, as in `kerasvae.preprocess.resample`."""


@keras.saving.register_keras_serializable("kerasvae")
class RandomBiasField(RandomLayer):
    """Brightness that varies slowly over the image: black + (x − black) · exp(field).

    The field is Gaussian with the same standard deviation at every voxel and correlation exp(−r² / 2 smoothness²)
    between voxels r mm apart.

    Args:
        strength: Standard deviation of the field, the logarithm of the gain.
        smoothness_mm: The length above.
        spacing_mm: Distance between voxels along each axis, two or three numbers.
    """

    def __init__(
        self, strength: float = 0.0, smoothness_mm: float = 60.0, *, spacing_mm: Sequence[float], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.strength = bounded("strength", strength, 0, fix="Use 0.1")
        self.smoothness_mm = bounded("smoothness_mm", smoothness_mm, 1, fix="Use 60")
        self.spacing_mm = spacing_of(spacing_mm)

    @property
    def off(self) -> bool:
        """`strength` is 0."""
        return self.strength == 0

    def draw(self, shape: Sequence[int], seeds: tf.Tensor) -> tf.Tensor:
        """Logarithms of the gain, (b, *shape)."""
        return self.strength * smooth_fields(seeds, 1, shape, self.spacing_mm, self.smoothness_mm)[:, 0]

    def check(self, images: Any, seed: Any, rows: Any) -> None:
        """See `RandomLayer`."""
        super().check(images, seed, rows)
        check_images(images, len(self.spacing_mm))

    def change(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """See `RandomLayer`."""
        shape = tuple(images.shape[1:])
        black, _ = _ends(images)
        return black + (images - black) * tf.exp(self.draw(shape, seeds))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        own = {"strength": self.strength, "smoothness_mm": self.smoothness_mm, "spacing_mm": list(self.spacing_mm)}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("kerasvae")
class RandomGamma(RandomLayer):
    """Another contrast: with u in [0, 1] the place of a value between black and white, u becomes u^γ.

    log γ is drawn evenly within ± strength. A constant image stays as it is.

    Args:
        strength: Greatest |log γ|, at most 2.
    """

    def __init__(self, strength: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.strength = bounded("strength", strength, 0, 2, fix="Use 0.2")

    @property
    def off(self) -> bool:
        """`strength` is 0."""
        return self.strength == 0

    def draw(self, seeds: tf.Tensor) -> tf.Tensor:
        """γ of each image, (b,)."""
        return tf.exp(uniform(seeds, (), -self.strength, self.strength))

    def change(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """See `RandomLayer`."""
        black, white = _ends(images)
        gamma = tf.reshape(self.draw(seeds), [-1] + [1] * (images.shape.rank - 1))
        return black + (white - black) * tf.math.divide_no_nan(images - black, white - black) ** gamma

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "strength": self.strength}


@keras.saving.register_keras_serializable("kerasvae")
class RandomNoise(RandomLayer):
    """Independent normal noise at every voxel.

    Args:
        strength: Standard deviation of the noise, in units of `stddev`.
        stddev: Standard deviation of the training images' values; `adapt` finds it.
    """

    def __init__(self, strength: float = 0.0, stddev: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.strength = bounded("strength", strength, 0, fix="Use 0.1")
        self.stddev = bounded("stddev", stddev, 0, fix="Use 1 for z-scores")

    def adapt(self, images: NDArray[Any], mask: Mask | None = None) -> None:
        """Take `stddev` from images, (n, *data_shape): that of all their values in the mask."""
        self.stddev = float(np.std(images if mask is None else images[:, mask], dtype=np.float64))

    @property
    def off(self) -> bool:
        """There is no noise."""
        return self.strength * self.stddev == 0

    def change(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """See `RandomLayer`."""
        return images + self.strength * self.stddev * normal(seeds, tuple(images.shape[1:]))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "strength": self.strength, "stddev": self.stddev}


@keras.saving.register_keras_serializable("kerasvae")
class RandomBlur(RandomLayer):
    """A Gaussian of random width, the same along all axes: step 1 of `kerasvae.preprocess.resample`.

    Its full width at half maximum is drawn evenly between 0 and `fwhm_mm`.

    Args:
        fwhm_mm: The widest, 0 to 50.
        spacing_mm: Distance between voxels along each axis, two or three numbers.
    """

    def __init__(self, fwhm_mm: float = 0.0, *, spacing_mm: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fwhm_mm = bounded("fwhm_mm", fwhm_mm, 0, 50, fix="Use 4")
        self.spacing_mm = spacing_of(spacing_mm)

    @property
    def off(self) -> bool:
        """`fwhm_mm` is 0."""
        return self.fwhm_mm == 0

    def draw(self, seeds: tf.Tensor) -> tf.Tensor:
        """Full width at half maximum of each image's Gaussian in mm, (b,)."""
        return uniform(seeds, (), 0.0, self.fwhm_mm)

    def check(self, images: Any, seed: Any, rows: Any) -> None:
        """See `RandomLayer`."""
        super().check(images, seed, rows)
        check_images(images, len(self.spacing_mm))

    def change(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """See `RandomLayer`."""
        shape = tuple(images.shape[1:])
        width = self.draw(seeds) / FWHM
        for axis, (count, spacing) in enumerate(zip(shape, self.spacing_mm, strict=True), start=1):
            radius = int(REACH * self.fwhm_mm / FWHM / spacing + 0.5)
            kernel = _kernel(width / spacing, radius)
            images = _convolved(images, kernel, axis, count, radius)
        return images

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "fwhm_mm": self.fwhm_mm, "spacing_mm": list(self.spacing_mm)}


def _kernel(sigma: tf.Tensor, radius: int) -> tf.Tensor:
    """Weights of a Gaussian at −radius … radius for each image, (b, 2 · radius + 1); sigma in voxels, (b,)."""
    sigma = tf.maximum(sigma, 1e-3)[:, None]
    steps = tf.range(-radius, radius + 1, dtype=tf.float32)
    weights = tf.where(tf.abs(steps) <= tf.floor(REACH * sigma + 0.5), tf.exp(-0.5 * tf.square(steps / sigma)), 0.0)
    return weights / tf.reduce_sum(weights, axis=1, keepdims=True)


def _convolved(images: tf.Tensor, kernel: tf.Tensor, axis: int, count: int, radius: int) -> tf.Tensor:
    """Images with one axis filtered, its edges repeated."""
    places = np.clip(np.arange(-radius, count + radius), 0, count - 1)
    padded = tf.gather(images, places, axis=axis)
    weights = tf.reshape(kernel, [-1, 2 * radius + 1] + [1] * (images.shape.rank - 1))
    parts = []
    for step in range(2 * radius + 1):
        begin, size = [0] * images.shape.rank, [-1] * images.shape.rank
        begin[axis], size[axis] = step, count
        parts.append(weights[:, step] * tf.slice(padded, begin, size))
    return tf.add_n(parts)


def _ends(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Smallest and largest value of each image, (b, 1, …)."""
    axes = list(range(1, images.shape.rank))
    return tf.reduce_min(images, axes, keepdims=True), tf.reduce_max(images, axes, keepdims=True)
