"""A `Pipeline` as TensorFlow operations: the formulas of `kerasvae.preprocess`, step by step, for one image.

Reading is in `kerasvae_export.nifti_graph`. Orders of summation differ from numpy's and scipy's; nothing else does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import tensorflow as tf

from kerasvae.preprocess import Pipeline
from kerasvae.preprocess.intensity import MOST_OUTSIDE, PercentileIntensity, RangeIntensity
from kerasvae_export.contract_graph import check_contract
from kerasvae_export.nifti_graph import Decoded, decode_nifti, must
from kerasvae_export.percentile_graph import percentiles

__all__ = ["preprocess"]

FWHM_SQUARED = 8.0 * math.log(2.0)


def preprocess(pipeline: Pipeline) -> Callable[[tf.Tensor], tf.Tensor]:
    """The function from the bytes of one file to what the encoder takes, as `Pipeline.apply` gives it.

    Returns:
        From a scalar string to float32 of the grid's shape.
    """

    def apply(content: tf.Tensor) -> tf.Tensor:
        image = decode_nifti(content)
        placed = (_resampled if pipeline.placement == "resample" else _fitted)(image, pipeline)
        placed = tf.ensure_shape(placed, pipeline.grid.shape)
        checks = []
        if pipeline.alignment is not None:
            checks = check_contract(placed, image.form_code, pipeline)
        with tf.control_dependencies(checks):
            placed = tf.identity(placed)
        scaled = _scaled(placed, pipeline)
        return scaled if pipeline.mask is None else scaled * pipeline.mask.astype(np.float32)

    return apply


def _resampled(image: Decoded, pipeline: Pipeline) -> tf.Tensor:
    """The image on the grid; see `kerasvae.preprocess.resample`, whose steps have these numbers."""
    grid, linear = pipeline.grid, pipeline.interpolation == "linear"
    data, affine, target = image.data, image.affine, tf.constant(grid.matrix, tf.float64)
    if linear:  # 1. Gaussian
        spacing = tf.norm(affine[:3, :3], axis=0)
        seen = tf.norm(tf.linalg.matmul(target[:3, :3], affine[:3, :3] / spacing, transpose_a=True), axis=0)
        widened = tf.where(seen > spacing * (1 + 1e-6), seen**2 - spacing**2, tf.zeros_like(seen))
        data = _smoothed(data, tf.sqrt((widened + pipeline.smooth_fwhm_mm**2) / FWHM_SQUARED) / spacing)
    # 2. coordinates
    matrix = tf.linalg.solve(affine, target)
    steps = [tf.range(n, dtype=tf.float64) for n in grid.shape]
    places = tf.reshape(tf.stack(tf.meshgrid(*steps, indexing="ij")), (3, -1))
    c = matrix[:3, :3] @ places + matrix[:3, 3:]
    # 3. interpolation; the stored array has axes (z, y, x)
    sizes = tf.reverse(tf.shape(data, tf.int64), [0])
    flat = tf.reshape(data, (-1,))

    def at(voxel: tf.Tensor) -> tf.Tensor:
        inside = tf.reduce_all((voxel >= 0) & (voxel < sizes[:, None]), axis=0)
        x, y, z = (voxel[axis] for axis in range(3))
        index = tf.where(inside, (z * sizes[1] + y) * sizes[0] + x, tf.zeros_like(x))
        return tf.where(inside, tf.gather(flat, index), 0.0)

    if not linear:
        return tf.reshape(at(tf.cast(tf.floor(c + 0.5 + 1e-9), tf.int64)), grid.shape)
    first = tf.floor(c)
    part = tf.cast(c - first, tf.float32)
    whole, result = tf.cast(first, tf.int64), tf.zeros(tf.shape(c)[1:], tf.float32)
    for corner in np.ndindex(2, 2, 2):
        weight = tf.reduce_prod(tf.stack([part[a] if corner[a] else 1 - part[a] for a in range(3)]), axis=0)
        result += weight * at(whole + np.array(corner, np.int64)[:, None])
    return tf.reshape(result, grid.shape)


def _smoothed(data: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """The separable Gaussian along stored axes (x, y, z), as products with banded matrices; zero outside the array.

    Args:
        data: (z, y, x).
        sigma: Standard deviations along x, y, z, in voxels, float64, (3,).
    """
    z, y, x = tf.unstack(tf.shape(data))
    by_axis = (
        (x, lambda k, d: tf.reshape(tf.reshape(d, (z * y, x)) @ k, (z, y, x))),
        (y, lambda k, d: tf.matmul(tf.broadcast_to(k, (z, y, y)), d)),
        (z, lambda k, d: tf.reshape(k @ tf.reshape(d, (z, y * x)), (z, y, x))),
    )
    for axis, (size, product) in enumerate(by_axis):
        data = tf.cond(
            sigma[axis] >= 1e-3,
            lambda d=data, s=sigma[axis], n=size, product=product: product(_band(n, s), d),
            lambda d=data: d,
        )
    return data


def _band(size: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """The matrix of a sampled Gaussian that is cut off at floor(4 σ + ½), (size, size)."""
    radius = tf.floor(4 * sigma + 0.5)
    taps = tf.range(-radius, radius + 1, dtype=tf.float64)
    total = tf.reduce_sum(tf.exp(-tf.square(taps) / (2 * tf.square(sigma))))
    places = tf.range(size)
    apart = tf.cast(tf.abs(places[:, None] - places), tf.float64)
    weights = tf.exp(-tf.square(apart) / (2 * tf.square(sigma))) / total
    return tf.cast(tf.where(apart <= radius, weights, 0.0), tf.float32)


def _fitted(image: Decoded, pipeline: Pipeline) -> tf.Tensor:
    """The image on its own voxels, in RAS+ order, cropped or padded to the grid's shape."""
    grid = pipeline.grid
    spacing = tf.norm(image.affine[:3, :3], axis=0)
    directions = image.affine[:3, :3] / spacing
    orders = np.array(list(permutations(range(3))))
    scores = tf.reduce_sum(tf.stack([tf.abs(tf.gather(directions[i], orders[:, i])) for i in range(3)]), axis=0)
    # the first of those that are equal but for rounding
    best = tf.argmax(tf.cast(scores > tf.reduce_max(scores) - 1e-9, tf.int32))
    order = tf.gather(tf.constant(orders), best)
    own = tf.gather(spacing, order)
    wanted = np.array(grid.spacing)
    near = tf.abs(own - wanted) <= 1e-8 + 0.01 * wanted
    text = " x ".join(f"{length:.3g}" for length in grid.spacing)
    with tf.control_dependencies([must(tf.reduce_all(near), f"have voxels of {text} mm, to which it is cropped")]):
        data = tf.identity(image.data)
    if pipeline.interpolation == "linear" and pipeline.smooth_fwhm_mm > 0:
        data = _smoothed(data, pipeline.smooth_fwhm_mm / math.sqrt(FWHM_SQUARED) / spacing)
    data = tf.transpose(tf.transpose(data, (2, 1, 0)), order)
    against = tf.stack([directions[axis, order[axis]] < 0 for axis in range(3)])
    data = tf.reverse(data, tf.cast(tf.where(against)[:, 0], tf.int32))
    shift = (np.array(grid.shape, np.int32) - tf.shape(data)) // 2
    data = data[tuple(slice(tf.maximum(-shift[axis], 0), None) for axis in range(3))]
    data = data[tuple(slice(None, grid.shape[axis] - tf.maximum(shift[axis], 0)) for axis in range(3))]
    before = tf.maximum(shift, 0)
    return tf.pad(data, tf.stack([before, np.array(grid.shape, np.int32) - tf.shape(data) - before], axis=1))


