"""Fully connected encoder and decoder, for flat vectors such as tables of regional volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras

from kerasvae.networks.condition import condition_input, inputs_of, with_condition

__all__ = ["dense_decoder", "dense_encoder"]


def dense_encoder(
    data_shape: Sequence[int],
    outputs: int,
    units: Sequence[int] = (256, 128),
    activation: str = "silu",
    condition_size: int = 0,
) -> keras.Model:
    """(batch, *data_shape) to (batch, outputs); with `condition_size` columns from [images, condition]."""
    image, condition = keras.Input(tuple(data_shape), name="image"), condition_input(condition_size)
    x = with_condition(keras.layers.Flatten()(image), condition)
    for width in units:
        x = keras.layers.Dense(width, activation=activation)(x)
    return keras.Model(inputs_of(image, condition), keras.layers.Dense(outputs, name="parameters")(x), name="encoder")


def dense_decoder(
    data_shape: Sequence[int],
    latent_size: int,
    units: Sequence[int] = (128, 256),
    activation: str = "silu",
    condition_size: int = 0,
) -> keras.Model:
    """(batch, latent_size) to (batch, *data_shape); with `condition_size` columns from [codes, condition]."""
    z, condition = keras.Input((latent_size,), name="z"), condition_input(condition_size)
    x = with_condition(z, condition)
    for width in units:
        x = keras.layers.Dense(width, activation=activation)(x)
    x = keras.layers.Dense(math.prod(data_shape), name="mean")(x)
    return keras.Model(inputs_of(z, condition), keras.layers.Reshape(tuple(data_shape))(x), name="decoder")
