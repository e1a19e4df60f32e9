"""An ONNX graph under construction, and what writes one layer after another into it; see `channels_first`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

__all__ = ["Graph", "Handlers", "NotKnownError", "Value", "activated", "product", "registry", "sliced"]


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
            made = product(self, before, layer, order)
            return Value(self.reshape(made.name, [value.shape[-1], *value.shape[:-1]]), value.shape, True)
        rank, turned = len(value.shape), (value.shape[-1], *value.shape[:-1])
        if value.shape[-1] == 1 or math.prod(value.shape[:-1]) == 1:
            return Value(self.reshape(value.name, turned), value.shape, True)
        return Value(self.add("Transpose", [value.name], perm=[0, rank, *range(1, rank)]), value.shape, True)


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
    return Value(made, x.shape, x.first, x.order)


def sliced(graph: Graph, name: str, ends: Sequence[tuple[int, int]], axis: int) -> str:
    """Slices along the axes from `axis` on."""
    starts, stops = zip(*ends, strict=True)
    axes = list(range(axis, axis + len(ends)))
    return graph.add("Slice", [name, *(graph.constant(each, np.int64) for each in (starts, stops, axes))])
