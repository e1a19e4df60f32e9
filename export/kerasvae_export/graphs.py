"""The functions of a VAE that leave Python: deterministic, with named tensors and a free batch axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from kerasvae.models import VAE

__all__ = ["Graph", "graphs"]


class Graph(NamedTuple):
    """One function from named tensors to named tensors.

    Attributes:
        inputs: Name, dtype and shape of each argument; the batch axis is free.
        function: A `tf.function` with that signature.
    """

    inputs: list[tf.TensorSpec]
    function: Any


def graphs(model: VAE) -> dict[str, Graph]:
    """The functions that are exported.

    Returns:
        ``encode``: image to the posterior's deterministic outputs (for a normal one mean and stddev);
        ``decode``: z to reconstruction; ``reconstruct``: image to the reconstruction from the code that stands for it.
        Each takes ``covariates`` too, (n, k), in their units, where the model does.
    """
    image = tf.TensorSpec((None, *model.data_shape), tf.float32, name="image")
    z = tf.TensorSpec((None, model.latent_size), tf.float32, name="z")
    covariates = model.covariates
    rest = [] if covariates is None else [tf.TensorSpec((None, len(covariates)), tf.float32, name="covariates")]

    def encode(image: tf.Tensor, *given: tf.Tensor) -> dict[str, tf.Tensor]:
        return model.encode_tensors(image, *given)

    def decode(z: tf.Tensor, *given: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"reconstruction": model.decode_tensors(z, *given)}

    def reconstruct(image: tf.Tensor, *given: tf.Tensor) -> dict[str, tf.Tensor]:
        center = model.posterior.center(model.encode_tensors(image, *given))
        return {"reconstruction": model.decode_tensors(center, *given)}

    def graph(spec: tf.TensorSpec, function: Callable[..., dict[str, tf.Tensor]]) -> Graph:
        return Graph([spec, *rest], tf.function(function, input_signature=[spec, *rest]))

    return {"encode": graph(image, encode), "decode": graph(z, decode), "reconstruct": graph(image, reconstruct)}
