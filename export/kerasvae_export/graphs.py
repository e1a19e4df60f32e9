"""The functions of a VAE that leave Python: deterministic, with named tensors and a free batch axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from kerasvae.models import VAE

__all__ = ["Graph", "graphs"]


class Graph(NamedTuple):
    """One function from a tensor to named tensors.

    Attributes:
        input: Name, dtype and shape of its argument; the batch axis is free.
        function: A `tf.function` with that signature.
    """

    input: tf.TensorSpec
    function: Any


def graphs(model: VAE) -> dict[str, Graph]:
    """The functions that are exported.

    Returns:
        ``encode``: image to the posterior's deterministic outputs (for a normal one mean and stddev);
        ``decode``: z to reconstruction; ``reconstruct``: image to the reconstruction from the code that stands for it.
    """
    image = tf.TensorSpec((None, *model.data_shape), tf.float32, name="image")
    z = tf.TensorSpec((None, model.latent_size), tf.float32, name="z")

    def encode(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return model.encode_tensors(image)

    def decode(z: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"reconstruction": model.decode_tensors(z)}

    def reconstruct(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"reconstruction": model.decode_tensors(model.posterior.center(model.encode_tensors(image)))}

    def graph(spec: tf.TensorSpec, function: Callable[..., dict[str, tf.Tensor]]) -> Graph:
        return Graph(spec, tf.function(function, input_signature=[spec]))

    return {"encode": graph(image, encode), "decode": graph(z, decode), "reconstruct": graph(image, reconstruct)}
