"""Bottom-up encoder of a ladder: each level of the code is read from a depth of its own.

Sønderby, Raiko, Maaløe, Sønderby & Winther 2016, Ladder Variational Autoencoders, arXiv 1602.02282, section 2.1: a
deterministic pass upwards, d_n = MLP(d_{n−1}), from which linear layers read μ̂_i and σ̂_i of each level; here the pass
is convolutional.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras

from kerasvae.errors import ArgumentError
from kerasvae.networks.condition import condition_input, inputs_of, with_condition
from kerasvae.networks.conv import check_shape, halve

__all__ = ["ladder_encoder"]


def ladder_encoder(
    data_shape: Sequence[int],
    levels: Sequence[int],
    filters: Sequence[int] = (16, 32, 64),
    norm: str = "group",
    activation: str = "silu",
    dropout: float = 0.0,
    seed: int | None = None,
    condition_size: int = 0,
) -> keras.Model:
    """Strided 3ⁿ convolutions, read at several depths: (batch, *data_shape) to (batch, 2·sum(levels)).

    The top level is read from the deepest features, each level below from features one depth shallower; what is
    shallower still serves no level of its own. Shallow features are many, and so are the weights that read them. The
    output is what a LadderPosterior expects: means of all levels, top first, then their raw scales.

    Any Keras encoder of that width serves as well. So does any decoder: it takes the whole code, all levels side by
    side, so that it may do more than the paper's p(x|z_1), which sees the bottom level alone.

    Args:
        data_shape: One to three axes, no channels.
        levels: Widths from the top to the bottom, as given to LadderPosterior.
        filters: Channels of each depth; each depth halves the axes. There are at least as many depths as levels.
        norm: ``"group"`` or ``"none"``.
        activation: Any Keras activation.
        dropout: Rate before each dense layer.
        seed: Seed of the dropout; None draws one.
        condition_size: Columns of the standardised covariates; with any, the inputs are [images, condition].

    Raises:
        ArgumentError: If there are no levels or more than depths, or another argument is out of its range.
    """
    check_shape(data_shape, filters, norm)
    if not 1 <= len(levels) <= len(filters) or min(levels) < 1:
        raise ArgumentError(
            "levels",
            rule=f"be one to {len(filters)} positive widths, one at most for each of the filters",
            got=tuple(levels),
            fix="Give more filters or fewer levels",
        )
    image, condition = keras.Input(tuple(data_shape), name="image"), condition_input(condition_size)
    x = keras.layers.Reshape((*data_shape, 1))(image)
    means: list[keras.KerasTensor] = []
    raws: list[keras.KerasTensor] = []
    for depth, channels in enumerate(filters):
        x = halve(x, channels, norm, activation, condition)
        level = len(filters) - 1 - depth
        if level < len(levels):
            features = keras.layers.Flatten()(x)
            if dropout:
                features = keras.layers.Dropout(dropout, seed=seed)(features)
            features = with_condition(features, condition)
            means.insert(0, keras.layers.Dense(levels[level], name=f"mean_{level}")(features))
            raws.insert(0, keras.layers.Dense(levels[level], name=f"raw_{level}")(features))
    parameters = keras.layers.Concatenate(name="parameters")([*means, *raws])
    return keras.Model(inputs_of(image, condition), parameters, name="encoder")
