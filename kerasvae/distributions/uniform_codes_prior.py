"""The uniform distribution over discrete codes.

van den Oord, Vinyals & Kavukcuoglu 2017, Neural Discrete Representation Learning, arXiv 1711.00937, section 3.1: with
a uniform prior while the codes are learned, the KL of a one-hot posterior is the constant log K at each position.
"""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from kerasvae.distributions.base import NO_CONTEXT, Context, Prior
from kerasvae.distributions.codebook import CodebookPosterior
from kerasvae.errors import ModelError

__all__ = ["UniformCodesPrior", "log_combinations"]


def log_combinations(posterior: CodebookPosterior) -> float:
    """log of the number of codes that there are, P · log K, in nats."""
    return posterior.positions * math.log(posterior.codebook_size)


@keras.saving.register_keras_serializable("kerasvae")
class UniformCodesPrior(Prior):
    """p(codes) = K⁻ᴾ: every combination of codes alike. Positions, K and codebook are the posterior's.

    It is the prior of a model in training. Codes of real people are not uniform, so draws from it look less like people
    than draws from a density fitted to the codes afterwards would (section 3.3 of the paper).
    """

    kind = "uniform_codes"

    def log_prob(self, z: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """−P · log K nats whatever the code, (S, B, d) to (S, B); z is trusted to consist of codebook vectors.

        Raises:
            ModelError: Where the context has no posterior with a codebook.
        """
        return tf.fill(tf.shape(z)[:-1], tf.constant(-log_combinations(_codes_of(context)), tf.float32))

    def sample(self, count: int, latent_size: int, seed: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """Codebook vectors of codes drawn by lot, (count, d).

        Raises:
            ModelError: Where the context has no posterior with a codebook.
        """
        posterior = _codes_of(context)
        shape = [count, posterior.positions]
        codes = tf.random.stateless_uniform(shape, seed, maxval=posterior.codebook_size, dtype=tf.int32)
        return posterior.look_up(codes)


def _codes_of(context: Context) -> CodebookPosterior:
    if not isinstance(context.posterior, CodebookPosterior):
        raise ModelError(
            "The context of a UniformCodesPrior",
            rule="have a posterior with a codebook",
            got="none" if context.posterior is None else f"{type(context.posterior).__name__}",
            fix="Use the prior inside a VAE with VectorQuantisedPosterior or RelaxedCategoricalPosterior",
        )
    return context.posterior
