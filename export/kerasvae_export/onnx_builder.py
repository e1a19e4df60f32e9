"""An ONNX graph under construction, and what writes one layer after another into it; see `channels_first`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import keras
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

__all__ = [
    "Graph",
    "Handlers",
    "Layout",
    "NotKnownError",
    "Value",
    "activated",
    "axes_of",
    "product",
    "registry",
    "sliced",
]


class NotKnownError(Exception):
    """A layer, or a setting of one, that this module does not write."""


Layout = Literal["last", "first", "slices"]
"""Where a tensor has its channels: after the axes of space, before them, or after the first of them. The last is for
volumes as slices: what is done to a slice is done to (batch · x, channels, y, z), as to so many images."""


def axes_of(layout: Layout, rank: int) -> list[int]:
    """Keras's axes, without the batch's, in the order that a layout has them; the channels' is number `rank`."""
    space = list(range(rank))
    return {"last": [*space, rank], "first": [rank, *space], "slices": [0, rank, *space[1:]]}[layout]


@dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    Attributes:
        name: In the graph.
        shape: As Keras has it, without the batch axis; channels last where it has any.
        layout: As the graph has it.
        order: Of a vector: the place in Keras of each element of the graph's, or None where they are the same.
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout = "last"
    order: NDArray[np.int64] | None = None

    @property
    def axes(self) -> list[int]:
        """Keras's axes in the graph's order."""
        return axes_of(self.layout, len(self.shape) - 1)

    @property
    def channels(self) -> int:
        """Place of the channels among the graph's axes, the batch's being 0."""
        return 1 + self.axes.index(len(self.shape) - 1)

    def named(self, name: str) -> Value:
        """What was done to each number, or to each channel."""
        return replace(self, name=name)


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

    def per_channel(self, values: Any, x: Value) -> str:
        """A constant with a number for each channel of a value."""
        rank = len(x.shape) - 1
        return self.constant(np.reshape(values, [-1 if axis == rank else 1 for axis in x.axes]))

    def plain(self, value: Value) -> Value:
        """The value in Keras's order."""
        return self.turned(value, "last")

    def first(self, value: Value) -> Value:
        """The value with channels first."""
        return self.turned(value, "first")

    def turned(self, value: Value, layout: Layout) -> Value:
        """The value in a layout."""
        if value.order is not None:
            back = np.argsort(value.order)
            value = Value(self.add("Gather", [value.name, self.constant(back, np.int64)], axis=1), value.shape)
        if value.layout == layout or len(value.shape) < 2:
            return value
        shape, target = value.shape, axes_of(layout, len(value.shape) - 1)
        sizes = [shape[axis] for axis in target]
        if value.layout == "last" and value.name in self.dense:
            # a vector that becomes features is made in the graph's order at once
            before, layer = self.dense[value.name]
            order = np.arange(math.prod(shape)).reshape(shape).transpose(target).ravel()
            return Value(self.reshape(product(self, before, layer, order).name, sizes), shape, layout)
        if [axis for axis in target if shape[axis] > 1] == [axis for axis in value.axes if shape[axis] > 1]:
            return Value(self.reshape(value.name, sizes), shape, layout)
        perm = [0, *(1 + value.axes.index(axis) for axis in target)]
        return Value(self.add("Transpose", [value.name], perm=perm), shape, layout)


Handler = Callable[[Graph, Any, list[Value]], Value]
Handlers = dict[type, Handler]


def registry() -> tuple[Handlers, Callable[..., Callable[[Handler], Handler]]]:
    """Functions that write layers, by class, and the decorator that puts one there for some classes."""
    handlers: Handlers = {}

    def writes(*kinds: type) -> Callable[[Handler], Handler]:
        def register(handler: Handler) -> Handler:
            handlers.update(dict.fromkeys(kinds, handler))
            return handler

        return register

    return handlers, writes


def product(graph: Graph, x: Value, layer: Any, order: NDArray[np.int64] | None = None) -> Value:
    """A dense layer, its columns in an order of their own where one is given."""
    kernel = np.asarray(layer.kernel)
    bias = np.asarray(layer.bias) if layer.use_bias else np.zeros(layer.units, np.float32)
    if order is not None:
        kernel, bias = kernel[:, order], bias[order]
    kernel = kernel if x.order is None else kernel[x.order]
    name = graph.add("Gemm", [x.name, graph.constant(kernel), graph.constant(bias)])
    return activated(graph, Value(name, (kernel.shape[1],)), layer.activation)


_SIMPLE = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softplus": "Softplus", "elu": "Elu", "selu": "Selu"}


def activated(graph: Graph, x: Value, activation: Any) -> Value:
    """An activation of Keras, None being the identity."""
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
    return x.named(made)


def sliced(graph: Graph, name: str, ends: Sequence[tuple[int, int]], axis: int, step: int = 1) -> str:
    """Slices along the axes from `axis` on."""
    starts, stops = zip(*ends, strict=True)
    parts = (starts, stops, range(axis, axis + len(ends)), [step] * len(ends))
    return graph.add("Slice", [name, *(graph.constant(list(part), np.int64) for part in parts[: 3 + (step > 1)])])
