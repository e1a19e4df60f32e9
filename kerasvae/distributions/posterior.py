"""Approximate posteriors q(z|x): what the encoder's plain output tensor means.

Kingma & Welling 2014, Auto-Encoding Variational Bayes, arXiv 1312.6114 (section 2.4: reparameterisation;
appendix B: the normal case).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from kerasvae.errors import ArgumentError

tfd = tfp.distributions


class Output(NamedTuple):
    """One deterministic output of a posterior: its name and what it means."""

    name: str
    meaning: str


@keras.saving.register_keras_serializable("kerasvae")
class NormalPosterior(keras.layers.Layer):
    """Diagonal normal posterior, q(z|x) = N(z; mean(x), diag(stddev(x)²)).

    The encoder's output of shape (batch, 2·d) is cut in two halves: the mean, and a raw value r with
    stddev = floor + softplus(r). For small r the softplus is exp(r), so that small scales are learned on a
    logarithmic axis; for large r it grows linearly and cannot overflow.

    Args:
        floor: The smallest standard deviation, in units of the prior's; keeps KL and its gradient finite.
    """

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
        return {"mean": mean, "stddev": self.floor + tf.nn.softplus(raw)}

    def center(self, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """The point that stands for the person when one code is needed: the mean, shape (batch, d)."""
        return outputs["mean"]

    def distribution(self, parameters: tf.Tensor) -> tfp.distributions.Distribution:
        """q(z|x) as a distribution with batch shape (batch, d): one factor per dimension."""
        outputs = self.deterministic(parameters)
        return tfd.Normal(outputs["mean"], outputs["stddev"])

    def sample(self, parameters: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """One reparameterised draw per person, shape (batch, d); `seed` is a stateless pair of integers."""
        return self.distribution(parameters).sample(seed=seed)

    def kl(self, parameters: tf.Tensor, prior: tfp.distributions.Distribution) -> tf.Tensor:
        """Analytic KL(q(z|x) ‖ p(z)) per dimension in nats, shape (batch, d); its sum over d is the KL."""
        return tfd.kl_divergence(self.distribution(parameters), prior)

    def call(self, parameters: tf.Tensor) -> tf.Tensor:
        """The code that stands for each person, shape (batch, d)."""
        return self.center(self.deterministic(parameters))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "floor": self.floor}
