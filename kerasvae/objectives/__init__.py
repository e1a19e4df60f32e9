"""Objectives: pure functions from per-subject terms to the loss, one paper per file."""

from kerasvae.objectives.elbo import Terms, elbo_terms

__all__ = ["Terms", "elbo_terms"]
