"""The uniform distribution on a sphere.

Davidson et al. 2018, Hyperspherical Variational Auto-Encoders, UAI, arXiv 1804.00891, section 3:
U(S^{d−1}) has density 1/area with area = 2 π^{d/2} / Γ(d/2).
"""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from kerasvae.distributions.base import NO_CONTEXT, Context, Prior

__all__ = ["UniformSpherePrior", "log_area"]


def log_area(latent_size: int) -> float:
    """Logarithm of the area of the unit sphere S^{d−1} in d dimensions.

    >>> round(math.exp(log_area(3)) / math.pi, 12)
    4.0
    """
    return math.log(2) + latent_size / 2 * math.log(math.pi) - math.lgamma(latent_size / 2)


@keras.saving.register_keras_serializable("kerasvae")
class UniformSpherePrior(Prior):
    """p(z) = 1/area of S^{d−1}, for codes z of length 1 in d dimensions (d − 1 degrees of freedom).

    The density is taken with respect to area on the sphere, as are those of the posteriors that live there. Codes are
    trusted to have length 1.
    """

    kind = "uniform_sphere"

    def log_prob(self, z: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """−log area in nats whatever the code, (S, B, d) to (S, B)."""
        return tf.fill(tf.shape(z)[:-1], tf.constant(-log_area(z.shape[-1]), tf.float32))

    def sample(self, count: int, latent_size: int, seed: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """Draws of length 1, (count, d)."""
        return tf.math.l2_normalize(tf.random.stateless_normal([count, latent_size], seed), axis=-1)
