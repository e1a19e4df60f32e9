"""Posteriors, priors and likelihoods: the only place that imports TensorFlow Probability.

Distributions are built inside functions from plain tensors; no Keras layer ever returns one.
"""

from kerasvae.backend import require_tensorflow

require_tensorflow()

from kerasvae.distributions.base import Context, Likelihood, Output, Posterior, Prior, inverse_positive, positive  # noqa: E402
from kerasvae.distributions.bernoulli import BernoulliLikelihood  # noqa: E402
from kerasvae.distributions.categorical import CategoricalLikelihood  # noqa: E402
from kerasvae.distributions.conditional_prior import ConditionalNormalPrior  # noqa: E402
from kerasvae.distributions.continuous_bernoulli import ContinuousBernoulliLikelihood  # noqa: E402
from kerasvae.distributions.discretised_logistic import DiscretisedLogisticLikelihood  # noqa: E402
from kerasvae.distributions.divergence import closed_kl  # noqa: E402
from kerasvae.distributions.flow_prior import FlowPrior  # noqa: E402
from kerasvae.distributions.flows import InverseAutoregressiveFlowPosterior, RealNVPPosterior  # noqa: E402
from kerasvae.distributions.full_normal import FullNormalPosterior  # noqa: E402
from kerasvae.distributions.ladder import LadderPosterior  # noqa: E402
from kerasvae.distributions.ladder_prior import LadderPrior  # noqa: E402
from kerasvae.distributions.laplace import LaplaceLikelihood  # noqa: E402
from kerasvae.distributions.low_rank_normal import LowRankNormalPosterior  # noqa: E402
from kerasvae.distributions.mixture_prior import MixturePrior  # noqa: E402
from kerasvae.distributions.normal_likelihood import NormalLikelihood  # noqa: E402
from kerasvae.distributions.point import PointPosterior  # noqa: E402
from kerasvae.distributions.posterior import NormalPosterior  # noqa: E402
from kerasvae.distributions.prior import StandardNormalPrior  # noqa: E402
from kerasvae.distributions.regression_prior import RegressionPrior  # noqa: E402
from kerasvae.distributions.relaxed_categorical import RelaxedCategoricalPosterior  # noqa: E402
from kerasvae.distributions.sphere_prior import UniformSpherePrior  # noqa: E402
from kerasvae.distributions.spherical import PowerSphericalPosterior, VonMisesFisherPosterior  # noqa: E402
from kerasvae.distributions.student_t import StudentTLikelihood  # noqa: E402
from kerasvae.distributions.uniform_codes_prior import UniformCodesPrior  # noqa: E402
from kerasvae.distributions.vamp_prior import VampPrior  # noqa: E402
from kerasvae.distributions.vector_quantised import VectorQuantisedPosterior  # noqa: E402

__all__ = [
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "ConditionalNormalPrior",
    "Context",
    "ContinuousBernoulliLikelihood",
    "DiscretisedLogisticLikelihood",
    "FlowPrior",
    "FullNormalPosterior",
    "InverseAutoregressiveFlowPosterior",
    "LadderPosterior",
    "LadderPrior",
    "LaplaceLikelihood",
    "Likelihood",
    "LowRankNormalPosterior",
    "MixturePrior",
    "NormalLikelihood",
    "NormalPosterior",
    "Output",
    "PointPosterior",
    "Posterior",
    "PowerSphericalPosterior",
    "Prior",
    "RealNVPPosterior",
    "RegressionPrior",
    "RelaxedCategoricalPosterior",
    "StandardNormalPrior",
    "StudentTLikelihood",
    "UniformCodesPrior",
    "UniformSpherePrior",
    "VampPrior",
    "VectorQuantisedPosterior",
    "VonMisesFisherPosterior",
    "closed_kl",
    "inverse_positive",
    "positive",
]
