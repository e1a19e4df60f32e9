"""A normal prior whose mean and scale follow from covariates.

Sohn, Lee & Yan 2015, Learning Structured Output Representation using Deep Conditional Generative Models, NeurIPS: the
conditional prior p(z|c) of a conditional VAE, here p(z|c) = N(z; μ(c), diag σ(c)²).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from kerasvae.distributions.base import NO_CONTEXT, Context, Prior, inverse_positive, positive
from kerasvae.errors import ArgumentError, ModelError

tfd = tfp.distributions

__all__ = ["ConditionalNormalPrior", "draw_in_turn", "required_condition"]


@keras.saving.register_keras_serializable("kerasvae")
class ConditionalNormalPrior(Prior):
    """p(z|c) = N(z; μ(c), diag σ(c)²) with μ and σ from a small dense network with SiLU.

    Its last layer starts at zero weights, so that the prior is the standard normal for every c until it is trained.

    Args:
        latent_size: Number of latent dimensions d.
        condition_size: Number of covariates, columns of the condition; give them standardised.
        units: Widths of the hidden layers; empty for a linear prior.
        seed: Of the hidden layers' weights at the start.
        floor: The smallest σ, in (0, 1).
    """

    kind = "conditional_normal"

    def __init__(
        self,
        latent_size: int,
        condition_size: int,
        units: Sequence[int] = (32,),
        seed: int = 0,
        floor: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = (
            ("latent_size", latent_size),
            ("condition_size", condition_size),
            *(("units", width) for width in units),
        )
        for name, value in sizes:
            if int(value) != value or value < 1:
                raise ArgumentError(
                    name, rule="be a whole number of 1 or more", got=value, fix="Give positive integers"
                )
        if not 0 < floor < 1:
            raise ArgumentError("floor", rule="lie in (0, 1)", got=floor, fix="Use 0.001")
        self.latent_size = int(latent_size)
        self.condition_size = int(condition_size)
        self.units = tuple(int(width) for width in units)
        self.seed = int(seed)
        self.floor = float(floor)
        widths = (self.condition_size, *self.units)
        self.network = [
            self._dense(f"hidden_{i}", shape, keras.initializers.GlorotUniform(self.seed + i))
            for i, shape in enumerate(itertools.pairwise(widths))
        ]
        self.network.append(self._dense("last", (widths[-1], 2 * self.latent_size), "zeros"))
        self.raw = inverse_positive(1, self.floor)  # σ is 1 where the network gives 0
        self.built = True

    def _dense(self, name: str, shape: tuple[int, int], initializer: Any) -> list[keras.Variable]:
        options = {"dtype": "float32", "autocast": False}
        kernel = self.add_weight(name=f"{name}_kernel", shape=shape, initializer=initializer, **options)
        return [kernel, self.add_weight(name=f"{name}_bias", shape=shape[1:], initializer="zeros", **options)]

    def distribution(self, context: Context) -> tfp.distributions.Distribution:
        """p(z|c) with batch shape (B, d): one factor per person and dimension.

        Raises:
            ModelError: Where the context has no condition, or one with another number of columns.
        """
        x = required_condition(context, self.condition_size)
        for kernel, bias in self.network[:-1]:
            x = tf.nn.silu(x @ tf.convert_to_tensor(kernel) + tf.convert_to_tensor(bias))
        kernel, bias = self.network[-1]
        mean, raw = tf.split(x @ tf.convert_to_tensor(kernel) + tf.convert_to_tensor(bias), 2, axis=-1)
        return tfd.Normal(mean, positive(self.raw + raw, self.floor))

    def log_prob(self, z: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """log p(z|c) in nats, (S, B, d) to (S, B); row b of the condition goes with z[:, b]."""
        z = tf.ensure_shape(z, (None, None, self.latent_size))
        return tf.reduce_sum(self.distribution(context).log_prob(z), axis=-1)

    def sample(self, count: int, latent_size: int, seed: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """Draws, (count, d): one a row of the condition, in turn where `count` is not the number of rows."""
        return draw_in_turn(self.distribution(context), count, seed)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "latent_size": self.latent_size,
            "condition_size": self.condition_size,
            "units": list(self.units),
            "seed": self.seed,
            "floor": self.floor,
        }


def required_condition(context: Context, size: int) -> tf.Tensor:
    """The condition, float32 (B, size).

    Raises:
        ModelError: Where there is none, or it has another number of columns.
    """
    shape = None if context.condition is None else tuple(context.condition.shape)
    if shape is None or len(shape) != 2 or shape[1] != size:
        raise ModelError(
            "The condition of the prior",
            rule=f"have shape (people, {size})",
            got="none" if shape is None else shape,
            fix="Give the covariates of each person with the images, or take a prior that needs none",
        )
    return tf.cast(context.condition, tf.float32)


def draw_in_turn(normal: tfp.distributions.Distribution, count: int, seed: tf.Tensor) -> tf.Tensor:
    """`count` draws from the rows of a normal with batch shape (B, d): draw i is of row i modulo B, (count, d)."""
    row = tf.range(count) % tf.shape(normal.loc)[0]
    noise = tf.random.stateless_normal([count, normal.loc.shape[-1]], seed)
    return tf.gather(normal.loc, row) + tf.gather(normal.scale, row) * noise
