"""The Laplace likelihood: residuals with heavier tails than the normal, so that outlying voxels weigh less.

p(x) = exp(−|x − x̂| / b) / 2b. Kotz, Kozubowski & Podgórski 2001, The Laplace Distribution and Generalizations,
section 2.6: the maximum-likelihood b is the mean absolute residual. It is taken here as the σ-VAE takes σ
(Rybkin, Daniilidis & Levine 2021, arXiv 2006.13202).
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from kerasvae.distributions.scale import ScaledLikelihood
from kerasvae.types import Mask

tfd = tfp.distributions

__all__ = ["LaplaceLikelihood"]


@keras.saving.register_keras_serializable("kerasvae")
class LaplaceLikelihood(ScaledLikelihood):
    """p(x|z) = Π over mask voxels of Laplace(x; x̂(z), b), one b for all voxels; the standard deviation is √2·b.

    Args:
        scale: ``"optimal"``: b is the mean absolute residual, followed over steps; ``"fixed"``; ``"learned"``: floor +
            softplus(r) with a trainable r.
        scale_value: b where it is fixed, and before the first step otherwise.
        floor: The smallest b, in the unit of the images.
        momentum: Weight of the past in the running mean absolute residual, in [0, 1).
        mask: Boolean array of the data's shape; only True voxels count. None counts all.
    """

    kind = "laplace"
    power = 1

    def __init__(
        self,
        scale: str = "optimal",
        scale_value: float = 1.0,
        floor: float = 1e-3,
        momentum: float = 0.9,
        mask: Mask | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(scale, scale_value, floor, momentum=momentum, mask=mask, **kwargs)

    def voxel_log_prob(self, x: tf.Tensor, decoded: tf.Tensor) -> tf.Tensor:
        """−log 2b − |x_v − x̂_v| / b in nats."""
        return tfd.Laplace(self.mean(decoded), self.current_scale()).log_prob(tf.cast(x, tf.float32))

    def mean(self, decoded: tf.Tensor) -> tf.Tensor:
        """The decoder's output: mean, median and mode alike."""
        return tf.cast(decoded, tf.float32)

    def draw(self, decoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """A random image."""
        return tfd.Laplace(self.mean(decoded), self.current_scale()).sample(seed=seed)

    def numbers(self) -> dict[str, tf.Tensor]:
        """b."""
        return {"scale": self.current_scale()}

    def best_voxel_log_prob(self, scale: float) -> float:
        """−(1 + log 2b̂)."""
        return -(1 + math.log(2 * scale))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "scale_value": self.initial_scale, "momentum": self.momentum}
