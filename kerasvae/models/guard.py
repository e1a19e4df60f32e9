"""Stop at the first loss term that is NaN or infinite, and say which step, term and people."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from kerasvae.errors import NonFiniteError

REMEMBERED = 8
"""How many offending rows are named."""


class Fault(keras.layers.Layer):
    """Where the first non-finite term appeared, as variables that a compiled train step can write."""

    def __init__(self, terms: tuple[str, ...], **kwargs: Any) -> None:
        """Terms are named in this order: what a sum is made of comes before the sum."""
        super().__init__(**kwargs)
        self.terms = terms
        self.step = self._integer("step", ())
        self.term = self._integer("term", ())
        self.rows = self._integer("rows", (REMEMBERED,))
        self.built = True

    def _integer(self, name: str, shape: tuple[int, ...]) -> keras.Variable:
        minus_one = keras.initializers.Constant(-1)
        return self.add_weight(name=name, shape=shape, dtype="int64", initializer=minus_one, trainable=False)

    def check(self, named: dict[str, tf.Tensor], rows: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Record the first fault; True when the step may be applied.

        Args:
            named: Per-subject terms in the order of `terms`, each of shape (batch,).
            rows: Row of the cohort of each subject, shape (batch,).
            step: Index of the training step.
        """
        bad = tf.stack([~tf.math.is_finite(named[name]) for name in self.terms])
        any_bad = tf.reduce_any(bad)
        clean_so_far = self.step < 0
        first = any_bad & clean_so_far
        term = tf.argmax(tf.cast(tf.reduce_any(bad, axis=1), tf.int32))
        subjects = tf.reduce_any(bad, axis=0)
        # Padding keeps top_k valid for batches smaller than the number of rows remembered.
        nobody = tf.fill([REMEMBERED], tf.constant(-1, tf.int64))
        marked = tf.concat([tf.where(subjects, tf.cast(rows, tf.int64), -1), nobody], axis=0)
        worst = tf.math.top_k(marked, k=REMEMBERED).values
        self.step.assign(tf.where(first, tf.cast(step, tf.int64), self.step))
        self.term.assign(tf.where(first, term, self.term))
        self.rows.assign(tf.where(first, worst, self.rows))
        return clean_so_far & ~any_bad

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Identity; a fault has state but no output."""
        return x


class NonFiniteGuard(keras.callbacks.Callback):
    """Raise `NonFiniteError` after the step in which a term stopped being finite."""

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget an earlier fault: a caller who goes on has dealt with it."""
        self.model.fault.step.assign(-1)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at the flag that the train step returned."""
        if int(self.model.fault.step) < 0:
            return
        fault = self.model.fault
        rows = sorted(int(row) for row in fault.rows.numpy() if row >= 0)
        who = f"rows {rows} of the cohort" if rows else "rows that the data set does not number"
        raise NonFiniteError(
            f"The loss term {fault.terms[int(fault.term)]!r}",
            rule="be finite",
            got=f"NaN or infinity at step {int(fault.step)} for {who}; that step was not applied",
            fix="Look at these images, lower the learning rate, or raise the floor of the likelihood's scale",
        )
