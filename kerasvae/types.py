"""The vocabulary: what an affine, a grid, a volume and a mask are. No TensorFlow.

Axes are ``(x, y, z)`` in RAS+ order: x grows to the person's Right, y to the Anterior, z to the Superior.
Affines map voxel indices to millimetres, as in nibabel.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError

__all__ = ["Affine", "Array", "Grid", "Mask", "Volume", "box_of", "pack_mask", "unpack_mask"]

Array = NDArray[np.float32]
"""A float32 array."""
Affine = NDArray[np.float64]
"""A 4 × 4 matrix from voxel indices (i, j, k, 1) to millimetres (x, y, z, 1), RAS+."""
Mask = NDArray[np.bool_]
"""A boolean array on a grid; True inside the brain."""


@dataclass(frozen=True)
class Grid:
    """A named lattice of voxels in space.

    Args:
        shape: Number of voxels along (x, y, z).
        affine: Voxel indices to millimetres, RAS+, as nested tuples (so that a grid is hashable).
        space: Name of the coordinate space, e.g. ``"MNI152NLin6Asym"`` or ``"native"``.
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    space: str

    @property
    def matrix(self) -> Affine:
        """The affine as a float64 array of shape (4, 4)."""
        return np.asarray(self.affine, dtype=np.float64)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each axis, in mm."""
        lengths = np.linalg.norm(self.matrix[:3, :3], axis=0)
        return (float(lengths[0]), float(lengths[1]), float(lengths[2]))

    def to_config(self) -> dict[str, Any]:
        """A JSON-serialisable description; `from_config` reverses it."""
        return {"shape": list(self.shape), "affine": [list(row) for row in self.affine], "space": self.space}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Grid:
        """The grid that `to_config` described."""
        return cls.of(tuple(config["shape"]), np.asarray(config["affine"]), config["space"])

    @classmethod
    def of(cls, shape: tuple[int, ...], affine: Affine, space: str) -> Grid:
        """A grid from array-like parts.

        Raises:
            ArgumentError: If the shape has not three positive entries or the affine is not 4 × 4.
        """
        if len(shape) != 3 or min(shape) < 1:
            raise ArgumentError("shape", rule="have three positive entries", got=shape, fix="Give (x, y, z)")
        matrix = np.asarray(affine, dtype=np.float64)
        if matrix.shape != (4, 4):
            raise ArgumentError("affine", rule="be a 4 × 4 matrix", got=matrix.shape, fix="Give voxel-to-mm, RAS+")
        x, y, z = (int(n) for n in shape)
        return cls((x, y, z), tuple(tuple(float(v) for v in row) for row in matrix), space)


@dataclass(frozen=True)
class Volume:
    """A 3-D image in RAS+ order with what is needed to write a map back to the file it came from.

    Args:
        data: float32, shape (x, y, z), axes RAS+.
        affine: Voxel to mm of `data`.
        source: Where it came from, for messages; never exported.
        sform_code: NIfTI sform code (0 unknown, 1 scanner, 2 aligned, 3 Talairach, 4 MNI152); None for MGZ.
        native_shape: Shape of the array in the file, before reorientation.
        native_affine: Affine of the file, before reorientation.
    """

    data: Array
    affine: Affine
    source: str = "array"
    sform_code: int | None = None
    native_shape: tuple[int, ...] = field(default=())
    native_affine: Affine | None = None


def pack_mask(mask: Mask) -> dict[str, Any]:
    """A mask as JSON: shape and base64 of the zlib-compressed bits in C order.

    >>> packed = pack_mask(np.eye(3, dtype=bool))
    >>> bool((unpack_mask(packed) == np.eye(3, dtype=bool)).all())
    True
    """
    bits = np.packbits(np.asarray(mask, dtype=bool).ravel())
    text = base64.b64encode(zlib.compress(bits.tobytes(), 9)).decode("ascii")
    return {"shape": list(mask.shape), "bits": text}


def unpack_mask(config: dict[str, Any]) -> Mask:
    """The mask that `pack_mask` described."""
    shape = tuple(int(n) for n in config["shape"])
    bits = np.frombuffer(zlib.decompress(base64.b64decode(config["bits"])), dtype=np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)


def box_of(mask: Mask, margin: int = 0) -> list[tuple[int, int]]:
    """The smallest box around a mask: along each axis the first voxel and the one behind the last.

    Args:
        mask: Any number of axes, not empty.
        margin: Voxels more on each side, within the grid.

    >>> box_of(np.array([False, False, False, True, True]), margin=1)
    [(2, 5)]
    """
    places = [
        np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis))) for axis in range(mask.ndim)
    ]
    return [
        (max(int(found[0]) - margin, 0), min(int(found[-1]) + 1 + margin, size))
        for found, size in zip(places, mask.shape, strict=True)
    ]
