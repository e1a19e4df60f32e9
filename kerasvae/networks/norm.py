"""Group normalisation, Wu & He 2018, arXiv 1803.08494, for volumes: accurate, and by name in a recipe."""

from __future__ import annotations

from typing import Any

import keras

from kerasvae.errors import ArgumentError

__all__ = ["GroupNorm", "check_norm", "normalise"]

NORMS = ("group", "none")


@keras.saving.register_keras_serializable("kerasvae")
class GroupNorm(keras.layers.Layer):
    """y = γ (x − mean) / √(variance + ε) + β, mean and variance over the places and channels of a group (section 3.1).

    It does not depend on the batch, which is small for volumes. `keras.layers.GroupNormalization` sums all numbers of a
    group at once in float32, which costs a volume of 48³ voxels its fourth digit if it is alone in its batch; here one
    axis is summed after the other.

    Args:
        groups: Number of groups; it divides the number of channels.
        epsilon: ε.
        kwargs: Of `keras.layers.Layer`.
    """

    def __init__(self, groups: int, epsilon: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.groups, self.epsilon = groups, epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make γ and β, (channels,)."""
        channels = input_shape[-1]
        if not channels or self.groups < 1 or channels % self.groups:
            raise ArgumentError(
                "groups", rule=f"divide the {channels} channels", got=self.groups, fix="Choose a divisor of them"
            )
        self.gamma = self.add_weight(shape=(channels,), initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=(channels,), initializer="zeros", name="beta")

    def call(self, inputs: Any) -> Any:
        """Normalise (batch, …, channels); in float32 whatever the layer computes in."""
        x = keras.ops.cast(inputs, "float32")
        moved = x - self._mean(x)
        slope = keras.ops.rsqrt(self._mean(keras.ops.square(moved)) + self.epsilon)
        out = moved * (slope * keras.ops.cast(self.gamma, "float32")) + keras.ops.cast(self.beta, "float32")
        return keras.ops.cast(out, self.compute_dtype)

    def _mean(self, x: Any) -> Any:
        """Of each group, (batch, 1, …, channels)."""
        places, channels = len(x.shape) - 2, x.shape[-1]
        for _ in range(places):
            x = keras.ops.mean(x, axis=-2)
        x = keras.ops.mean(keras.ops.reshape(x, (-1, self.groups, channels // self.groups)), axis=-1)
        x = keras.ops.repeat(x, channels // self.groups, axis=-1)
        return keras.ops.reshape(x, (-1, *[1] * places, channels))

    def get_config(self) -> dict[str, Any]:
        """What `from_config` needs."""
        return super().get_config() | {"groups": self.groups, "epsilon": self.epsilon}


def check_norm(name: str) -> None:
    """Refuse an unknown normalisation."""
    if name not in NORMS:
        raise ArgumentError("norm", rule=f"be one of {NORMS}", got=repr(name), fix="Choose one of them")


def normalise(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Apply the normalisation `name` to channels-last features.

    ``"group"``: `GroupNorm` with eight channels or fewer to a group.
    """
    if name == "none":
        return x
    channels = int(x.shape[-1])
    groups = max(1, channels // 8)
    while channels % groups:
        groups -= 1
    return GroupNorm(groups)(x)
