"""DIP-VAE: the covariance of the aggregate posterior is drawn towards the identity.

Kumar, Sattigeri & Balakrishnan 2018, Variational Inference of Disentangled Latent Concepts from Unlabeled Observations,
ICLR, arXiv 1711.00848. Law of total covariance: Cov_q(z)[z] = E_x Cov_q(z|x)[z] + Cov_x(E_q(z|x)[z]). Equation 6
(DIP-VAE-I) penalises the covariance C of the posterior means, equation 7 (DIP-VAE-II) the whole of it: λ_od Σ_{i≠j}
C_ij² + λ_d Σ_i (C_ii − 1)².

The squares make the penalty too high by the variance of the estimate of C, of the order d²/n for n codes: with small
batches it measures the batch, not the people. So earlier codes may take part in the estimate (`memory`).
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
import tensorflow as tf

from kerasvae.errors import ModelError
from kerasvae.objectives.base import Draws, Objective, Terms, standard_terms
from kerasvae.objectives.rules import number, one_of, whole_number

__all__ = ["DIPVAE", "VARIANTS", "aggregate_covariance", "mean_covariance"]

VARIANTS = ("i", "ii")
"""Covariance of the posterior means; covariance of the codes."""


def mean_covariance(outputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """E_x Cov_q(z|x)[z] over the batch, (d, d), from the outputs of a normal posterior.

    The covariance is L Lᵀ of ``scale_tril`` or diagonal² + U Uᵀ of ``diagonal`` and ``factor`` where the posterior has
    them, else the squares of ``stddev``.
    """
    if "scale_tril" in outputs:
        return _mean_product(outputs["scale_tril"])
    if "factor" in outputs:
        own = tf.linalg.diag(tf.reduce_mean(tf.square(outputs["diagonal"]), axis=0))
        return own + _mean_product(outputs["factor"])
    return tf.linalg.diag(tf.reduce_mean(tf.square(outputs["stddev"]), axis=0))


def _mean_product(factors: tf.Tensor) -> tf.Tensor:
    """Mean of F Fᵀ, (B, d, r) to (d, d)."""
    return tf.reduce_mean(tf.linalg.matmul(factors, factors, transpose_b=True), axis=0)


def aggregate_covariance(mean: tf.Tensor, within: tf.Tensor, memory: tf.Tensor, variant: str) -> tf.Tensor:
    """Cov_x(E_q[z]) for variant ``"i"``, Cov_q(z)[z] for ``"ii"``, (d, d); unbiased while the encoder stands still.

    The means of the batch are pooled with the remembered codes, which scatter by the posterior's covariance beside:
    what these have too much (i) or those too little (ii) is put right with `within`. The gradient is that of the
    batch's own covariance about the pooled mean, at full weight: it does not fade with the length of the memory.

    Args:
        mean: E_q(z|x)[z], (B, d).
        within: E_x Cov_q(z|x)[z], (d, d).
        memory: Codes drawn from q(z|x) of other people, without gradient, (m, d); m may be 0.
        variant: See above.

    Returns:
        The covariance with divisor B + m − 1; where that is 0, the means count as without scatter.
    """
    batch, remembered = (tf.cast(tf.shape(rows)[0], tf.float32) for rows in (mean, memory))
    count = batch + remembered
    divisor = tf.maximum(count - 1, 1)
    pooled = tf.stop_gradient(tf.concat([mean, memory], axis=0))
    center = tf.reduce_mean(pooled, axis=0)
    surplus = -remembered / count if variant == "i" else batch / count
    value = _scatter(pooled - center) / divisor + surplus * tf.stop_gradient(within)
    own = _scatter(mean - center) * count / (batch * divisor)
    if variant == "ii":
        own += within
    return value + own - tf.stop_gradient(own)


def _scatter(rows: tf.Tensor) -> tf.Tensor:
    """Σ of the outer products of the rows, (n, d) to (d, d)."""
    return tf.linalg.matmul(rows, rows, transpose_a=True)


@keras.saving.register_keras_serializable("kerasvae")
class DIPVAE(Objective):
    """−ELBO + λ_od·(sum of squared covariances) + λ_d·(sum of squared differences of the variances from 1), in nats.

    Needs a normal posterior, whatever its covariance, and a prior of unit covariance.

    Args:
        variant: ``"i"``, covariance of the posterior means, or ``"ii"``, of the codes. With the first, a dimension
            that stays off costs λ_d.
        lambda_off_diagonal: λ_od ≥ 0. It may be scheduled, like the other.
        lambda_diagonal: λ_d ≥ 0.
        memory: How many codes of earlier steps take part in the estimate of the covariance, ≥ 0. A few hundred help
            where the batch is not many times larger than the latent size.
    """

    kind = "dip_vae"
    scheduled = ("lambda_off_diagonal", "lambda_diagonal")
    aggregates = ("dip_off_diagonal", "dip_diagonal")

    def __init__(
        self,
        variant: str = "ii",
        lambda_off_diagonal: float = 10.0,
        lambda_diagonal: float = 10.0,
        memory: int = 0,
    ) -> None:
        self.variant = one_of("variant", variant, VARIANTS)
        self.memory = whole_number("memory", memory, least=0)
        super().__init__(
            variant=self.variant,
            lambda_off_diagonal=number("lambda_off_diagonal", lambda_off_diagonal, least=0),
            lambda_diagonal=number("lambda_diagonal", lambda_diagonal, least=0),
            memory=self.memory,
        )

    def terms(self, draws: Draws) -> Terms:
        """The ELBO and the two sums of squares, dip_off_diagonal over ordered pairs i ≠ j, and dip_diagonal."""
        if not {"mean", "stddev"} <= set(draws.outputs):
            raise ModelError(
                "The posterior of DIPVAE",
                rule="have the outputs mean and stddev",
                got=", ".join(draws.outputs),
                fix="Use NormalPosterior",
            )
        within = mean_covariance(draws.outputs)
        covariance = aggregate_covariance(draws.outputs["mean"], within, draws.memory, self.variant)
        variances = tf.linalg.diag_part(covariance)
        diagonal = tf.reduce_sum(tf.square(variances - 1))
        off_diagonal = tf.reduce_sum(tf.square(tf.linalg.set_diag(covariance, tf.zeros_like(variances))))
        strength = draws.scheduled
        return standard_terms(
            draws,
            draws.kl - tf.reduce_mean(draws.log_likelihood, axis=0),
            penalty=strength["lambda_off_diagonal"] * off_diagonal + strength["lambda_diagonal"] * diagonal,
            aggregate={"dip_off_diagonal": off_diagonal, "dip_diagonal": diagonal},
        )
