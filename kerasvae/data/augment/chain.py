"""Layers one after the other, on what a pipeline has made: the mask and the range of the values are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from kerasvae.data.augment.fields import interpolated, lattice
from kerasvae.data.augment.neighbours import MixNeighbours
from kerasvae.data.augment.random_layer import RandomLayer, bounded, row_seeds, spacing_of
from kerasvae.data.augment.spatial import Moving, RandomElastic
from kerasvae.errors import ArgumentError
from kerasvae.types import Array, Mask, pack_mask, unpack_mask

__all__ = ["Augmentation", "augmented"]


@keras.saving.register_keras_serializable("kerasvae")
class Augmentation(keras.layers.Layer):
    """Random layers one after the other, each from seeds of its own.

    Where affine maps and at last an elastic deformation follow one another, the image is read once, at the places that
    all of them together say: two interpolations would blur it twice.

    Layers that work on a masked image would draw what lies outside, often 0, into the brain. So each voxel outside the
    mask first takes the value of the nearest one inside, which in skull-stripped images fades to black, the smallest
    value in the mask, as exp(−distance / fade_mm); at the end it gets back what it was. On T1 images of IXI, moved by
    2 mm with and without what was cut off, 3 mm came nearest to the truth.

    Args:
        layers: In their order; those that mix people come first.
        mask: Voxels of the brain, of the images' shape; None: all.
        low: Smallest value of a result in the mask: what lies below becomes it. None: there is none.
        high: Largest, likewise.
        keep_moments: Give each image back its mean and standard deviation over the mask, as a pipeline with z-scores
            would do; before `low` and `high`.
        fade_mm: See above; None: the value does not fade.
        spacing_mm: Distance between voxels along each axis, for `fade_mm`.
    """

    def __init__(
        self,
        layers: Sequence[RandomLayer | dict[str, Any]],
        mask: Mask | dict[str, Any] | None = None,
        low: float | None = None,
        high: float | None = None,
        keep_moments: bool = False,
        fade_mm: float | None = None,
        spacing_mm: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.layers: list[RandomLayer] = [
            keras.saving.deserialize_keras_object(layer) if isinstance(layer, dict) else layer for layer in layers
        ]
        if any(isinstance(layer, MixNeighbours) for layer in self.layers[1:]):
            raise ArgumentError(
                "layers", rule="begin with MixNeighbours, once", got="it in a later place", fix="Put it first"
            )
        self.mask = unpack_mask(mask) if isinstance(mask, dict) else None if mask is None else np.asarray(mask, bool)
        if low is not None and high is not None and not low < high:
            raise ArgumentError("low", rule="be below high", got=f"{low:g} and {high:g}", fix="Swap the two")
        self.low, self.high, self.keep_moments = low, high, bool(keep_moments)
        self.built = True
        self.fade_mm = None if fade_mm is None else bounded("fade_mm", fade_mm, 1e-3, fix="Use 3")
        self.spacing_mm = None if spacing_mm is None else spacing_of(spacing_mm)
        if self.fade_mm is not None and self.spacing_mm is None:
            raise ArgumentError("spacing_mm", rule="be given with fade_mm", got="none", fix="Give the grid's spacing")
        self._nearest = self._share = np.empty(0)
        if self.mask is not None:
            away, places = distance_transform_edt(~self.mask, sampling=self.spacing_mm, return_indices=True)
            self._nearest = np.ravel_multi_index(tuple(places), self.mask.shape).astype(np.int32)
            self._share = np.exp(-away / (self.fade_mm or np.inf)).astype(np.float32)

    @property
    def off(self) -> bool:
        """Whether nothing is ever changed."""
        return all(layer.off for layer in self.layers)

    def __call__(self, images: Any, seed: Any = None, **kwargs: Any) -> Any:
        """As `call`; Keras takes numbers by keyword only, and wraps what `call` raises."""
        if kwargs.get("training") is not False:
            given = dict(images) if isinstance(images, Mapping) else {"image": images}
            for layer in (layer for layer in self.layers if not layer.off):
                layer.check(given if isinstance(layer, MixNeighbours) else given["image"], seed, kwargs.get("rows"))
        return super().__call__(images, seed=None if seed is None else tf.cast(seed, tf.int64), **kwargs)

    def call(self, images: Any, seed: Any = None, training: bool = True, rows: Any = None) -> Any:
        """Changed images, the same shape.

        Args:
            images: (b, *data_shape); or a mapping with ``image`` and what is known beside it, which is mixed where
                people are, and else comes back as it is.
            seed: As for `RandomLayer`.
            training: False gives the images back as they are.
            rows: Place of each image among the training images, (b,); only `MixNeighbours` asks for it.
        """
        if not training or self.off:
            return images
        given = dict(images) if isinstance(images, Mapping) else {"image": images}
        layers = list(self.layers)
        if isinstance(layers[0], MixNeighbours):
            mixed = layers.pop(0)(given, seed, rows=rows)
            given = {name: mixed[name] for name in given}
            moments = images["image"] if isinstance(images, Mapping) else images
        else:
            moments = given["image"]
        given["image"] = self._finished(self._chain(given["image"], layers, seed), given["image"], moments)
        return given if isinstance(images, Mapping) else given["image"]

    def _chain(self, images: tf.Tensor, layers: Sequence[RandomLayer], seed: Any) -> tf.Tensor:
        images = images if self.mask is None else self._extended(images, self.mask)
        numbers: Counter[type] = Counter()
        moving: list[tuple[Moving, tf.Tensor]] = []
        for layer in (layer for layer in layers if not layer.off):
            seeds = layer.seeds_of(seed, images, numbers[type(layer)])
            numbers[type(layer)] += 1
            if isinstance(layer, Moving):
                moving.append((layer, seeds))
            if not isinstance(layer, Moving) or isinstance(layer, RandomElastic):  # it is known at voxels only
                images, moving = _moved(images, moving), []
            if not isinstance(layer, Moving):
                images = layer.change(images, seeds)
        return _moved(images, moving)

    def _extended(self, images: tf.Tensor, mask: Mask) -> tf.Tensor:
        """Images with other values outside the mask: those of the nearest voxels inside, perhaps faded."""
        flat = tf.gather(tf.reshape(images, [-1, mask.size]), self._nearest, axis=1)
        images = tf.ensure_shape(tf.reshape(flat, tf.shape(images)), [None, *mask.shape])
        if self.fade_mm is None:
            return images
        black = tf.reduce_min(images, list(range(1, images.shape.rank)), keepdims=True)
        return tf.where(mask, images, black + (images - black) * self._share)

    def _finished(self, images: tf.Tensor, before: tf.Tensor, moments: tf.Tensor) -> tf.Tensor:
        """Moments, range and what lies outside the mask."""
        if self.keep_moments:
            mean, stddev = self._moments(images)
            wanted, spread = self._moments(moments)
            images = wanted + (images - mean) * tf.math.divide_no_nan(spread, stddev)
        images = images if self.low is None else tf.maximum(images, self.low)
        images = images if self.high is None else tf.minimum(images, self.high)
        return images if self.mask is None else tf.where(self.mask, images, before)

    def _moments(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and standard deviation over the mask, each (b, 1, …)."""
        axes = list(range(1, images.shape.rank))
        mask = np.ones(images.shape[1:], bool) if self.mask is None else self.mask
        count = float(mask.sum())
        mean = tf.reduce_sum(tf.where(mask, images, 0.0), axes, keepdims=True) / count
        square = tf.reduce_sum(tf.where(mask, tf.square(images - mean), 0.0), axes, keepdims=True) / count
        return mean, tf.sqrt(square)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments; the mask packed as bits."""
        return {
            **super().get_config(),
            "layers": [keras.saving.serialize_keras_object(layer) for layer in self.layers],
            "mask": None if self.mask is None else pack_mask(self.mask),
            "low": self.low,
            "high": self.high,
            "keep_moments": self.keep_moments,
            "fade_mm": self.fade_mm,
            "spacing_mm": None if self.spacing_mm is None else list(self.spacing_mm),
        }


def _moved(images: tf.Tensor, moving: Sequence[tuple[Moving, tf.Tensor]]) -> tf.Tensor:
    """Images read once where all layers together say: the last one is asked first."""
    if not moving:
        return images
    shape = tuple(images.shape[1:])
    points = lattice(shape)
    for layer, seeds in reversed(moving):
        points = layer.points(points, shape, seeds)
    return interpolated(images, points)


def augmented(
    images: NDArray[Any], augmentation: Augmentation | RandomLayer, copies: int, seed: int = 0, batch_size: int = 8
) -> Array:
    """Augmented copies of training images as one array, for methods that take no data set, such as PCA.

    Copy e is what epoch e of a training with this seed is made of.

    Args:
        images: (n, *data_shape).
        augmentation: One layer, or several as an `Augmentation`; its `MixNeighbours` adapted to `images` alone.
        copies: Number of copies, 1 or more.
        seed: Of the training.
        batch_size: Images at a time; the result does not depend on it.

    Returns:
        (copies · n, *data_shape), float32, copy after copy.
    """
    if copies < 1:
        raise ArgumentError("copies", rule="be 1 or more", got=copies, fix="Use 10")
    chain = augmentation if isinstance(augmentation, Augmentation) else Augmentation([augmentation])
    step = tf.function(
        lambda batch, rows, epoch: chain(batch, row_seeds(seed, epoch, rows), rows=rows),
        input_signature=[
            tf.TensorSpec([None, *images.shape[1:]], tf.float32),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([], tf.int64),
        ],
    )
    out = np.empty((copies, *images.shape), np.float32)
    for epoch in range(copies):
        for start in range(0, len(images), batch_size):
            part = np.arange(start, min(start + batch_size, len(images)))
            out[epoch, part] = step(np.asarray(images[part], np.float32), part, np.int64(epoch))
    return out.reshape(-1, *images.shape[1:])
