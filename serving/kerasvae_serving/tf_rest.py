"""TF Serving's REST interface: requests in rows (`instances`) or columns (`inputs`), and what is said of a model.

Source: TensorFlow Serving, "RESTful API" (tensorflow.org/tfx/serving/api_rest).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from kerasvae.bundle import Tensor
from kerasvae.errors import ArgumentError
from kerasvae_serving.open_inference import check_tensors, datatype, json_of, tensor_of
from kerasvae_serving.repository import Repository, Version
from kerasvae_serving.signatures import Signature

__all__ = ["DEFAULT", "Predict", "metadata", "parse", "respond", "signature_of", "status"]

DEFAULT = "serving_default"
TF_TYPES = {"float32": "DT_FLOAT", "int32": "DT_INT32", "int64": "DT_INT64"}


@dataclass(frozen=True)
class Predict:
    """A request.

    Args:
        signature: What is asked for.
        inputs: Arrays (n, …) by name.
        rows: Whether they came, and go back, as rows.
    """

    signature: Signature
    inputs: dict[str, NDArray[Any]]
    rows: bool


def signature_of(name: str, known: Mapping[str, Signature]) -> Signature:
    """A signature by the name that a client gives; nothing or `serving_default` is `encode`.

    Raises:
        ArgumentError: If there is none of this name.
    """
    chosen = "encode" if name in ("", DEFAULT) else name
    if chosen not in known:
        raise ArgumentError("signature_name", rule=f"be {', '.join(known)}", got=repr(name)[:60], fix="Correct it")
    return known[chosen]


def parse(body: bytes, known: Mapping[str, Signature]) -> Predict:
    """A request from the body of a POST.

    Raises:
        ArgumentError: If it is outside the interface, or does not fit the model.
    """
    content = json_of(body)
    if not isinstance(content, dict) or ("instances" in content) == ("inputs" in content):
        raise ArgumentError(
            "The body", rule="be an object with `instances` or `inputs`", got="another", fix="Give one of them"
        )
    name = content.get("signature_name", DEFAULT)
    if not isinstance(name, str):
        raise ArgumentError("signature_name", rule="be text", got=type(name).__name__, fix="Put it in quotes")
    signature = signature_of(name, known)
    rows = "instances" in content
    given = content["instances" if rows else "inputs"]
    columns = _columns(given, signature) if rows else _named(given, signature, "inputs")
    inputs = {tensor.name: _array(tensor, columns[tensor.name]) for tensor in signature.inputs}
    check_tensors(inputs, signature.inputs)
    return Predict(signature, inputs, rows)


def respond(request: Predict, found: Mapping[str, NDArray[Any]]) -> bytes:
    """The body of an answer; a single output stands without its name."""
    alone = next(iter(found.values())) if len(found) == 1 else None
    content: dict[str, Any]
    if not request.rows:
        content = {"outputs": dict(found) if alone is None else alone}
    elif alone is not None:
        content = {"predictions": alone}
    else:
        count = len(next(iter(found.values())))
        content = {"predictions": [{name: value[row] for name, value in found.items()} for row in range(count)]}
    ready = {key: _plain(value) for key, value in content.items()}
    return orjson.dumps(ready, option=orjson.OPT_SERIALIZE_NUMPY)


def status(repository: Repository, name: str, version: str | None) -> dict[str, Any]:
    """What GET /v1/models/NAME answers."""
    numbers = repository.versions(name) if version is None else [repository.get(name, version).number]
    fine = {"error_code": "OK", "error_message": ""}
    return {
        "model_version_status": [
            {"version": str(number), "state": "AVAILABLE", "status": fine} for number in reversed(numbers)
        ]
    }


def metadata(found: Version) -> dict[str, Any]:
    """What GET /v1/models/NAME/metadata answers."""
    known = found.signatures

    def tensors(entries: tuple[Tensor, ...]) -> dict[str, Any]:
        return {
            tensor.name: {
                "dtype": TF_TYPES[tensor.dtype],
                "tensor_shape": {
                    "dim": [{"size": str(n), "name": ""} for n in (-1, *tensor.shape)],
                    "unknown_rank": False,
                },
                "name": tensor.name,
            }
            for tensor in entries
        }

    described = {
        name: {
            "inputs": tensors(signature.inputs),
            "outputs": tensors(signature.outputs),
            "method_name": "tensorflow/serving/predict",
        }
        for name, signature in {**known, DEFAULT: known["encode"]}.items()
    }
    spec = {"name": found.name, "signature_name": "", "version": str(found.number)}
    return {"model_spec": spec, "metadata": {"signature_def": {"signature_def": described}}}


def _columns(given: Any, signature: Signature) -> dict[str, Any]:
    """Rows turned into columns; a row of a single input may stand without its name."""
    names = [tensor.name for tensor in signature.inputs]
    if not isinstance(given, list) or not given:
        raise ArgumentError("instances", rule="be a list of one row or more", got="another", fix="Correct it")
    if len(names) == 1 and not isinstance(given[0], dict):
        return {names[0]: given}
    rows = [_named(row, signature, "A row of instances") for row in given]
    return {name: [row[name] for row in rows] for name in names}


def _named(given: Any, signature: Signature, what: str) -> dict[str, Any]:
    names = [tensor.name for tensor in signature.inputs]
    if len(names) == 1 and not isinstance(given, dict):
        return {names[0]: given}
    if not isinstance(given, dict) or set(given) != set(names):
        got = ", ".join(map(str, given)) if isinstance(given, dict) else type(given).__name__
        raise ArgumentError(what, rule=f"name {' and '.join(names)}", got=got[:100], fix="Correct it")
    return given


def _array(tensor: Tensor, values: Any) -> NDArray[Any]:
    """Nested lists as an array; their nesting must be the tensor's."""
    if not isinstance(values, list):
        raise ArgumentError(tensor.name, rule="be nested lists of numbers", got=type(values).__name__, fix="Correct it")
    shape = (len(values), *tensor.shape)
    found = tensor_of(tensor.name, values, shape, datatype(tensor.dtype))
    if (levels := _levels(values)) != len(shape):
        rule = f"be nested as its shape says, {[-1, *tensor.shape]}"
        raise ArgumentError(tensor.name, rule=rule, got=f"{levels} levels", fix="Correct it")
    return found


def _levels(values: Any) -> int:
    count = 0
    while isinstance(values, list):
        values, count = (values[0] if values else None), count + 1
    return count


def _plain(value: Any) -> Any:
    """Arrays that orjson can write: contiguous, and numbers where they have no axis."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.item() if np.ndim(value) == 0 else np.ascontiguousarray(value)
