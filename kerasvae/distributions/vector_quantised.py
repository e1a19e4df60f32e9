"""Vector quantisation: each position of the encoder's output becomes the nearest vector of a codebook.

van den Oord, Vinyals & Kavukcuoglu 2017, Neural Discrete Representation Learning, arXiv 1711.00937: equations 1 and 2
(nearest vector), section 3.2 (straight-through gradient), appendix A.1 (the codebook as moving averages). The counts
are smoothed additively, as in the authors' own code (Sonnet, VectorQuantizerEMA), which the paper does not mention.
Dhariwal et al. 2020, Jukebox, arXiv 2005.00341, section 3.1: vectors that fall out of use are restarted.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from kerasvae.distributions.base import Output
from kerasvae.distributions.codebook import CodebookPosterior
from kerasvae.errors import ArgumentError

__all__ = ["VectorQuantisedPosterior"]

IN_USE = 0.1
"""A code with less than this part of an equal share of the usage is not counted as used."""


@keras.saving.register_keras_serializable("kerasvae")
class VectorQuantisedPosterior(CodebookPosterior):
    """q(z|x) = 1 at the nearest vectors of the codebook, 0 elsewhere.

    The gradient that reaches the code is handed to the encoder's output as it is. The codebook has none: after each
    batch with n_i vectors nearest to e_i, whose sum is s_i (equations 6 to 8 of the paper; N, m: `counts`, `sums`),

        N_i ← γ N_i + (1 − γ) n_i,   m_i ← γ m_i + (1 − γ) s_i,   e_i ← m_i / N̂_i,
        N̂_i = (N_i + ε) / (n + K ε) · n with n = Σ_i N_i.

    N and m start at 0, and a vector that was never used stays where it is. Then each code with N_i below
    `restart_below` · n / K is put on an encoder output of the batch, drawn by lot, no output twice while there are
    enough; its N_i becomes n / K, so that it has time to prove itself. The first batch restarts all it leaves unused.

    q has no width, so draws are all alike and more of them do not tighten a bound on log p(x). With a prior over the
    codes the ELBO is nevertheless that of a discrete model: −log p(codes) is the KL.

    Args:
        latent_size: Number of latent dimensions d, a multiple of `positions`.
        positions: Number of codes P of a person.
        codebook_size: Number of vectors K, 2 or more.
        decay: γ, in [0, 1): averages reach back over about 1 / (1 − γ) batches.
        epsilon: ε ≥ 0, in vectors a batch.
        restart_below: Part of an equal share of the counts, in [0, 1); 0 never restarts a code.
        seed: Of the codebook at the start, which is N(0, I).

    Raises:
        ArgumentError: If an argument is out of its range.
    """

    kind = "vector_quantised"
    learned = False
    outputs = (
        Output("embedding", "the codebook vectors of the person's codes, one after the other: what the decoder sees"),
        Output("codes", "number of the codebook vector at each position, from 0; numbers have no order"),
    )

    def __init__(
        self,
        latent_size: int,
        positions: int,
        codebook_size: int,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        restart_below: float = 0.1,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(latent_size, positions, codebook_size, seed, **kwargs)
        for name, value, default in (("decay", decay, 0.99), ("restart_below", restart_below, 0.1)):
            if not 0 <= value < 1:
                raise ArgumentError(name, rule="lie in [0, 1)", got=value, fix=f"Use {default}")
        if not 0 <= epsilon < float("inf"):
            raise ArgumentError("epsilon", rule="be zero or positive and finite", got=epsilon, fix="Use 1e-5")
        self.decay = float(decay)
        self.epsilon = float(epsilon)
        self.restart_below = float(restart_below)
        self.counts = self.number("counts", (self.codebook_size,))
        self.sums = self.number("sums", (self.codebook_size, self.width))
        self.usage = self.number("usage", (self.codebook_size,))
        self.built = True

    def parameter_size(self, latent_size: int) -> int:
        """d."""
        return latent_size

    def deterministic(self, parameters: tf.Tensor) -> dict[str, tf.Tensor]:
        """embedding, (B, d), float32, NaN where the encoder's output is not finite; codes, (B, P), int32."""
        encoded = tf.cast(parameters, tf.float32)
        codes = self.nearest(encoded)
        # a NaN has a nearest vector like any other number: without this, a broken encoder would look healthy
        embedding = tf.where(tf.math.is_finite(encoded), self.look_up(codes), float("nan"))
        return {"embedding": embedding, "codes": codes}

    def draw(self, parameters: tf.Tensor, samples: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The embedding S times, (S, B, d), and log 1 = 0, (S, B); the seed is not used."""
        encoded = tf.cast(parameters, tf.float32)
        z = _straight_through(encoded, self.deterministic(encoded)["embedding"])
        z = tf.tile(z[None], (samples, 1, 1))
        return z, tf.zeros_like(z[..., 0])

    def log_prob(self, parameters: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """0 where z is the embedding and −∞ elsewhere, (S, B, d) to (S, B); without gradient."""
        here = tf.reduce_all(tf.equal(tf.cast(z, tf.float32), self.deterministic(parameters)["embedding"]), axis=-1)
        return tf.where(here, 0.0, -float("inf"))

    def update(self, parameters: tf.Tensor, seed: tf.Tensor) -> None:
        """Move the codebook after one training batch; `seed` draws the outputs that codes are restarted at."""
        vectors = tf.reshape(tf.cast(parameters, tf.float32), (-1, self.width))
        # float64: sums that neither order nor the short mantissa of a GPU's matrix product can change
        chosen = tf.one_hot(tf.reshape(self.nearest(parameters), (-1,)), self.codebook_size, dtype=tf.float64)
        used = tf.cast(tf.reduce_sum(chosen, axis=0), tf.float32)
        added = tf.cast(tf.matmul(chosen, tf.cast(vectors, tf.float64), transpose_a=True), tf.float32)
        counts, sums = self._averaged(self.counts, used), self._averaged(self.sums, added)
        total = tf.reduce_sum(counts)
        smoothed = (counts + self.epsilon) / (total + self.codebook_size * self.epsilon) * total
        codebook = tf.where(
            counts[:, None] > 0, tf.math.divide_no_nan(sums, smoothed[:, None]), tf.convert_to_tensor(self.codebook)
        )
        share = total / self.codebook_size
        dead = counts < self.restart_below * share
        fresh = tf.gather(vectors, _by_lot(dead, tf.shape(vectors)[0], seed))
        self.codebook.assign(tf.where(dead[:, None], fresh, codebook))
        self.counts.assign(tf.where(dead, share, counts))
        self.sums.assign(tf.where(dead[:, None], share * fresh, sums))
        self.usage.assign(self._averaged(self.usage, used))

    def _averaged(self, past: keras.Variable, new: tf.Tensor) -> tf.Tensor:
        return self.decay * tf.convert_to_tensor(past) + (1 - self.decay) * new

    def numbers(self) -> dict[str, tf.Tensor]:
        """How much of the codebook is in use, by a moving average of how often each code was nearest.

        ``perplexity``: exp of the entropy of the shares, from 1 to K; ``codes_used``: how many have at least a tenth of
        an equal share, 0 before the first batch. Restarts do not count as use.
        """
        usage = tf.convert_to_tensor(self.usage)
        share = tf.math.divide_no_nan(usage, tf.reduce_sum(usage))
        used = tf.reduce_sum(tf.cast(share * self.codebook_size >= IN_USE, tf.float32))
        return {"perplexity": tf.exp(-tf.reduce_sum(tf.math.xlogy(share, share))), "codes_used": used}

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        names = ("decay", "epsilon", "restart_below")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@tf.custom_gradient
def _straight_through(encoded: tf.Tensor, code: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """`code` exactly, with its gradient given to `encoded`."""
    return tf.identity(code), lambda gradient: (gradient, None)


def _by_lot(dead: tf.Tensor, rows: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """For each code the row of the batch it would be restarted at, (K,); dead ones get different rows if enough."""
    # XLA, which compiles train steps on GPUs, knows no stateless_shuffle
    order = tf.argsort(tf.random.stateless_uniform([rows], seed))
    turn = tf.cumsum(tf.cast(dead, tf.int32)) - 1
    return tf.gather(order, tf.math.floormod(turn, rows))
