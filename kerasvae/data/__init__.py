"""Cohorts, roles and data sets. `dataset` alone needs TensorFlow."""

from kerasvae.data.cohort import Cohort, Scan
from kerasvae.data.split import ROLES, Split, split_people

__all__ = ["ROLES", "Cohort", "Scan", "Split", "split_people"]
