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

__all__ = ["Refine"]

_CONV = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}
MAPS = 3
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
        filters: Channels of the hidden layers.
        activation: Any Keras activation.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
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
        self.filters, self.activation = tuple(int(n) for n in filters), activation
        self.first = _CONV[len(data_shape)](self.filters[0], 3, padding="same", name="hidden_0")
        self.hidden = [keras.layers.Dense(n, name=f"hidden_{i}") for i, n in enumerate(self.filters[1:], start=1)]
        self.last = keras.layers.Dense(1, kernel_initializer="zeros", name="correction")
        self.activate = keras.activations.get(activation)

    def build(self, input_shape: Any) -> None:
        """Create the maps and the convolutions."""
        shape = self.data_shape
        self.maps = self.add_weight(name="maps", shape=(*shape, MAPS), initializer="zeros", trainable=False)
        self.mean = self.add_weight(name="mean", shape=shape, initializer="zeros", trainable=False)
        self.unit = self.add_weight(name="unit", shape=(), initializer="ones", trainable=False)
        self.first.build((None, *shape, 2 + MAPS))
        for layer, channels in zip((*self.hidden, self.last), self.filters, strict=True):
            layer.build((None, channels))
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
        self.maps.assign(maps.astype(np.float32))
        self.mean.assign(np.where(mask, mean, 0).astype(np.float32))
        self.unit.assign(unit)

    def call(self, x: Any) -> Any:
        """Corrected images, same shape."""
        maps = ops.cast(self.maps, x.dtype)
        stddev, inside = maps[..., 1], maps[..., 2]
        unit = ops.cast(self.unit, x.dtype)
        deviation = (x - ops.cast(self.mean, x.dtype)) / unit * inside
        seen = ops.stack([deviation, deviation / (stddev + SOFT)], axis=-1)
        # what the maps give is the same for every person: convolved once a batch, and a constant once exported
        kernel = ops.cast(self.first.kernel, x.dtype)
        own, shared = kernel[..., :-MAPS, :], kernel[..., -MAPS:, :]
        features = ops.conv(seen, own, padding="same") + ops.conv(maps[None], shared, padding="same")
        features = ops.reshape(features + ops.cast(self.first.bias, x.dtype), (-1, self.filters[0]))
        for layer in self.hidden:
            features = layer(self.activate(features))
        correction = ops.reshape(self.last(self.activate(features)), ops.shape(deviation)) * inside * unit
        return x + correction

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "data_shape": list(self.data_shape),
            "filters": list(self.filters),
            "activation": self.activation,
        }
