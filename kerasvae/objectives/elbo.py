"""The evidence lower bound and its β form.

Kingma & Welling 2014, arXiv 1312.6114, equation 3: log p(x) ≥ E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)).
Higgins et al. 2017, β-VAE, ICLR, equation 4: the KL weighed by β; β = 1 is the bound.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Terms(NamedTuple):
    """Named terms of an objective, float32.

    Attributes:
        loss: What is minimised, nats per subject, shape (batch,).
        per_subject: Named terms in nats, each of shape (batch,).
        per_dimension: Named terms in nats, each of shape (batch, d).
    """

    loss: tf.Tensor
    per_subject: dict[str, tf.Tensor]
    per_dimension: dict[str, tf.Tensor]


def elbo_terms(log_likelihood: tf.Tensor, kl_per_dimension: tf.Tensor, beta: tf.Tensor | float = 1.0) -> Terms:
    """Terms of the (β-)ELBO in nats per subject.

    Args:
        log_likelihood: One-sample estimate of E_q[log p(x|z)], summed over voxels, shape (batch,).
        kl_per_dimension: KL(q(z|x) ‖ p(z)) per latent dimension, shape (batch, d).
        beta: Weight of the KL in the loss; the reported `elbo` always has weight 1.
    """
    kl = tf.reduce_sum(kl_per_dimension, axis=-1)
    return Terms(
        loss=beta * kl - log_likelihood,
        per_subject={"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl},
        per_dimension={"kl": kl_per_dimension},
    )
