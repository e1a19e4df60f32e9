"""Normalisation by name, so that a recipe can choose it."""

from __future__ import annotations

import keras

from kerasvae.errors import ArgumentError

NORMS = ("group", "none")


def check_norm(name: str) -> None:
    """Refuse an unknown normalisation."""
    if name not in NORMS:
        raise ArgumentError("norm", rule=f"be one of {NORMS}", got=repr(name), fix="Choose one of them")


def normalise(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Apply the normalisation `name` to channels-last features.

    ``"group"``: Wu & He 2018, Group Normalization, arXiv 1803.08494, with eight channels or fewer to a group;
    it does not depend on the batch, which is small for volumes.
    """
    if name == "none":
        return x
    channels = int(x.shape[-1])
    groups = max(1, channels // 8)
    while channels % groups:
        groups -= 1
    return keras.layers.GroupNormalization(groups=groups)(x)
