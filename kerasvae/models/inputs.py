"""What goes into a model: images, and what is known beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

__all__ = ["Inputs", "joined", "repeated", "rows_of"]


class Inputs(NamedTuple):
    """What a model is given of a batch.

    Attributes:
        image: (B, *data_shape).
        condition: Standardised covariates, (B, c), or None.
        target: What is regressed on the image, in its unit and NaN where unknown, (B, 1), or None.
        site: Number of the level that codes are not to tell, NaN where unknown, (B, 1), or None.
    """

    image: tf.Tensor
    condition: tf.Tensor | None = None
    target: tf.Tensor | None = None
    site: tf.Tensor | None = None


def joined(main: tf.Tensor, condition: tf.Tensor | None) -> Any:
    """The input of a network: one tensor, or both."""
    return main if condition is None else [main, condition]


def repeated(values: tf.Tensor | None, count: int) -> tf.Tensor | None:
    """(B, …) to (count·B, …), draw by draw."""
    if values is None or count == 1:
        return values
    return tf.tile(values, [count] + [1] * (values.shape.rank - 1))


def rows_of(batch: Any, image: tf.Tensor) -> tf.Tensor:
    """Row of each subject in the cohort, (B,); −1 where it is not known."""
    if isinstance(batch, Mapping) and "row" in batch:
        return batch["row"]
    return tf.fill([tf.shape(image)[0]], tf.constant(-1, tf.int64))
