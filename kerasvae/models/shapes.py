"""Whether networks, parts and data of a model fit together."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from kerasvae.errors import ModelError

__all__ = ["check_shapes", "input_shape_of"]


def check_shapes(model: Any) -> None:
    """Refuse networks whose outputs are not what the parts of a VAE take, and parts made for other sizes.

    Raises:
        ModelError: With both shapes.
    """
    channels = () if model.likelihood.channels == 1 else (model.likelihood.channels,)
    for network, given, wanted in (
        (model.encoder, model.data_shape, (model.encoder_width,)),
        (model.decoder, (model.latent_size,), (*model.data_shape, *channels)),
    ):
        made = _output_shape(network, model.input_shapes(given))
        if made != tuple(wanted):
            raise ModelError(
                f"The network {network.name!r}",
                rule=f"give an output of shape (batch, {', '.join(map(str, wanted))})",
                got=f"(batch, {', '.join(map(str, made))})",
                fix=f"Change its last layer; latent_size is {model.latent_size}, data_shape {model.data_shape}",
            )
    for part in (model.posterior, model.prior, model.likelihood):
        for size in ("latent_size", "data_shape", "condition_size"):
            theirs, own = getattr(part, size, None), getattr(model, size)
            if size == "condition_size" and model.gives_condition:
                continue
            if theirs is not None and theirs != own:
                raise ModelError(
                    f"The {size} of {type(part).__name__}",
                    rule=f"be the model's, {own}",
                    got=theirs,
                    fix="Make it with the model's sizes",
                )
    mask = model.likelihood.mask
    if mask is not None and mask.shape != model.data_shape:
        raise ModelError(
            "The likelihood's mask", rule=f"have the data's shape {model.data_shape}", got=mask.shape, fix="Refit it"
        )


def input_shape_of(network: keras.Model) -> tuple[int, ...]:
    """Shape of one subject in the first input of a network.

    Raises:
        ModelError: If the network does not know it.
    """
    shape = getattr(network, "input_shape", None)
    if isinstance(shape, list):
        shape = shape[0]
    if not isinstance(shape, tuple) or None in shape[1:]:
        raise ModelError(
            f"The network {network.name!r}",
            rule="have a known input shape",
            got=shape,
            fix="Start it with keras.Input, or pass latent_size and data_shape",
        )
    return shape[1:]


def _output_shape(network: keras.Model, given: Any) -> tuple[int, ...]:
    """Shape of one subject's output; a network that cannot tell is tried on zeros."""
    several = isinstance(given, list)
    expected = len(getattr(network, "inputs", None) or [])
    if expected and expected != (len(given) if several else 1):
        raise ModelError(
            f"The network {network.name!r}",
            rule="take two inputs, the second the standardised covariates" if several else "take one input",
            got=f"{expected}",
            fix="Give its builder condition_size=covariates.width" if several else "Give the model covariates",
        )
    try:
        return tuple(network.compute_output_shape(given))[1:]
    except NotImplementedError:
        zeros = [tf.zeros((1, *shape[1:])) for shape in (given if several else [given])]
        return tuple(network(zeros if several else zeros[0]).shape)[1:]
