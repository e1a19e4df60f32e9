"""Fully connected encoder and decoder, for flat vectors such as tables of regional volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras

__all__ = ["dense_decoder", "dense_encoder"]


def dense_encoder(
    data_shape: Sequence[int], outputs: int, units: Sequence[int] = (256, 128), activation: str = "silu"
) -> keras.Model:
    """(batch, *data_shape) to (batch, outputs)."""
    image = keras.Input(tuple(data_shape), name="image")
    x = keras.layers.Flatten()(image)
    for width in units:
        x = keras.layers.Dense(width, activation=activation)(x)
    return keras.Model(image, keras.layers.Dense(outputs, name="parameters")(x), name="encoder")


def dense_decoder(
    data_shape: Sequence[int], latent_size: int, units: Sequence[int] = (128, 256), activation: str = "silu"
) -> keras.Model:
    """(batch, latent_size) to (batch, *data_shape)."""
    z = keras.Input((latent_size,), name="z")
    x = z
    for width in units:
        x = keras.layers.Dense(width, activation=activation)(x)
    x = keras.layers.Dense(math.prod(data_shape), name="mean")(x)
    return keras.Model(z, keras.layers.Reshape(tuple(data_shape))(x), name="decoder")
