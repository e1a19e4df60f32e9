"""The Bernoulli likelihood of binary images, and what is often done with grey levels.

Kingma & Welling 2014, Auto-Encoding Variational Bayes, arXiv 1312.6114, appendix C.1, equation 11:
log p(x|z) = Σ x log y + (1 − x) log(1 − y), y = sigmoid(decoded).
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

__all__ = ["BernoulliLikelihood", "check_unit_interval", "in_unit_interval"]


@keras.saving.register_keras_serializable("kerasvae")
class BernoulliLikelihood(Likelihood):
    """p(x|z) = Π over mask voxels of y^x (1 − y)^(1−x), with the decoder's output as the logit of y.

    It is a probability for x in {0, 1} only. Grey levels in between are treated as by Kingma & Welling: the value is
    the negative cross-entropy, which is no density on [0, 1], does not add up to one, and must not be compared with
    other likelihoods; `ContinuousBernoulliLikelihood` is its normalised form. Outside [0, 1] it is −∞.

    Args:
        mask: Boolean array of the data's shape; only True voxels count. None counts all.
    """

    kind = "bernoulli"

    def __init__(self, mask: Mask | dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(mask=mask, **kwargs)
        self.built = True

    def voxel_log_prob(self, x: tf.Tensor, decoded: tf.Tensor) -> tf.Tensor:
        """x_v log y_v + (1 − x_v) log(1 − y_v) in nats; −∞ where x_v is not in [0, 1]."""
        x, logit = tf.cast(x, tf.float32), tf.cast(decoded, tf.float32)
        inside, x = in_unit_interval(x)
        return tf.where(inside, -x * tf.nn.softplus(-logit) - (1 - x) * tf.nn.softplus(logit), -np.inf)

    def mean(self, decoded: tf.Tensor) -> tf.Tensor:
        """y = sigmoid(decoded), the probability of a one."""
        return tf.sigmoid(tf.cast(decoded, tf.float32))

    def draw(self, decoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """A random image of zeros and ones."""
        return tfd.Bernoulli(logits=tf.cast(decoded, tf.float32), dtype=tf.float32).sample(seed=seed)

    def check(self, x: NDArray) -> None:
        """Refuse images with values outside [0, 1] in the mask.

        Args:
            x: (n, *data_shape).

        Raises:
            ArgumentError: Naming the range received.
        """
        check_unit_interval(x, self.mask)


def in_unit_interval(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where x lies in [0, 1]; and x with 0 elsewhere, so that a NaN there, e.g. outside a mask, reaches no gradient."""
    inside = (x >= 0) & (x <= 1)
    return inside, tf.where(inside, x, 0.0)


def check_unit_interval(x: NDArray, mask: Mask | None) -> None:
    """Refuse values outside [0, 1] in the mask, NaN included.

    Raises:
        ArgumentError: Naming the range received.
    """
    x = np.asarray(x)
    values = x if mask is None else x[..., mask]
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):
        raise ArgumentError(
            "x",
            rule="lie in [0, 1] for this likelihood",
            got=f"values from {low:g} to {high:g}",
            fix="Rescale the images to [0, 1], or take another likelihood",
        )
