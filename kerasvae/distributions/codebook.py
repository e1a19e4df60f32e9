"""What posteriors over discrete codes share: positions that each hold one of K vectors.

van den Oord, Vinyals & Kavukcuoglu 2017, Neural Discrete Representation Learning, arXiv 1711.00937, section 3.1: one
codebook for all positions.
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import tensorflow as tf

from kerasvae.distributions.base import Posterior
from kerasvae.errors import ArgumentError

__all__ = ["CodebookPosterior"]


class CodebookPosterior(Posterior):
    """Codes of P whole numbers from 0 to K − 1, each standing for a vector of width d / P from one codebook.

    What the decoder sees is the P vectors one after the other, (B, d). Densities are probabilities of codes: with
    respect to the counting measure on the Kᴾ combinations.

    Args:
        latent_size: Number of latent dimensions d, a multiple of `positions`.
        positions: Number of positions P.
        codebook_size: Number of vectors K, 2 or more.
        seed: Of the codebook at the start, which is N(0, I).

    Attributes:
        learned: Whether the codebook is trained by gradients.
        codebook: The vectors, (K, d / P), float32.
        width: Width of a vector, d / P.

    Raises:
        ArgumentError: If a size is out of its range, or `positions` does not divide `latent_size`.
    """

    learned: ClassVar[bool]
    has_density = False

    def __init__(self, latent_size: int, positions: int, codebook_size: int, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value, least in (
            ("latent_size", latent_size, 1),
            ("positions", positions, 1),
            ("codebook_size", codebook_size, 2),
        ):
            if int(value) != value or value < least:
                raise ArgumentError(
                    name, rule=f"be a whole number of {least} or more", got=value, fix=f"Use {least} or more"
                )
        if latent_size % positions:
            raise ArgumentError(
                "positions",
                rule=f"divide latent_size, {latent_size}, so that all vectors have one width",
                got=positions,
                fix="Change one of the two",
            )
        self.latent_size = int(latent_size)
        self.positions = int(positions)
        self.codebook_size = int(codebook_size)
        self.seed = int(seed)
        self.width = self.latent_size // self.positions
        self.codebook = self.number(
            "codebook",
            (self.codebook_size, self.width),
            keras.initializers.RandomNormal(stddev=1.0, seed=self.seed),
            trainable=self.learned,
        )

    def number(
        self, name: str, shape: tuple[int, ...], initializer: Any = "zeros", *, trainable: bool = False
    ) -> keras.Variable:
        """A weight that stays float32 under mixed precision."""
        return self.add_weight(
            name=name, shape=shape, initializer=initializer, trainable=trainable, dtype="float32", autocast=False
        )

    def look_up(self, codes: tf.Tensor) -> tf.Tensor:
        """The vectors of codes, (…, P) whole numbers from 0 to K − 1 to (…, d), float32."""
        vectors = tf.gather(tf.convert_to_tensor(self.codebook), codes)
        return tf.reshape(vectors, tf.concat([tf.shape(codes)[:-1], [self.latent_size]], axis=0))

    def nearest(self, z: tf.Tensor) -> tf.Tensor:
        """At each position the code whose vector is nearest, (…, d) to (…, P) int32; of equals, the first.

        Distances are taken from differences, which lose no digits where vectors lie far from the origin, unlike
        ‖z‖² − 2 z·e + ‖e‖². That takes memory for as many numbers as `z` holds, times K.
        """
        z = tf.cast(z, tf.float32)
        vectors = tf.reshape(z, (-1, 1, self.width))
        square = tf.reduce_sum(tf.math.squared_difference(vectors, tf.convert_to_tensor(self.codebook)), axis=-1)
        codes = tf.argmin(square, axis=-1, output_type=tf.int32)
        return tf.reshape(codes, tf.concat([tf.shape(z)[:-1], [self.positions]], axis=0))

    def center(self, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """The embedding, (B, d)."""
        return outputs["embedding"]

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments that all such posteriors share."""
        names = ("latent_size", "positions", "codebook_size", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
