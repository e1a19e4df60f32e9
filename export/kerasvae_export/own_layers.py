"""Layers of kerasvae as ONNX nodes; see `channels_first`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.networks.box import Crop, Pad
from kerasvae.networks.linear import Gate, Spread
from kerasvae.networks.norm import GroupNorm
from kerasvae.networks.refine import MAPS, SOFT, Refine
from kerasvae.networks.spline import SplineDown, SplineUp
from kerasvae_export.keras_layers import convolved, group_normalised
from kerasvae_export.onnx_builder import Graph, Layout, Value, activated, axes_of, registry, sliced

__all__ = ["OWN_LAYERS"]

OWN_LAYERS, writes = registry()


@writes(Crop)
def _crop(graph: Graph, layer: Crop, given: list[Value]) -> Value:
    x = graph.plain(given[0])
    return Value(sliced(graph, x.name, layer.box, 1), tuple(stop - start for start, stop in layer.box))


@writes(Pad)
def _pad(graph: Graph, layer: Pad, given: list[Value]) -> Value:
    x = graph.plain(given[0])
    before = [start for start, _ in layer.box]
    after = [size - stop for (_, stop), size in zip(layer.box, layer.data_shape, strict=True)]
    return Value(graph.add("Pad", [x.name, graph.constant([0, *before, 0, *after], np.int64)]), layer.data_shape)


@writes(Gate)
def _gate(graph: Graph, layer: Gate, given: list[Value]) -> Value:
    x = graph.plain(given[0]) if len(given[0].shape) == 1 else given[0]
    return x.named(graph.add("Mul", [x.name, graph.per_channel(layer.gate, x)]))


@writes(GroupNorm)
def _group_norm(graph: Graph, layer: GroupNorm, given: list[Value]) -> Value:
    return group_normalised(graph, given[0], layer.groups, layer.epsilon, layer.gamma, layer.beta)


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
    layout: Layout = "slices" if len(x.shape) == 3 else "first"
    axes = axes_of(layout, len(x.shape))
    seen = [graph.reshape(each, [(*x.shape, 1)[axis] for axis in axes]) for each in (deviation, relative)]
    name = graph.add("Concat", seen, axis=1 + axes.index(len(x.shape)))
    kernel = np.moveaxis(np.asarray(layer.first.kernel), (-1, -2), (0, 1))
    features = Value(name, (*x.shape, 2), layout)
    own = convolved(graph, layer.first, features, kernel[:, :-MAPS], np.asarray(layer.first.bias))
    shared = Value(graph.constant(maps.transpose(axes)[None]), maps.shape, layout)
    constant = convolved(graph, layer.first, shared, kernel[:, -MAPS:], None)
    made = own.named(graph.add("Add", [own.name, constant.name]))
    for dense in (*layer.hidden, layer.last):
        made = _mixed(graph, activated(graph, made, layer.activate), np.asarray(dense.kernel), np.asarray(dense.bias))
    correction = graph.add("Mul", [graph.reshape(made.name, x.shape), graph.constant(inside * unit)])
    return Value(graph.add("Add", [x.name, correction]), x.shape)


def _mixed(graph: Graph, x: Value, kernel: NDArray[Any], bias: NDArray[Any]) -> Value:
    """A dense layer on the channels of every place: kernel (in, out)."""
    sizes, out = x.shape[:-1], kernel.shape[1]
    name = x.name if x.layout == "first" else graph.reshape(x.name, [len(kernel), *sizes[1:]])
    weights = kernel.T[(..., *[None] * (len(sizes) - (x.layout == "slices")))]
    name = graph.add("Conv", [name, graph.constant(weights), graph.constant(bias)])
    shape = (*sizes, out)
    if x.layout == "slices":
        name = graph.reshape(name, [shape[axis] for axis in x.axes])
    return Value(name, shape, x.layout)


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
