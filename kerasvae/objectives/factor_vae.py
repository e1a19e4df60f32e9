"""FactorVAE: the total correlation from a critic instead of from densities.

Kim & Mnih 2018, Disentangling by Factorising, arXiv 1802.05983, equation 2: the ELBO minus γ KL(q(z) ‖ Π_j q(z_j)).
Algorithm 1: shuffling each dimension of a batch of codes over the people by itself makes draws of Π_j q(z_j).
Equation 3, algorithm 2: a critic D tells codes from shuffled ones, and log D/(1 − D), its logit, estimates the
log-ratio of the two densities; its mean over codes is the total correlation.

The paper shuffles the codes of a second batch; here those of the same batch are shuffled.
"""

from __future__ import annotations

from collections.abc import Iterable

import keras
import tensorflow as tf

from kerasvae.objectives.adversarial import check_critic, critic_entropy, critic_network, flat_codes
from kerasvae.objectives.base import Draws, Objective, Terms, standard_terms
from kerasvae.objectives.rules import number, whole_number

__all__ = ["FactorVAE", "shuffle_dimensions"]


def shuffle_dimensions(z: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Each column of z, (n, d), in a random order of its own (algorithm 1); the orders depend on `seed` alone."""
    order = tf.argsort(tf.random.stateless_uniform(tf.shape(z), seed), axis=0)
    return tf.transpose(tf.gather(tf.transpose(z), tf.transpose(order), batch_dims=1))


@keras.saving.register_keras_serializable("kerasvae")
class FactorVAE(Objective):
    """−ELBO + γ·total correlation, with the correlation from a critic, in nats.

    The critic's estimate is biased while the critic is not at its optimum: at `critic_loss` = log 2 it knows nothing,
    and a total correlation near zero then says nothing either.

    Args:
        gamma: Weight of the total correlation, ≥ 0. It may be scheduled.
        units: Widths of the critic's hidden layers; the paper's has six of 1000.
        learning_rate: Of the critic's own Adam.
        seed: Seed of the critic's initial weights.
    """

    kind = "factor_vae"
    scheduled = ("gamma",)
    aggregates = ("total_correlation", "critic_loss")

    def __init__(
        self,
        gamma: float = 10.0,
        units: Iterable[int] = (256, 256, 256),
        learning_rate: float = 1e-4,
        seed: int = 0,
    ) -> None:
        self.units = check_critic(units, learning_rate)
        self.learning_rate = float(learning_rate)
        self.seed = whole_number("seed", seed, least=0)
        super().__init__(
            gamma=number("gamma", gamma, least=0),
            units=self.units,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )

    def build_critic(self, latent_size: int) -> keras.Model:
        """Codes (n, d) to the logit of D, (n, 1): D is the probability that the code is not shuffled."""
        return critic_network(latent_size, self.units, self.seed)

    def critic_optimizer(self) -> keras.optimizers.Optimizer:
        """Adam with the momenta of the paper, β₁ = 0.5 and β₂ = 0.9."""
        return keras.optimizers.Adam(self.learning_rate, beta_1=0.5, beta_2=0.9)

    def critic_loss(self, critic: keras.Model, draws: Draws) -> tf.Tensor:
        """Cross-entropy in telling codes (yes) from shuffled ones (no), nats."""
        codes = flat_codes(draws.z)
        return critic_entropy(critic(codes), critic(shuffle_dimensions(codes, draws.seed)))

    def terms(self, draws: Draws) -> Terms:
        """The ELBO and the critic's estimate of the total correlation."""
        assert draws.critic is not None  # `build_critic` gives one
        codes = flat_codes(draws.z)
        logit = draws.critic(codes)
        ratio = tf.reduce_mean(tf.reshape(logit, tf.shape(draws.z)[:2]), axis=0)
        shuffled = draws.critic(shuffle_dimensions(codes, draws.seed))
        return standard_terms(
            draws,
            draws.kl - tf.reduce_mean(draws.log_likelihood, axis=0) + draws.scheduled["gamma"] * ratio,
            aggregate={"total_correlation": tf.reduce_mean(ratio), "critic_loss": critic_entropy(logit, shuffled)},
        )
