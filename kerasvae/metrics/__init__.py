"""What a reconstruction and a latent space are worth, as pure functions of arrays. No TensorFlow."""

from kerasvae.metrics.axes import AxesAgreement, MatchedAxes, match_axes
from kerasvae.metrics.baseline import pca_codes, pca_reconstruct
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
from kerasvae.metrics.prediction import Prediction, nested_ridge
from kerasvae.metrics.reconstruction import explained_variance, identification, identification_chance, variance_ratio
from kerasvae.metrics.stability import Agreement, debiased_cka, procrustes_r2, stability, subspace_similarity

__all__ = [
    "DCI",
    "Agreement",
    "AxesAgreement",
    "Diagnosis",
    "Figures",
    "MatchedAxes",
    "Prediction",
    "active_units",
    "dci",
    "debiased_cka",
    "diagnose",
    "explained_variance",
    "explicitness",
    "factor_vae_score",
    "identification",
    "identification_chance",
    "level_kl",
    "match_axes",
    "modularity",
    "mutual_information",
    "mutual_information_gap",
    "nested_ridge",
    "pca_codes",
    "pca_reconstruct",
    "procrustes_r2",
    "sap",
    "stability",
    "subspace_similarity",
    "variance_ratio",
]
