"""Correct an image by what stands around each voxel: a small network that is the same everywhere.

Probabilistic PCA's reconstruction is a linear function of the code. What it gets wrong in a person it has not seen is
partly the same at every place: it is too blurred at edges that moved, too dark beside a ventricle that grew. Free
intensities decoded from a code would need many people to learn that; a network that sees only a voxel's neighbourhood,
and is the same at every voxel, has a hundred thousand examples in each person.

Its examples must be reconstructions of people who were left out of the axes, as new people will be: see
`kerasvae.networks.left_out`. Residuals of people whom the axes were fitted to are of another kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasvae.errors import ArgumentError
from kerasvae.types import Array, Mask

__all__ = ["Refine", "box_of"]

_CONV = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}
MAPS = 3
MARGIN = 1
"""Voxels kept around the mask's box, so that its border has neighbours."""
SOFT = 0.05
"""Least standard deviation that a deviation is divided by, in parts of the mean one."""


@keras.saving.register_keras_serializable("kerasvae")
class Refine(keras.layers.Layer):
    """x + s c(x) within a mask, x elsewhere: (batch, *data_shape) to the same.

    c is a 3ⁿ convolution and then dense layers at each voxel. It sees the deviation from the mean image, the same in
    standard deviations of the voxel, and three fixed maps: mean, standard deviation, mask. Its last layer begins with
    zeros, so at first the layer returns what it is given; its output is in units of s, the mean standard deviation.

    The maps are weights that are not trained; give them with `set_maps`.

    Args:
        data_shape: One to three axes.
        box: First voxel and the one behind the last along each axis, outside which nothing changes.
        filters: Channels of the hidden layers.
        activation: Any Keras activation.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        box: Sequence[Sequence[int]] | None = None,
        filters: Sequence[int] = (16, 16),
        activation: str = "silu",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if len(data_shape) not in _CONV:
            raise ArgumentError(
                "data_shape", rule="have one to three axes", got=tuple(data_shape), fix="Leave out the channel axis"
            )
        if not filters or min(filters) < 1:
            raise ArgumentError("filters", rule="hold at least one positive number", got=filters, fix="Use (16, 16)")
        self.data_shape = tuple(int(n) for n in data_shape)
        self.box = tuple((int(a), int(b)) for a, b in (box if box is not None else [(0, n) for n in self.data_shape]))
        self.filters, self.activation = tuple(int(n) for n in filters), activation
        convolution, size = _CONV[len(data_shape)], 3
        self.hidden = []
        for index, width in enumerate(self.filters):
            name = f"hidden_{index}"
            self.hidden.append(convolution(width, size, padding="same", activation=activation, name=name))
            size = 1
        self.last = convolution(1, 1, kernel_initializer="zeros", name="correction")

    def build(self, input_shape: Any) -> None:
        """Create the maps and the convolutions."""
        inner = tuple(stop - start for start, stop in self.box)
        self.maps = self.add_weight(name="maps", shape=(*inner, MAPS), initializer="zeros", trainable=False)
        self.mean = self.add_weight(name="mean", shape=inner, initializer="zeros", trainable=False)
        self.unit = self.add_weight(name="unit", shape=(), initializer="ones", trainable=False)
        channels = 2 + MAPS
        for layer in self.hidden:
            layer.build((None, *inner, channels))
            channels = layer.filters
        self.last.build((None, *inner, channels))
        super().build(input_shape)

    def set_maps(self, mean: Array, stddev: Array, mask: Mask) -> None:
        """Fix what is known of each voxel; build the layer first.

        Args:
            mean: Mean image, (*data_shape).
            stddev: Standard deviation of people's images at each voxel, (*data_shape), in the images' unit.
            mask: Voxels that may change.
        """
        unit = max(float(stddev[mask].mean()), 1e-12)
        inside = mean[mask]
        contrast = (mean - inside.mean()) / max(float(inside.std()), 1e-12)
        maps = np.stack([np.where(mask, contrast, 0), np.where(mask, stddev / unit, 0), mask], axis=-1)
        self.maps.assign(maps[self._inner()].astype(np.float32))
        self.mean.assign(np.where(mask, mean, 0)[self._inner()].astype(np.float32))
        self.unit.assign(unit)

    def call(self, x: Any) -> Any:
        """Corrected images, same shape."""
        inner = x[(slice(None), *self._inner())]
        maps = ops.cast(self.maps, x.dtype)
        stddev, inside = maps[..., 1], maps[..., 2]
        unit = ops.cast(self.unit, x.dtype)
        deviation = (inner - ops.cast(self.mean, x.dtype)) / unit * inside
        shape = ops.shape(deviation)
        features = ops.concatenate(
            [
                ops.expand_dims(deviation, -1),
                ops.expand_dims(deviation / (stddev + SOFT), -1),
                ops.broadcast_to(maps, (*shape, MAPS)),
            ],
            axis=-1,
        )
        for layer in self.hidden:
            features = layer(features)
        correction = ops.squeeze(self.last(features), -1) * inside * unit
        around = [(start, size - stop) for (start, stop), size in zip(self.box, self.data_shape, strict=True)]
        return x + ops.pad(correction, [(0, 0), *around])

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "data_shape": list(self.data_shape),
            "box": [list(pair) for pair in self.box],
            "filters": list(self.filters),
            "activation": self.activation,
        }

    def _inner(self) -> tuple[slice, ...]:
        return tuple(slice(start, stop) for start, stop in self.box)


def box_of(mask: Mask) -> list[tuple[int, int]]:
    """The smallest box around a mask and one voxel more, within the grid: first voxel and the one behind the last.

    >>> box_of(np.array([False, False, False, True, True]))
    [(2, 5)]
    """
    places = [
        np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))) for axis in range(mask.ndim)
    ]
    return [
        (max(int(found[0]) - MARGIN, 0), min(int(found[-1]) + 1 + MARGIN, size))
        for found, size in zip(places, mask.shape, strict=True)
    ]
