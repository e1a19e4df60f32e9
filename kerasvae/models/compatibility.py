"""What goes with what: one declared table; the rest is refused with a sentence."""

from __future__ import annotations

from kerasvae.distributions import Likelihood, Posterior, Prior
from kerasvae.objectives import Objective

__all__ = ["check_combination"]


def check_combination(posterior: Posterior, prior: Prior, likelihood: Likelihood, objective: Objective) -> None:
    """Refuse parts that do not go together.

    Raises:
        ModelError: Naming the two that do not fit, why, and what to take instead.
    """
