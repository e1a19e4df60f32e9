"""Smooth random fields on a grid, and linear interpolation between its voxels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import tensorflow as tf

from kerasvae.data.augment.random_layer import normal
from kerasvae.types import Array

__all__ = ["Points", "correlation_factor", "interpolated", "lattice", "smooth_fields"]

Points = tuple[tf.Tensor, ...]
"""Places in voxel units: one tensor an axis, each (b, *data_shape) or broadcasting to it."""

UNEXPLAINED = 1e-6
"""Part of a field's variance along an axis that may be left out."""


def correlation_factor(count: int, spacing: float, width: float) -> Array:
    """L with L Lᵀ = K, K_ij = exp(−(i − j)² spacing² / 2 width²), to a millionth of its trace, and diag(L Lᵀ) = 1.

    Args:
        count: Number of voxels n.
        spacing: Between them, mm.
        width: mm.

    Returns:
        (n, m), float32, m as small as will do.
    """
    place = np.arange(count) * spacing
    values, vectors = np.linalg.eigh(np.exp(-((place[:, None] - place) ** 2) / (2 * width**2)))
    values = np.maximum(values, 0.0)
    # eigenvalues rise: the first ones are left out
    first = min(int(np.searchsorted(np.cumsum(values), UNEXPLAINED * count)), count - 1)
    factor = vectors[:, first:] * np.sqrt(values[first:])
    return (factor / np.linalg.norm(factor, axis=1, keepdims=True)).astype(np.float32)


def smooth_fields(
    seeds: tf.Tensor, count: int, shape: Sequence[int], spacing: Sequence[float], width: float
) -> tf.Tensor:
    """Stationary Gaussian fields with mean 0, variance 1 at every voxel, and correlation exp(−r² / 2 width²) at r mm.

    Args:
        seeds: (b, 2).
        count: Fields of each image.
        shape: Of a field.
        spacing: Of its axes, mm.
        width: mm.

    Returns:
        (b, count, *shape).
    """
    factors = [correlation_factor(n, s, width) for n, s in zip(shape, spacing, strict=True)]
    field = normal(seeds, (count, *(factor.shape[1] for factor in factors)))
    for factor in factors:  # each moves the axis that it made to the end, so that the next one comes third
        field = tf.tensordot(field, factor, axes=[[2], [1]])
    return field


def lattice(shape: Sequence[int]) -> Points:
    """Each voxel's own place."""
    lines = [tf.range(n, dtype=tf.float32) for n in shape]
    return tuple(axis[None] for axis in tf.meshgrid(*lines, indexing="ij"))


def interpolated(images: tf.Tensor, points: Points) -> tf.Tensor:
    """Images at other places, linear between voxels; beyond the outermost voxels' centres, the value at the edge.

    As step 3 of `kerasvae.preprocess.resample` but for what lies outside.

    Args:
        images: (b, *data_shape), two or three axes.
        points: Where each voxel of the result is read.

    Returns:
        (b, *data_shape).
    """
    shape = tuple(images.shape[1:])
    batch, size = tf.shape(images)[0], int(np.prod(shape))
    begin = tf.reshape(tf.range(batch) * size, [-1] + [1] * len(shape))
    ends = []
    for n, stride, place in zip(shape, np.cumprod((1, *shape[:0:-1]))[::-1].tolist(), points, strict=True):
        within = tf.clip_by_value(place, 0.0, float(n - 1))
        low = tf.floor(within)
        part, index = within - low, tf.cast(low, tf.int32)
        ends.append(((1 - part, index * stride), (part, tf.minimum(index + 1, n - 1) * stride)))
    flat, total = tf.reshape(images, [-1]), tf.zeros_like(images)
    for corner in product(*ends):
        weight, index = corner[0]
        for more, step in corner[1:]:
            weight, index = weight * more, index + step
        total += weight * tf.gather(flat, begin + index)
    return total
