"""KL(q(z|x) ‖ p(z)) in closed form, for the pairs that have one.

A pair that is not in `CLOSED_FORMS` is estimated from draws as the mean of log q − log p, which is unbiased.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tensorflow_probability as tfp

from kerasvae.distributions.base import NO_CONTEXT, Context, Posterior, Prior
from kerasvae.distributions.sphere_prior import log_area
from kerasvae.distributions.uniform_codes_prior import log_combinations

tfd = tfp.distributions

__all__ = ["CLOSED_FORMS", "closed_kl"]

KL = tuple[tf.Tensor, tf.Tensor | None]
"""The KL, (B,), and its part in each dimension, (B, d), or None where it is not a sum over dimensions."""


def closed_kl(
    posterior: Posterior,
    parameters: tf.Tensor,
    prior: Prior,
    context: Context = NO_CONTEXT,
    z: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor | None] | None:
    """The KL in nats, where there is a closed form.

    Args:
        posterior: q.
        parameters: (B, p).
        prior: p(z).
        context: What the prior depends on.
        z: Draws from the posterior, (S, B, d), for forms that are closed given a part of each draw.

    Returns:
        The KL, (B,), and its part in each dimension, (B, d), or None where it is not a sum over dimensions; None where
        the pair has no closed form.
    """
    form = CLOSED_FORMS.get((posterior.kind, prior.kind))
    if form is not None:
        return form(posterior, parameters, prior, context)
    given_draws = CLOSED_GIVEN_DRAWS.get((posterior.kind, prior.kind))
    return None if given_draws is None or z is None else given_draws(posterior, parameters, prior, context, z)


def _normal_prior(prior: Prior, context: Context, latent_size: int) -> tfp.distributions.Distribution:
    """The prior as one normal a dimension, with batch shape (d,) or (B, d)."""
    return prior.distribution(latent_size if prior.kind == "standard_normal" else context)


def _normal(posterior: Posterior, parameters: tf.Tensor, prior: Prior, context: Context) -> KL:
    """Kingma & Welling 2014, arXiv 1312.6114, appendix B; for a prior with mean m and scale s, dimension by dimension:
    log(s/σ) + (σ² + (μ − m)²) / 2s² − ½.
    """
    q = posterior.distribution(parameters)
    kl = tfd.kl_divergence(q, _normal_prior(prior, context, q.batch_shape[-1]))
    return tf.reduce_sum(kl, axis=-1), kl


def _dense_normal(
    mean: tf.Tensor, variance: tf.Tensor, log_determinant: tf.Tensor, prior: tfp.distributions.Distribution
) -> tf.Tensor:
    """KL(N(μ, Σ) ‖ N(m, diag s²)) = ½ [Σ_i (Σ_ii + (μ_i − m_i)²)/s_i² − d + Σ_i log s_i² − log |Σ|], (B,).

    Of Σ only the diagonal (`variance`, (B, d)) and log |Σ| (B,) are needed, since p is diagonal.
    """
    square = (variance + tf.math.squared_difference(mean, prior.loc)) / tf.square(prior.scale)
    return 0.5 * (tf.reduce_sum(square - 1 + 2 * tf.math.log(prior.scale), axis=-1) - log_determinant)


def _full_normal(posterior: Posterior, parameters: tf.Tensor, prior: Prior, context: Context) -> KL:
    """Σ = L Lᵀ, so that log |Σ| = 2 Σ_i log L_ii."""
    q = posterior.deterministic(parameters)
    scale = q["scale_tril"]
    log_determinant = 2 * tf.reduce_sum(tf.math.log(tf.linalg.diag_part(scale)), axis=-1)
    p = _normal_prior(prior, context, q["mean"].shape[-1])
    return _dense_normal(q["mean"], tf.reduce_sum(tf.square(scale), axis=-1), log_determinant, p), None


def _low_rank_normal(posterior: Posterior, parameters: tf.Tensor, prior: Prior, context: Context) -> KL:
    """Σ = D² + U Uᵀ, so that log |Σ| = log |D²| + log |I + Uᵀ D⁻² U| (matrix determinant lemma), a matrix of rank r."""
    q = posterior.deterministic(parameters)
    diagonal, factor = q["diagonal"], q["factor"]
    # float64: where D is small the small matrix is ill-conditioned, and its smallest pivots matter.
    scaled = tf.cast(factor / diagonal[..., None], tf.float64)
    small = tf.eye(factor.shape[-1], dtype=tf.float64) + tf.matmul(scaled, scaled, transpose_a=True)
    log_determinant = tf.cast(tf.linalg.logdet(small), tf.float32) + 2 * tf.reduce_sum(tf.math.log(diagonal), axis=-1)
    variance = tf.square(diagonal) + tf.reduce_sum(tf.square(factor), axis=-1)
    p = _normal_prior(prior, context, q["mean"].shape[-1])
    return _dense_normal(q["mean"], variance, log_determinant, p), None


def _uniform_sphere(posterior: Posterior, parameters: tf.Tensor, prior: Prior, context: Context) -> KL:
    """log area − H[q]: Davidson et al. 2018, arXiv 1804.00891, and De Cao & Aziz 2020, arXiv 2006.04437."""
    point = posterior.center(posterior.deterministic(parameters))
    return log_area(point.shape[-1]) - posterior.entropy(parameters), None


def _ladder(posterior: Posterior, parameters: tf.Tensor, prior: Prior, context: Context, z: tf.Tensor) -> KL:
    """Σ_i E[KL(q(z_i|z_{i+1}, x) ‖ p(z_i|z_{i+1}))], Sønderby et al. 2016, arXiv 1602.02282, section 2.

    Given the level above both are normal, and their KL is closed; the mean is over the draws of that level. A prior
    without levels has the same p(z_i) whatever is above.
    """
    q = tfd.Normal(*posterior.conditional(parameters, z))
    p = prior.distribution(z, context) if prior.kind == "ladder" else _normal_prior(prior, context, z.shape[-1])
    kl = tf.reduce_mean(tfd.kl_divergence(q, p), axis=0)
    return tf.reduce_sum(kl, axis=-1), kl


def _one_code(posterior: Posterior, parameters: tf.Tensor, prior: Prior, context: Context) -> KL:
    """P · log K whatever the parameters: van den Oord et al. 2017, arXiv 1711.00937, section 3.1; without gradient."""
    return tf.fill(tf.shape(parameters)[:1], tf.constant(log_combinations(posterior), tf.float32)), None


def _categorical_codes(posterior: Posterior, parameters: tf.Tensor, prior: Prior, context: Context) -> KL:
    """Σ over positions of log K − H[π], of the discrete codes: Jang et al. 2017, arXiv 1611.01144."""
    log_probabilities = posterior.log_probabilities(parameters)
    negative_entropy = tf.reduce_sum(tf.exp(log_probabilities) * log_probabilities, axis=(-2, -1))
    return log_combinations(posterior) + negative_entropy, None


CLOSED_FORMS: dict[
    tuple[str, str],
    Callable[[Posterior, tf.Tensor, Prior, Context], tuple[tf.Tensor, tf.Tensor | None]],
] = {
    ("normal", "standard_normal"): _normal,
    ("normal", "conditional_normal"): _normal,
    ("normal", "regression"): _normal,
    ("full_normal", "standard_normal"): _full_normal,
    ("full_normal", "conditional_normal"): _full_normal,
    ("full_normal", "regression"): _full_normal,
    ("low_rank_normal", "standard_normal"): _low_rank_normal,
    ("low_rank_normal", "conditional_normal"): _low_rank_normal,
    ("low_rank_normal", "regression"): _low_rank_normal,
    ("power_spherical", "uniform_sphere"): _uniform_sphere,
    ("von_mises_fisher", "uniform_sphere"): _uniform_sphere,
    ("vector_quantised", "uniform_codes"): _one_code,
    ("relaxed_categorical", "uniform_codes"): _categorical_codes,
}
"""Kind of posterior and of prior, to the function."""

CLOSED_GIVEN_DRAWS: dict[
    tuple[str, str],
    Callable[[Posterior, tf.Tensor, Prior, Context, tf.Tensor], tuple[tf.Tensor, tf.Tensor | None]],
] = {
    ("ladder", "ladder"): _ladder,
    ("ladder", "standard_normal"): _ladder,
    ("ladder", "conditional_normal"): _ladder,
    ("ladder", "regression"): _ladder,
}
"""Kind of posterior and of prior, to a function that also takes draws, (S, B, d): the mean over them is unbiased."""
