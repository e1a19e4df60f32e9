"""Maximum mean discrepancy between codes and prior, and the two objectives that use it.

Gretton, Borgwardt, Rasch, Schölkopf & Smola 2012, A Kernel Two-Sample Test, JMLR 13:723–773: equation 3, the unbiased
estimate of MMD²; equation 5, the biased one (there as a root).
Zhao, Song & Ermon 2019, InfoVAE, arXiv 1706.02262, equation 6:
E_q[log p(x|z)] − (1 − α) KL(q(z|x) ‖ p(z)) − (α + λ − 1) D(q(z) ‖ p(z)), here with D = MMD².
Tolstikhin, Bousquet, Gelly & Schölkopf 2018, Wasserstein Auto-Encoders, arXiv 1711.01558, algorithm 2 (WAE-MMD), and
its inverse multiquadric kernel C / (C + ‖a − b‖²) with C = 2 d σ², σ² the variance of the prior.

Scale: MMD² is of order 1, at most 2, whatever the number of dimensions, while log-likelihoods are thousands of nats per
subject. λ is therefore the price in nats of one unit of MMD², and of the size of the log-likelihoods that it trades.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from kerasvae.errors import ArgumentError
from kerasvae.objectives.base import Draws, Objective, Terms, standard_terms
from kerasvae.objectives.rules import number, one_of, whole_number

__all__ = ["WAEMMD", "InfoVAE", "kernel_matrix", "mmd", "with_memory"]

KERNELS = ("imq", "rbf")
ESTIMATORS = ("unbiased", "biased")
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Several widths at once, so that near and far codes both feel the prior."""


def kernel_matrix(a: tf.Tensor, b: tf.Tensor, kernel: str, scales: Sequence[float]) -> tf.Tensor:
    """k(a_i, b_j), the mean over scales s, so that k(a, a) = 1: (n, d) and (m, d) to (n, m).

    With C = 2·d·s: ``"imq"`` is C / (C + ‖a − b‖²); ``"rbf"`` is exp(−‖a − b‖² / C), a normal kernel of variance d·s.
    """
    # Differences, not the Gram matrix: exactly 0 for equal codes, also where matrix products are of low precision.
    square = tf.reduce_sum(tf.math.squared_difference(a[:, None], b[None]), axis=-1)
    widths = [2.0 * a.shape[-1] * scale for scale in scales]
    values = [width / (width + square) if kernel == "imq" else tf.exp(-square / width) for width in widths]
    return tf.add_n(values) / len(values)


def mmd(
    z: tf.Tensor,
    prior_z: tf.Tensor,
    *,
    kernel: str = "imq",
    scales: Sequence[float] = SCALES,
    estimator: str = "unbiased",
) -> tf.Tensor:
    """Estimated MMD² between two sets of codes, a float32 scalar without unit.

    Args:
        z: Codes, (n, d).
        prior_z: Draws from the prior, (m, d); m need not be n.
        kernel: ``"imq"``, the inverse multiquadric, or ``"rbf"``, the normal one; see `kernel_matrix`.
        scales: Multiples s > 0 of the kernel's width for a prior of variance 1; multiply by another prior's variance.
        estimator: ``"unbiased"`` leaves the pairs (i, i) out, has expectation 0 for equal distributions and may be
            negative; it needs two codes on either side, and is 0 with fewer. ``"biased"`` keeps them and is never
            negative.

    Memory grows as (n + m)² d.

    Raises:
        ArgumentError: If the kernel or estimator is unknown, or a scale is not positive.
    """
    check_choices(kernel, scales, estimator)
    z, prior_z = tf.cast(z, tf.float32), tf.cast(prior_z, tf.float32)
    cross = tf.reduce_mean(kernel_matrix(z, prior_z, kernel, scales))
    own, prior = kernel_matrix(z, z, kernel, scales), kernel_matrix(prior_z, prior_z, kernel, scales)
    if estimator == "biased":
        return tf.reduce_mean(own) + tf.reduce_mean(prior) - 2.0 * cross
    enough = tf.minimum(tf.shape(z)[0], tf.shape(prior_z)[0]) > 1
    return tf.where(enough, _mean_of_others(own) + _mean_of_others(prior) - 2.0 * cross, 0.0)


