"""Run a SavedModel as TF Serving does: by TensorFlow's C library, without TensorFlow's Python and without XLA.

TF Serving loads by the same function and turns XLA off first; a graph that must be compiled then fails, which it does
not in Python. This file imports nothing but numpy and can be run by itself, in a process that stays free of TensorFlow:

    python c_api.py SAVED_MODEL ARRAYS.npz ANSWERS.npz

It calls each signature whose inputs are all among the arrays (for a string input, a uint8 vector of one string) and
writes `signature/output` arrays. `answers` starts such a process: turned off, XLA stays off for the whole process.
"""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["GraphError", "SavedModel", "Signature", "answers"]

FLOAT, INT32, STRING, INT64 = 1, 3, 7, 9
DTYPES = {FLOAT: np.float32, INT32: np.int32, INT64: np.int64}


class GraphError(RuntimeError):
    """What TensorFlow refused.

    Args:
        code: TensorFlow's, whose numbers are gRPC's.
        message: TensorFlow's.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Signature(NamedTuple):
    """Tensors of a signature: name in the graph and DataType, by their own names."""

    inputs: dict[str, tuple[str, int]]
    outputs: dict[str, tuple[str, int]]


class _Buffer(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("release", ctypes.c_void_p))


class _Output(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


class SavedModel:
    """A loaded SavedModel.

    Args:
        folder: That of one version, with `saved_model.pb` in it.
    """

    def __init__(self, folder: Path) -> None:
        self._core, self._full = _libraries()
        # the mangled name of tensorflow::DisableXlaCompilation()
        self._full._ZN10tensorflow21DisableXlaCompilationEv()
        self._status = self._core.TF_NewStatus()
        self._graph = self._full.TF_NewGraph()
        content = _Buffer.from_address(self._core.TF_NewBuffer())
        tags = (ctypes.c_char_p * 1)(b"serve")
        options = self._full.TF_NewSessionOptions()
        self._session = self._full.TF_LoadSessionFromSavedModel(
            options, None, str(folder).encode(), tags, 1, self._graph, ctypes.byref(content), self._status
        )
        self._check()
        self.signatures = _signatures(ctypes.string_at(content.data, content.length))

    def run(self, name: str, given: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Outputs of a signature by name.

        Args:
            name: Of the signature.
            given: Arrays by the names of its inputs; for a string input a list of bytes.

        Raises:
            GraphError: With TensorFlow's code and message.
        """
        signature = self.signatures[name]
        feeds = [self._tensor(given[key], kind) for key, (_, kind) in signature.inputs.items()]
        inputs = (_Output * len(feeds))(*(self._place(tensor) for tensor, _ in signature.inputs.values()))
        outputs = (_Output * len(signature.outputs))(*(self._place(tensor) for tensor, _ in signature.outputs.values()))
        values, made = (ctypes.c_void_p * len(feeds))(*feeds), (ctypes.c_void_p * len(outputs))()
        self._full.TF_SessionRun(
            self._session, None, inputs, values, len(feeds), outputs, made, len(outputs), None, 0, None, self._status
        )
        for feed in feeds:
            self._core.TF_DeleteTensor(feed)
        self._check()
        found = {key: self._array(value) for key, value in zip(signature.outputs, made, strict=True)}
        for value in made:
            self._core.TF_DeleteTensor(value)
        return found

    def _check(self) -> None:
        if code := self._core.TF_GetCode(self._status):
            raise GraphError(code, self._core.TF_Message(self._status).decode(errors="replace"))

    def _place(self, tensor: str) -> _Output:
        name, _, index = tensor.partition(":")
        operation = self._full.TF_GraphOperationByName(self._graph, name.encode())
        if not operation:
            raise RuntimeError(f"the graph has no operation {name}")
        return _Output(operation, int(index or 0))

    def _tensor(self, value: Any, kind: int) -> int:
        if kind == STRING:
            return self._strings(value)
        array = np.ascontiguousarray(value, DTYPES[kind])
        tensor = self._allocate(kind, array.shape, array.nbytes)
        ctypes.memmove(self._core.TF_TensorData(tensor), array.ctypes.data, array.nbytes)
        return tensor

    def _strings(self, values: list[bytes]) -> int:
        """A vector of TF_TString, 24 bytes each."""
        tensor = self._allocate(STRING, (len(values),), 24 * len(values))
        start = self._core.TF_TensorData(tensor)
        for index, value in enumerate(values):
            self._full.TF_StringInit(start + 24 * index)
            self._full.TF_StringCopy(start + 24 * index, value, len(value))
        return tensor

    def _allocate(self, kind: int, shape: tuple[int, ...], size: int) -> int:
        return int(self._core.TF_AllocateTensor(kind, (ctypes.c_int64 * len(shape))(*shape), len(shape), size))

    def _array(self, tensor: int) -> NDArray[Any]:
        shape = [self._core.TF_Dim(tensor, axis) for axis in range(self._core.TF_NumDims(tensor))]
        content = ctypes.string_at(self._core.TF_TensorData(tensor), self._core.TF_TensorByteSize(tensor))
        return np.frombuffer(content, DTYPES[self._core.TF_TensorType(tensor)]).reshape(shape).copy()