def _scaled(data: tf.Tensor, pipeline: Pipeline) -> tf.Tensor:
    """(x − offset) / scale; see `kerasvae.preprocess.intensity`."""
    step = pipeline.intensity
    if pipeline.mask is not None:
        values = tf.gather(tf.reshape(data, (-1,)), np.flatnonzero(pipeline.mask))
    elif isinstance(step, RangeIntensity):
        values = tf.reshape(data, (-1,))
    else:
        values = tf.boolean_mask(data, data > 0)
        with tf.control_dependencies([must(tf.size(values) > 0, "have voxels above 0 on the model's grid")]):
            values = tf.identity(values)
    wide = tf.cast(values, tf.float64)
    if isinstance(step, PercentileIntensity):
        offset, high = percentiles(wide, (step.low, step.high))
        scale, varies = high - offset, high > offset
    elif isinstance(step, RangeIntensity):
        offset, scale = tf.constant(step.low, tf.float64), tf.constant(step.high - step.low, tf.float64)
        varies = tf.reduce_max(values) > tf.reduce_min(values)
    else:
        offset = tf.reduce_mean(wide)
        scale = tf.sqrt(tf.reduce_mean(tf.square(wide - offset)))
        varies = scale > 1e-6 * tf.maximum(tf.abs(offset), 1e-30)
    checks = [must(varies, "vary inside the brain")]
    clip = getattr(step, "clip", False)
    if isinstance(step, RangeIntensity) and clip:
        outside = tf.reduce_mean(tf.cast((wide < step.low) | (wide > step.high), tf.float64))
        rule = f"have most of its values within {step.low:g} and {step.high:g}"
        checks.append(must(outside <= MOST_OUTSIDE, rule))
    with tf.control_dependencies(checks):
        scaled = (data - tf.cast(offset, tf.float32)) * tf.cast(1 / scale, tf.float32)
    return tf.clip_by_value(scaled, 0.0, 1.0) if clip else scaled
