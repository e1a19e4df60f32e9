"""The continuous Bernoulli likelihood of images in [0, 1].

Loaiza-Ganem & Cunningham 2019, The continuous Bernoulli: fixing a pervasive error in variational autoencoders, NeurIPS,
arXiv 1907.06845. The decoder gives the natural parameter η, the logit of their λ; in it the density is
p(x) = exp(ηx − A(η)) on [0, 1] with A(η) = log((e^η − 1) / η), so A'(η) is the mean and A''(η) the variance.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.distributions.base import Likelihood
from kerasvae.distributions.bernoulli import check_unit_interval, in_unit_interval
from kerasvae.types import Mask

__all__ = ["ContinuousBernoulliLikelihood"]

EVEN = (1 / 24, -1 / 2880, 1 / 181_440, -1 / 9_676_800, 1 / 479_001_600)
"""Taylor coefficients of A(η) − η/2 in η², η⁴, …: B_2n / (2n · (2n)!), B Bernoulli numbers; 1e-10 near for |η| < 1."""


@keras.saving.register_keras_serializable("kerasvae")
class ContinuousBernoulliLikelihood(Likelihood):
    """p(x|z) = Π over mask voxels of C(λ) λ^x (1 − λ)^(1−x), with the decoder's output η as the logit of λ.

    A density on [0, 1]: the Bernoulli's cross-entropy with the normaliser that it lacks. Outside it is −∞.

    Args:
        mask: Boolean array of the data's shape; only True voxels count. None counts all.
    """

    kind = "continuous_bernoulli"

    def __init__(self, mask: Mask | dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(mask=mask, **kwargs)
        self.built = True

    def voxel_log_prob(self, x: tf.Tensor, decoded: tf.Tensor) -> tf.Tensor:
        """ηx − A(η) in nats; −∞ where x_v is not in [0, 1]."""
        x, eta = tf.cast(x, tf.float32), tf.cast(decoded, tf.float32)
        inside, x = in_unit_interval(x)
        near, far, square = _cases(eta)
        series = (x - 0.5) * eta - square * _polynomial(square, EVEN)
        size = tf.abs(far)
        # A(η) = max(η, 0) + log((1 − e^−|η|) / |η|): nothing overflows
        closed = x * far - tf.nn.relu(far) - tf.math.log(-tf.math.expm1(-size) / size)
        return tf.where(inside, tf.where(near, series, closed), -np.inf)

    def mean(self, decoded: tf.Tensor) -> tf.Tensor:
        """The distribution's mean 1 / (1 − e^−η) − 1/η, which is not λ: it is nearer to ½."""
        near, far, square = _cases(tf.cast(decoded, tf.float32))
        slopes = [2 * (n + 1) * coefficient for n, coefficient in enumerate(EVEN)]
        series = 0.5 + tf.cast(decoded, tf.float32) * _polynomial(square, slopes)
        return tf.where(near, series, (0.5 + 0.5 / tf.tanh(0.5 * far)) - 1 / far)

    def draw(self, decoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """A random image: the distance to the likelier end is exponential with rate |η|, cut at 1."""
        eta = tf.cast(decoded, tf.float32)
        rate = tf.maximum(tf.abs(eta), 1e-6)
        uniform = tf.random.stateless_uniform(tf.shape(eta), seed)
        distance = tf.clip_by_value(-tf.math.log1p(uniform * tf.math.expm1(-rate)) / rate, 0.0, 1.0)
        return tf.where(eta > 0, 1 - distance, distance)

    def check(self, x: NDArray) -> None:
        """Refuse images with values outside [0, 1] in the mask.

        Args:
            x: (n, *data_shape).

        Raises:
            ArgumentError: Naming the range received.
        """
        check_unit_interval(x, self.mask)


def _cases(eta: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Where η is near 0; η with 1 there instead; η² with 0 elsewhere: no branch is NaN, nor its gradient."""
    near = tf.abs(eta) < 1
    return near, tf.where(near, 1.0, eta), tf.square(tf.where(near, eta, 0.0))


def _polynomial(square: tf.Tensor, coefficients: tuple[float, ...] | list[float]) -> tf.Tensor:
    """Σ cₙ squareⁿ, by Horner's rule."""
    total = tf.fill(tf.shape(square), coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * square + coefficient
    return total
