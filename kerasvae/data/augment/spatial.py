"""Layers that move voxels: a small affine map, left and right exchanged, a smooth deformation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from kerasvae.data.augment.fields import Points, interpolated, lattice, smooth_fields
from kerasvae.data.augment.random_layer import RandomLayer, bounded, check_images, spacing_of, uniform
from kerasvae.errors import ArgumentError

__all__ = ["Moving", "RandomAffine", "RandomElastic", "RandomFlip"]

STEEPEST = 0.2
"""Largest standard deviation of a displacement's derivative: five of them make a fold."""


class Moving(RandomLayer):
    """A layer that reads each voxel elsewhere, by linear interpolation.

    Args:
        spacing_mm: Distance between voxels along each axis, two or three numbers.
    """

    def __init__(self, spacing_mm: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spacing_mm = spacing_of(spacing_mm)

    def points(self, points: Points, shape: tuple[int, ...], seeds: tf.Tensor) -> Points:
        """Where the changed image at `points` is to be read in the image that the layer is given."""
        raise NotImplementedError

    def check(self, images: Any, seed: Any, rows: Any) -> None:
        """See `RandomLayer`."""
        super().check(images, seed, rows)
        check_images(images, len(self.spacing_mm))

    def change(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """See `RandomLayer`."""
        shape = tuple(images.shape[1:])
        return interpolated(images, self.points(lattice(shape), shape, seeds))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "spacing_mm": list(self.spacing_mm)}


@keras.saving.register_keras_serializable("kerasvae")
class RandomAffine(Moving):
    """A small rotation, shift and change of size about the middle of the grid.

    With p and q places in mm from the middle, the changed image at p is the image at q = R S p + t. S is diagonal and
    R = R_z R_y R_x, each a rotation about that axis by the right-hand rule; a slice has R_z alone. Everything is drawn
    evenly and independently, by axis.

    Args:
        degrees: Angles lie within ± this, 0 to 45.
        mm: Shifts lie within ± this.
        scale: The logarithms of S lie within ± log(1 + scale), 0 to 0.5.
        spacing_mm: Distance between voxels along each axis, two or three numbers.
    """

    def __init__(
        self, degrees: float = 0.0, mm: float = 0.0, scale: float = 0.0, *, spacing_mm: Sequence[float], **kwargs: Any
    ) -> None:
        super().__init__(spacing_mm, **kwargs)
        self.degrees = bounded("degrees", degrees, 0, 45, fix="Use 3")
        self.mm = bounded("mm", mm, 0, fix="Use 2")
        self.scale = bounded("scale", scale, 0, 0.5, fix="Use 0.03")

    @property
    def off(self) -> bool:
        """All three are 0."""
        return self.degrees == self.mm == self.scale == 0

    def draw(self, seeds: tf.Tensor) -> dict[str, tf.Tensor]:
        """What is drawn: ``degrees`` about x, y, z, (b, 3), or (b, 1) for slices; ``mm`` and ``scale``, (b, axes)."""
        axes = len(self.spacing_mm)
        angles = 3 if axes == 3 else 1
        numbers = uniform(seeds, (angles + 2 * axes,), -1.0, 1.0)
        turn, shift, size = tf.split(numbers, [angles, axes, axes], axis=1)
        grown = tf.exp(size * math.log1p(self.scale))
        return {"degrees": turn * self.degrees, "mm": shift * self.mm, "scale": grown}

    def points(self, points: Points, shape: tuple[int, ...], seeds: tf.Tensor) -> Points:
        """See `Moving`."""
        drawn = self.draw(seeds)
        matrix = _rotation(drawn["degrees"]) * drawn["scale"][:, None]
        rank = len(shape)
        middle = [(n - 1) / 2 for n in shape]
        away = [(p - c) * s for p, c, s in zip(points, middle, self.spacing_mm, strict=True)]

        def number(values: tf.Tensor) -> tf.Tensor:
            return tf.reshape(values, [-1] + [1] * rank)

        return tuple(
            (tf.add_n([number(matrix[:, row, column]) * away[column] for column in range(rank)]) + number(shift))
            / self.spacing_mm[row]
            + middle[row]
            for row, shift in enumerate(tf.unstack(drawn["mm"], axis=1))
        )

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "degrees": self.degrees, "mm": self.mm, "scale": self.scale}


