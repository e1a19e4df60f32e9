"""The Open Inference Protocol, version 2, as pure functions: requests and answers in JSON and binary tensors.

Source: Open Inference Protocol, "Predict Protocol - Version 2" (KServe, `docs/predict-api/v2/required_api.md`) and the
"Binary tensor data extension" (Triton Inference Server, `protocol/extension_binary_data.md`). With the extension a body
is JSON, whose length the header `Inference-Header-Content-Length` says, followed by the little-endian bytes of those
tensors that have the parameter `binary_data_size`, in their order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from kerasvae.bundle import Tensor
from kerasvae.errors import ArgumentError

__all__ = [
    "DATATYPES",
    "JSON_LENGTH",
    "InferRequest",
    "check_tensors",
    "chosen",
    "datatype",
    "from_bytes",
    "json_of",
    "parse",
    "respond",
    "tensor_of",
]

JSON_LENGTH = "inference-header-content-length"
DATATYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
"""The protocol's names of numpy's types."""
_NAMES = {np.dtype(code): name for name, code in DATATYPES.items()}
SHORT = 2**10
"""Bytes of a request's JSON that may be remembered."""
MAX_AXES = 8
MAX_ROWS = 1024
"""Images in one request."""


@dataclass(frozen=True)
class InferRequest:
    """What a client asks for.

    Args:
        inputs: Arrays (n, …) by name.
        outputs: Names that are wanted, and whether as binary; None: all.
        binary: Whether outputs that say nothing of it are wanted as binary.
        id: Given back with the answer.
    """

    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, bool | None] | None = None
    binary: bool = False
    id: str | None = None


def datatype(dtype: str) -> str:
    """The protocol's name of a dtype.

    >>> datatype("float32")
    'FP32'
    """
    return _NAMES[np.dtype(dtype)]


