"""Models: Keras models that own their train step."""

import kerasvae.networks  # noqa: F401  so that Keras knows the layers of a saved model
from kerasvae.models.regression import RegressionVAE
from kerasvae.models.vae import VAE

__all__ = ["VAE", "RegressionVAE"]
