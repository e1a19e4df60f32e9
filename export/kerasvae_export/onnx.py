"""ONNX graphs of encoder and decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import tensorflow as tf
import tf2onnx
from onnx import compose, helper

from kerasvae.models import VAE
from kerasvae_export.channels_first import NotKnownError, network_graph
from kerasvae_export.graphs import Graph

__all__ = ["OPSET", "decoder_graph", "encoder_graph", "write_onnx"]

OPSET = 18
"""The highest operator set that tf2onnx 1.17 writes."""
IR_VERSION = 10
"""Of the file format: what engines of 2024 read."""


def encoder_graph(model: VAE, whole: Graph) -> onnx.ModelProto:
    """Image, and covariates where the model takes them, to the posterior's deterministic outputs.

    Args:
        model: The model.
        whole: The same as one function, from `kerasvae_export.graphs.graphs`; converted by tf2onnx where the encoder
            has a layer that `kerasvae_export.channels_first` does not know.
    """
    return _assembled(model, model.encoder, "image", model.outputs, whole)


def decoder_graph(model: VAE, whole: Graph) -> onnx.ModelProto:
    """Code, and covariates where the model takes them, to the reconstruction; see `encoder_graph`."""
    return _assembled(model, model.decoder, "z", lambda made: {"reconstruction": model.likelihood.mean(made)}, whole)


def write_onnx(proto: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
    """Check a graph against the ONNX specification and write it.

    Args:
        proto: From `encoder_graph` or `decoder_graph`.
        path: The file to write.
        metadata: Entries of the model's metadata.
    """
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    proto.ir_version = IR_VERSION
    _drop_unused_operator_sets(proto)
    helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def _assembled(
    model: VAE, network: Any, main: str, after: Callable[[tf.Tensor], dict[str, tf.Tensor]], whole: Graph
) -> onnx.ModelProto:
    """Covariates' coding, the network with channels first, and what follows it, joined."""
    names = [main] if model.coding is None else [main, "condition"]
    try:
        core = network_graph(network, names, "network_output")
    except NotKnownError:
        return _converted(whole.function, whole.inputs)
    proto = helper.make_model(core, opset_imports=[helper.make_opsetid("", OPSET)])
    made = tf.TensorSpec((None, *network.output_shape[1:]), tf.float32, name="network_output")
    proto = _joined(proto, _converted(tf.function(after, input_signature=[made]), [made]), "after", ["network_output"])
    if model.coding is not None:
        given = next(spec for spec in whole.inputs if spec.name == "covariates")
        coding = tf.function(lambda covariates: {"condition": model.coding(covariates)}, input_signature=[given])
        proto = _joined(_converted(coding, [given]), proto, "before", ["condition"])
    return proto


def _converted(function: Any, inputs: list[tf.TensorSpec]) -> onnx.ModelProto:
    return tf2onnx.convert.from_function(function, input_signature=inputs, opset=OPSET)[0]


def _joined(first: onnx.ModelProto, second: onnx.ModelProto, name: str, through: list[str]) -> onnx.ModelProto:
    """Two graphs as one; inputs and outputs keep their names, all else gets one of its own."""
    for proto in (first, second):
        proto.ir_version = IR_VERSION
        _drop_unused_operator_sets(proto)
    first, second = (
        compose.add_prefix(proto, f"{name}{i}/", rename_inputs=False, rename_outputs=False)
        for i, proto in enumerate((first, second))
    )
    return compose.merge_models(first, second, io_map=[(each, each) for each in through])


def _drop_unused_operator_sets(proto: onnx.ModelProto) -> None:
    """Import a domain once, and only where a node is of it: some engines refuse domains that they do not know."""
    used = {node.domain for node in proto.graph.node}
    kept = list({entry.domain: entry for entry in proto.opset_import if entry.domain in used}.values())
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
