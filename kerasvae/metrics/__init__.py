"""What a reconstruction and a latent space are worth, as pure functions of arrays. No TensorFlow."""

from kerasvae.metrics.baseline import pca_reconstruct
from kerasvae.metrics.collapse import active_units, mutual_information
from kerasvae.metrics.reconstruction import explained_variance, identification, variance_ratio

__all__ = [
    "active_units",
    "explained_variance",
    "identification",
    "mutual_information",
    "pca_reconstruct",
    "variance_ratio",
]
