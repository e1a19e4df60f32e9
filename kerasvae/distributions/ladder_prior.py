"""The prior of a ladder: levels of codes, each given the one above.

Sønderby, Raiko, Maaløe, Sønderby & Winther 2016, Ladder Variational Autoencoders, arXiv 1602.02282, section 2:
p(z) = p(z_L) Π_i p(z_i|z_{i+1}), with p(z_L) = N(0, I) and p(z_i|z_{i+1}) = N(μ_p, σ_p²).
"""

from __future__ import annotations

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from kerasvae.distributions.base import NO_CONTEXT, Context, Prior
from kerasvae.distributions.ladder import LadderPosterior, Moments
from kerasvae.errors import ModelError

tfd = tfp.distributions

__all__ = ["LadderPrior"]


@keras.saving.register_keras_serializable("kerasvae")
class LadderPrior(Prior):
    """p(z) = p(z_L) Π_i p(z_i|z_{i+1}), by the top-down networks of the model's `LadderPosterior`.

    It has no weights of its own: in the paper, too, inference and generation share these networks.
    """

    kind = "ladder"

    def ladder(self, context: Context) -> LadderPosterior:
        """The posterior whose networks the prior is made of.

        Raises:
            ModelError: Where the context's posterior is not a ladder.
        """
        if not isinstance(context.posterior, LadderPosterior):
            raise ModelError(
                "The posterior beside a LadderPrior",
                rule="be a LadderPosterior, whose networks it shares",
                got="none" if context.posterior is None else type(context.posterior).__name__,
                fix="Use both inside a VAE, pass Context(posterior=…), or take another prior",
            )
        return context.posterior

    def distribution(self, z: tf.Tensor, context: Context) -> tfp.distributions.Distribution:
        """p(z_i|z_{i+1}) at codes (…, d), with batch shape (…, d): one factor per dimension."""
        return tfd.Normal(*self.ladder(context).top_down(z))

    def log_prob(self, z: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """log p(z) in nats, (S, B, d) to (S, B)."""
        return tf.reduce_sum(self.distribution(z, context).log_prob(z), axis=-1)

    def sample(self, count: int, latent_size: int, seed: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """Draws from the top down, (count, d)."""
        ladder = self.ladder(context)
        seeds = tf.unstack(tf.random.experimental.stateless_split(seed, len(ladder.levels)))

        def place(level: int, above: Moments) -> tf.Tensor:
            mean, stddev = above
            return mean + stddev * tf.random.stateless_normal((count, ladder.levels[level]), seeds[level])

        return ladder.descend(place)
