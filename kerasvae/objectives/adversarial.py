"""The adversarial autoencoder: a critic makes the aggregate posterior resemble the prior.

Makhzani, Shlens, Jaitly, Goodfellow & Frey 2015, Adversarial Autoencoders, arXiv 1511.05644, section 2: beside the
reconstruction, a critic D learns to tell draws of the prior from codes, and the encoder learns to mislead it.
The encoder's part is in the non-saturating form, −log D(z), of Goodfellow et al. 2014, Generative Adversarial Nets,
arXiv 1406.2661, section 3: log(1 − D(z)) has next to no gradient while the critic is right.

The functions serve every objective with a critic.
"""

from __future__ import annotations

from collections.abc import Iterable

import keras
import tensorflow as tf

from kerasvae.errors import ArgumentError
from kerasvae.objectives.base import Draws, Objective, Terms, standard_terms
from kerasvae.objectives.rules import number, whole_number

__all__ = ["AdversarialAutoencoder", "check_critic", "critic_entropy", "critic_network", "flat_codes"]

LEAK = 0.2
"""Slope of the critic's leaky ReLU below zero."""


def check_critic(units: Iterable[int], learning_rate: float) -> list[int]:
    """The widths of a critic's hidden layers as whole numbers.

    Raises:
        ArgumentError: If there is no layer, a width is not a positive whole number, or the rate is not positive.
    """
    widths = [whole_number("units", width, least=1) for width in units]
    if not widths:
        raise ArgumentError("units", rule="name at least one layer", got="none", fix="Use (256, 256)")
    if number("learning_rate", learning_rate, least=0) == 0:
        raise ArgumentError("learning_rate", rule="be positive", got=learning_rate, fix="Use 1e-4")
    return widths


def critic_network(latent_size: int, units: Iterable[int], seed: int, outputs: int = 1) -> keras.Model:
    """Dense layers with a leaky ReLU from codes (n, d) to logits, (n, outputs); float32 under any precision policy.

    The initial weights depend on `seed` alone.
    """

    def dense(width: int, index: int) -> keras.layers.Layer:
        initializer = keras.initializers.HeNormal(seed=seed + index)
        return keras.layers.Dense(width, kernel_initializer=initializer, dtype="float32")

    codes = hidden = keras.Input((latent_size,), dtype="float32")
    index = 0
    for width in units:
        hidden = keras.layers.LeakyReLU(LEAK, dtype="float32")(dense(width, index)(hidden))
        index += 1
    return keras.Model(codes, dense(outputs, index)(hidden), name="critic")


def flat_codes(z: tf.Tensor) -> tf.Tensor:
    """Codes as a critic takes them, (S, B, d) to (S·B, d)."""
    return tf.reshape(z, (-1, z.shape[-1]))


def critic_entropy(positive: tf.Tensor, negative: tf.Tensor) -> tf.Tensor:
    """Mean cross-entropy of a critic in nats, a scalar: log 2 where it knows nothing, 0 where it is sure and right.

    Args:
        positive: Logits where the right answer is yes, (n, 1).
        negative: Logits where it is no, (m, 1). The two kinds count one half each.
    """
    return 0.5 * (tf.reduce_mean(tf.nn.softplus(-positive)) + tf.reduce_mean(tf.nn.softplus(negative)))


@keras.saving.register_keras_serializable("kerasvae")
class AdversarialAutoencoder(Objective):
    """−E_q[log p(x|z)] − λ E_q[log D(z)], with D(z) the critic's probability that z is a draw of the prior.

    There is no KL in what is minimised, so the prior may be anything that can be drawn from, and the posterior
    may be a point; a prior with weights of its own would not be trained. D = ½ is equilibrium: there the second term
    is λ log 2.

    Args:
        lambda_: Weight of the critic's verdict, ≥ 0, nats a nat. It may be scheduled.
        units: Widths of the critic's hidden layers; the paper's has two of 1000.
        learning_rate: Of the critic's own Adam.
        seed: Seed of the critic's initial weights.
    """

    kind = "adversarial"
    scheduled = ("lambda_",)
    extras = ("prior_surprise",)
    aggregates = ("critic_loss",)

    def __init__(
        self, lambda_: float = 1.0, units: Iterable[int] = (256, 256), learning_rate: float = 1e-4, seed: int = 0
    ) -> None:
        self.units = check_critic(units, learning_rate)
        self.learning_rate = float(learning_rate)
        self.seed = whole_number("seed", seed, least=0)
        super().__init__(
            lambda_=number("lambda_", lambda_, least=0),
            units=self.units,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )

    def build_critic(self, latent_size: int) -> keras.Model:
        """Codes (n, d) to the logit of D, (n, 1)."""
        return critic_network(latent_size, self.units, self.seed)

    def critic_optimizer(self) -> keras.optimizers.Optimizer:
        """Adam with the momentum that is usual for adversarial pairs, β₁ = 0.5."""
        return keras.optimizers.Adam(self.learning_rate, beta_1=0.5)

    def critic_loss(self, critic: keras.Model, draws: Draws) -> tf.Tensor:
        """Cross-entropy in telling draws of the prior (yes) from codes (no), nats."""
        codes = flat_codes(draws.z)
        return critic_entropy(critic(draws.draw_prior(tf.shape(codes)[0])), critic(codes))

    def terms(self, draws: Draws) -> Terms:
        """Reconstruction and the critic's verdict: prior_surprise is −log D(z)."""
        assert draws.critic is not None  # `build_critic` gives one
        logit = draws.critic(flat_codes(draws.z))
        surprise = tf.reduce_mean(tf.reshape(tf.nn.softplus(-logit), tf.shape(draws.z)[:2]), axis=0)
        return standard_terms(
            draws,
            draws.scheduled["lambda_"] * surprise - tf.reduce_mean(draws.log_likelihood, axis=0),
            per_subject={"prior_surprise": surprise},
            aggregate={"critic_loss": critic_entropy(draws.critic(draws.draw_prior(tf.size(logit))), logit)},
        )
