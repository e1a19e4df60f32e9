"""Images as a `tf.data.Dataset` whose order depends on the seed and the epoch alone, so that training can resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.data.augment import Augmentation, row_seeds

__all__ = ["evaluation_dataset", "steps_per_epoch", "training_dataset"]


def steps_per_epoch(subjects: int, batch_size: int) -> int:
    """Number of batches in one pass over the subjects, the last one perhaps smaller."""
    return math.ceil(subjects / batch_size)


def training_dataset(
    inputs: Mapping[str, NDArray[np.float32]],
    rows: NDArray[np.int64],
    *,
    batch_size: int,
    epochs: int,
    first_epoch: int = 0,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
    augmentation: Augmentation | None = None,
) -> tf.data.Dataset:
    """Epochs `first_epoch` to `epochs` one after the other, each in an order of its own.

    The order of epoch e is a pseudo-random permutation keyed by (seed, e), so an interrupted training that begins
    again at epoch e sees what the uninterrupted one saw. What augmentation draws for an image is keyed by (seed, e, its
    place in `inputs`), so it is another in each epoch, and the same whatever the batches.

    Args:
        inputs: What the model takes by name: ``image``, (n, *data_shape), and as it needs more, each (n, …).
        rows: Row of the cohort of each image, (n,).
        batch_size: Subjects a batch.
        epochs: Number of epochs of the whole training.
        first_epoch: The epoch to begin with.
        seed: Seed of the order, and of what is drawn.
        groups: A number for each image, (n,): batches then hold images of one number only, and an epoch goes through
            the numbers in rising order, each in an order of its own.
        augmentation: Random changes of the images.

    Returns:
        Batches with the names of `inputs` and ``row``, (b,); ``steps_per_epoch(n, batch_size)`` of them an epoch, for
        each group where there are groups.
    """
    members = [np.arange(len(rows))] if groups is None else [np.flatnonzero(groups == g) for g in np.unique(groups)]

    def of_group(member: NDArray[np.int64], key: tf.Tensor) -> tf.data.Dataset:
        last = tf.constant(len(member) - 1, tf.int64)
        shuffled = tf.data.Dataset.range(len(member)).map(
            lambda i: tf.gather(member, tf.random.experimental.index_shuffle(i, seed=key, max_index=last))
        )
        return shuffled.batch(batch_size)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        key = tf.stack([tf.constant(seed, tf.int64), number])
        batches, *others = [of_group(member, key) for member in members]
        for other in others:
            batches = batches.concatenate(other)
        return batches.map(lambda batch: (number, batch))

    lookup = _lookup(inputs, rows)

    def batch(number: tf.Tensor, indices: tf.Tensor) -> dict[str, tf.Tensor]:
        given, row = lookup(indices)
        if augmentation is not None:
            given = augmentation(given, row_seeds(seed, number, indices), rows=indices)
        return {**given, "row": row}

    batches = tf.data.Dataset.range(first_epoch, epochs).flat_map(epoch)
    return batches.map(batch, num_parallel_calls=2, deterministic=True).prefetch(2)


def evaluation_dataset(
    inputs: Mapping[str, NDArray[np.float32]], rows: NDArray[np.int64], *, batch_size: int
) -> tf.data.Dataset:
    """All images once, in their order."""
    lookup = _lookup(inputs, rows)

    def batch(indices: tf.Tensor) -> dict[str, tf.Tensor]:
        given, row = lookup(indices)
        return {**given, "row": row}

    batches = tf.data.Dataset.range(len(rows)).batch(batch_size)
    return batches.map(batch, num_parallel_calls=2, deterministic=True).prefetch(2)


def _lookup(
    inputs: Mapping[str, NDArray[np.float32]], rows: NDArray[np.int64]
) -> Callable[[tf.Tensor], tuple[dict[str, tf.Tensor], tf.Tensor]]:
    """From indices (b,) to inputs and rows; in numpy, so that no array is copied or put in the graph."""
    names = list(inputs)

    def take(indices: NDArray[np.int64]) -> tuple[NDArray, ...]:
        taken = [np.ascontiguousarray(inputs[name][indices], dtype=np.float32) for name in names]
        return (*taken, np.asarray(rows[indices], np.int64))

    def lookup(indices: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        *taken, row = tf.numpy_function(take, [indices], [tf.float32] * len(names) + [tf.int64], stateful=False)
        for name, values in zip(names, taken, strict=True):
            values.set_shape([None, *inputs[name].shape[1:]])
        row.set_shape([None])
        return dict(zip(names, taken, strict=True)), row

    return lookup
