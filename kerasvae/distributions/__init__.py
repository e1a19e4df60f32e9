"""Posteriors, priors and likelihoods: the only place that imports TensorFlow Probability.

Distributions are built inside functions from plain tensors; no Keras layer ever returns one.
"""

from kerasvae.backend import require_tensorflow

require_tensorflow()

from kerasvae.distributions.likelihood import NormalLikelihood  # noqa: E402
from kerasvae.distributions.posterior import NormalPosterior, Output  # noqa: E402
from kerasvae.distributions.prior import StandardNormalPrior  # noqa: E402

__all__ = ["NormalLikelihood", "NormalPosterior", "Output", "StandardNormalPrior"]
