"""What a SavedModel's graph must not hold, read from its file: Python, compilation that must happen, random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["faults"]

PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
RANDOM = ("Random", "StatelessRandom", "Multinomial", "StatelessMultinomial", "ParameterizedTruncatedNormal")
COMPILED = "_XlaMustCompile"


def faults(folder: Path) -> list[str]:
    """What TF Serving could not run, or would run differently each time; one phrase each.

    Args:
        folder: Of one version of a SavedModel.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    model.ParseFromString((folder / "saved_model.pb").read_bytes())
    used: set[str] = set()
    compiled = False
    for attributes, operation in _operations(model):
        used.add(operation)
        compiled |= COMPILED in attributes and attributes[COMPILED].b
    found = []
    if python := sorted(used & PYTHON):
        found.append(f"calls Python, which no server has: {', '.join(python)}")
    if random := sorted(name for name in used if name.startswith(RANDOM)):
        found.append(f"draws random numbers: {', '.join(random)}")
    if compiled:
        found.append("must be compiled by XLA, which TF Serving turns off")
    return found


def _operations(model: Any) -> Iterator[tuple[Any, str]]:
    """Attributes and names of all operations that the signatures reach, and of the functions that hold them."""
    for graph in (each.graph_def for each in model.meta_graphs):
        functions = {function.signature.name: function for function in graph.library.function}
        waiting, seen = [graph.node], set[str]()
        while waiting:
            for node in waiting.pop():
                yield node.attr, node.op
                for name in _called(node):
                    if name in functions and name not in seen:
                        seen.add(name)
                        yield functions[name].attr, ""
                        waiting.append(functions[name].node_def)


def _called(node: Any) -> Iterator[str]:
    """Names of functions that a node calls."""
    yield node.op
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)
