"""Approximate posteriors q(z|x): what the encoder's plain output tensor means.

Kingma & Welling 2014, Auto-Encoding Variational Bayes, arXiv 1312.6114 (section 2.4: reparameterisation;
appendix B: the normal case).
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from kerasvae.distributions.base import Output, Posterior, positive
from kerasvae.errors import ArgumentError

tfd = tfp.distributions


@keras.saving.register_keras_serializable("kerasvae")
class NormalPosterior(Posterior):
    """Diagonal normal posterior, q(z|x) = N(z; mean(x), diag(stddev(x)²)).

    The encoder's output of shape (batch, 2·d) is cut in two halves: the mean, and a raw value r with
    stddev = floor + softplus(r). For small r the softplus is exp(r), so that small scales are learned on a
    logarithmic axis; for large r it grows linearly and cannot overflow.

    Args:
        floor: The smallest standard deviation, in units of the prior's; keeps KL and its gradient finite.
    """

    kind = "normal"
    outputs = (
        Output("mean", "mean of q(z|x), the person's coordinates in the latent space, in prior standard deviations"),
        Output("stddev", "standard deviation of q(z|x) per dimension: how uncertain the coordinate is"),
    )

    def __init__(self, floor: float = 1e-4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not floor > 0:
            raise ArgumentError("floor", rule="be positive", got=floor, fix="Give a small number such as 1e-4")
        self.floor = float(floor)
        self.built = True

    def parameter_size(self, latent_size: int) -> int:
        """Width of the encoder's output for `latent_size` dimensions."""
        return 2 * latent_size

    def deterministic(self, parameters: tf.Tensor) -> dict[str, tf.Tensor]:
        """The named deterministic outputs, each float32 of shape (batch, d)."""
        mean, raw = tf.split(tf.cast(parameters, tf.float32), 2, axis=-1)
        return {"mean": mean, "stddev": positive(raw, self.floor)}

    def center(self, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """The point that stands for the person when one code is needed: the mean, shape (batch, d)."""
        return outputs["mean"]

    def distribution(self, parameters: tf.Tensor) -> tfp.distributions.Distribution:
        """q(z|x) as a distribution with batch shape (batch, d): one factor per dimension."""
        outputs = self.deterministic(parameters)
        return tfd.Normal(outputs["mean"], outputs["stddev"])

    def draw(self, parameters: tf.Tensor, samples: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """z = mean + stddev · ε with ε ~ N(0, I), (S, B, d), and log q(z|x), (S, B)."""
        z = self.distribution(parameters).sample(samples, seed=seed)
        return z, self.log_prob(parameters, z)

    def log_prob(self, parameters: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """log q(z|x), (S, B, d) to (S, B)."""
        return tf.reduce_sum(self.log_prob_per_dimension(parameters, z), axis=-1)

    def log_prob_per_dimension(self, parameters: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """log q(z_d|x), (…, B, d) to the same."""
        return self.distribution(parameters).log_prob(z)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "floor": self.floor}
