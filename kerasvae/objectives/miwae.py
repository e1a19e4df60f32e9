"""A mean of importance-weighted bounds.

Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better, arXiv 1802.04537, the multiply importance
weighted autoencoder (MIWAE): 1/M Σ_m log 1/K Σ_k w_mk, with weights w as in `kerasvae.objectives.iwae`. In expectation
it equals the bound of `IWAE` with K draws, while M lowers the variance of its gradient: K tightens the bound, M keeps
the encoder's signal.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from kerasvae.errors import ArgumentError
from kerasvae.objectives.base import Draws, Objective, Terms, standard_terms
from kerasvae.objectives.iwae import log_mean_exp, log_weights
from kerasvae.objectives.rules import whole_number

__all__ = ["MIWAE"]


@keras.saving.register_keras_serializable("kerasvae")
class MIWAE(Objective):
    """−1/M Σ_m log 1/K Σ_k w_mk, in nats per subject; ``miwae_bound`` is its negative.

    One group is `IWAE`; as many groups as draws is the Monte-Carlo ELBO.

    Args:
        samples: Posterior draws a subject, M · K ≥ 1.
        groups: Groups M that they are divided into, ≥ 1; group m holds draws mK to (m + 1)K − 1.

    Raises:
        ArgumentError: If a constant is no whole number, 1 or more, or the draws do not divide into the groups.
    """

    kind = "miwae"
    extras = ("miwae_bound",)

    def __init__(self, samples: int = 6, groups: int = 2) -> None:
        self.samples = whole_number("samples", samples, least=1)
        self.groups = whole_number("groups", groups, least=1)
        if self.samples % self.groups:
            raise ArgumentError(
                "samples",
                rule=f"be a multiple of groups, {self.groups}",
                got=self.samples,
                fix=f"Use {self.groups * (self.samples // self.groups + 1)}",
            )
        super().__init__(samples=self.samples, groups=self.groups)

    def terms(self, draws: Draws) -> Terms:
        """The mean of the groups' importance-weighted bounds."""
        weights = tf.reshape(log_weights(draws), (self.groups, self.samples // self.groups, -1))
        bound = tf.reduce_mean(log_mean_exp(weights, axis=1), axis=0)
        return standard_terms(draws, -bound, per_subject={"miwae_bound": bound})
