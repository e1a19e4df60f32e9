"""A learned mixture of normals as the prior.

Dilokthanakul et al. 2016, Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders,
arXiv 1611.02648: clusters in the latent space. Tomczak & Welling 2018, VAE with a VampPrior, arXiv 1705.07120: the
mixture of Gaussians they compare with, here with learned weights too: p(z) = Σ_k w_k N(z; μ_k, diag σ_k²).
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from kerasvae.distributions.base import NO_CONTEXT, Context, Prior, inverse_positive, positive
from kerasvae.errors import ArgumentError

tfd = tfp.distributions

__all__ = ["MixturePrior"]


@keras.saving.register_keras_serializable("kerasvae")
class MixturePrior(Prior):
    """p(z) = Σ_k w_k N(z; μ_k, diag σ_k²), everything learned.

    At the start all weights are equal, means are drawn from N(0, ½ I) and all σ² are ½, so that the variance of a
    dimension is about 1, half of it between components.

    Args:
        latent_size: Number of latent dimensions d.
        components: Number of normals K.
        seed: Of the means at the start.
        floor: The smallest σ, in (0, 0.7); keeps a component from shrinking onto one person.
    """

    kind = "mixture"

    def __init__(
        self, latent_size: int, components: int = 10, seed: int = 0, floor: float = 1e-2, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("latent_size", latent_size), ("components", components)):
            if int(value) != value or value < 1:
                raise ArgumentError(
                    name, rule="be a whole number of 1 or more", got=value, fix="Give a positive integer"
                )
        if not 0 < floor < 0.7:
            raise ArgumentError("floor", rule="lie in (0, 0.7)", got=floor, fix="Use 0.01")
        self.latent_size = int(latent_size)
        self.components = int(components)
        self.seed = int(seed)
        self.floor = float(floor)
        shape = (self.components, self.latent_size)
        spread = math.sqrt(0.5)
        raw = keras.initializers.Constant(inverse_positive(spread, self.floor))
        normal = keras.initializers.RandomNormal(stddev=spread, seed=self.seed)
        self.logits = self.add_weight(
            name="logits", shape=(self.components,), initializer="zeros", dtype="float32", autocast=False
        )
        self.means = self.add_weight(name="means", shape=shape, initializer=normal, dtype="float32", autocast=False)
        self.raw = self.add_weight(name="raw", shape=shape, initializer=raw, dtype="float32", autocast=False)
        self.built = True

    def parts(self) -> dict[str, tf.Tensor]:
        """``weight`` (K,), which sum to 1, ``mean`` (K, d) and ``stddev`` (K, d)."""
        return {
            "weight": tf.nn.softmax(tf.convert_to_tensor(self.logits)),
            "mean": tf.convert_to_tensor(self.means),
            "stddev": positive(tf.convert_to_tensor(self.raw), self.floor),
        }

    def log_prob(self, z: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """log p(z) in nats, (S, B, d) to (S, B)."""
        z = tf.ensure_shape(z, (None, None, self.latent_size))
        parts = self.parts()
        each = tf.reduce_sum(tfd.Normal(parts["mean"], parts["stddev"]).log_prob(z[..., None, :]), axis=-1)
        return tf.reduce_logsumexp(tf.nn.log_softmax(tf.convert_to_tensor(self.logits)) + each, axis=-1)

    def sample(self, count: int, latent_size: int, seed: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """Draws, (count, d). A gradient through them reaches means and scales, but not the weights."""
        for_component, for_noise = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        parts = self.parts()
        chosen = tf.random.stateless_categorical(tf.convert_to_tensor(self.logits)[None], count, for_component)[0]
        noise = tf.random.stateless_normal([count, self.latent_size], for_noise)
        return tf.gather(parts["mean"], chosen) + tf.gather(parts["stddev"], chosen) * noise

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "latent_size": self.latent_size,
            "components": self.components,
            "seed": self.seed,
            "floor": self.floor,
        }