def _rotation(degrees: tf.Tensor) -> tf.Tensor:
    """R_z R_y R_x, (b, 3, 3), from angles (b, 3); of angles (b, 1) R_z in the plane, (b, 2, 2)."""
    cos, sin = tf.cos(degrees * (math.pi / 180)), tf.sin(degrees * (math.pi / 180))
    if degrees.shape[1] == 1:
        return tf.stack([tf.concat([cos, -sin], 1), tf.concat([sin, cos], 1)], axis=1)
    (cx, cy, cz), (sx, sy, sz) = tf.unstack(cos, axis=1), tf.unstack(sin, axis=1)
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return tf.stack([tf.stack(row, axis=1) for row in rows], axis=1)


@keras.saving.register_keras_serializable("kerasvae")
class RandomElastic(Moving):
    """A smooth deformation: each voxel is read at its own place plus a random displacement.

    Each component of the displacement, in mm, is a Gaussian field with the same standard deviation at every voxel and
    correlation exp(−r² / 2 smoothness²) between voxels r mm apart. A fold needs a derivative below −1, which is at
    least five standard deviations, mm / smoothness each.

    Args:
        mm: Standard deviation of each component, at most a fifth of `smoothness_mm`.
        smoothness_mm: The length above.
        spacing_mm: Distance between voxels along each axis, two or three numbers.
    """

    def __init__(self, mm: float = 0.0, smoothness_mm: float = 24.0, *, spacing_mm: Sequence[float], **kwargs: Any):
        super().__init__(spacing_mm, **kwargs)
        self.smoothness_mm = bounded("smoothness_mm", smoothness_mm, 1, fix="Use 24")
        self.mm = bounded("mm", mm, 0, fix="Use 2")
        if self.mm > STEEPEST * self.smoothness_mm:
            raise ArgumentError(
                "mm",
                rule=f"be at most a fifth of smoothness_mm, {STEEPEST * self.smoothness_mm:g}, or the image may fold",
                got=self.mm,
                fix="Lower it, or raise smoothness_mm",
            )

    @property
    def off(self) -> bool:
        """`mm` is 0."""
        return self.mm == 0

    def draw(self, shape: Sequence[int], seeds: tf.Tensor) -> tf.Tensor:
        """Displacements in mm, (b, axes, *shape)."""
        return self.mm * smooth_fields(seeds, len(shape), shape, self.spacing_mm, self.smoothness_mm)

    def points(self, points: Points, shape: tuple[int, ...], seeds: tf.Tensor) -> Points:
        """See `Moving`; `points` must be the voxels' own places, at which the displacement is known."""
        moved = tf.unstack(self.draw(shape, seeds), axis=1)
        return tuple(p + u / s for p, u, s in zip(points, moved, self.spacing_mm, strict=True))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "mm": self.mm, "smoothness_mm": self.smoothness_mm}


@keras.saving.register_keras_serializable("kerasvae")
class RandomFlip(RandomLayer):
    """Left and right exchanged, in some of the images: axis x is turned about the middle of the array.

    The grid's middle must be the person's, as on the MNI grids; otherwise the brain is moved to where no brain of the
    cohort is. People are not symmetric: where a difference between the sides matters, leave it off.

    Args:
        probability: Of an exchange, 0 to 1.
    """

    def __init__(self, probability: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.probability = bounded("probability", probability, 0, 1, fix="Use 0.5")

    @property
    def off(self) -> bool:
        """`probability` is 0."""
        return self.probability == 0

    def draw(self, seeds: tf.Tensor) -> tf.Tensor:
        """Which images are exchanged, (b,)."""
        return uniform(seeds, (), 0.0, 1.0) < self.probability

    def change(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """See `RandomLayer`."""
        exchanged = tf.reshape(self.draw(seeds), [-1] + [1] * (images.shape.rank - 1))
        return tf.where(exchanged, tf.reverse(images, [1]), images)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "probability": self.probability}
