"""The categorical likelihood of label maps, e.g. a segmentation: one of K labels in each voxel.

Dalca, Guttag & Sabuncu 2018, Anatomical Priors in Convolutional Networks for Unsupervised Biomedical Segmentation,
CVPR, arXiv 1903.03148: a variational autoencoder of label maps whose decoder gives each voxel's label probabilities.
log p(x|z) = Σ over voxels of log softmax(decoded)_x.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from numpy.typing import NDArray

from kerasvae.distributions.base import Likelihood
from kerasvae.errors import ArgumentError
from kerasvae.types import Mask

tfd = tfp.distributions

__all__ = ["CategoricalLikelihood"]


@keras.saving.register_keras_serializable("kerasvae")
class CategoricalLikelihood(Likelihood):
    """p(x|z) = Π over mask voxels of softmax(decoded)_x; the decoder gives K logits a voxel in its last axis.

    Images hold the labels 0 … K − 1 as whole numbers, float32 or integer; anything else has log-probability −∞.

    Args:
        labels: K, at least 2, background included.
        mask: Boolean array of the data's shape; only True voxels count. None counts all.
    """

    kind = "categorical"

    def __init__(self, labels: int, mask: Mask | dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(mask=mask, **kwargs)
        if labels != int(labels) or labels < 2:
            raise ArgumentError("labels", rule="be a whole number from 2 on", got=labels, fix="Count the background")
        self.labels = int(labels)
        self.built = True

    @property
    def channels(self) -> int:
        """K."""
        return self.labels

    def voxel_log_prob(self, x: tf.Tensor, decoded: tf.Tensor) -> tf.Tensor:
        """log softmax(decoded_v)_x in nats; −∞ where x_v is not one of the labels."""
        x = tf.cast(x, tf.float32)
        chosen = x[..., None] == tf.range(self.labels, dtype=tf.float32)
        log_prob = tf.reduce_sum(tf.where(chosen, tf.nn.log_softmax(tf.cast(decoded, tf.float32)), 0.0), axis=-1)
        return tf.where(tf.reduce_any(chosen, axis=-1), log_prob, -np.inf)

    def mean(self, decoded: tf.Tensor) -> tf.Tensor:
        """The most probable label of each voxel, the mode, as float32: labels have no mean. It has no gradient."""
        return tf.cast(tf.argmax(tf.cast(decoded, tf.float32), axis=-1), tf.float32)

    def probabilities(self, decoded: tf.Tensor) -> tf.Tensor:
        """Probability of each label, (…, *data_shape, K), float32."""
        return tf.nn.softmax(tf.cast(decoded, tf.float32))

    def draw(self, decoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """A random label map; voxels are independent given the code."""
        return tfd.Categorical(logits=tf.cast(decoded, tf.float32), dtype=tf.float32).sample(seed=seed)

    def check(self, x: NDArray) -> None:
        """Refuse label maps with anything but whole numbers from 0 to K − 1 in the mask.

        Args:
            x: (n, *data_shape).

        Raises:
            ArgumentError: Naming the range received.
        """
        values = np.asarray(x) if self.mask is None else np.asarray(x)[..., self.mask]
        if not (values == np.clip(np.round(values), 0, self.labels - 1)).all():
            raise ArgumentError(
                "x",
                rule=f"hold only the labels 0 to {self.labels - 1}",
                got=f"values from {values.min():g} to {values.max():g}",
                fix="Number the labels from 0 without gaps, and resample them to the nearest",
            )

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "labels": self.labels}
