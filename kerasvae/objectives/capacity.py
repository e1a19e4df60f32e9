"""A KL that is held at a target, the capacity of the code.

Burgess et al. 2018, Understanding Disentangling in β-VAE, arXiv 1804.03599, equation 8:
E_q[log p(x|z)] − γ |KL(q(z|x) ‖ p(z)) − C|, with C raised during training.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from kerasvae.objectives.base import Draws, Objective, Terms, standard_terms
from kerasvae.objectives.rules import number, whole_number

__all__ = ["Capacity"]


@keras.saving.register_keras_serializable("kerasvae")
class Capacity(Objective):
    """−E_q[log p(x|z)] + γ |KL(q(z|x) ‖ p(z)) − C|, in nats per subject.

    Each subject's own KL is held at C, as the equation is written, not the batch's mean; ``capacity_gap`` is
    |KL − C| of each subject, in nats.

    Args:
        gamma: γ ≥ 0, nats of loss for a nat of deviation.
        capacity: C ≥ 0 in nats per subject. It may be scheduled, from 0 upwards.
        samples: Posterior draws a subject, ≥ 1.

    Raises:
        ArgumentError: If a constant is out of its range.
    """

    kind = "capacity"
    scheduled = ("capacity",)
    extras = ("capacity_gap",)

    def __init__(self, gamma: float = 1000.0, capacity: float = 25.0, samples: int = 1) -> None:
        self.gamma = number("gamma", gamma, least=0)
        self.samples = whole_number("samples", samples, least=1)
        super().__init__(gamma=self.gamma, capacity=number("capacity", capacity, least=0), samples=self.samples)

    def terms(self, draws: Draws) -> Terms:
        """The distance of the KL from the capacity, beside the log-likelihood."""
        gap = tf.abs(draws.kl - draws.scheduled["capacity"])
        loss = self.gamma * gap - tf.reduce_mean(draws.log_likelihood, axis=0)
        return standard_terms(draws, loss, per_subject={"capacity_gap": gap})
