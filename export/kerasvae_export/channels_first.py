"""Keras networks as ONNX graphs with channels before the spatial axes, as ONNX Runtime computes them.

A graph that repeats Keras's order of axes spends most of its time on transposes: ONNX convolves (batch, channels, x, y,
z), Keras (batch, x, y, z, channels). Here a network is written layer by layer in ONNX's order. Where channels and
places are joined to a vector or taken out of one, the rows or columns of the dense layer beside it are put in the
other order instead. Group normalisation becomes one normalisation of (batch, groups, rest).

A network with a layer that is not known here raises `NotKnownError`, and is left to tf2onnx.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from kerasvae.networks.box import Crop, Pad
from kerasvae.networks.linear import Gate, Spread
from kerasvae.networks.refine import MAPS, SOFT, Refine
from kerasvae.networks.spline import SplineDown, SplineUp

__all__ = ["NotKnownError", "network_graph"]


class NotKnownError(Exception):
    """A layer, or a setting of one, that this module does not write."""


@dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    Attributes:
        name: In the graph.
        shape: As Keras has it, without the batch axis; channels last where it has any.
        first: Whether the graph holds it with channels first.
        order: Of a vector: the place in Keras of each element of the graph's, or None where they are the same.
    """

    name: str
    shape: tuple[int, ...]
    first: bool = False
    order: NDArray[np.int64] | None = None


