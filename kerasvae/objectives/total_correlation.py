"""The KL of the aggregate posterior in three parts, and β-TCVAE, which weighs them apart.

Chen, Li, Grosse & Duvenaud 2018, Isolating Sources of Disentanglement in VAEs, arXiv 1802.04942, equation 2:
E_x KL(q(z|x) ‖ p(z)) = I_q(z; n) + KL(q(z) ‖ Π_j q(z_j)) + Σ_j KL(q(z_j) ‖ p(z_j)),
the index-code mutual information, the total correlation and the dimension-wise KL, with q(z) the mean of q(z|x_n)
over the N training people. The objective weighs them α, β and γ (equation 4).

q(z) is estimated from the B people of a batch as Σ_i w_bi q(z_b|x_i), where z_b is a code of person b. *Stratified*
(minibatch stratified sampling, in the appendix): the person's own posterior has weight 1/N and the others share the
rest, so every row of weights sums to 1. The paper gives one of the others another weight than the rest; the weights
here are the mean over that choice: the same expectation, q(z) itself, with less variance, and at B = N exactly q(z).
Programs that put the 1/N in a column instead of on the diagonal estimate something else. *Weighted* (minibatch weighted
sampling): every weight is 1/(N·B); its logarithm is too low, the more so the larger N.

The logarithm of either estimate depends on the batch size, so the parts are comparable at one batch size only.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from kerasvae.objectives.base import Draws, Objective, Terms, standard_terms
from kerasvae.objectives.rules import number, one_of

__all__ = ["ESTIMATORS", "BetaTCVAE", "aggregate_log_densities", "stratified_log_weights", "weighted_log_weights"]


def stratified_log_weights(batch: int | tf.Tensor, people: float | tf.Tensor) -> tf.Tensor:
    """log w of minibatch stratified sampling.

    Args:
        batch: B. A batch of one has the single weight 1.
        people: N; taken as B where it is smaller, e.g. not known.

    Returns:
        (B, B): log 1/N on the diagonal, log (N − 1)/(N·(B − 1)) elsewhere.
    """
    b = tf.cast(batch, tf.float32)
    n = tf.maximum(tf.cast(people, tf.float32), b)
    own = tf.where(b > 1, -tf.math.log(n), 0.0)
    # max(…, 1) only matters for a batch of one, which has no other person
    other = tf.math.log(tf.maximum(n - 1, 1.0)) - tf.math.log(n) - tf.math.log(tf.maximum(b - 1, 1.0))
    return tf.where(tf.eye(batch, dtype=tf.bool), own, other)


def weighted_log_weights(batch: int | tf.Tensor, people: float | tf.Tensor) -> tf.Tensor:
    """log w of minibatch weighted sampling: log 1/(N·B) everywhere, (B, B); N ≥ B as above."""
    b = tf.cast(batch, tf.float32)
    n = tf.maximum(tf.cast(people, tf.float32), b)
    return tf.fill((batch, batch), -tf.math.log(n) - tf.math.log(b))


ESTIMATORS = {"stratified": stratified_log_weights, "weighted": weighted_log_weights}
"""Name of the estimator of q(z), to its weights."""


def aggregate_log_densities(pairwise: tf.Tensor, log_weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The aggregate posterior at each code: log q(z_b) and Σ_j log q(z_bj).

    Args:
        pairwise: log q(z_bj | x_i), (B, B, d): row b is whose code, column i is whose posterior.
        log_weights: log w_bi, (B, B).

    Returns:
        Both in nats, (B,).
    """
    joint = tf.reduce_logsumexp(log_weights + tf.reduce_sum(pairwise, axis=-1), axis=1)
    marginals = tf.reduce_logsumexp(log_weights[..., None] + pairwise, axis=1)
    return joint, tf.reduce_sum(marginals, axis=-1)


@keras.saving.register_keras_serializable("kerasvae")
class BetaTCVAE(Objective):
    """−E_q[log p(x|z)] + α·mutual information + β·total correlation + γ·dimension-wise KL, in nats.

    The three parts sum to the KL, so this is −E_q[log p(x|z)] + γ·KL, which belongs to each person and is in closed
    form where there is one, plus (α − γ)·mutual information + (β − γ)·total correlation, which belong to the batch.
    α = β = γ is the β-VAE, and 1 the ELBO. Needs a posterior that is a product over dimensions.

    Args:
        alpha: Weight of the index-code mutual information, ≥ 0; it may be scheduled, like the other two.
        beta: Weight of the total correlation, ≥ 0.
        gamma: Weight of the dimension-wise KL, ≥ 0.
        estimator: ``"stratified"`` or ``"weighted"``.
    """

    kind = "beta_tcvae"
    scheduled = ("alpha", "beta", "gamma")
    aggregates = ("mutual_information", "total_correlation", "dimension_kl")

    def __init__(
        self, alpha: float = 1.0, beta: float = 6.0, gamma: float = 1.0, estimator: str = "stratified"
    ) -> None:
        self.estimator = one_of("estimator", estimator, tuple(ESTIMATORS))
        super().__init__(
            alpha=number("alpha", alpha, least=0),
            beta=number("beta", beta, least=0),
            gamma=number("gamma", gamma, least=0),
            estimator=self.estimator,
        )

    def terms(self, draws: Draws) -> Terms:
        """The three parts from the first draw."""
        alpha, beta, gamma = (draws.scheduled[name] for name in self.scheduled)
        log_weights = ESTIMATORS[self.estimator](tf.shape(draws.z)[1], draws.people)
        log_aggregate, log_product = aggregate_log_densities(draws.pairwise(), log_weights)
        information = tf.reduce_mean(draws.log_posterior[0] - log_aggregate)
        correlation = tf.reduce_mean(log_aggregate - log_product)
        dimension_kl = tf.reduce_mean(log_product - draws.log_prior[0])
        return standard_terms(
            draws,
            gamma * draws.kl - tf.reduce_mean(draws.log_likelihood, axis=0),
            penalty=(alpha - gamma) * information + (beta - gamma) * correlation,
            aggregate={
                "mutual_information": information,
                "total_correlation": correlation,
                "dimension_kl": dimension_kl,
            },
        )
