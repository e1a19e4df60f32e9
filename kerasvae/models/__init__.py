"""Models: Keras models that own their train step."""

from kerasvae.models.vae import VAE

__all__ = ["VAE"]
