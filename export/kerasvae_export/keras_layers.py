"""Layers of Keras as ONNX nodes; see `channels_first`."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasvae_export.onnx_builder import Graph, NotKnownError, Value, activated, product, registry, sliced

__all__ = ["KERAS_LAYERS", "convolved"]

KERAS_LAYERS, writes = registry()
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
    made = product(graph, x, layer)
    graph.dense[made.name] = (x, layer)
    return made


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
    return activated(graph, given[0], layer.activation)


@writes(_L.ReLU)
def _relu(graph: Graph, layer: Any, given: list[Value]) -> Value:
    if layer.max_value is not None or layer.threshold or layer.negative_slope:
        raise NotKnownError("a ReLU with limits")
    return activated(graph, given[0], keras.activations.relu)


@writes(_L.LeakyReLU)
def _leaky(graph: Graph, layer: Any, given: list[Value]) -> Value:
    (x,) = given
    return Value(graph.add("LeakyRelu", [x.name], alpha=float(layer.negative_slope)), x.shape, x.first, x.order)


@writes(_L.Conv1D, _L.Conv2D, _L.Conv3D)
def _convolution(graph: Graph, layer: Any, given: list[Value]) -> Value:
    _check_convolution(layer)
    x = graph.first(given[0])
    kernel = np.moveaxis(np.asarray(layer.kernel), (-1, -2), (0, 1))
    return convolved(graph, layer, x, kernel, np.asarray(layer.bias) if layer.use_bias else None)


def convolved(graph: Graph, layer: Any, x: Value, kernel: NDArray[Any], bias: NDArray[Any] | None) -> Value:
    """A convolution with the layer's strides, padding and activation.

    Args:
        graph: The graph.
        layer: A convolution of Keras.
        x: Channels first.
        kernel: (out, in, …).
        bias: (out,), or None.
    """
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
    return activated(graph, result, layer.activation)


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
    return activated(graph, result, layer.activation)


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
    name = sliced(graph, x.name, ends, 2)
    return Value(name, (*(stop - start for start, stop in ends), x.shape[-1]), True)
