"""KL(q(z|x) ‖ p(z)) in closed form, for the pairs that have one.

A pair that is not in `CLOSED_FORMS` is estimated from draws as the mean of log q − log p, which is unbiased.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tensorflow_probability as tfp

from kerasvae.distributions.base import NO_CONTEXT, Context, Posterior, Prior

tfd = tfp.distributions

__all__ = ["CLOSED_FORMS", "closed_kl"]


def closed_kl(
    posterior: Posterior, parameters: tf.Tensor, prior: Prior, context: Context = NO_CONTEXT
) -> tuple[tf.Tensor, tf.Tensor | None] | None:
    """The KL in nats, where there is a closed form.

    Args:
        posterior: q.
        parameters: (B, p).
        prior: p(z).
        context: What the prior depends on.

    Returns:
        The KL, (B,), and its part in each dimension, (B, d), or None where it is not a sum over dimensions; None where
        the pair has no closed form.
    """
    form = CLOSED_FORMS.get((posterior.kind, prior.kind))
    return None if form is None else form(posterior, parameters, prior, context)


def _normal_standard(
    posterior: Posterior, parameters: tf.Tensor, prior: Prior, context: Context
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Kingma & Welling 2014, appendix B."""
    q = posterior.distribution(parameters)
    kl = tfd.kl_divergence(q, prior.distribution(q.batch_shape[-1]))
    return tf.reduce_sum(kl, axis=-1), kl


CLOSED_FORMS: dict[
    tuple[str, str],
    Callable[[Posterior, tf.Tensor, Prior, Context], tuple[tf.Tensor, tf.Tensor | None]],
] = {
    ("normal", "standard_normal"): _normal_standard,
}
"""Kind of posterior and of prior, to the function."""
