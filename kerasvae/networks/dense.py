"""Fully connected encoder and decoder, for flat vectors such as tables of regional volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

from kerasvae.networks.condition import condition_input, inputs_of, with_condition

__all__ = ["dense_decoder", "dense_encoder"]


def dense_encoder(
    data_shape: Sequence[int],
    outputs: int,
    units: Sequence[int] = (256, 128),
    activation: str = "silu",
    condition_size: int = 0,
    seed: int | None = None,
) -> keras.Model:
    """(batch, *data_shape) to (batch, outputs); with `condition_size` columns from [images, condition].

    Weights begin as Keras's global seed says, or, with a `seed`, as that alone says.
    """
    *starts, last = _starts(seed, len(units) + 1)
    image, condition = keras.Input(tuple(data_shape), name="image"), condition_input(condition_size)
    x = with_condition(keras.layers.Flatten()(image), condition)
    for width, start in zip(units, starts, strict=True):
        x = keras.layers.Dense(width, activation=activation, kernel_initializer=start)(x)
    parameters = keras.layers.Dense(outputs, kernel_initializer=last, name="parameters")(x)
    return keras.Model(inputs_of(image, condition), parameters, name="encoder")


def dense_decoder(
    data_shape: Sequence[int],
    latent_size: int,
    units: Sequence[int] = (128, 256),
    activation: str = "silu",
    condition_size: int = 0,
    seed: int | None = None,
) -> keras.Model:
    """(batch, latent_size) to (batch, *data_shape); with `condition_size` columns from [codes, condition].

    Weights begin as Keras's global seed says, or, with a `seed`, as that alone says.
    """
    *starts, last = _starts(seed, len(units) + 1)
    z, condition = keras.Input((latent_size,), name="z"), condition_input(condition_size)
    x = with_condition(z, condition)
    for width, start in zip(units, starts, strict=True):
        x = keras.layers.Dense(width, activation=activation, kernel_initializer=start)(x)
    x = keras.layers.Dense(math.prod(data_shape), kernel_initializer=last, name="mean")(x)
    return keras.Model(inputs_of(z, condition), keras.layers.Reshape(tuple(data_shape))(x), name="decoder")


def _starts(seed: int | None, count: int) -> list[Any]:
    """Glorot's initialiser for each of `count` layers."""
    if seed is None:
        return ["glorot_uniform"] * count
    return [keras.initializers.GlorotUniform(seed + index) for index in range(count)]
