"""Convolutional encoder and decoder for vectors, slices and volumes of any size.

Each level halves every axis, rounding up; the decoder doubles and crops back, so no size is special.
Data have no channel axis: (batch, x, y, z), (batch, x, y) or (batch, x).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras

from kerasvae.errors import ArgumentError
from kerasvae.networks.condition import condition_input, inputs_of, with_condition
from kerasvae.networks.norm import check_norm, normalise

__all__ = ["check_shape", "conv_decoder", "conv_encoder", "halve"]

_CONV = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}
_TRANSPOSE = {1: keras.layers.Conv1DTranspose, 2: keras.layers.Conv2DTranspose, 3: keras.layers.Conv3DTranspose}
_CROP = {1: keras.layers.Cropping1D, 2: keras.layers.Cropping2D, 3: keras.layers.Cropping3D}


def conv_encoder(
    data_shape: Sequence[int],
    outputs: int,
    filters: Sequence[int] = (16, 32, 64),
    norm: str = "group",
    activation: str = "silu",
    dropout: float = 0.0,
    seed: int | None = None,
    condition_size: int = 0,
) -> keras.Model:
    """Strided 3ⁿ convolutions, then one dense layer: (batch, *data_shape) to (batch, outputs).

    With a condition the inputs are [images, condition]: it shifts every channel of every level (the additive half of
    FiLM; Perez et al. 2018, arXiv 1709.07871) and enters the dense layer.

    Args:
        data_shape: One to three axes, no channels.
        outputs: Width of the output, ``posterior.parameter_size(latent_size)``.
        filters: Channels of each level; each level halves the axes.
        norm: ``"group"`` or ``"none"``.
        activation: Any Keras activation.
        dropout: Rate before the dense layer.
        seed: Seed of the dropout; None draws one.
        condition_size: Columns of the standardised covariates; 0 for none.
    """
    check_shape(data_shape, filters, norm)
    image = keras.Input(tuple(data_shape), name="image")
    condition = condition_input(condition_size)
    x = keras.layers.Reshape((*data_shape, 1))(image)
    for width in filters:
        x = halve(x, width, norm, activation, condition)
    x = keras.layers.Flatten()(x)
    if dropout:
        x = keras.layers.Dropout(dropout, seed=seed)(x)
    x = keras.layers.Dense(outputs, name="parameters")(with_condition(x, condition))
    return keras.Model(inputs_of(image, condition), x, name="encoder")


def conv_decoder(
    data_shape: Sequence[int],
    latent_size: int,
    filters: Sequence[int] = (16, 32, 64),
    norm: str = "group",
    activation: str = "silu",
    channels: int = 1,
    condition_size: int = 0,
) -> keras.Model:
    """The mirror of `conv_encoder`: (batch, latent_size) to (batch, *data_shape), or (batch, *data_shape, channels).

    Args:
        data_shape: One to three axes, no channels.
        latent_size: Width of the code.
        filters: As given to the encoder; used from last to first.
        norm: ``"group"`` or ``"none"``.
        activation: Any Keras activation.
        channels: Numbers for each voxel, the likelihood's `channels`; with 1 there is no axis for them.
        condition_size: Columns of the standardised covariates; with any, the inputs are [codes, condition].
    """
    rank = check_shape(data_shape, filters, norm)
    sizes = [tuple(data_shape)]
    for _ in filters:
        sizes.append(tuple(math.ceil(n / 2) for n in sizes[-1]))
    z, condition = keras.Input((latent_size,), name="z"), condition_input(condition_size)
    x = keras.layers.Dense(math.prod(sizes[-1]) * filters[-1])(with_condition(z, condition))
    x = keras.layers.Reshape((*sizes[-1], filters[-1]))(x)
    for level in range(len(filters) - 1, -1, -1):
        x = keras.layers.Activation(activation)(normalise(x, norm))
        x = _TRANSPOSE[rank](filters[max(level - 1, 0)], 3, strides=2, padding="same")(x)
        surplus = [(0, 2 * small - n) for small, n in zip(sizes[level + 1], sizes[level], strict=True)]
        if any(high for _, high in surplus):
            x = _CROP[rank](surplus if rank > 1 else surplus[0])(x)
    x = keras.layers.Activation(activation)(x)
    x = _CONV[rank](channels, 3, padding="same", name="mean")(x)
    made = tuple(data_shape) if channels == 1 else (*data_shape, channels)
    return keras.Model(inputs_of(z, condition), keras.layers.Reshape(made)(x), name="decoder")


def halve(
    x: keras.KerasTensor, width: int, norm: str, activation: str, condition: keras.KerasTensor | None = None
) -> keras.KerasTensor:
    """One level deeper: a strided 3ⁿ convolution to `width` channels, normalised, shifted by a condition, activated."""
    rank = len(x.shape) - 2
    x = normalise(_CONV[rank](width, 3, strides=2, padding="same")(x), norm)
    if condition is not None:
        shift = keras.layers.Dense(width)(condition)
        x = keras.layers.Add()([x, keras.layers.Reshape((*[1] * rank, width))(shift)])
    return keras.layers.Activation(activation)(x)


def check_shape(data_shape: Sequence[int], filters: Sequence[int], norm: str) -> int:
    """The number of axes, after a look at all three arguments: ArgumentError."""
    if len(data_shape) not in _CONV or min(data_shape) < 1:
        raise ArgumentError(
            "data_shape",
            rule="have one to three positive axes",
            got=tuple(data_shape),
            fix="Leave out the channel axis",
        )
    if not filters or min(filters) < 1:
        raise ArgumentError("filters", rule="hold at least one positive number", got=filters, fix="Use (16, 32, 64)")
    check_norm(norm)
    return len(data_shape)
