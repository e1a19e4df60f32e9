"""Images as a `tf.data.Dataset` whose order depends on the seed and the epoch alone, so that training can resume."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

__all__ = ["evaluation_dataset", "steps_per_epoch", "training_dataset"]


def steps_per_epoch(subjects: int, batch_size: int) -> int:
    """Number of batches in one pass over the subjects, the last one perhaps smaller."""
    return math.ceil(subjects / batch_size)


def training_dataset(
    images: NDArray[np.float32],
    rows: NDArray[np.int64],
    *,
    batch_size: int,
    epochs: int,
    first_epoch: int = 0,
    seed: int = 0,
) -> tf.data.Dataset:
    """Epochs `first_epoch` to `epochs` one after the other, each in an order of its own.

    The order of epoch e is a pseudo-random permutation keyed by (seed, e), so an interrupted training that begins
    again at epoch e sees what the uninterrupted one saw.

    Args:
        images: (n, *data_shape).
        rows: Row of the cohort of each image, (n,).
        batch_size: Subjects a batch.
        epochs: Number of epochs of the whole training.
        first_epoch: The epoch to begin with.
        seed: Seed of the order.

    Returns:
        Batches ``{"image": (b, *data_shape), "row": (b,)}``; ``steps_per_epoch(n, batch_size)`` of them an epoch.
    """
    count = len(images)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        key = tf.stack([tf.constant(seed, tf.int64), number])
        indices = tf.data.Dataset.range(count).map(
            lambda i: tf.random.experimental.index_shuffle(i, seed=key, max_index=tf.constant(count - 1, tf.int64))
        )
        return indices.batch(batch_size)

    batches = tf.data.Dataset.range(first_epoch, epochs).flat_map(epoch)
    return _gather(batches, images, rows)


def evaluation_dataset(images: NDArray[np.float32], rows: NDArray[np.int64], *, batch_size: int) -> tf.data.Dataset:
    """All images once, in their order."""
    return _gather(tf.data.Dataset.range(len(images)).batch(batch_size), images, rows)


def _gather(batches: tf.data.Dataset, images: NDArray[np.float32], rows: NDArray[np.int64]) -> tf.data.Dataset:
    """Look up the images of batches of indices; in numpy, so that the array is neither copied nor put in the graph."""

    def lookup(indices: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return np.ascontiguousarray(images[indices], dtype=np.float32), np.asarray(rows[indices], np.int64)

    def batch(indices: tf.Tensor) -> dict[str, tf.Tensor]:
        image, row = tf.numpy_function(lookup, [indices], [tf.float32, tf.int64], stateful=False)
        image.set_shape([None, *images.shape[1:]])
        row.set_shape([None])
        return {"image": image, "row": row}

    return batches.map(batch, num_parallel_calls=2, deterministic=True).prefetch(2)
