"""Axes at a coarser resolution than the images: coefficients of orthonormal cubic splines, for large grids.

At 1 mm an axis of a core has millions of numbers, far more than people's differences need: those are smooth. Here axes
are combinations of cubic B-splines with a knot every `step` voxels (de Boor 1978, A Practical Guide to Splines, chapter
IX), the product of one along each axis of the grid. Along an axis with the basis B the columns of Q = B (BᵀB)^−½ span
the same splines, are orthonormal, and stay close to the places of the B-splines (Löwdin 1950, J. Chem. Phys. 18:365).
So the coefficients of an image x, c = Qᵀ x, look like a coarser image; whoever finds axes, variances and priors of
images finds those of coefficients, and axes that are orthonormal as coefficients are so as images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from kerasvae.networks.box import MARGIN
from kerasvae.types import Array, Mask, box_of, pack_mask, unpack_mask

__all__ = ["Coarse", "SplineDown", "SplineUp", "spline_basis"]

INSIDE = 0.05
"""Least part of a coefficient's function, squared, that lies in the mask."""


@cache
def spline_basis(size: int, step: int) -> NDArray[np.float32]:
    """Orthonormal cubic splines with a knot every `step` voxels, (size, n); the identity where n would not be smaller.

    The basis reads the same from both ends, the last column first.
    """
    from scipy.interpolate import BSpline

    count = math.ceil((size - 1) / step) + 3
    if step == 1 or count >= size:
        return np.eye(size, dtype=np.float32)
    knots = (np.arange(count + 4) - 3.0) * step
    places = np.arange(size) + ((count - 3) * step - (size - 1)) / 2
    basis = BSpline.design_matrix(places, knots, 3).toarray()
    values, vectors = np.linalg.eigh(basis.T @ basis)
    return np.asarray(basis @ (vectors / np.sqrt(values)) @ vectors.T, dtype=np.float32)


class Coarse(NamedTuple):
    """Between the voxels of a mask and coefficients.

    Attributes:
        step: Voxels between knots.
        box: What networks see: the mask's box and a voxel around it, as far to the left as to the right of the grid's
            middle, so that left and right can be exchanged.
        mask: In the box.
        inside: Coefficients that count, on their grid.
    """

    step: int
    box: list[tuple[int, int]]
    mask: Mask
    inside: Mask

    @classmethod
    def of(cls, mask: Mask, step: int) -> Coarse:
        """The coefficients of a mask on the grid; with a step of 1 the voxels of its box, as it is."""
        box = box_of(mask, MARGIN)
        if step > 1:
            (start, stop), *others = box
            edge = min(start, len(mask) - stop)
            box = [(edge, len(mask) - edge), *others]
        boxed = mask[tuple(slice(*ends) for ends in box)]
        if step == 1:
            return cls(step, box, boxed, boxed)
        share = _each_axis(boxed.astype(np.float32), [np.square(spline_basis(n, step)) for n in boxed.shape])
        return cls(step, box, boxed, share > INSIDE)

    def down(self, flat: Array) -> Array:
        """Coefficients (n, c) of images over mask voxels, (n, v); one image is held at a time beside them."""
        return _moved(flat, self.mask, self.inside, _bases(self.mask, self.step))

    def up(self, coefficients: Array) -> Array:
        """Images over mask voxels, (n, v), of coefficients (n, c)."""
        return _moved(coefficients, self.inside, self.mask, [basis.T for basis in _bases(self.mask, self.step)])


def _bases(mask: Mask, step: int) -> list[NDArray[np.float32]]:
    """One for each axis of the box, (voxels, coefficients)."""
    return [spline_basis(size, step) for size in mask.shape]


def _moved(rows: Array, here: Mask, there: Mask, matrices: Sequence[NDArray[np.float32]]) -> Array:
    """Rows of values at some places of one grid to those at places of another, one row at a time."""
    found = np.empty((len(rows), int(there.sum())), np.float32)
    for row, values in zip(found, rows, strict=True):
        image = np.zeros(here.shape, np.float32)
        image[here] = values
        row[:] = _each_axis(image, matrices)[there]
    return found


def _each_axis(image: Array, matrices: Sequence[NDArray[np.float32]]) -> Array:
    """A matrix along each axis, (n, m) from n to m."""
    for axis, matrix in enumerate(matrices):
        image = np.moveaxis(np.tensordot(image, matrix, axes=(axis, 0)), -1, axis)
    return image


class _Spline(keras.layers.Layer):
    """A layer that knows the mask in the box and the step.

    Args:
        mask: In the box, or its config.
        step: Voxels between knots.
    """

    def __init__(self, mask: Mask | dict[str, Any], step: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mask = unpack_mask(mask) if isinstance(mask, dict) else np.asarray(mask, bool)
        self.step = int(step)

    @property
    def bases(self) -> list[NDArray[np.float32]]:
        """One for each axis, (voxels, coefficients)."""
        return _bases(self.mask, self.step)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "mask": pack_mask(self.mask), "step": self.step}


@keras.saving.register_keras_serializable("kerasvae")
class SplineDown(_Spline):
    """Images in the box to coefficients: (batch, *box) to (batch, *coefficients); what lies outside the mask is 0."""

    def call(self, x: Any) -> Any:
        """Coefficients."""
        return along(x * ops.cast(self.mask, x.dtype), [basis.T for basis in self.bases])


@keras.saving.register_keras_serializable("kerasvae")
class SplineUp(_Spline):
    """Coefficients to images in the box, and the mean image: (batch, *coefficients) to (batch, *box), 0 outside."""

    def build(self, input_shape: Any) -> None:
        """Create the mean."""
        self.mean = self.add_weight(name="mean", shape=self.mask.shape, initializer="zeros", trainable=False)
        super().build(input_shape)

    def call(self, x: Any) -> Any:
        """Images."""
        return along(x, self.bases) * ops.cast(self.mask, x.dtype) + ops.cast(self.mean, x.dtype)


def along(x: Any, matrices: Sequence[NDArray[np.float32]]) -> Any:
    """A matrix along each axis but the first, (m, n) from n to m."""
    for axis, matrix in enumerate(matrices, start=1):
        sizes = tuple(x.shape[1:])
        rest = math.prod(sizes[axis:])
        rows = ops.reshape(x, (-1, sizes[axis - 1], rest))
        made = ops.matmul(ops.convert_to_tensor(matrix, dtype=x.dtype), rows)
        x = ops.reshape(made, (-1, *sizes[: axis - 1], len(matrix), *sizes[axis:]))
    return x
