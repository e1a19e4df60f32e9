"""Posteriors, priors and likelihoods: the only place that imports TensorFlow Probability.

Distributions are built inside functions from plain tensors; no Keras layer ever returns one.
"""

from kerasvae.backend import require_tensorflow

require_tensorflow()

from kerasvae.distributions.base import Context, Likelihood, Output, Posterior, Prior  # noqa: E402
from kerasvae.distributions.divergence import closed_kl  # noqa: E402
from kerasvae.distributions.likelihood import NormalLikelihood  # noqa: E402
from kerasvae.distributions.posterior import NormalPosterior  # noqa: E402
from kerasvae.distributions.prior import StandardNormalPrior  # noqa: E402

__all__ = [
    "Context",
    "Likelihood",
    "NormalLikelihood",
    "NormalPosterior",
    "Output",
    "Posterior",
    "Prior",
    "StandardNormalPrior",
    "closed_kl",
]
