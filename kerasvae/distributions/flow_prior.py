"""A normalising flow as the prior.

Chen et al. 2017, Variational Lossy Autoencoder, ICLR, arXiv 1611.02731, section 3.2: a prior that is itself a flow.
Dinh, Sohl-Dickstein & Bengio 2017, Density Estimation Using Real NVP, ICLR, arXiv 1605.08803, equation 2 (the change of
variables): with z = f(u), u ~ N(0, I), log p(z) = log N(f⁻¹(z); 0, I) + log |det ∂f⁻¹/∂z|.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from kerasvae.distributions.base import NO_CONTEXT, Context, Prior
from kerasvae.distributions.flows import CouplingFlow

tfd = tfp.distributions

__all__ = ["FlowPrior"]


@keras.saving.register_keras_serializable("kerasvae")
class FlowPrior(Prior):
    """p(z) of z = f(u), u ~ N(0, I), with f a learned `CouplingFlow` (RealNVP): density and draws take one pass each.

    It starts as the standard normal.

    Args:
        latent_size: Number of latent dimensions d, 2 or more.
        flows: Number of coupling steps; with fewer than two some dimensions stay normal.
        units: Width of the hidden layers of each step.
        seed: Of the flow's weights at the start.
    """

    kind = "flow"

    def __init__(self, latent_size: int, flows: int = 4, units: int = 64, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.flow = CouplingFlow(latent_size, flows, units, seed=seed, dtype="float32", name="flow")
        self.latent_size = self.flow.latent_size
        self.built = True

    def log_prob(self, z: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """log p(z) in nats, (S, B, d) to (S, B)."""
        base, log_det = self.flow.inverse(tf.ensure_shape(z, (None, None, self.latent_size)))
        return tf.reduce_sum(tfd.Normal(0.0, 1.0).log_prob(base), axis=-1) + log_det

    def sample(self, count: int, latent_size: int, seed: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """Draws, (count, d): normal ones pushed forward."""
        return self.flow.forward(tf.random.stateless_normal([count, self.latent_size], seed))[0]

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        names = ("latent_size", "flows", "units", "seed")
        return {**super().get_config(), **{name: getattr(self.flow, name) for name in names}}
