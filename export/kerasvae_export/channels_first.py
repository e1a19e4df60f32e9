"""Keras networks as ONNX graphs with channels before the spatial axes, as ONNX Runtime computes them.

A graph that repeats Keras's order of axes spends most of its time on transposes: ONNX convolves (batch, channels, x, y,
z), Keras (batch, x, y, z, channels). Here a network is written layer by layer in ONNX's order. Where channels and
places are joined to a vector or taken out of one, the rows or columns of the dense layer beside it are put in the
other order instead. Group normalisation becomes one normalisation of (batch, groups, rest). A volume of one channel is
convolved as slices, two-dimensionally, each with its neighbours as channels. Where the last doubling of a decoder is
followed by a convolution to one channel, both are computed on the smaller lattice: see `halves`.

A network with a layer that is not known here raises `NotKnownError`, and is left to tf2onnx.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import onnx
from onnx import TensorProto, helper, numpy_helper

from kerasvae_export.halves import doubling_chain, write_chain
from kerasvae_export.keras_layers import KERAS_LAYERS
from kerasvae_export.onnx_builder import Graph, NotKnownError, Value, sliced
from kerasvae_export.own_layers import OWN_LAYERS

__all__ = ["NotKnownError", "network_graph"]

HANDLERS = KERAS_LAYERS | OWN_LAYERS


def network_graph(network: keras.Model, names: Sequence[str], output: str) -> onnx.GraphProto:
    """Write a functional model with one output.

    Args:
        network: A Keras functional model of float32.
        names: Of its inputs, in their order.
        output: Name of its output, which is in Keras's order.

    Raises:
        NotKnownError: If it has a layer that cannot be written.
    """
    graph = Graph()
    inputs = [Value(name, tuple(int(n) for n in x.shape[1:])) for name, x in zip(names, network.inputs, strict=True)]
    (result,) = _walk(graph, network, inputs)
    result = graph.plain(result)
    graph.nodes.append(helper.make_node("Identity", [result.name], [output]))
    nodes = _used(graph.nodes, output)
    wanted = {name for node in nodes for name in node.input}
    return helper.make_graph(
        nodes,
        network.name,
        [_declared(value.name, value.shape) for value in inputs],
        [_declared(output, result.shape)],
        [numpy_helper.from_array(values, name) for name, values in graph.constants.items() if name in wanted],
    )


def _declared(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])


def _used(nodes: list[onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    """The nodes that the output depends on, in order."""
    needed, kept = {output}, []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    return kept[::-1]


def _walk(graph: Graph, network: keras.Model, inputs: list[Value]) -> list[Value]:
    """Values of a functional model's outputs."""
    network = getattr(network, "_functional", network)  # what a sequential model holds
    if not hasattr(network, "_nodes_by_depth"):
        raise NotKnownError(f"{type(network).__name__}, which is no functional model")
    known = {id(tensor): value for tensor, value in zip(network.inputs, inputs, strict=True)}
    nodes = [node for depth in sorted(network._nodes_by_depth, reverse=True) for node in network._nodes_by_depth[depth]]
    consumers = _consumers(network, nodes)
    written: set[int] = set()
    for node in nodes:
        if node.is_input or id(node) in written:
            continue
        given = [known[id(tensor)] for tensor in node.input_tensors]
        if chain := doubling_chain(node, consumers):
            written.update(map(id, chain))
            known[id(chain[-1].outputs[0])] = write_chain(graph, chain, given[0])
        else:
            made = _write(graph, node, given)
            known.update({id(tensor): value for tensor, value in zip(node.outputs, made, strict=True)})
    return [known[id(tensor)] for tensor in network.outputs]


def _consumers(network: keras.Model, nodes: list[Any]) -> dict[int, list[Any]]:
    """The nodes that take each tensor, by its id; an output of the network is taken by nobody here."""
    found: dict[int, list[Any]] = {}
    for node in nodes:
        for tensor in node.input_tensors:
            found.setdefault(id(tensor), []).append(node)
    return found | {id(tensor): [] for tensor in network.outputs}


def _write(graph: Graph, node: Any, given: list[Value]) -> list[Value]:
    layer = node.operation
    if isinstance(layer, keras.Model):
        return _walk(graph, layer, given)
    if getattr(layer, "compute_dtype", "float32") != "float32":
        raise NotKnownError(f"{layer.compute_dtype} in layer {layer.name!r}")
    if type(layer).__name__ == "GetItem":
        return [_item(graph, given[0], node.arguments.args[1])]
    handler = HANDLERS.get(type(layer))
    if handler is None:
        raise NotKnownError(f"{type(layer).__name__} layer {layer.name!r}")
    return [handler(graph, layer, given)]


def _item(graph: Graph, x: Value, key: Any) -> Value:
    """x[:, start:stop] of a vector."""
    whole, part = key if isinstance(key, tuple) and len(key) == 2 else (None, None)
    if whole != slice(None) or not isinstance(part, slice) or part.step not in (None, 1) or len(x.shape) != 1:
        raise NotKnownError(f"the part {key} of a tensor")
    start, stop, _ = part.indices(x.shape[0])
    return Value(sliced(graph, graph.plain(x).name, [(start, stop)], 1), (stop - start,))
