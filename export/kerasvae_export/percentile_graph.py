"""Percentiles as TensorFlow operations."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

__all__ = ["percentiles"]


def percentiles(values: tf.Tensor, percents: Sequence[float]) -> list[tf.Tensor]:
    """Linear interpolation between order statistics, numpy's default."""
    ranked = tf.sort(values)
    last = tf.cast(tf.size(ranked) - 1, tf.float64)
    found = []
    for percent in percents:
        place = last * (percent / 100)
        below = tf.floor(place)
        lower = tf.gather(ranked, tf.cast(below, tf.int32))
        upper = tf.gather(ranked, tf.cast(tf.minimum(below + 1, last), tf.int32))
        found.append(lower + (upper - lower) * (place - below))
    return found