def _mean_of_others(values: tf.Tensor) -> tf.Tensor:
    """Mean over the pairs i ≠ j of a square matrix; 0 where there are none."""
    count = tf.cast(tf.shape(values)[0], tf.float32)
    pairs = tf.maximum(count * (count - 1.0), 1.0)
    return (tf.reduce_sum(values) - tf.linalg.trace(values)) / pairs


def check_choices(kernel: str, scales: Sequence[float], estimator: str) -> None:
    """Refuse what `mmd` does not know."""
    one_of("kernel", kernel, KERNELS)
    one_of("estimator", estimator, ESTIMATORS)
    if not len(scales) or not all(number("scales", scale, least=0) > 0 for scale in scales):
        raise ArgumentError("scales", rule="be one or more positive numbers", got=list(scales), fix="Use (1.0,)")


def with_memory(z: tf.Tensor, memory: tf.Tensor) -> tf.Tensor:
    """Codes followed by those of earlier steps: (n, d) and (m, d) to (n + m, d).

    Only n of n + m codes carry a gradient, each with weight 1 / (n + m) in a mean; the gradient is multiplied by
    (n + m) / n, so that λ means the same whatever the memory.
    """
    codes, remembered = tf.shape(z)[0], tf.shape(memory)[0]
    share = tf.cast(codes + remembered, tf.float32) / tf.cast(codes, tf.float32)
    still = tf.stop_gradient(z)
    return tf.concat([still + share * (z - still), tf.stop_gradient(memory)], axis=0)


class MatchedAggregate(Objective):
    """What both objectives share: the MMD² between all subjects' codes and the prior.

    Draws of one subject are not independent of each other, so that each draw gives an estimate of its own, beside all
    draws from the prior, and the mean over draws is taken.
    """

    aggregates = ("mmd",)

    def __init__(
        self, kernel: str, scales: Sequence[float], estimator: str, memory: int, samples: int, **rest: Any
    ) -> None:
        check_choices(kernel, scales, estimator)
        self.kernel, self.estimator = kernel, estimator
        self.scales = [float(scale) for scale in scales]
        self.memory = whole_number("memory", memory, least=0)
        self.samples = whole_number("samples", samples, least=1)
        super().__init__(
            **rest,
            kernel=kernel,
            scales=self.scales,
            estimator=estimator,
            memory=self.memory,
            samples=self.samples,
        )

    def discrepancy(self, draws: Draws) -> tf.Tensor:
        """MMD² between codes, those remembered included, and prior, a scalar."""
        # as many as codes, remembered ones included: fewer would bring more noise than the memory takes away
        prior = draws.draw_prior(tf.shape(draws.z)[0] * (tf.shape(draws.z)[1] + tf.shape(draws.memory)[0]))
        estimates = [
            mmd(
                with_memory(z, draws.memory),
                prior,
                kernel=self.kernel,
                scales=self.scales,
                estimator=self.estimator,
            )
            for z in tf.unstack(draws.z)
        ]
        return tf.add_n(estimates) / len(estimates)


