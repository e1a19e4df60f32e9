"""Protocol buffers from this package's `.proto` files, without a compiler and without getting in anybody's way.

Classes are made when first asked for, in a pool of their own: clients of Triton or TF Serving bring messages of the
same names, and one process may hold both. Only what the files here use of proto3 is understood: messages, also nested,
`repeated`, `map`, `oneof`, and unary services. Enumerations of the originals are int32 here, which is the same on the
wire.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

__all__ = ["message", "service"]

FILES = ("open_inference", "tensorflow_tensor", "tensorflow_serving")
_TOKEN = re.compile(r"//[^\n]*|\"[^\"]*\"|[\w.]+|[{}()<>,;=]")
_FIELD = descriptor_pb2.FieldDescriptorProto


@cache
def message(name: str) -> Any:
    """The class of a message by its full name, e.g. ``inference.ModelInferRequest``."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(name))


@cache
def service(name: str) -> dict[str, tuple[Any, Any]]:
    """Classes of request and response of each method of a service, by the method's name."""
    found = _pool().FindServiceByName(name)
    return {m.name: (message(m.input_type.full_name), message(m.output_type.full_name)) for m in found.methods}


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for known in (any_pb2, wrappers_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    for name in FILES:
        text = (files("kerasvae_serving") / "protos" / f"{name}.proto").read_text(encoding="utf-8")
        pool.Add(parse(f"{name}.proto", text))
    return pool


def parse(name: str, text: str) -> descriptor_pb2.FileDescriptorProto:
    """The description of a `.proto` file."""
    made = descriptor_pb2.FileDescriptorProto(name=name, syntax="proto3")
    tokens = iter([token for token in _TOKEN.findall(text) if not token.startswith("//")])
    for token in tokens:
        if token == "package":
            made.package = next(tokens)
        elif token == "import":
            made.dependency.append(next(tokens).strip('"'))
        elif token == "message":
            _message(made.message_type.add(), tokens)
        elif token == "service":
            _service(made.service.add(), tokens)
    return made


def _service(made: Any, tokens: Iterator[str]) -> None:
    made.name = next(tokens)
    for token in tokens:
        if token == "}":
            return
        if token == "rpc":
            name, _, asked, _, _, _, answered, _ = (next(tokens) for _ in range(8))
            made.method.add(name=name, input_type=asked, output_type=answered)


def _message(made: Any, tokens: Iterator[str]) -> None:
    made.name = next(tokens)
    choice = None
    for token in tokens:
        if token == "}" and choice is None:
            return
        if token == "}":
            choice = None
        elif token == "message":
            _message(made.nested_type.add(), tokens)
        elif token == "oneof":
            choice = len(made.oneof_decl)
            made.oneof_decl.add(name=next(tokens))
        elif token not in "{;":
            _field(made, token, choice, tokens)


def _field(made: Any, kind: str, choice: int | None, tokens: Iterator[str]) -> None:
    """One field: `repeated T name = 1;`, `map<K, V> name = 1;` or `T name = 1;`."""
    repeated = kind in ("repeated", "map")
    entries: tuple[str, ...] = ()
    if kind == "repeated":
        kind = next(tokens)
    elif kind == "map":
        _, key, _, value, _ = (next(tokens) for _ in range(5))
        entries = (key, value)
    name, _, number = (next(tokens) for _ in range(3))
    if entries:
        kind = "".join(part.capitalize() for part in name.split("_")) + "Entry"
        entry = made.nested_type.add(name=kind)
        entry.options.map_entry = True
        for index, (part, part_kind) in enumerate(zip(("key", "value"), entries, strict=True), start=1):
            _typed(entry.field.add(name=part, number=index, label=_FIELD.LABEL_OPTIONAL), part_kind)
    field = made.field.add(
        name=name, number=int(number), label=_FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
    )
    _typed(field, kind)
    if choice is not None:
        field.oneof_index = choice


def _typed(field: Any, kind: str) -> None:
    """A scalar type, or the name of a message, which the pool looks up from the inside out as the language says."""
    scalar = f"TYPE_{kind.upper()}"
    if scalar in dict(_FIELD.Type.items()):
        field.type = _FIELD.Type.Value(scalar)
    else:
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, kind
