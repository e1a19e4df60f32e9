"""Layers of Keras as ONNX nodes; see `channels_first`."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasvae_export.onnx_builder import Graph, Layout, NotKnownError, Value, activated, product, registry, sliced

__all__ = ["KERAS_LAYERS", "convolved", "crops_of", "group_normalised"]

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
    if len(x.shape) < 2:
        return graph.plain(x)
    order = np.arange(size).reshape(x.shape).transpose(x.axes).ravel()
    return Value(graph.reshape(x.name, [size]), (size,), order=None if (np.diff(order) == 1).all() else order)


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
        given = [graph.turned(x, "first" if given[0].layout == "last" else given[0].layout) for x in given]
        shape = (*given[0].shape[:-1], sum(x.shape[-1] for x in given))
        name = graph.add("Concat", [x.name for x in given], axis=given[0].channels)
        return Value(name, shape, given[0].layout)
    starts = np.cumsum([0, *(x.shape[0] for x in given)])
    orders = [np.arange(x.shape[0]) if x.order is None else x.order for x in given]
    order = np.concatenate([start + o for start, o in zip(starts, orders, strict=False)])
    name = graph.add("Concat", [x.name for x in given], axis=1)
    return Value(name, (int(starts[-1]),), order=None if all(x.order is None for x in given) else order)


@writes(_L.Add, _L.Multiply, _L.Subtract)
def _joined(graph: Graph, layer: Any, given: list[Value]) -> Value:
    kind = {_L.Add: "Add", _L.Multiply: "Mul", _L.Subtract: "Sub"}[type(layer)]
    layout: Layout = next((x.layout for x in given if x.layout != "last"), "last")
    alike = [graph.turned(x, layout) for x in given]
    name, *others = [x.name for x in alike]
    for other in others:
        name = graph.add(kind, [name, other])
    shape = tuple(int(n) for n in np.broadcast_shapes(*(x.shape for x in alike)))
    return Value(name, shape, layout)


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
    return x.named(graph.add("LeakyRelu", [x.name], alpha=float(layer.negative_slope)))


@writes(_L.Conv1D, _L.Conv2D, _L.Conv3D)
def _convolution(graph: Graph, layer: Any, given: list[Value]) -> Value:
    _check_convolution(layer)
    (x,) = given
    as_slices = len(x.shape) == 4 and layer.groups == 1 and (x.layout == "slices" or x.shape[-1] == 1)
    x = graph.turned(x, "slices" if as_slices else "first")
    kernel = np.moveaxis(np.asarray(layer.kernel), (-1, -2), (0, 1))
    return convolved(graph, layer, x, kernel, np.asarray(layer.bias) if layer.use_bias else None)


def convolved(graph: Graph, layer: Any, x: Value, kernel: NDArray[Any], bias: NDArray[Any] | None) -> Value:
    """A convolution with the layer's strides, padding and activation.

    Args:
        graph: The graph.
        layer: A convolution of Keras.
        x: With channels first, or a volume as slices.
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
    before = [p // 2 for p in surplus]
    after = [p - b for p, b in zip(surplus, before, strict=True)]

    def conv(name: str, weights: NDArray[Any], added: NDArray[Any] | None, space: slice) -> str:
        inputs = [name, graph.constant(weights), *([] if added is None else [graph.constant(added)])]
        options = {"strides": strides[space], "dilations": dilations[space], "pads": before[space] + after[space]}
        return graph.add("Conv", inputs, group=layer.groups, **options)

    if x.layout != "slices":
        return activated(
            graph, Value(conv(x.name, kernel, bias, slice(None)), (*made, len(kernel)), "first"), layer.activation
        )
    name = ""
    for part, taps in _neighbours(graph, x, made[0], kernel.shape[2], strides[0], dilations[0], before[0]):
        weights = np.moveaxis(kernel[:, :, taps], 2, 1).reshape(len(kernel), -1, *kernel.shape[3:])
        share = conv(part, weights, None if name else bias, slice(1, None))
        name = graph.add("Add", [name, share]) if name else share
    result = Value(name, (*made, len(kernel)), "slices")
    result = result.named(graph.reshape(name, [result.shape[axis] for axis in result.axes]))
    return activated(graph, result, layer.activation)


def _neighbours(
    graph: Graph, x: Value, made: int, reach: int, stride: int, dilation: int, before: int
) -> list[tuple[str, list[int]]]:
    """The slices under the taps of a kernel as channels, (batch · made, taps · channels, y, z), and which taps.

    A tap that is beyond the volume for every slice is left out.
    """
    slices, channels = x.shape[0], x.shape[-1]
    size = channels * math.prod(x.shape[1:-1])
    name, pairs, parts, taps = graph.reshape(x.name, [slices, size]), [], [], []
    if (stride, dilation, before) == (2, 1, 0) and reach >= 2 and slices == 2 * made:
        pairs = [(graph.reshape(x.name, [made, 2 * size]), [0, 1])]  # which lie side by side as it is
    for tap in range(2 * len(pairs), reach):
        start = tap * dilation - before
        low = max(0, -(start // stride))
        count = min((slices - 1 - start) // stride + 1, made) - low
        if count < 1:
            continue
        first = start + low * stride
        part = sliced(graph, name, [(first, first + (count - 1) * stride + 1)], 1, stride)
        if count < made:
            part = graph.add("Pad", [part, graph.constant([0, low, 0, 0, made - low - count, 0], np.int64)])
        parts.append(part)
        taps.append(tap)
    if pairs and channels == 1:  # so small that it is better copied than convolved apart
        parts, taps, pairs = [pairs[0][0], *parts], [*pairs[0][1], *taps], []
    if parts:
        joined = parts[0] if len(parts) == 1 else graph.add("Concat", parts, axis=2)
        pairs = [*pairs, (joined, taps)]
    return [(graph.reshape(each, [len(own) * channels, *x.shape[1:-1]]), own) for each, own in pairs]


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
    result = Value(graph.add("ConvTranspose", inputs, **options), (*made, layer.filters), "first")
    return activated(graph, result, layer.activation)


def _check_convolution(layer: Any) -> None:
    if layer.data_format != "channels_last" or layer.padding not in ("same", "valid"):
        raise NotKnownError(f"a convolution with {layer.data_format} and padding {layer.padding!r}")


@writes(_L.GroupNormalization)
def _group_normalisation(graph: Graph, layer: Any, given: list[Value]) -> Value:
    (x,) = given
    if layer.axis not in (-1, len(x.shape)):
        raise NotKnownError("a group normalisation along places")
    groups = x.shape[-1] if layer.groups == -1 else layer.groups
    gamma, beta = (layer.gamma if layer.scale else None), (layer.beta if layer.center else None)
    return group_normalised(graph, x, groups, layer.epsilon, gamma, beta)


def group_normalised(graph: Graph, x: Value, groups: int, epsilon: float, gamma: Any, beta: Any) -> Value:
    """Each group of channels with mean 0 and variance 1, then times gamma and plus beta, where they are not None."""
    x = x if x.layout == "slices" else graph.first(x)
    channels = x.shape[-1]
    if x.layout == "slices":
        slopes = np.ones(channels) if gamma is None else np.asarray(gamma)
        x = _even_slices(graph, x, slopes.reshape(groups, -1), float(epsilon))
    else:
        rows = graph.add("Reshape", [x.name, graph.constant([0, groups, -1], np.int64)])
        ones, zeros = graph.constant(np.ones(groups)), graph.constant(np.zeros(groups))
        even = graph.add("InstanceNormalization", [rows, ones, zeros], epsilon=float(epsilon))
        x = x.named(graph.reshape(even, [channels, *x.shape[:-1]]))
        if gamma is not None:
            x = x.named(graph.add("Mul", [x.name, graph.per_channel(gamma, x)]))
    return x if beta is None else x.named(graph.add("Add", [x.name, graph.per_channel(beta, x)]))


def _even_slices(graph: Graph, x: Value, gamma: NDArray[Any], epsilon: float) -> Value:
    """A volume of slices, each group of channels with mean 0, then times gamma (groups, channels of a group)."""
    slices, (groups, width), places = x.shape[0], gamma.shape, math.prod(x.shape[1:-1])

    def mean_of(name: str) -> str:
        """Along the slice first, where numbers lie side by side."""
        inner = graph.add("ReduceMean", [name, graph.constant([3], np.int64)])
        return graph.add("ReduceMean", [inner, graph.constant([1], np.int64)])

    rows = graph.reshape(x.name, [slices, groups, width * places])
    moved = graph.add("Sub", [rows, mean_of(rows)])
    squares = mean_of(graph.add("Mul", [moved, moved]))
    stddev = graph.add("Sqrt", [graph.add("Add", [squares, graph.constant(epsilon)])])
    slope = graph.reshape(graph.add("Div", [graph.constant(gamma), stddev]), [1, groups * width, 1, 1])
    return x.named(graph.add("Mul", [graph.reshape(moved, [slices, x.shape[-1], *x.shape[1:-1]]), slope]))


@writes(_L.BatchNormalization)
def _batch_normalisation(graph: Graph, layer: Any, given: list[Value]) -> Value:
    """A line for each channel at inference."""
    (x,) = given
    if layer.axis not in (-1, len(x.shape)):
        raise NotKnownError("a batch normalisation along places")
    slope = 1 / np.sqrt(np.asarray(layer.moving_variance) + layer.epsilon)
    slope = slope * np.asarray(layer.gamma) if layer.scale else slope
    shift = (np.asarray(layer.beta) if layer.center else 0) - np.asarray(layer.moving_mean) * slope
    if x.order is not None:
        slope, shift = slope[x.order], shift[x.order]
    moved = graph.add("Mul", [x.name, graph.per_channel(slope, x)])
    return x.named(graph.add("Add", [moved, graph.per_channel(shift, x)]))


@writes(_L.Cropping1D, _L.Cropping2D, _L.Cropping3D)
def _cropping(graph: Graph, layer: Any, given: list[Value]) -> Value:
    x = graph.first(given[0])
    ends = [(low, n - high) for (low, high), n in zip(crops_of(layer), x.shape[:-1], strict=True)]
    name = sliced(graph, x.name, ends, 2)
    return Value(name, (*(stop - start for start, stop in ends), x.shape[-1]), "first")


def crops_of(layer: Any) -> list[tuple[int, int]]:
    """What a cropping layer takes off before and behind, for each axis."""
    return [layer.cropping] if isinstance(layer.cropping[0], int) else list(layer.cropping)
