"""A prior along a line: where on it a person lies is what is regressed, e.g. age.

Zhao et al. 2019, Variational Autoencoder for Regression: Application to Brain Aging Analysis, MICCAI,
arXiv 1904.05948: p(z|r) = N(z; r u, σ² I) with uᵀu = 1. u is the direction in the latent space along which
the brain changes with r, σ what differs between people of the same r. Where r is not known it is standardised and
normal, r ~ N(0, 1), so that p(z) = N(z; 0, σ² I + u uᵀ).
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from numpy.typing import NDArray

from kerasvae.distributions.base import NO_CONTEXT, Context, Prior, inverse_positive, positive
from kerasvae.distributions.conditional_prior import draw_in_turn, required_condition
from kerasvae.errors import ArgumentError

tfd = tfp.distributions

__all__ = ["RegressionPrior"]


@keras.saving.register_keras_serializable("kerasvae")
class RegressionPrior(Prior):
    """p(z|r) = N(z; r·u, σ² I) with u of length 1 and σ learned; r is the condition's only column.

    At the start u is (1, …, 1)/√d, which prefers no dimension, and σ is 1.

    Args:
        latent_size: Number of latent dimensions d.
        floor: The smallest σ, in (0, 1), in the unit of r; give r standardised.
    """

    kind = "regression"
    condition_size = 1

    def __init__(self, latent_size: int, floor: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if int(latent_size) != latent_size or latent_size < 1:
            raise ArgumentError(
                "latent_size", rule="be a whole number of 1 or more", got=latent_size, fix="Give the model's"
            )
        if not 0 < floor < 1:
            raise ArgumentError("floor", rule="lie in (0, 1)", got=floor, fix="Use 0.001")
        self.latent_size = int(latent_size)
        self.floor = float(floor)
        self.vector = self.add_weight(
            name="vector", shape=(self.latent_size,), initializer="ones", dtype="float32", autocast=False
        )
        raw = keras.initializers.Constant(inverse_positive(1, self.floor))
        self.raw = self.add_weight(name="raw", initializer=raw, dtype="float32", autocast=False)
        self.built = True

    def direction(self) -> tf.Tensor:
        """u, (d,): the change of the latent mean for one unit of r, of length 1."""
        return tf.math.l2_normalize(tf.convert_to_tensor(self.vector))

    def stddev(self) -> tf.Tensor:
        """σ, a scalar."""
        return positive(tf.convert_to_tensor(self.raw), self.floor)

    def set(self, direction: NDArray[np.float64], stddev: float) -> None:
        """Set u, (d,), to the direction given, and σ, which must lie above the floor."""
        self.vector.assign(direction)
        self.raw.assign(inverse_positive(stddev, self.floor))

    def distribution(self, context: Context) -> tfp.distributions.Distribution:
        """p(z|r) with batch shape (B, d): one factor per person and dimension.

        Raises:
            ModelError: Where the context has no condition, or one of more than one column.
        """
        mean = required_condition(context, 1) * self.direction()
        return tfd.Normal(mean, tf.fill(tf.shape(mean), self.stddev()))

    def log_prob(self, z: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """log p(z|r), or log p(z) without a condition, in nats, (S, B, d) to (S, B); row b goes with z[:, b]."""
        z = tf.ensure_shape(z, (None, None, self.latent_size))
        if context.condition is not None:
            return tf.reduce_sum(self.distribution(context).log_prob(z), axis=-1)
        # Σ = σ² I + u uᵀ: |Σ| = σ^2(d−1) (σ² + 1), zᵀ Σ⁻¹ z = (‖z‖² − (uᵀz)² / (1 + σ²)) / σ²
        variance = tf.square(self.stddev())
        along = tf.square(tf.linalg.matvec(z, self.direction()))
        square = (tf.reduce_sum(tf.square(z), axis=-1) - along / (1 + variance)) / variance
        log_determinant = (self.latent_size - 1) * tf.math.log(variance) + tf.math.log1p(variance)
        return -0.5 * (square + log_determinant + self.latent_size * math.log(2 * math.pi))

    def sample(self, count: int, latent_size: int, seed: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """Draws, (count, d): one a row of the condition, in turn where `count` is not the number of rows."""
        if context.condition is not None:
            return draw_in_turn(self.distribution(context), count, seed)
        for_r, for_z = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        r = tf.random.stateless_normal([count, 1], for_r)
        return r * self.direction() + self.stddev() * tf.random.stateless_normal([count, self.latent_size], for_z)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "latent_size": self.latent_size, "floor": self.floor}
