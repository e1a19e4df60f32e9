"""The functions of a VAE that leave Python: deterministic, with named tensors and a free batch axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from kerasvae.models import VAE
from kerasvae.preprocess import Pipeline
from kerasvae.scoring import SCORES, Reference
from kerasvae_export.pipeline_graph import preprocess

__all__ = ["Graph", "graphs"]


class Graph(NamedTuple):
    """One function from named tensors to named tensors.

    Attributes:
        inputs: Name, dtype and shape of each argument; the batch axis is free.
        function: A `tf.function` with that signature.
    """

    inputs: list[tf.TensorSpec]
    function: Any


def graphs(model: VAE, pipeline: Pipeline | None = None, reference: Reference | None = None) -> dict[str, Graph]:
    """The functions that are exported.

    Args:
        model: The model.
        pipeline: Its preprocessing; needed for ``encode_nifti``.
        reference: People to place a scan among; needed for ``score``.

    Returns:
        ``encode``: image to the posterior's deterministic outputs (for a normal one mean and stddev);
        ``decode``: z to reconstruction; ``reconstruct``: image to the reconstruction from the code that stands for it.
        with a reference also ``score``: image to how unusual it is, and the percentiles, see `kerasvae.scoring`;
        with a pipeline also ``encode_nifti``: the bytes of files, ``nifti`` (n,), to what ``encode`` gives.
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

    made = {"encode": graph(image, encode), "decode": graph(z, decode), "reconstruct": graph(image, reconstruct)}
    if reference is not None:
        made["score"] = graph(image, _placed(model, reference))
    if pipeline is not None:
        made["encode_nifti"] = graph(tf.TensorSpec((None,), tf.string, name="nifti"), _of_files(encode, pipeline))
    return made


def _placed(model: VAE, reference: Reference) -> Callable[..., dict[str, tf.Tensor]]:
    """Scores, each with its percentile among the people of a reference."""
    center, precision = (tf.constant(each, tf.float64) for each in (reference.center, reference.precision))
    ranked = {name: tf.constant(getattr(reference, name), tf.float32) for name in SCORES}

    def score(image: tf.Tensor, *given: tf.Tensor) -> dict[str, tf.Tensor]:
        found = model.score_tensors(image, *given)
        away = tf.cast(found.pop("center"), tf.float64) - center
        squares = tf.reduce_sum(away * tf.linalg.matmul(away, precision), axis=1)
        found["distance"] = tf.cast(tf.sqrt(tf.maximum(squares, 0)), tf.float32)
        for name in SCORES:
            below, most = (tf.searchsorted(ranked[name], found[name], side) for side in ("left", "right"))
            found[f"{name}_percentile"] = 50 * tf.cast(below + most, tf.float32) / len(ranked[name])
        return found

    return score


def _of_files(encode: Callable[..., dict[str, tf.Tensor]], pipeline: Pipeline) -> Callable[..., dict[str, tf.Tensor]]:
    """The function of preprocessed images as one of files."""
    prepared, made = preprocess(pipeline), tf.TensorSpec(pipeline.grid.shape, tf.float32)

    def encode_nifti(nifti: tf.Tensor, *given: tf.Tensor) -> dict[str, tf.Tensor]:
        return encode(tf.map_fn(prepared, nifti, fn_output_signature=made, parallel_iterations=1), *given)

    return encode_nifti
