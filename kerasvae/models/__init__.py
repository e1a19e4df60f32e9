"""Models: Keras models that own their train step, and samplers of new images."""

import kerasvae.networks  # noqa: F401  so that Keras knows the layers of a saved model
from kerasvae.models.regression import RegressionVAE
from kerasvae.models.samplers import MixtureSampler, PriorSampler, Sampler, TwoStageSampler
from kerasvae.models.vae import VAE

__all__ = ["VAE", "MixtureSampler", "PriorSampler", "RegressionVAE", "Sampler", "TwoStageSampler"]