def json_of(body: bytes | memoryview) -> Any:
    """What a body says.

    Raises:
        ArgumentError: If it is not JSON.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ArgumentError("The body", rule="be JSON", got=str(error), fix="Correct it") from None


def parse(body: bytes | memoryview, json_length: str | None, known: Sequence[Tensor]) -> InferRequest:
    """A request from the body of a POST.

    Args:
        body: All of it.
        json_length: The header `Inference-Header-Content-Length`, if there is one.
        known: The model's inputs.

    Raises:
        ArgumentError: If anything in it is outside the protocol, or does not fit the model.
    """
    view = memoryview(body)
    length = len(body) if json_length is None else _length(json_length, len(body))
    content = view[:length]
    head = _known(bytes(content)) if length <= SHORT else _head(content)
    place, inputs = length, {}
    for entry in head.entries:
        if entry.size is None:
            value = _from_json(entry.name, entry.data, entry.shape, entry.kind)
        else:
            value = from_bytes(entry.name, view[place : place + entry.size], entry.shape, entry.kind)
            place += entry.size
        inputs[entry.name] = value
    if place != len(body):
        got = f"{len(body) - place} bytes more"
        raise ArgumentError("The body", rule="end after its last tensor", got=got, fix="Correct binary_data_size")
    check_tensors(inputs, known)
    return InferRequest(inputs, head.outputs, head.binary, head.id)


class _Entry(NamedTuple):
    """An input as the JSON describes it; its numbers follow in `size` bytes, or are `data`."""

    name: str
    shape: tuple[int, ...]
    kind: str
    size: int | None
    data: Any


class _Head(NamedTuple):
    """The JSON of a request, checked."""

    entries: tuple[_Entry, ...]
    outputs: dict[str, bool | None] | None
    binary: bool
    id: str | None


def _head(body: bytes | memoryview) -> _Head:
    content = _mapping("The body", json_of(body))
    entries: dict[str, _Entry] = {}
    for entry in _sequence("inputs", content.get("inputs")):
        entry = _mapping("An entry of inputs", entry)
        name, shape, kind = _described(entry)
        size = _parameters(f"parameters of {name}", entry).get("binary_data_size")
        expected = math.prod(shape) * np.dtype(DATATYPES[kind]).itemsize
        if size is not None and ("data" in entry or isinstance(size, bool) or size != expected):
            rule = f"be {expected}, the bytes of {kind} {list(shape)}, and come without `data`"
            raise ArgumentError(f"binary_data_size of {name}", rule=rule, got=repr(size), fix="Correct it")
        if name in entries:
            raise ArgumentError("inputs", rule="name each tensor once", got=f"{name} twice", fix="Leave one out")
        entries[name] = _Entry(name, shape, kind, None if size is None else expected, entry.get("data"))
    asked = content.get("id")
    if not isinstance(asked, str | None):
        raise ArgumentError("id", rule="be text", got=_short(asked), fix="Put it in quotes")
    rest = _parameters("parameters", content)
    binary = _flag("parameters.binary_data_output", rest.get("binary_data_output")) or False
    return _Head(tuple(entries.values()), _asked(content.get("outputs")), binary, asked)


_known = lru_cache(maxsize=64)(_head)
"""The same, of JSON that a client sends again and again."""


def respond(
    request: InferRequest,
    found: Mapping[str, NDArray[Any]],
    *,
    model: str,
    version: str,
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON where tensors follow it.

    Raises:
        ArgumentError: If an output is asked for that the model does not have.
    """
    asked = request.outputs or {}
    outputs, blobs = [], []
    for name in chosen(asked, found):
        value, binary = found[name], asked.get(name)
        entry: dict[str, Any] = {"name": name, "datatype": _NAMES[value.dtype], "shape": list(value.shape)}
        if request.binary if binary is None else binary:
            blobs.append(value.astype(DATATYPES[entry["datatype"]], copy=False).tobytes())
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = np.ascontiguousarray(value).ravel()
        outputs.append(entry)
    content: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        content["id"] = request.id
    head = orjson.dumps(content | {"outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([head, *blobs]), len(head)) if blobs else (head, None)


def chosen(names: Iterable[str], known: Iterable[str], what: str = "outputs") -> list[str]:
    """Outputs that are wanted: those named, or all.

    Raises:
        ArgumentError: If the model does not have one of them.
    """
    known = list(known)
    wanted = list(names)
    for name in wanted:
        if name not in known:
            rule = f"be among {', '.join(known)}"
            raise ArgumentError(what, rule=rule, got=repr(name)[:60], fix="Correct the name")
    return wanted or known


def check_tensors(inputs: Mapping[str, NDArray[Any]], known: Sequence[Tensor]) -> None:
    """Whether these are a model's inputs: names, types, shapes, as many rows each, finite numbers.

    Raises:
        ArgumentError: If not.
    """
    names = [tensor.name for tensor in known]
    if set(inputs) != set(names):
        got = ", ".join(inputs) or "none"
        raise ArgumentError("inputs", rule=f"be {' and '.join(names)}", got=got, fix="Give these, and no others")
    rows = {name: len(value) if value.ndim else 0 for name, value in inputs.items()}
    for tensor in known:
        value = inputs[tensor.name]
        if value.dtype != np.dtype(tensor.dtype):
            raise ArgumentError(
                tensor.name, rule=f"be {datatype(tensor.dtype)}", got=datatype(value.dtype.name), fix="Convert it"
            )
        if value.shape[1:] != tensor.shape or not 1 <= rows[tensor.name] <= MAX_ROWS:
            rule = f"have shape {[-1, *tensor.shape]} with 1 to {MAX_ROWS} rows"
            raise ArgumentError(tensor.name, rule=rule, got=list(value.shape), fix="Correct the shape")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ArgumentError(tensor.name, rule="hold finite numbers", got="NaN or infinity", fix="Replace them")
    if len(set(rows.values())) > 1:
        raise ArgumentError("inputs", rule="have as many rows each", got=rows, fix="Correct the shapes")


def tensor_of(name: str, values: Any, shape: Sequence[int], kind: str) -> NDArray[Any]:
    """An array from a flat or nested list of JSON's or protobuf's numbers.

    Raises:
        ArgumentError: If there are more or fewer than the shape says, or one is not of this type.
    """
    dtype = np.dtype(DATATYPES[kind])
    if isinstance(values, list) and not _only_numbers(values):
        rule = f"hold {kind} numbers, as a flat list or nested as the shape says"
        raise ArgumentError(name, rule=rule, got="something else", fix="Correct its data")
    try:
        found = np.asarray(values)
    except ValueError:  # rows of different lengths
        found = np.empty(0, object)
    accepted = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}[dtype.kind]
    if found.size and found.dtype.kind not in accepted:
        rule = f"hold {kind} numbers, as a flat list or nested as the shape says"
        raise ArgumentError(name, rule=rule, got=_short(values), fix="Correct its data")
    if found.size != math.prod(shape) or (found.ndim > 1 and found.shape != tuple(shape)):
        got = f"{found.size}, nested as {list(found.shape)}"
        raise ArgumentError(name, rule=f"hold the numbers of shape {list(shape)}", got=got, fix="Correct its data")
    if dtype.kind in "iu" and found.size:
        limits = np.iinfo(dtype)
        if int(found.min()) < limits.min or int(found.max()) > limits.max:
            got = f"{found.min()} to {found.max()}"
            raise ArgumentError(name, rule=f"hold numbers that fit {kind}", got=got, fix="Correct its data")
    with np.errstate(over="ignore"):  # too large a number becomes infinite, which is refused by name later
        return found.astype(dtype).reshape(shape)


def from_bytes(name: str, data: memoryview, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    """An array from little-endian bytes, which it shares unless they lie where numbers of this type must not.

    Raises:
        ArgumentError: If there are more or fewer than the shape says.
    """
    dtype = np.dtype(DATATYPES[kind])
    if len(data) != math.prod(shape) * dtype.itemsize:
        rule = f"have {math.prod(shape) * dtype.itemsize} bytes"
        raise ArgumentError(name, rule=rule, got=len(data), fix="Send the rest of it")
    found = np.frombuffer(data, dtype).reshape(shape)
    return found if found.flags.aligned else found.copy()


def _only_numbers(values: list[Any]) -> bool:
    """Whether nested lists hold nothing but numbers: text would make numpy take room for the longest everywhere."""
    waiting: list[Any] = [values]
    while waiting:
        kinds = set(map(type, each := waiting.pop()))
        if kinds == {list}:
            waiting.extend(each)
        elif not kinds <= {int, float, bool}:
            return False
    return True


def _from_json(name: str, data: Any, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    if not isinstance(data, list):
        raise ArgumentError(f"data of {name}", rule="be a list", got=_short(data), fix="Add it, or binary_data_size")
    if kind == "FP16":
        raise ArgumentError(name, rule="come as binary, which FP16 must", got="JSON", fix="Use binary_data_size")
    return tensor_of(name, data, shape, kind)


def _described(entry: Mapping[str, Any]) -> tuple[str, tuple[int, ...], str]:
    """Name, shape and datatype of an input."""
    name, shape, kind = (entry.get(key) for key in ("name", "shape", "datatype"))
    if not isinstance(name, str):
        raise ArgumentError("name of an input", rule="be text", got=_short(name), fix="Add it")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_AXES
        or any(type(n) is not int or not 0 <= n < 2**31 for n in shape)
    ):
        raise ArgumentError(f"shape of {name}", rule="be a list of whole numbers", got=_short(shape), fix="Correct it")
    if not isinstance(kind, str) or kind not in DATATYPES:
        rule = f"be one of {', '.join(DATATYPES)}"
        raise ArgumentError(f"datatype of {name}", rule=rule, got=_short(kind), fix="Correct it")
    return name, tuple(shape), kind


def _asked(outputs: Any) -> dict[str, bool | None] | None:
    """Names of outputs, and whether each is wanted as binary."""
    if outputs is None:
        return None
    found: dict[str, bool | None] = {}
    for entry in _sequence("outputs", outputs):
        entry = _mapping("An entry of outputs", entry)
        name = entry.get("name")
        if not isinstance(name, str) or name in found:
            raise ArgumentError("outputs", rule="name each tensor once", got=_short(name), fix="Correct the name")
        rest = _parameters(f"parameters of {name}", entry)
        if "classification" in rest:
            got = "classification"
            raise ArgumentError(f"parameters of {name}", rule="be ones a VAE knows", got=got, fix="Leave it out")
        found[name] = _flag(f"binary_data of {name}", rest.get("binary_data"))
    return found or None


def _length(text: str, most: int) -> int:
    if not text.isdecimal() or len(text) > 18 or int(text) > most:
        rule = f"be the length of the JSON, 0 to {most}"
        raise ArgumentError("Inference-Header-Content-Length", rule=rule, got=_short(text), fix="Correct the header")
    return int(text)


def _parameters(what: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    return _mapping(what, {} if entry.get("parameters") is None else entry["parameters"])


def _mapping(what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ArgumentError(what, rule="be a JSON object", got=_short(value), fix="Correct it")
    return value


def _sequence(what: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ArgumentError(what, rule="be a list of objects", got=_short(value), fix="Correct it")
    return value


def _flag(what: str, value: Any) -> bool | None:
    if not isinstance(value, bool | None):
        raise ArgumentError(what, rule="be true or false", got=_short(value), fix="Correct it")
    return value


def _short(value: Any) -> str:
    """A value for a message: never the numbers of an image."""
    if value is None:
        return "nothing"
    if isinstance(value, list | dict):
        return f"a {'list' if isinstance(value, list) else 'JSON object'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
