"""The standard normal prior.

Kingma & Welling 2014, arXiv 1312.6114, section 3.
"""

from __future__ import annotations

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from kerasvae.distributions.base import NO_CONTEXT, Context, Prior

tfd = tfp.distributions

__all__ = ["StandardNormalPrior"]


@keras.saving.register_keras_serializable("kerasvae")
class StandardNormalPrior(Prior):
    """p(z) = N(0, I)."""

    kind = "standard_normal"

    def distribution(self, latent_size: int) -> tfp.distributions.Distribution:
        """The prior with batch shape (d,): one factor per dimension."""
        return tfd.Normal(tf.zeros(latent_size), tf.ones(latent_size))

    def log_prob(self, z: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """log N(z; 0, I) in nats, (S, B, d) to (S, B)."""
        return tf.reduce_sum(self.distribution(z.shape[-1]).log_prob(z), axis=-1)

    def sample(self, count: int, latent_size: int, seed: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """Draws of shape (count, d)."""
        return self.distribution(latent_size).sample(count, seed=seed)