@keras.saving.register_keras_serializable("kerasvae")
class InfoVAE(MatchedAggregate):
    """−E_q[log p(x|z)] + (1 − α) KL(q(z|x) ‖ p(z)) + (α + λ − 1) MMD²(q(z), p(z)).

    The first two are nats per subject; MMD² is the aggregate term ``mmd`` of the batch. With λ = 1 − α it is the
    β-VAE of β = 1 − α; α = 0, λ = 1 is the ELBO; α = 1 has no KL.

    Args:
        alpha: α ≤ 1; positive values pay for mutual information between image and code.
        lambda_: λ ≥ 1 − α; α + λ − 1 is the price in nats of one unit of MMD², see the module.
        kernel: ``"imq"`` or ``"rbf"``; see `mmd`.
        scales: Multiples of the kernel's width, > 0.
        estimator: ``"unbiased"`` or ``"biased"``.
        memory: Codes of earlier steps that the estimate also uses, ≥ 0; for small batches, but no more than there are
            people to learn from, since two codes of one person are not independent.
        samples: Posterior draws a subject, ≥ 1.

    Raises:
        ArgumentError: If a constant is out of its range.
    """

    kind = "info_vae"

    def __init__(
        self,
        alpha: float = 0.0,
        lambda_: float = 1000.0,
        kernel: str = "imq",
        scales: Sequence[float] = SCALES,
        estimator: str = "unbiased",
        memory: int = 0,
        samples: int = 1,
    ) -> None:
        self.alpha = number("alpha", alpha, least=-math.inf)
        self.lambda_ = number("lambda_", lambda_, least=0)
        self.weight = self.alpha + self.lambda_ - 1.0
        if not -math.inf < self.alpha <= 1:
            raise ArgumentError("alpha", rule="be a finite number, 1 or less", got=alpha, fix="Use 0")
        if self.weight < -1e-9:  # 0.7 and 0.3 are meant to pass
            raise ArgumentError(
                "lambda_",
                rule=f"be 1 − alpha = {1 - self.alpha:g} or more",
                got=lambda_,
                fix="Raise it, or raise alpha",
            )
        super().__init__(kernel, scales, estimator, memory, samples, alpha=self.alpha, lambda_=self.lambda_)

    def terms(self, draws: Draws) -> Terms:
        """The weighed KL and MMD², beside the log-likelihood."""
        discrepancy = self.discrepancy(draws)
        loss = (1.0 - self.alpha) * draws.kl - tf.reduce_mean(draws.log_likelihood, axis=0)
        return standard_terms(draws, loss, penalty=self.weight * discrepancy, aggregate={"mmd": discrepancy})


@keras.saving.register_keras_serializable("kerasvae")
class WAEMMD(MatchedAggregate):
    """−E_q[log p(x|z)] + λ MMD²(q(z), p(z)), without a KL.

    The first is nats per subject; MMD² is the aggregate term ``mmd`` of the batch. Nothing asks a subject's posterior
    for width, so that its scale may fall to the floor; ``kl`` and ``elbo`` are reported, not minimised.

    Args:
        lambda_: λ ≥ 0, the price in nats of one unit of MMD², see the module.
        kernel: ``"imq"`` or ``"rbf"``; see `mmd`.
        scales: Multiples of the kernel's width, > 0; (1.0,) with ``"imq"`` is the paper's kernel.
        estimator: ``"unbiased"`` (the paper's) or ``"biased"``.
        memory: Codes of earlier steps that the estimate also uses, ≥ 0; for small batches, but no more than there are
            people to learn from, since two codes of one person are not independent.
        samples: Posterior draws a subject, ≥ 1.

    Raises:
        ArgumentError: If a constant is out of its range.
    """

    kind = "wae_mmd"

    def __init__(
        self,
        lambda_: float = 1000.0,
        kernel: str = "imq",
        scales: Sequence[float] = SCALES,
        estimator: str = "unbiased",
        memory: int = 0,
        samples: int = 1,
    ) -> None:
        self.lambda_ = number("lambda_", lambda_, least=0)
        super().__init__(kernel, scales, estimator, memory, samples, lambda_=self.lambda_)

    def terms(self, draws: Draws) -> Terms:
        """MMD² beside the log-likelihood."""
        discrepancy = self.discrepancy(draws)
        loss = -tf.reduce_mean(draws.log_likelihood, axis=0)
        return standard_terms(draws, loss, penalty=self.lambda_ * discrepancy, aggregate={"mmd": discrepancy})
