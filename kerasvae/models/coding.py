"""Covariates as a model sees them: standardised, in the graph."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from kerasvae.covariates import Covariates

__all__ = ["Coding"]


class Coding:
    """From numbers in their own unit, (B, k), to centred columns, (B, c).

    A continuous covariate becomes (value − mean) / stddev. A categorical one becomes a column for each level but the
    first: 1 where the person has the level and 0 elsewhere, minus the level's share. What is missing becomes 0, the
    mean, where it may be missing. Else, and for a number that is no level's, the columns are NaN.

    Args:
        covariates: Of the model.
    """

    def __init__(self, covariates: Covariates) -> None:
        # source column, level or −1, what to subtract and to divide by, number of levels, whether it may be missing
        rows: list[tuple[int, float, float, float, int, bool]] = []
        for source, entry in enumerate(covariates):
            last = (len(entry.levels), entry.missing == "mean")
            if entry.kind == "continuous":
                rows.append((source, -1.0, entry.mean, entry.stddev, *last))
            else:
                rows += [(source, float(i), entry.shares[i], 1.0, *last) for i in range(1, len(entry.levels))]
        source, level, centre, scale, count, may_be_missing = np.array(rows, dtype=np.float64).T
        self.width, self.names = covariates.width, covariates.names
        self._source = source.astype(np.int32)
        self._level, self._centre, self._scale = (values.astype(np.float32) for values in (level, centre, scale))
        self._count, self._may_be_missing = count.astype(np.float32), may_be_missing.astype(bool)

    def __call__(self, covariates: tf.Tensor) -> tf.Tensor:
        """(B, k), NaN where missing, to (B, c), float32."""
        nan = tf.constant(np.nan, tf.float32)
        values = tf.gather(tf.cast(covariates, tf.float32), self._source, axis=1)
        is_level = tf.cast(tf.equal(values, self._level), tf.float32)
        # Where the condition is constant, tf2onnx makes sums of products of this: neither side may be NaN for the other
        exists = tf.equal(values, tf.floor(values)) & (values >= 0) & (values < self._count) | (self._level < 0)
        is_level = tf.where(exists, is_level, nan)
        coded = (tf.where(self._level < 0, values, is_level) - self._centre) / self._scale
        missing = tf.where(self._may_be_missing, tf.zeros_like(values), nan)
        return tf.where(tf.math.is_nan(values), missing, coded)
