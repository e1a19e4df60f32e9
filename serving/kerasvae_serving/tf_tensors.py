"""TensorFlow's tensors in protocol buffers, as arrays and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError
from kerasvae_serving import open_inference as oip

__all__ = ["NUMBERS", "STRING", "fill", "read"]

NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "int64": 9}
"""TensorFlow's numbers of types."""
STRING = 7
_DTYPES = {number: name for name, number in NUMBERS.items()}
_VALUES = {"float32": "float_val", "float64": "double_val", "int32": "int_val", "int64": "int64_val"}
MOST = 2**26
"""Numbers of a tensor that is sent as one."""


def read(name: str, tensor: Any) -> NDArray[Any]:
    """An array from a TensorProto: raw bytes, or a list of numbers, of which a single one stands for all.

    Raises:
        ArgumentError: If it is of another type, or its numbers do not fit its shape.
    """
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None or tensor.tensor_shape.unknown_rank:
        rule = "be a float, double, int32 or int64 tensor of a known shape"
        raise ArgumentError(name, rule=rule, got=f"dtype {tensor.dtype}", fix="Convert it")
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    if min(shape, default=0) < 0:
        raise ArgumentError(name, rule="have a shape of whole numbers", got=list(shape), fix="Correct it")
    kind = oip.datatype(dtype)
    if tensor.tensor_content:
        return oip.from_bytes(name, memoryview(tensor.tensor_content), shape, kind)
    values = np.array(getattr(tensor, _VALUES[dtype]))
    if len(values) == 1 and 1 < math.prod(shape) <= MOST:  # a single one stands for all
        values = np.full(math.prod(shape), values[0])
    return oip.tensor_of(name, values, shape, kind)


def fill(made: Any, value: NDArray[Any]) -> None:
    """Write an array into an empty TensorProto."""
    made.dtype = NUMBERS[value.dtype.name]
    for size in value.shape:
        made.tensor_shape.dim.add(size=size)
    made.tensor_content = np.ascontiguousarray(value).tobytes()
