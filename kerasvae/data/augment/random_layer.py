"""What all random layers share: seeds for each image, draws from them, and the call."""

from __future__ import annotations

import math
import numbers
import zlib
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from kerasvae.errors import ArgumentError

__all__ = ["RandomLayer", "bounded", "check_images", "normal", "row_seeds", "spacing_of", "uniform"]


def row_seeds(seed: int | tf.Tensor, epoch: int | tf.Tensor, rows: Any) -> tf.Tensor:
    """The pair of seeds of each image in an epoch: (seed, epoch · 2³² + row), int64.

    Args:
        seed: Of the training, in [0, 2³²).
        epoch: In [0, 2³¹).
        rows: Place of each image among the training images, (b,), whole numbers in [0, 2³²).

    Returns:
        (b, 2).
    """
    rows = tf.cast(rows, tf.int64)
    second = tf.bitwise.bitwise_or(tf.bitwise.left_shift(tf.cast(epoch, tf.int64), tf.constant(32, tf.int64)), rows)
    return tf.stack([tf.fill(tf.shape(rows), tf.cast(seed, tf.int64)), second], axis=1)


def uniform(seeds: tf.Tensor, shape: Sequence[int], low: float, high: float) -> tf.Tensor:
    """Numbers evenly spread over [low, high), (b, *shape), row by row from seeds (b, 2)."""
    return low + (high - low) * _drawn(tf.random.stateless_uniform, seeds, shape)


def normal(seeds: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """Standard normal numbers, (b, *shape), row by row from seeds (b, 2)."""
    return _drawn(tf.random.stateless_normal, seeds, shape)


def _drawn(draw: Any, seeds: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    # one named algorithm, so that the numbers do not depend on the device
    return tf.map_fn(
        lambda pair: draw(shape, pair, alg="philox"), seeds, fn_output_signature=tf.TensorSpec(shape, tf.float32)
    )


class RandomLayer(keras.layers.Layer):
    """A random change of images (b, *data_shape), always in float32.

    A subclass has `off` and `change`; its constructor's arguments are its configuration.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.built = True

    @property
    def off(self) -> bool:
        """Whether nothing is ever changed: images then come back as they are, bit for bit."""
        raise NotImplementedError

    def change(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Images (b, *data_shape) changed, each from its own pair of seeds, (b, 2)."""
        raise NotImplementedError

    def __call__(self, images: Any, seed: Any = None, **kwargs: Any) -> Any:
        """As `call`, after `check`: Keras takes numbers by keyword only, and wraps what `call` raises."""
        if kwargs.get("training") is not False and not self.off:
            self.check(images, seed, kwargs.get("rows"))
        return super().__call__(images, seed=None if seed is None else tf.cast(seed, tf.int64), **kwargs)

    def check(self, images: Any, seed: Any, rows: Any) -> None:
        """Refuse arguments of `call` that will not do.

        Raises:
            ArgumentError: Saying which.
        """
        if seed is None:
            raise ArgumentError(
                "seed", rule="be given: draws depend on it alone", got="none", fix="Give two whole numbers"
            )

    def call(self, images: tf.Tensor, seed: Any = None, training: bool = True) -> tf.Tensor:
        """Changed images, the same shape.

        Args:
            images: (b, *data_shape), float32.
            seed: Two whole numbers for each image, (b, 2), see `row_seeds`; or two for the batch, below 2³², of which
                each place in the batch makes its own.
            training: False gives the images back as they are.

        Raises:
            ArgumentError: Without a seed (there is no hidden state), or for images of another shape.
        """
        if not training or self.off:
            return images
        return self.change(images, self.seeds_of(seed, images))

    def seeds_of(self, seed: Any, images: tf.Tensor, number: int = 0) -> tf.Tensor:
        """Pairs of seeds of this layer alone, (b, 2), from what was given to `call`.

        Args:
            seed: As in `call`.
            images: (b, …).
            number: Tells layers of the same class apart.
        """
        pairs = tf.cast(seed, tf.int64)
        if pairs.shape.rank == 1:
            place = tf.bitwise.left_shift(tf.range(tf.shape(images)[0], dtype=tf.int64), tf.constant(32, tf.int64))
            pairs = tf.stack([tf.fill(tf.shape(place), pairs[0]), tf.bitwise.bitwise_xor(place, pairs[1])], axis=1)
        own = (zlib.crc32(type(self).__name__.encode()) + number) & 0x7FFFFFFF
        return tf.bitwise.bitwise_xor(pairs, tf.constant([own << 32, 0], tf.int64))


def bounded(what: str, value: Any, low: float, high: float = math.inf, *, fix: str) -> float:
    """The value as a float in [low, high].

    Raises:
        ArgumentError: If it is no such number.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not real or not low <= value <= high:
        rule = f"be a number from {low:g} to {high:g}" if high < math.inf else f"be a finite number, at least {low:g}"
        raise ArgumentError(what, rule=rule, got=repr(value), fix=fix)
    return float(value)


def spacing_of(spacing_mm: Sequence[float]) -> tuple[float, ...]:
    """Spacing of two or three axes, checked.

    Raises:
        ArgumentError: If it is not two or three positive numbers.
    """
    given = tuple(float(s) for s in spacing_mm)
    if len(given) not in (2, 3) or not all(0 < s < math.inf for s in given):
        raise ArgumentError(
            "spacing_mm", rule="be two or three positive numbers", got=given, fix="Give the grid's spacing"
        )
    return given


def check_images(images: Any, rank: int) -> None:
    """Refuse images (b, *data_shape) that have not `rank` axes.

    Raises:
        ArgumentError: If the batch has other axes, or one of unknown length.
    """
    shape = tuple(images.shape)
    if len(shape) != rank + 1 or None in shape[1:]:
        raise ArgumentError(
            "images",
            rule=f"have shape (batch, {', '.join('xyz'[:rank])}), as many axes as spacing_mm has numbers",
            got=shape,
            fix="Leave out a channel axis",
        )
