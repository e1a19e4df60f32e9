"""What a reconstruction and a latent space are worth, as pure functions of arrays. No TensorFlow."""

from kerasvae.metrics.baseline import pca_reconstruct
from kerasvae.metrics.collapse import active_units, level_kl, mutual_information
from kerasvae.metrics.diagnosis import Diagnosis, Figures, diagnose
from kerasvae.metrics.disentanglement import (
    DCI,
    dci,
    explicitness,
    factor_vae_score,
    modularity,
    mutual_information_gap,
    sap,
)
from kerasvae.metrics.reconstruction import explained_variance, identification, variance_ratio

__all__ = [
    "DCI",
    "Diagnosis",
    "Figures",
    "active_units",
    "dci",
    "diagnose",
    "explained_variance",
    "explicitness",
    "factor_vae_score",
    "identification",
    "level_kl",
    "modularity",
    "mutual_information",
    "mutual_information_gap",
    "pca_reconstruct",
    "sap",
    "variance_ratio",
]
