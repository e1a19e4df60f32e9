"""Posteriors, priors and likelihoods: the only place that imports TensorFlow Probability.

Distributions are built inside functions from plain tensors; no Keras layer ever returns one.
"""

from kerasvae.distributions.likelihood import NormalLikelihood
from kerasvae.distributions.posterior import NormalPosterior, Output
from kerasvae.distributions.prior import StandardNormalPrior

__all__ = ["NormalLikelihood", "NormalPosterior", "Output", "StandardNormalPrior"]
