"""The evidence lower bound from draws alone, also where the KL has a closed form.

Kingma & Welling 2014, Auto-Encoding Variational Bayes, arXiv 1312.6114, equation 6:
log p(x) ≥ E_q[log p(x|z) + log p(z) − log q(z|x)], here with the last two weighed by β.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from kerasvae.objectives.base import Draws, Objective, Terms, standard_terms
from kerasvae.objectives.rules import number, whole_number

__all__ = ["MonteCarloELBO"]


@keras.saving.register_keras_serializable("kerasvae")
class MonteCarloELBO(Objective):
    """−E_q[log p(x|z) + β (log p(z) − log q(z|x))], in nats per subject, as a mean over draws.

    The reported ``elbo`` and ``kl`` stay in closed form where there is one; ``sampled_kl`` is the mean of
    log q − log p over draws, which the loss holds. It may be negative for a subject.

    Args:
        beta: Weight of the KL, ≥ 0; 1 is the bound. It may be scheduled.
        samples: Posterior draws a subject, ≥ 1.

    Raises:
        ArgumentError: If a constant is out of its range.
    """

    kind = "monte_carlo_elbo"
    scheduled = ("beta",)
    extras = ("sampled_kl",)

    def __init__(self, beta: float = 1.0, samples: int = 1) -> None:
        self.samples = whole_number("samples", samples, least=1)
        super().__init__(beta=number("beta", beta, least=0), samples=self.samples)

    def terms(self, draws: Draws) -> Terms:
        """The (β-)ELBO with the KL estimated from the draws."""
        sampled_kl = tf.reduce_mean(draws.log_posterior - draws.log_prior, axis=0)
        loss = draws.scheduled["beta"] * sampled_kl - tf.reduce_mean(draws.log_likelihood, axis=0)
        return standard_terms(draws, loss, per_subject={"sampled_kl": sampled_kl})
