"""The evidence lower bound and its β form.

Kingma & Welling 2014, Auto-Encoding Variational Bayes, arXiv 1312.6114, equation 3:
log p(x) ≥ E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)).
Higgins et al. 2017, β-VAE, ICLR, equation 4: the KL weighed by β; β = 1 is the bound.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from kerasvae.errors import ArgumentError
from kerasvae.objectives.base import Draws, Objective, Terms, standard_terms

__all__ = ["ELBO"]


@keras.saving.register_keras_serializable("kerasvae")
class ELBO(Objective):
    """−E_q[log p(x|z)] + β KL(q(z|x) ‖ p(z)), in nats per subject.

    The KL is in closed form where posterior and prior have one, otherwise estimated from the draws.

    Args:
        beta: Weight of the KL, ≥ 0; 1 is the bound. It may be scheduled.
        samples: Posterior draws a subject, ≥ 1.
    """

    kind = "elbo"
    scheduled = ("beta",)

    def __init__(self, beta: float = 1.0, samples: int = 1) -> None:
        if not beta >= 0:
            raise ArgumentError("beta", rule="be zero or positive", got=beta, fix="Use 1 for the ELBO")
        if samples < 1:
            raise ArgumentError("samples", rule="be 1 or more", got=samples, fix="Use 1")
        super().__init__(beta=float(beta), samples=int(samples))
        self.samples = int(samples)

    def terms(self, draws: Draws) -> Terms:
        """The (β-)ELBO."""
        loss = draws.scheduled["beta"] * draws.kl - tf.reduce_mean(draws.log_likelihood, axis=0)
        return standard_terms(draws, loss)
