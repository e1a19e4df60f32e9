"""Sticking the landing: the ELBO's gradient through the codes alone.

Roeder, Wu & Duvenaud 2017, Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference,
arXiv 1703.09194. The gradient of log q(z|x) with respect to the parameters φ of q, at fixed z, is zero in
expectation (the score function). Without it the estimate stays unbiased, and its variance falls to
zero where q(z|x) is the exact posterior.
"""

from __future__ import annotations

import keras

from kerasvae.objectives.monte_carlo import MonteCarloELBO

__all__ = ["StickingTheLanding"]


@keras.saving.register_keras_serializable("kerasvae")
class StickingTheLanding(MonteCarloELBO):
    """The Monte-Carlo ELBO with log q taken at fixed encoder parameters; same value, another gradient.

    It needs a posterior with reparameterised draws whose density depends on the encoder's output alone: the weights
    of a posterior that has some of its own are not held fixed.

    Args:
        beta: Weight of the KL, ≥ 0; 1 is the bound. It may be scheduled.
        samples: Posterior draws a subject, ≥ 1.
    """

    kind = "sticking_the_landing"
    stops_density = True
