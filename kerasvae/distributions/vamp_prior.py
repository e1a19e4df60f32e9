"""The variational mixture of posteriors.

Tomczak & Welling 2018, VAE with a VampPrior, AISTATS, arXiv 1705.07120:
p(z) = 1/K Σ_k q(z|u_k), the mean of the posteriors of K pseudo-inputs u_k, images that are learned.
It is the best prior for the ELBO, the aggregate posterior, cut down from all training images to K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from kerasvae.distributions.base import NO_CONTEXT, Context, Posterior, Prior
from kerasvae.errors import ArgumentError, ModelError

__all__ = ["VampPrior"]


@keras.saving.register_keras_serializable("kerasvae")
class VampPrior(Prior):
    """p(z) = 1/K Σ_k q(z|u_k), for any posterior.

    The encoder sees the pseudo-inputs as at inference (no dropout); its weights and the pseudo-inputs both learn from
    the prior's density. Each density costs one pass of K images through the encoder, and memory for S·B·K·d numbers.

    Args:
        data_shape: Shape of one image.
        pseudo_inputs: Number of pseudo-inputs K.
        seed: Of the pseudo-inputs at the start.
        mean: Mean of their voxels at the start, in the unit of the images.
        stddev: Standard deviation of their voxels at the start, > 0.
    """

    kind = "vamp"

    def __init__(
        self,
        data_shape: Sequence[int],
        pseudo_inputs: int = 50,
        seed: int = 0,
        mean: float = 0.0,
        stddev: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.data_shape = tuple(int(n) for n in data_shape)
        if not self.data_shape or min(self.data_shape) < 1:
            raise ArgumentError(
                "data_shape", rule="be one or more positive lengths", got=self.data_shape, fix="Give the model's"
            )
        if int(pseudo_inputs) != pseudo_inputs or pseudo_inputs < 1:
            raise ArgumentError("pseudo_inputs", rule="be a whole number of 1 or more", got=pseudo_inputs, fix="Use 50")
        if not stddev > 0:
            raise ArgumentError("stddev", rule="be positive", got=stddev, fix="Use the images' standard deviation")
        self.pseudo_inputs = int(pseudo_inputs)
        self.seed = int(seed)
        self.mean = float(mean)
        self.stddev = float(stddev)
        self.images = self.add_weight(
            name="images",
            shape=(self.pseudo_inputs, *self.data_shape),
            initializer=keras.initializers.RandomNormal(self.mean, self.stddev, self.seed),
            dtype="float32",
            autocast=False,
        )
        self.built = True

    def components(self, context: Context) -> tuple[Posterior, tf.Tensor]:
        """The posterior, and its parameters for the pseudo-inputs, (K, p).

        Raises:
            ModelError: Where the context has no posterior or encoder.
        """
        if context.posterior is None or context.encode is None:
            raise ModelError(
                "The context of a VampPrior",
                rule="have a posterior and an encoder",
                got="none",
                fix="Use the prior inside a VAE, or pass Context(posterior=…, encode=…)",
            )
        return context.posterior, tf.cast(context.encode(tf.convert_to_tensor(self.images)), tf.float32)

    def log_prob(self, z: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """log p(z) in nats, (S, B, d) to (S, B)."""
        posterior, parameters = self.components(context)
        size = z.shape[-1]
        flat = tf.reshape(z, (-1, 1, size))
        # The pseudo-inputs stand where a posterior expects its subjects, so every code meets every one of them.
        each = posterior.log_prob(parameters, tf.broadcast_to(flat, (tf.shape(flat)[0], self.pseudo_inputs, size)))
        return tf.reshape(tf.reduce_logsumexp(each, axis=-1) - math.log(self.pseudo_inputs), tf.shape(z)[:-1])

    def sample(self, count: int, latent_size: int, seed: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """Draws, (count, d): a pseudo-input by lot, then a draw from its posterior."""
        posterior, parameters = self.components(context)
        for_component, for_draw = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        chosen = tf.random.stateless_uniform([count], for_component, maxval=self.pseudo_inputs, dtype=tf.int32)
        return posterior.sample(tf.gather(parameters, chosen), for_draw)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "data_shape": list(self.data_shape),
            "pseudo_inputs": self.pseudo_inputs,
            "seed": self.seed,
            "mean": self.mean,
            "stddev": self.stddev,
        }
