"""Covariates as a model sees them: standardised, in the graph."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from kerasvae.covariates import Covariates

__all__ = ["Coding"]


class Coding:
    """From numbers in their own unit, (B, k), to centred columns, (B, c); what is missing becomes 0, the mean.

    A continuous covariate becomes (value − mean) / stddev. A categorical one becomes a column for each level but the
    first: 1 where the person has the level and 0 elsewhere, minus the level's share.

    Args:
        covariates: Of the model.
    """

    def __init__(self, covariates: Covariates) -> None:
        rows: list[tuple[int, float, float, float]] = []  # source column, level or −1, what to subtract and divide by
        for source, entry in enumerate(covariates):
            if entry.kind == "continuous":
                rows.append((source, -1.0, entry.mean, entry.stddev))
            else:
                rows += [(source, float(level), entry.shares[level], 1.0) for level in range(1, len(entry.levels))]
        source, level, centre, scale = np.array(rows).T
        self.width, self.names = covariates.width, covariates.names
        self._source = source.astype(np.int32)
        self._level, self._centre, self._scale = (values.astype(np.float32) for values in (level, centre, scale))

    def __call__(self, covariates: tf.Tensor) -> tf.Tensor:
        """(B, k), NaN where missing, to (B, c), float32."""
        values = tf.gather(tf.cast(covariates, tf.float32), self._source, axis=1)
        is_level = tf.cast(tf.equal(values, self._level), tf.float32)
        coded = (tf.where(self._level < 0, values, is_level) - self._centre) / self._scale
        return tf.where(tf.math.is_nan(values), tf.zeros_like(values), coded)
