"""A posterior without width: the degenerate case of an autoencoder.

Ghosh, Sajjadi, Vergari, Black & Schölkopf 2020, From Variational to Deterministic Autoencoders, ICLR, arXiv 1903.12436:
without noise what remains of the objective is log p(x|z) + log p(z), an autoencoder with a penalty on its codes.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from kerasvae.distributions.base import Output, Posterior

__all__ = ["PointPosterior"]


@keras.saving.register_keras_serializable("kerasvae")
class PointPosterior(Posterior):
    """q(z|x) = δ(z − f(x)): the encoder's output of width d is the code.

    Its density is with respect to the counting measure at the code, so log q = 0 there and −∞ elsewhere. log q − log p
    of a draw is then −log p(z), which is not a KL; the bound on log p(x) does not hold.
    """

    kind = "point"
    has_density = False
    outputs = (Output("mean", "the code, the person's coordinates in the latent space; it has no uncertainty"),)

    def parameter_size(self, latent_size: int) -> int:
        """d."""
        return latent_size

    def deterministic(self, parameters: tf.Tensor) -> dict[str, tf.Tensor]:
        """mean, (B, d), float32."""
        return {"mean": tf.cast(parameters, tf.float32)}

    def center(self, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """The code, (B, d)."""
        return outputs["mean"]

    def draw(self, parameters: tf.Tensor, samples: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The code S times, (S, B, d), and zeros, (S, B); the seed is not used."""
        z = tf.tile(tf.cast(parameters, tf.float32)[None], (samples, 1, 1))
        return z, tf.zeros_like(z[..., 0])

    def log_prob(self, parameters: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """0 where z is the code and −∞ elsewhere, (S, B, d) to (S, B); without gradient."""
        here = tf.reduce_all(tf.equal(tf.cast(z, tf.float32), tf.cast(parameters, tf.float32)), axis=-1)
        return tf.where(here, 0.0, -float("inf"))
