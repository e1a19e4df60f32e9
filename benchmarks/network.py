"""The network of the benchmarks: 48³ voxels, 3³ convolutions of stride 2 to 16, 32 and 64 channels with the library's
own normalisation and SiLU, a dense layer to mean and scale of 16 latents; the decoder is its mirror.
"""

from __future__ import annotations

import keras
import numpy as np

from kerasvae import VAE, NormalLikelihood, conv_decoder, conv_encoder
from kerasvae.types import Grid, Mask

__all__ = ["LATENTS", "SHAPE", "grid", "model"]

SHAPE = (48, 48, 48)
LATENTS = 16


def grid() -> Grid:
    """4 mm voxels around the brain in MNI space."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-94.0, -112.0, -84.0)
    return Grid.of(SHAPE, affine, "MNI152NLin6Asym")


def model(mask: Mask | None = None, seed: int = 0) -> VAE:
    """The VAE, with random weights."""
    keras.utils.set_random_seed(seed)
    likelihood = NormalLikelihood(mask=mask)
    return VAE(conv_encoder(SHAPE, 2 * LATENTS), conv_decoder(SHAPE, LATENTS), likelihood=likelihood)
