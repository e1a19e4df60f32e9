"""A person mixed with one of those who look most alike.

Zhang, Cisse, Dauphin & Lopez-Paz 2018, mixup: Beyond Empirical Risk Minimization, ICLR, arXiv 1710.09412, mix any two;
Chawla, Bowyer, Hall & Kegelmeyer 2002, SMOTE, J. Artif. Intell. Res. 16:321, a case and one of its nearest neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.data.augment.random_layer import RandomLayer, bounded, uniform
from kerasvae.errors import ArgumentError
from kerasvae.types import Mask

__all__ = ["MixNeighbours"]


@keras.saving.register_keras_serializable("kerasvae")
class MixNeighbours(RandomLayer):
    """(1 − w) · a person + w · one of the `neighbours` nearest others, w drawn evenly from [0, share).

    The others are those whom `adapt` was given, which must be training people only; they are kept by reference and are
    no part of the configuration, so a layer that was loaded from a file is adapted again. What is known about people
    beside the image is mixed alike, so it must be numbers of which a mean makes sense; categories go to `adapt` as
    `strata`.

    Args:
        share: Greatest weight of the other, at most 0.5, so that the person remains the nearer one.
        neighbours: Others among whom one is drawn.
    """

    def __init__(self, share: float = 0.0, neighbours: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.share = bounded("share", share, 0, 0.5, fix="Use 0.5")
        if isinstance(neighbours, bool) or not isinstance(neighbours, int) or neighbours < 1:
            raise ArgumentError("neighbours", rule="be a whole number, 1 or more", got=repr(neighbours), fix="Use 5")
        self.neighbours = neighbours
        self._people: dict[str, NDArray[Any]] | None = None
        self._nearest: NDArray[np.int64] = np.empty((0, neighbours), np.int64)
        self._found: NDArray[np.int64] = np.empty(0, np.int64)

    @property
    def off(self) -> bool:
        """`share` is 0."""
        return self.share == 0

    @property
    def nearest(self) -> NDArray[np.int64]:
        """Row of each person's neighbours, nearest first, (n, neighbours); the person's own where there are fewer."""
        return self._nearest

    def adapt(
        self,
        people: NDArray[Any] | Mapping[str, NDArray[Any]],
        mask: Mask | None = None,
        groups: Sequence[Any] | None = None,
        strata: Sequence[Any] | None = None,
    ) -> None:
        """Find each person's nearest others by the distance of images over the mask.

        Args:
            people: Images (n, *data_shape), or a mapping with ``image`` and what else is to be mixed, each (n, …).
            mask: Voxels that count.
            groups: The person of each image: scans of one person are not mixed.
            strata: A label of each image: only equal ones are mixed. Who has no equal stays unmixed.

        Raises:
            ArgumentError: If groups or strata have another length.
        """
        given = dict(people) if isinstance(people, Mapping) else {"image": people}
        images = given["image"]
        flat = images.reshape(len(images), -1) if mask is None else images[:, mask]
        barred = np.eye(len(images), dtype=bool)
        for name, labels, same in (("groups", groups, True), ("strata", strata, False)):
            if labels is None:
                continue
            if len(labels) != len(images):
                raise ArgumentError(
                    name, rule=f"have a label for each of the {len(images)} images", got=len(labels), fix="Add them"
                )
            number = np.unique(np.asarray(labels), return_inverse=True)[1]
            barred |= (number[:, None] == number) == same
        distance = np.where(barred, np.inf, _squared_distances(flat))
        order = np.argsort(distance, axis=1, kind="stable")[:, : self.neighbours]
        known = np.isfinite(np.take_along_axis(distance, order, axis=1))
        self._nearest = np.where(known, order, np.arange(len(images))[:, None])
        self._found = known.sum(axis=1)
        self._people = given

    def draw(self, rows: Any, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Row of the other, int64, and its weight w, each (b,)."""
        numbers = uniform(seeds, (2,), 0.0, 1.0)
        found = tf.gather(self._found, rows)
        which = tf.minimum(tf.cast(numbers[:, 0] * tf.cast(found, tf.float32), tf.int64), tf.maximum(found - 1, 0))
        other = tf.gather_nd(self._nearest, tf.stack([tf.cast(rows, tf.int64), which], axis=1))
        return other, self.share * numbers[:, 1]

    def check(self, images: Any, seed: Any, rows: Any) -> None:
        """See `RandomLayer`."""
        super().check(images, seed, rows)
        if self._people is None or rows is None:
            raise ArgumentError(
                "MixNeighbours",
                rule="know the training people and who of them is in the batch",
                got="no adapt" if self._people is None else "no rows",
                fix="Call adapt with the training people, and give rows",
            )
        given = list(images) if isinstance(images, Mapping) else ["image"]
        if set(given) != set(self._people):
            raise ArgumentError(
                "images", rule=f"hold {', '.join(self._people)}, as adapt did", got=", ".join(given), fix="Adapt again"
            )

    def call(self, images: Any, seed: Any = None, training: bool = True, rows: Any = None) -> Any:
        """Mixed images, the same shape.

        Args:
            images: (b, *data_shape), or a mapping of all that `adapt` was given, which is then mixed alike.
            seed: As for `RandomLayer`.
            training: False gives the images back as they are.
            rows: Place of each image among those that `adapt` was given, (b,).

        Raises:
            ArgumentError: Without `rows`, before `adapt`, or if something else is to be mixed.
        """
        if not training or self.off:
            return images
        given = dict(images) if isinstance(images, Mapping) else {"image": images}
        other, weight = self.draw(rows, self.seeds_of(seed, given["image"]))
        mixed = {}
        for name, theirs in zip(given, self._looked_up(other, list(given)), strict=True):
            own = given[name]
            mixed[name] = own + tf.reshape(weight, [-1] + [1] * (own.shape.rank - 1)) * (theirs - own)
        return mixed if isinstance(images, Mapping) else mixed["image"]

    def _looked_up(self, rows: tf.Tensor, names: list[str]) -> list[tf.Tensor]:
        """Rows of what `adapt` was given; in numpy, so that no array is copied or put in the graph."""
        people = self._people or {}

        def take(index: NDArray[np.int64]) -> list[NDArray[np.float32]]:
            return [np.ascontiguousarray(people[name][index], dtype=np.float32) for name in names]

        found = tf.numpy_function(take, [rows], [tf.float32] * len(names), stateful=False)
        found = [found] if tf.is_tensor(found) else found  # of one, TensorFlow gives no list outside a graph
        for name, values in zip(names, found, strict=True):
            values.set_shape([None, *people[name].shape[1:]])
        return found

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments; none of the people."""
        return {**super().get_config(), "share": self.share, "neighbours": self.neighbours}


def _squared_distances(flat: NDArray[Any]) -> NDArray[np.float64]:
    """Between rows of (n, v), (n, n); about their mean, so that less is lost to rounding."""
    away = flat - flat.mean(axis=0)
    products = (away @ away.T).astype(np.float64)
    squares = np.diag(products)
    return squares[:, None] + squares - 2 * products