class Graph:
    """Nodes and constants under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.dense: dict[str, tuple[Value, Any]] = {}
        """Input and layer by the output of each dense layer, and by what it was reshaped to."""

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """Name of a constant."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(values, dtype=dtype)
        return name

    def add(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Name of the output of a new node."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        """Reshape all but the batch axis."""
        return self.add("Reshape", [name, self.constant([-1 if -1 not in shape else 0, *shape], np.int64)])

    def plain(self, value: Value) -> Value:
        """The value in Keras's order."""
        if value.order is not None:
            back = np.argsort(value.order)
            return Value(self.add("Gather", [value.name, self.constant(back, np.int64)], axis=1), value.shape)
        if not value.first:
            return value
        rank = len(value.shape)
        if value.shape[-1] == 1 or math.prod(value.shape[:-1]) == 1:
            return Value(self.reshape(value.name, value.shape), value.shape)
        return Value(self.add("Transpose", [value.name], perm=[0, *range(2, rank + 1), 1]), value.shape)

    def first(self, value: Value) -> Value:
        """The value with channels first."""
        value = value if value.first else self.plain(value)
        if value.first or len(value.shape) < 2:
            return value
        if value.name in self.dense:  # a vector that becomes features is made in the graph's order at once
            before, layer = self.dense[value.name]
            order = np.moveaxis(np.arange(math.prod(value.shape)).reshape(value.shape), -1, 0).ravel()
            made = _product(self, before, layer, order)
            return Value(self.reshape(made.name, [value.shape[-1], *value.shape[:-1]]), value.shape, True)
        rank, turned = len(value.shape), (value.shape[-1], *value.shape[:-1])
        if value.shape[-1] == 1 or math.prod(value.shape[:-1]) == 1:
            return Value(self.reshape(value.name, turned), value.shape, True)
        return Value(self.add("Transpose", [value.name], perm=[0, rank, *range(1, rank)]), value.shape, True)


Handler = Callable[[Graph, Any, list[Value]], Value]
HANDLERS: dict[type, Handler] = {}


def writes(*kinds: type) -> Callable[[Handler], Handler]:
    """Register the function that writes layers of these classes."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(kinds, handler))
        return handler

    return register


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
    for depth in sorted(network._nodes_by_depth, reverse=True):
        for node in network._nodes_by_depth[depth]:
            if node.is_input:
                continue
            given = [known[id(tensor)] for tensor in node.input_tensors]
            made = _write(graph, node, given)
            known.update({id(tensor): value for tensor, value in zip(node.outputs, made, strict=True)})
    return [known[id(tensor)] for tensor in network.outputs]


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
    return Value(_sliced(graph, graph.plain(x).name, [(start, stop)], 1), (stop - start,))


# --- layers of Keras ---------------------------------------------------------------------------------

_L = keras.layers


@writes(_L.Dropout, _L.SpatialDropout1D, _L.SpatialDropout2D, _L.SpatialDropout3D, _L.GaussianNoise, _L.Identity)
def _same(graph: Graph, layer: Any, given: list[Value]) -> Value:
    """Nothing at inference."""
    return given[0]


@writes(_L.Dense)
def _dense(graph: Graph, layer: Any, given: list[Value]) -> Value:
    (x,) = given
    if len(x.shape) != 1:
        raise NotKnownError(f"a dense layer on {len(x.shape)} axes")
    made = _product(graph, x, layer)
    graph.dense[made.name] = (x, layer)
    return made


def _product(graph: Graph, x: Value, layer: Any, order: NDArray[np.int64] | None = None) -> Value:
    """A dense layer, its columns in an order of their own where one is given."""
    kernel = np.asarray(layer.kernel)
    bias = np.asarray(layer.bias) if layer.use_bias else np.zeros(layer.units, np.float32)
    if order is not None:
        kernel, bias = kernel[:, order], bias[order]
    kernel = kernel if x.order is None else kernel[x.order]
    name = graph.add("Gemm", [x.name, graph.constant(kernel), graph.constant(bias)])
    return _activated(graph, Value(name, (kernel.shape[1],)), layer.activation)


@writes(_L.Flatten)
def _flatten(graph: Graph, layer: Any, given: list[Value]) -> Value:
    (x,) = given
    size = math.prod(x.shape)
    order = None
    if x.first and 1 not in (x.shape[-1], math.prod(x.shape[:-1])):
        order = np.moveaxis(np.arange(size).reshape(x.shape), -1, 0).ravel()
    elif x.order is not None:
        x = graph.plain(x)
    return Value(graph.reshape(x.name, [size]), (size,), order=order)


@writes(_L.Reshape)
def _reshape(graph: Graph, layer: Any, given: list[Value]) -> Value:
    (x,) = given
    shape = tuple(int(n) for n in layer.compute_output_shape((None, *x.shape))[1:])
    made = Value(graph.reshape(graph.plain(x).name, shape), shape)
    if x.name in graph.dense:
        graph.dense[made.name] = graph.dense[x.name]
    return made


@writes(_L.Concatenate)
def _concatenate(graph: Graph, layer: Any, given: list[Value]) -> Value:
    if any(len(x.shape) != 1 for x in given):
        if layer.axis not in (-1, len(given[0].shape)):
            raise NotKnownError("a concatenation along places")
        given = [graph.first(x) for x in given]
        shape = (*given[0].shape[:-1], sum(x.shape[-1] for x in given))
        return Value(graph.add("Concat", [x.name for x in given], axis=1), shape, True)
    starts = np.cumsum([0, *(x.shape[0] for x in given)])
    orders = [np.arange(x.shape[0]) if x.order is None else x.order for x in given]
    order = np.concatenate([start + o for start, o in zip(starts, orders, strict=False)])
    name = graph.add("Concat", [x.name for x in given], axis=1)
    return Value(name, (int(starts[-1]),), order=None if all(x.order is None for x in given) else order)


@writes(_L.Add, _L.Multiply, _L.Subtract)
def _joined(graph: Graph, layer: Any, given: list[Value]) -> Value:
    kind = {_L.Add: "Add", _L.Multiply: "Mul", _L.Subtract: "Sub"}[type(layer)]
    alike = [graph.first(x) for x in given] if any(x.first for x in given) else [graph.plain(x) for x in given]
    name, *others = [x.name for x in alike]
    for other in others:
        name = graph.add(kind, [name, other])
    shape = tuple(int(n) for n in np.broadcast_shapes(*(x.shape for x in alike)))
    return Value(name, shape, alike[0].first)


@writes(_L.Activation)
def _activation(graph: Graph, layer: Any, given: list[Value]) -> Value:
    return _activated(graph, given[0], layer.activation)


@writes(_L.ReLU)
def _relu(graph: Graph, layer: Any, given: list[Value]) -> Value:
    if layer.max_value is not None or layer.threshold or layer.negative_slope:
        raise NotKnownError("a ReLU with limits")
    return _activated(graph, given[0], keras.activations.relu)


@writes(_L.LeakyReLU)
def _leaky(graph: Graph, layer: Any, given: list[Value]) -> Value:
    (x,) = given
    return Value(graph.add("LeakyRelu", [x.name], alpha=float(layer.negative_slope)), x.shape, x.first, x.order)


_SIMPLE = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softplus": "Softplus", "elu": "Elu", "selu": "Selu"}


def _activated(graph: Graph, x: Value, activation: Any) -> Value:
    name = getattr(activation, "__name__", "linear") if activation is not None else "linear"
    if activation is not None and getattr(keras.activations, name, None) is not activation:
        raise NotKnownError(f"the activation {name!r}")
    if name == "linear":
        return x
    if name == "silu":
        made = graph.add("Mul", [x.name, graph.add("Sigmoid", [x.name])])
    elif name in _SIMPLE:
        made = graph.add(_SIMPLE[name], [x.name])
    else:
        raise NotKnownError(f"the activation {name!r}")
    return Value(made, x.shape, x.first, x.order)


@writes(_L.Conv1D, _L.Conv2D, _L.Conv3D)
def _convolution(graph: Graph, layer: Any, given: list[Value]) -> Value:
    _check_convolution(layer)
    x = graph.first(given[0])
    kernel = np.moveaxis(np.asarray(layer.kernel), (-1, -2), (0, 1))
    return _convolved(graph, layer, x, kernel, np.asarray(layer.bias) if layer.use_bias else None)


def _convolved(graph: Graph, layer: Any, x: Value, kernel: NDArray[Any], bias: NDArray[Any] | None) -> Value:
    sizes, strides, dilations = x.shape[:-1], layer.strides, layer.dilation_rate
    spans = [(k - 1) * d + 1 for k, d in zip(kernel.shape[2:], dilations, strict=True)]
    if layer.padding == "same":
        made = [-(-n // s) for n, s in zip(sizes, strides, strict=True)]
        surplus = [max((m - 1) * s + k - n, 0) for m, s, k, n in zip(made, strides, spans, sizes, strict=True)]
    else:
        made = [(n - k) // s + 1 for n, k, s in zip(sizes, spans, strides, strict=True)]
        surplus = [0] * len(sizes)
    pads = [p // 2 for p in surplus] + [p - p // 2 for p in surplus]
    inputs = [x.name, graph.constant(kernel), *([] if bias is None else [graph.constant(bias)])]
    options = {"strides": list(strides), "dilations": list(dilations), "pads": pads, "group": layer.groups}
    result = Value(graph.add("Conv", inputs, **options), (*made, kernel.shape[0]), True)
    return _activated(graph, result, layer.activation)


@writes(_L.Conv1DTranspose, _L.Conv2DTranspose, _L.Conv3DTranspose)
def _transposed(graph: Graph, layer: Any, given: list[Value]) -> Value:
    _check_convolution(layer)
    if layer.output_padding is not None or layer.padding != "same" or set(layer.dilation_rate) != {1}:
        raise NotKnownError("a transposed convolution with such padding")
    x = graph.first(given[0])
    kernel = np.moveaxis(np.asarray(layer.kernel), (-1, -2), (0, 1))  # (in, out, …)
    made = [n * s for n, s in zip(x.shape[:-1], layer.strides, strict=True)]
    # what the forward convolution would pad: TensorFlow puts the odd one behind
    surplus = [max(k - s, 0) for k, s in zip(kernel.shape[2:], layer.strides, strict=True)]
    before = [p // 2 for p in surplus]
    whole = [(n - 1) * s + k for n, s, k in zip(x.shape[:-1], layer.strides, kernel.shape[2:], strict=True)]
    after = [w - m - b for w, m, b in zip(whole, made, before, strict=True)]
    extra = [max(-a, 0) for a in after]
    options = {"strides": list(layer.strides), "pads": before + [max(a, 0) for a in after], "output_padding": extra}
    inputs = [x.name, graph.constant(kernel)] + ([graph.constant(np.asarray(layer.bias))] if layer.use_bias else [])
    result = Value(graph.add("ConvTranspose", inputs, **options), (*made, layer.filters), True)
    return _activated(graph, result, layer.activation)


def _check_convolution(layer: Any) -> None:
    if layer.data_format != "channels_last" or layer.padding not in ("same", "valid"):
        raise NotKnownError(f"a convolution with {layer.data_format} and padding {layer.padding!r}")


@writes(_L.GroupNormalization)
def _group_normalisation(graph: Graph, layer: Any, given: list[Value]) -> Value:
    x = graph.first(given[0])
    channels = x.shape[-1]
    groups = channels if layer.groups == -1 else layer.groups
    if layer.axis not in (-1, len(x.shape)):
        raise NotKnownError("a group normalisation along places")
    rows = graph.add("Reshape", [x.name, graph.constant([0, groups, -1], np.int64)])
    ones, zeros = graph.constant(np.ones(groups)), graph.constant(np.zeros(groups))
    even = graph.add("InstanceNormalization", [rows, ones, zeros], epsilon=float(layer.epsilon))
    name = graph.reshape(even, [channels, *x.shape[:-1]])
    broad = (channels, *[1] * (len(x.shape) - 1))
    if layer.scale:
        name = graph.add("Mul", [name, graph.constant(np.asarray(layer.gamma).reshape(broad))])
    if layer.center:
        name = graph.add("Add", [name, graph.constant(np.asarray(layer.beta).reshape(broad))])
    return Value(name, x.shape, True)


@writes(_L.BatchNormalization)
def _batch_normalisation(graph: Graph, layer: Any, given: list[Value]) -> Value:
    """A line for each channel at inference."""
    x = given[0] if len(given[0].shape) == 1 else graph.first(given[0])
    if layer.axis not in (-1, len(x.shape)):
        raise NotKnownError("a batch normalisation along places")
    slope = 1 / np.sqrt(np.asarray(layer.moving_variance) + layer.epsilon)
    slope = slope * np.asarray(layer.gamma) if layer.scale else slope
    shift = (np.asarray(layer.beta) if layer.center else 0) - np.asarray(layer.moving_mean) * slope
    if x.order is not None:
        slope, shift = slope[x.order], shift[x.order]
    broad = (-1, *[1] * (len(x.shape) - 1))
    name = graph.add("Mul", [x.name, graph.constant(slope.reshape(broad))])
    return Value(graph.add("Add", [name, graph.constant(shift.reshape(broad))]), x.shape, x.first, x.order)


@writes(_L.Cropping1D, _L.Cropping2D, _L.Cropping3D)
def _cropping(graph: Graph, layer: Any, given: list[Value]) -> Value:
    x = graph.first(given[0])
    crops = [layer.cropping] if isinstance(layer.cropping[0], int) else layer.cropping
    ends = [(low, n - high) for (low, high), n in zip(crops, x.shape[:-1], strict=True)]
    name = _sliced(graph, x.name, ends, 2)
    return Value(name, (*(stop - start for start, stop in ends), x.shape[-1]), True)


def _sliced(graph: Graph, name: str, ends: Sequence[tuple[int, int]], axis: int) -> str:
    """Slices along the axes from `axis` on."""
    starts, stops = zip(*ends, strict=True)
    axes = list(range(axis, axis + len(ends)))
    return graph.add("Slice", [name, *(graph.constant(each, np.int64) for each in (starts, stops, axes))])


# --- layers of kerasvae ------------------------------------------------------------------------------


@writes(Crop)
def _crop(graph: Graph, layer: Crop, given: list[Value]) -> Value:
    x = graph.plain(given[0])
    return Value(_sliced(graph, x.name, layer.box, 1), tuple(stop - start for start, stop in layer.box))


@writes(Pad)
def _pad(graph: Graph, layer: Pad, given: list[Value]) -> Value:
    x = graph.plain(given[0])
    before = [start for start, _ in layer.box]
    after = [size - stop for (_, stop), size in zip(layer.box, layer.data_shape, strict=True)]
    return Value(graph.add("Pad", [x.name, graph.constant([0, *before, 0, *after], np.int64)]), layer.data_shape)


@writes(Gate)
def _gate(graph: Graph, layer: Gate, given: list[Value]) -> Value:
    x = graph.first(given[0]) if len(given[0].shape) > 1 else graph.plain(given[0])
    gate = np.asarray(layer.gate).reshape(-1, *[1] * (len(x.shape) - 1))
    return Value(graph.add("Mul", [x.name, graph.constant(gate)]), x.shape, x.first)


@writes(Spread)
def _spread(graph: Graph, layer: Spread, given: list[Value]) -> Value:
    mean, *residual = [graph.plain(x) for x in given]
    zeros = graph.add("Mul", [mean.name, graph.constant(np.zeros(1))])
    raw = graph.add("Add", [zeros, graph.constant(np.asarray(layer.bias))])
    name = graph.add("Concat", [mean.name, raw], axis=1)
    if residual:
        name = graph.add("Add", [name, residual[0].name])
    return Value(name, (2 * mean.shape[0],))


@writes(Refine)
def _refine(graph: Graph, layer: Refine, given: list[Value]) -> Value:
    x = graph.plain(given[0])
    maps, unit = np.asarray(layer.maps), float(layer.unit)
    stddev, inside = maps[..., 1], maps[..., 2]
    moved = graph.add("Sub", [x.name, graph.constant(np.asarray(layer.mean))])
    deviation = graph.add("Mul", [moved, graph.constant(inside / unit)])
    relative = graph.add("Mul", [deviation, graph.constant(1 / (stddev + SOFT))])
    seen = [graph.reshape(each, [1, *x.shape]) for each in (deviation, relative)]
    features = Value(graph.add("Concat", seen, axis=1), (*x.shape, 2), True)
    kernel = np.moveaxis(np.asarray(layer.first.kernel), (-1, -2), (0, 1))
    own = _convolved(graph, layer.first, features, kernel[:, :-MAPS], np.asarray(layer.first.bias))
    shared = graph.constant(np.moveaxis(maps, -1, 0)[None])
    constant = _convolved(graph, layer.first, Value(shared, maps.shape, True), kernel[:, -MAPS:], None)
    made = Value(graph.add("Add", [own.name, constant.name]), own.shape, True)
    for dense in (*layer.hidden, layer.last):
        made = _activated(graph, made, layer.activate)
        weights = np.asarray(dense.kernel).T[(..., *[None] * len(x.shape))]
        inputs = [made.name, graph.constant(weights), graph.constant(np.asarray(dense.bias))]
        made = Value(graph.add("Conv", inputs), (*x.shape, weights.shape[0]), True)
    correction = graph.add("Mul", [graph.reshape(made.name, x.shape), graph.constant(inside * unit)])
    return Value(graph.add("Add", [x.name, correction]), x.shape)


@writes(SplineDown)
def _spline_down(graph: Graph, layer: SplineDown, given: list[Value]) -> Value:
    x = graph.plain(given[0])
    masked = graph.add("Mul", [x.name, graph.constant(layer.mask)])
    return _along(graph, Value(masked, x.shape), [basis.T for basis in layer.bases])


@writes(SplineUp)
def _spline_up(graph: Graph, layer: SplineUp, given: list[Value]) -> Value:
    made = _along(graph, graph.plain(given[0]), layer.bases)
    masked = graph.add("Mul", [made.name, graph.constant(layer.mask)])
    return Value(graph.add("Add", [masked, graph.constant(np.asarray(layer.mean))]), made.shape)


def _along(graph: Graph, x: Value, matrices: Sequence[NDArray[Any]]) -> Value:
    """A matrix along each axis; see `kerasvae.networks.spline.along`."""
    name, sizes = x.name, list(x.shape)
    for axis, matrix in enumerate(matrices):
        rows = graph.add("Reshape", [name, graph.constant([-1, sizes[axis], math.prod(sizes[axis + 1 :])], np.int64)])
        sizes[axis] = len(matrix)
        made = graph.add("MatMul", [graph.constant(matrix), rows])
        name = graph.add("Reshape", [made, graph.constant([-1, *sizes], np.int64)])
    return Value(name, tuple(sizes))
