"""The alignment contract as TensorFlow operations: `kerasvae.preprocess.alignment` in a graph, for one image."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.preprocess import Pipeline
from kerasvae.preprocess.signature import block_of, padding_of
from kerasvae_export.nifti_graph import must
from kerasvae_export.percentile_graph import percentiles

__all__ = ["OUT_OF_PLACE", "check_contract"]

OUT_OF_PLACE = "lie as the training images do"


def check_contract(data: tf.Tensor, form_code: tf.Tensor, pipeline: Pipeline) -> list[tf.Operation]:
    """Assertions that an image keeps the limits of its pipeline's contract.

    Args:
        data: On the grid, before intensity and mask, float32.
        form_code: Code of the form that its affine came from.
        pipeline: With a contract.
    """
    contract, grid, mask = pipeline.alignment, pipeline.grid, pipeline.mask
    assert contract is not None
    stripped = "skull-stripped" if contract.skull_stripped else "whole-head"
    rule = f"{OUT_OF_PLACE} ({stripped} {contract.modality}, {contract.registration}, {contract.space})"
    checks = []
    if contract.sform_codes is not None:
        accepted = tf.reduce_any(form_code == tf.constant(contract.sform_codes, tf.int64))
        checks.append(must(accepted, f"{rule}: its sform code is not accepted"))
    positive = tf.cast(tf.boolean_mask(data, data > 0), tf.float64)
    with tf.control_dependencies([must(tf.size(positive) > 0, "have signal on the model's grid")]):
        (most,) = percentiles(tf.identity(positive), (98.0,))
    bright = tf.cast(data, tf.float64) > 0.1 * most
    share = tf.cast(bright, tf.float32)
    image = _coarse(tf.maximum(data, 0.0), grid.shape)
    measured: dict[str, tf.Tensor] = {}
    if mask is not None:
        inside = tf.reduce_sum(share * mask.astype(np.float32))
        measured["coverage"] = inside / np.float32(mask.sum())
        measured["outside"] = 1 - inside / tf.reduce_sum(share)
    measured["correlation"] = _correlation(image, contract.mean_image.values)
    measured["distance_mm"] = tf.norm(_centre(image, grid.shape, grid.matrix) - np.array(contract.centre_mm))
    mirror = contract.mirror.values.astype(np.float64)
    power = float(np.square(mirror).sum())
    turned = tf.cast(_coarse(share, grid.shape) - _coarse(tf.reverse(share, [0]), grid.shape), tf.float64)
    measured["handedness"] = tf.reduce_sum(turned * mirror) / power if power > 0 else tf.zeros((), tf.float64)
    for name, value in measured.items():
        limit = getattr(contract.limits, name)
        if limit is not None:
            upper_limit = name in ("outside", "distance_mm")
            number = tf.cast(value, tf.float64)
            kept = number <= limit if upper_limit else number >= limit
            checks.append(must(kept, f"{rule}: {name} must be {'at most' if upper_limit else 'at least'} {limit:.3g}"))
    return checks


def _correlation(image: tf.Tensor, reference: NDArray[np.float32]) -> tf.Tensor:
    a = tf.cast(image, tf.float64) - tf.reduce_mean(tf.cast(image, tf.float64))
    b = reference.astype(np.float64) - reference.mean(dtype=np.float64)
    scale = tf.norm(a) * np.linalg.norm(b)
    return tf.where(scale > 0, tf.reduce_sum(a * b) / tf.maximum(scale, 1e-300), tf.zeros_like(scale))


def _coarse(data: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Averages over cubic blocks, the array centred in zeros where blocks do not fit."""
    step = block_of(shape)
    before = [padding_of(n, step) for n in shape]
    padded = tf.pad(data, [(b, -n % step - b) for b, n in zip(before, shape, strict=True)])
    x, y, z = (-(-n // step) for n in shape)
    return tf.reduce_mean(tf.reshape(padded, (x, step, y, step, z, step)), axis=(1, 3, 5))


def _centre(image: tf.Tensor, shape: tuple[int, ...], matrix: NDArray[np.float64]) -> tf.Tensor:
    """Intensity-weighted centre of block averages, mm."""
    step = block_of(shape)
    weights = tf.cast(image, tf.float64) / tf.reduce_sum(tf.cast(image, tf.float64))
    voxel = []
    for axis, n in enumerate(shape):
        along = tf.reduce_sum(weights, axis=[other for other in range(3) if other != axis])
        start = (step - 1) / 2 - padding_of(n, step)
        voxel.append(start + step * tf.reduce_sum(along * tf.range(tf.size(along), dtype=tf.float64)))
    return tf.linalg.matvec(tf.constant(matrix[:3, :3], tf.float64), tf.stack(voxel)) + matrix[:3, 3]
