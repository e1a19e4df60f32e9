"""Priors p(z) over the latent space.

Kingma & Welling 2014, arXiv 1312.6114, section 3: the standard normal prior.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions


@keras.saving.register_keras_serializable("kerasvae")
class StandardNormalPrior(keras.layers.Layer):
    """p(z) = N(0, I)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.built = True

    def distribution(self, latent_size: int) -> tfp.distributions.Distribution:
        """The prior with batch shape (d,): one factor per dimension."""
        return tfd.Normal(tf.zeros(latent_size), tf.ones(latent_size))

    def sample(self, count: int, latent_size: int, seed: tf.Tensor) -> tf.Tensor:
        """Draws of shape (count, d); `seed` is a stateless pair of integers."""
        return self.distribution(latent_size).sample(count, seed=seed)

    def call(self, z: tf.Tensor) -> tf.Tensor:
        """Log-density of codes of shape (batch, d), in nats, shape (batch,)."""
        return tf.reduce_sum(self.distribution(z.shape[-1]).log_prob(tf.cast(z, tf.float32)), axis=-1)
