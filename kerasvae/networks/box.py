"""The box around a mask: what lies outside it costs neither weights nor time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

__all__ = ["MARGIN", "Crop", "Pad"]

MARGIN = 1
"""Voxels kept around the mask's box, so that its border has neighbours."""


class _Boxed(keras.layers.Layer):
    """A layer that knows a box: first voxel and the one behind the last along each axis."""

    def __init__(self, box: Sequence[Sequence[int]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.box = tuple((int(start), int(stop)) for start, stop in box)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "box": [list(ends) for ends in self.box]}


@keras.saving.register_keras_serializable("kerasvae")
class Crop(_Boxed):
    """Images, (batch, *data_shape), to what lies in the box.

    Args:
        box: From `kerasvae.types.box_of`.
    """

    def call(self, x: Any) -> Any:
        """(batch, *data_shape) to (batch, *box)."""
        return x[(slice(None), *(slice(start, stop) for start, stop in self.box))]


@keras.saving.register_keras_serializable("kerasvae")
class Pad(_Boxed):
    """What lies in the box to whole images, zero outside.

    Args:
        box: From `kerasvae.types.box_of`.
        data_shape: Of the whole image.
    """

    def __init__(self, box: Sequence[Sequence[int]], data_shape: Sequence[int], **kwargs: Any) -> None:
        super().__init__(box, **kwargs)
        self.data_shape = tuple(int(n) for n in data_shape)

    def call(self, x: Any) -> Any:
        """(batch, *box) to (batch, *data_shape)."""
        around = [(start, size - stop) for (start, stop), size in zip(self.box, self.data_shape, strict=True)]
        return ops.pad(x, [(0, 0), *around])

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "data_shape": list(self.data_shape)}