def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """TensorFlow's two libraries; local to this handle, since a global one breaks imports that follow."""
    found = importlib.util.find_spec("tensorflow")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("TensorFlow is not installed")
    folder = Path(found.submodule_search_locations[0])
    core, full = (
        ctypes.CDLL(str(folder / f"libtensorflow_{name}.so.2"), mode=ctypes.RTLD_LOCAL) for name in ("framework", "cc")
    )
    pointer, number = ctypes.c_void_p, ctypes.c_int
    for library, name, result, arguments in (
        (core, "TF_NewStatus", pointer, ()),
        (core, "TF_GetCode", number, (pointer,)),
        (core, "TF_Message", ctypes.c_char_p, (pointer,)),
        (core, "TF_NewBuffer", pointer, ()),
        (core, "TF_AllocateTensor", pointer, (number, ctypes.POINTER(ctypes.c_int64), number, ctypes.c_size_t)),
        (core, "TF_DeleteTensor", None, (pointer,)),
        (core, "TF_TensorData", pointer, (pointer,)),
        (core, "TF_TensorByteSize", ctypes.c_size_t, (pointer,)),
        (core, "TF_TensorType", number, (pointer,)),
        (core, "TF_NumDims", number, (pointer,)),
        (core, "TF_Dim", ctypes.c_int64, (pointer, number)),
        (full, "TF_NewGraph", pointer, ()),
        (full, "TF_NewSessionOptions", pointer, ()),
        (full, "TF_GraphOperationByName", pointer, (pointer, ctypes.c_char_p)),
        (full, "TF_StringInit", None, (pointer,)),
        (full, "TF_StringCopy", None, (pointer, ctypes.c_char_p, ctypes.c_size_t)),
        (
            full,
            "TF_LoadSessionFromSavedModel",
            pointer,
            (pointer, pointer, ctypes.c_char_p, pointer, number, pointer, pointer, pointer),
        ),
        (
            full,
            "TF_SessionRun",
            None,
            (pointer, pointer, pointer, pointer, number, pointer, pointer, number, pointer, number, pointer, pointer),
        ),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    full._ZN10tensorflow21DisableXlaCompilationEv.restype = None
    return core, full


# --- the few fields of a MetaGraphDef that are needed, read from its bytes ---------------------------


def _signatures(content: bytes) -> dict[str, Signature]:
    """Field 5 of MetaGraphDef: a map of SignatureDef, whose fields 1 and 2 are maps of TensorInfo."""
    found = {}
    for entry in _each(content, 5):
        key, value = _pair(entry)
        maps = [{k: _tensor_info(v) for k, v in map(_pair, _each(value, field))} for field in (1, 2)]
        if not key.startswith("__saved_model"):  # what loads the variables
            found[key] = Signature(*maps)
    return found


def _pair(entry: bytes) -> tuple[str, bytes]:
    return next(_each(entry, 1)).decode(), next(_each(entry, 2), b"")


def _tensor_info(content: bytes) -> tuple[str, int]:
    """Name, field 1, and DataType, field 2."""
    return next(_each(content, 1), b"").decode(), next(_numbers(content, 2), 0)


def _each(content: bytes, field: int) -> Iterator[bytes]:
    return (value for number, value in _fields(content) if number == field and isinstance(value, bytes))


def _numbers(content: bytes, field: int) -> Iterator[int]:
    return (value for number, value in _fields(content) if number == field and isinstance(value, int))


def _fields(content: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Fields of a protocol buffer: numbers of variable length, and byte strings; the fixed lengths are passed over."""
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        kind, field = tag & 7, tag >> 3
        if kind == 0:
            value, place = _varint(content, place)
            yield field, value
        elif kind == 2:
            length, place = _varint(content, place)
            yield field, content[place : place + length]
            place += length
        else:
            place += {1: 8, 5: 4}[kind]


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


# --- a process of its own --------------------------------------------------------------------------


def answers(folder: Path, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What a SavedModel answers in a process of its own.

    Args:
        folder: That of one version.
        given: Arrays by the names of inputs; for a string input the string's bytes, as uint8. Each signature whose
            inputs are all among them is called.

    Returns:
        Arrays by `signature/output`.

    Raises:
        RuntimeError: With the last line of the process.
    """
    with tempfile.TemporaryDirectory() as place:
        arrays, found = Path(place, "arrays.npz"), Path(place, "answers.npz")
        np.savez(arrays, **given)  # type: ignore[arg-type]
        command = [sys.executable, "-I", __file__, str(folder), str(arrays), str(found)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
        return _arrays(found)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def main(model: str, arrays: str, answered: str) -> None:
    """Call each signature that the arrays suffice for."""
    loaded, given = SavedModel(Path(model)), _arrays(Path(arrays))
    found: dict[str, Any] = {}
    for name, signature in loaded.signatures.items():
        if signature.inputs.keys() <= given.keys():
            feeds = {
                key: [given[key].tobytes()] if kind == STRING else given[key]
                for key, (_, kind) in signature.inputs.items()
            }
            found |= {f"{name}/{key}": value for key, value in loaded.run(name, feeds).items()}
    np.savez(answered, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
