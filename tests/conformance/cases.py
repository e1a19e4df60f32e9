"""The registry: a model gets every check of `test_conformance.py` by one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

from kerasvae import (
    VAE,
    NormalLikelihood,
    conv_decoder,
    conv_encoder,
    dense_decoder,
    dense_encoder,
    fit_core,
    linear_start,
)


@dataclass(frozen=True)
class Case:
    """A model to check.

    Args:
        name: For the test's name.
        shape: Shape of one subject.
        make: From training images, (n, *shape), to a model that is not compiled.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[np.ndarray], VAE]

    def images(self, people: int = 12, seed: int = 0) -> np.ndarray:
        """Images with two factors and some noise, float32 (people, *shape)."""
        rng = np.random.default_rng([seed, 7])
        factors, patterns = rng.standard_normal((people, 2)), np.random.default_rng(5).standard_normal((2, *self.shape))
        noise = 0.2 * rng.standard_normal((people, *self.shape))
        return (1 + np.tensordot(factors, patterns, 1) + noise).astype(np.float32)


def conv(images: np.ndarray, **options) -> VAE:
    shape = images.shape[1:]
    return VAE(conv_encoder(shape, 6, (4, 8), dropout=0.1, seed=0), conv_decoder(shape, 3, (4, 8)), **options)


def from_pca(images: np.ndarray) -> VAE:
    shape = images.shape[1:]
    mask = np.random.default_rng(1).random(shape) < 0.7
    networks = linear_start(conv_encoder(shape, 6, (4,)), conv_decoder(shape, 3, (4,)), fit_core(images, 3, mask), mask)
    return VAE(*networks, likelihood=NormalLikelihood(mask=mask))


def users_own(images: np.ndarray) -> VAE:
    """Plain Keras, sequential, without a word of kerasvae in it."""
    shape = images.shape[1:]
    layers = keras.layers
    encoder = keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(9, "relu"), layers.Dense(4)])
    decoder = keras.Sequential(
        [keras.Input((2,)), layers.Dense(9, "relu"), layers.Dense(int(np.prod(shape))), layers.Reshape(shape)]
    )
    return VAE(encoder, decoder, beta=0.5, seed=3)


CASES = (
    Case("volume", (8, 9, 7), conv),
    Case("odd volume", (5, 13, 6), lambda images: conv(images, likelihood=NormalLikelihood(scale="fixed", stddev=0.5))),
    Case("slice", (10, 9), conv),
    Case("vector", (15,), lambda images: VAE(dense_encoder((15,), 6, (8,)), dense_decoder((15,), 3, (8,)))),
    Case("from PCA", (8, 9, 7), from_pca),
    Case("user's own", (6, 5, 4), users_own),
)
