"""The weight that the KL has in earnest: β is only half of it where the scale of the likelihood is fixed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kerasvae.distributions.scale import ScaledLikelihood

if TYPE_CHECKING:
    from kerasvae.models import VAE

__all__ = ["effective_beta", "has_fixed_scale", "kl_weight", "power_of", "scale_weight"]

BETAS = ("elbo", "monte_carlo_elbo", "sticking_the_landing")
"""Objectives in which `beta` is the weight of the whole KL."""
BOUNDS = ("free_bits", "iwae", "dreg", "miwae")
"""Objectives whose KL counts once."""


def kl_weight(model: VAE) -> float | None:
    """β, the weight of the KL in what is minimised; None where the objective has no one weight of it."""
    if model.objective.kind in BETAS:
        now = model.scheduled.get("beta")
        return float(model.objective.constants.get("beta", 1.0) if now is None else now)
    return 1.0 if model.objective.kind in BOUNDS else None


def power_of(model: VAE) -> int:
    """Exponent p of the residual that the likelihood's best scale is made of."""
    return model.likelihood.power if isinstance(model.likelihood, ScaledLikelihood) else 2


def has_fixed_scale(model: VAE) -> bool:
    """Whether the scale of the likelihood is a number that somebody chose."""
    return isinstance(model.likelihood, ScaledLikelihood) and model.likelihood.scale == "fixed"


def scale_weight(model: VAE, residual: float) -> float:
    """By what a fixed scale multiplies the weight of the KL: scale^p / mean |x − x̂|^p; 1 where the scale is not fixed.

    −log p(x|z) is Σ|x − x̂|^p / (p · scale^p) and a constant for the normal (p = 2) and Laplace (p = 1) likelihoods, so
    that the loss with the scale at its best, residual^(1/p), and this times the weight of the KL has the same optimum.

    Args:
        model: Its likelihood is looked at.
        residual: Mean |x − x̂|^p over people and mask voxels.
    """
    return model.likelihood.initial_scale ** power_of(model) / residual if has_fixed_scale(model) else 1.0


def effective_beta(model: VAE, residual: float) -> float:
    """β · `scale_weight`; NaN where the objective has no one weight of the KL. 1 is the ELBO."""
    beta = kl_weight(model)
    return math.nan if beta is None else beta * scale_weight(model, residual)
