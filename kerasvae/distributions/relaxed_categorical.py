"""Categorical codes with a reparameterised gradient: mixtures of codebook vectors that sharpen as a temperature falls.

Jang, Gu & Poole 2017, Categorical Reparameterization with Gumbel-Softmax, ICLR, arXiv 1611.01144, equation 2; Maddison,
Mnih & Teh 2017, The Concrete Distribution, ICLR, arXiv 1611.00712, section 3 (the same distribution).
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from kerasvae.distributions.base import Output
from kerasvae.distributions.codebook import CodebookPosterior
from kerasvae.errors import ArgumentError

tfd = tfp.distributions

__all__ = ["RelaxedCategoricalPosterior"]


@keras.saving.register_keras_serializable("kerasvae")
class RelaxedCategoricalPosterior(CodebookPosterior):
    """q(codes|x) = Π over positions of Categorical(π), π = softmax of the encoder's output.

    A draw is at each position Σ_k y_k e_k with learned vectors e and y = softmax((log π + g) / τ), g standard Gumbel
    noise, τ the temperature. arg max y is distributed as π whatever τ is; as τ → 0, y becomes that one code.

    The KL is that of the discrete codes, Σ over positions (log K − H[π]) for a uniform prior, while the reconstruction
    is seen through relaxed draws. This is the usual approximation. The two together are a lower bound on the evidence
    of the discrete model only in the limit τ → 0; at any τ > 0 the reported ELBO is that of neither the discrete model
    nor the relaxed one. Of a relaxed draw in Euclidean space no density is known, so log q is the log-probability of
    the codes that it relaxes: the mean over draws of log q − log p is then an unbiased estimate of the same KL.

    Args:
        latent_size: Number of latent dimensions d, a multiple of `positions`.
        positions: Number of codes P of a person.
        codebook_size: Number of vectors K, 2 or more.
        temperature: τ > 0 at the start. It may be scheduled; below 0.001 it acts as 0.001.
        seed: Of the codebook at the start, which is N(0, I).

    Raises:
        ArgumentError: If an argument is out of its range.
    """

    kind = "relaxed_categorical"
    learned = True
    outputs = (
        Output("embedding", "mean of the codebook vectors under q, position by position: what the decoder sees"),
        Output("codes", "number of the most likely codebook vector at each position, from 0; numbers have no order"),
    )

    def __init__(
        self,
        latent_size: int,
        positions: int,
        codebook_size: int,
        temperature: float = 1.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(latent_size, positions, codebook_size, seed, **kwargs)
        if not 0 < temperature < math.inf:
            raise ArgumentError("temperature", rule="be positive and finite", got=temperature, fix="Use 1")
        self.initial_temperature = float(temperature)
        self.temperature = self.number("temperature", (), keras.initializers.Constant(self.initial_temperature))
        self.built = True

    def parameter_size(self, latent_size: int) -> int:
        """P · K, whatever `latent_size`."""
        return self.positions * self.codebook_size

    @property
    def scheduled(self) -> dict[str, keras.Variable]:
        """``temperature``."""
        return {"temperature": self.temperature}

    def log_probabilities(self, parameters: tf.Tensor) -> tf.Tensor:
        """log π, (B, p) to (B, P, K), in nats."""
        shape = (-1, self.positions, self.codebook_size)
        return tf.nn.log_softmax(tf.reshape(tf.cast(parameters, tf.float32), shape))

    def deterministic(self, parameters: tf.Tensor) -> dict[str, tf.Tensor]:
        """embedding, E_q of the codebook vectors, (B, d), float32; codes, the most likely, (B, P), int32.

        The embedding changes smoothly with the encoder's output; ``look_up(codes)`` gives the vectors of the codes.
        """
        log_probabilities = self.log_probabilities(parameters)
        embedding = self._mixed(tf.exp(log_probabilities))
        return {
            "embedding": tf.reshape(embedding, (-1, self.latent_size)),
            "codes": tf.argmax(log_probabilities, axis=-1, output_type=tf.int32),
        }

    def draw(self, parameters: tf.Tensor, samples: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Relaxed draws, (S, B, d), and the log-probability of the codes that they relax, (S, B)."""
        log_probabilities = self.log_probabilities(parameters)
        relaxed = tfd.RelaxedOneHotCategorical(
            tf.maximum(tf.convert_to_tensor(self.temperature), 1e-3), logits=log_probabilities
        )
        weights = relaxed.sample(samples, seed=seed)
        z = tf.reshape(self._mixed(weights), (samples, -1, self.latent_size))
        return z, self._log_probability(log_probabilities, tf.argmax(weights, axis=-1))

    def log_prob(self, parameters: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """Log-probability of the codes whose vectors are nearest to z, (S, B, d) to (S, B)."""
        return self._log_probability(self.log_probabilities(parameters), self.nearest(z))

    def _mixed(self, weights: tf.Tensor) -> tf.Tensor:
        """Σ_k weight_k e_k of every position, (…, P, K) to (N, d / P): one plain product, without a batch of them."""
        return tf.matmul(tf.reshape(weights, (-1, self.codebook_size)), tf.convert_to_tensor(self.codebook))

    def _log_probability(self, log_probabilities: tf.Tensor, codes: tf.Tensor) -> tf.Tensor:
        """Σ over positions of log π at the codes, (B, P, K) and (…, B, P) to (…, B)."""
        chosen = tf.one_hot(codes, self.codebook_size)
        return tf.reduce_sum(chosen * log_probabilities, axis=(-2, -1))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "temperature": self.initial_temperature}
