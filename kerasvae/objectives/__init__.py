"""Objectives: pure functions from posterior draws to named terms, one paper per file."""

from kerasvae.objectives.base import Draws, Objective, Terms
from kerasvae.objectives.elbo import ELBO

__all__ = ["ELBO", "Draws", "Objective", "Terms"]
