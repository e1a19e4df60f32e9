"""The Student-t likelihood: residuals with power-law tails, so that an outlying voxel hardly pulls at the fit.

Lange, Little & Taylor 1989, Robust Statistical Modeling Using the t Distribution, Journal of the American Statistical
Association 84, 881–896: the degrees of freedom tune robustness and can be estimated with the rest.
Takahashi et al. 2018, Student-t Variational Autoencoder for Robust Density Estimation, IJCAI: the same for a decoder.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from kerasvae.distributions.base import inverse_positive, positive
from kerasvae.distributions.scale import ScaledLikelihood
from kerasvae.errors import ArgumentError
from kerasvae.types import Mask

tfd = tfp.distributions

__all__ = ["StudentTLikelihood"]

LEAST_DEGREES = 2.01
"""Floor of learned degrees of freedom: at 2 the variance is infinite."""


@keras.saving.register_keras_serializable("kerasvae")
class StudentTLikelihood(ScaledLikelihood):
    """p(x|z) = Π over mask voxels of t_ν((x − x̂(z)) / τ) / τ, one τ and one ν for all voxels.

    The standard deviation is τ √(ν / (ν − 2)); it exists since ν > 2.

    Args:
        scale: ``"learned"``: τ = floor + softplus(r) with a trainable r; or ``"fixed"``.
        scale_value: τ where it is fixed, and before the first step otherwise.
        degrees_of_freedom: ν where it is fixed, and before the first step otherwise; above 2, or above 2.01 if learned.
        learn_degrees_of_freedom: Whether ν = 2.01 + softplus(r) with a trainable r.
        floor: The smallest τ, in the unit of the images.
        mask: Boolean array of the data's shape; only True voxels count. None counts all.
    """

    kind = "student_t"
    scales = ("learned", "fixed")

    def __init__(
        self,
        scale: str = "learned",
        scale_value: float = 1.0,
        degrees_of_freedom: float = 5.0,
        learn_degrees_of_freedom: bool = True,
        floor: float = 1e-3,
        mask: Mask | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(scale, scale_value, floor, mask=mask, **kwargs)
        least = LEAST_DEGREES if learn_degrees_of_freedom else 2.0
        if not (degrees_of_freedom > least and math.isfinite(degrees_of_freedom)):
            raise ArgumentError(
                "degrees_of_freedom", rule=f"be finite and above {least:g}", got=degrees_of_freedom, fix="Use 5"
            )
        self.degrees_of_freedom = float(degrees_of_freedom)
        self.learn_degrees_of_freedom = bool(learn_degrees_of_freedom)
        if learn_degrees_of_freedom:
            raw = inverse_positive(self.degrees_of_freedom, LEAST_DEGREES)
            self.raw_degrees = self._number("raw_degrees", raw, trainable=True)

    def degrees(self) -> tf.Tensor:
        """The ν in use, a float32 scalar."""
        if not self.learn_degrees_of_freedom:
            return tf.constant(self.degrees_of_freedom)
        return positive(tf.convert_to_tensor(self.raw_degrees), LEAST_DEGREES)

    def _distribution(self, decoded: tf.Tensor) -> tfp.distributions.Distribution:
        return tfd.StudentT(self.degrees(), self.mean(decoded), self.current_scale())

    def voxel_log_prob(self, x: tf.Tensor, decoded: tf.Tensor) -> tf.Tensor:
        """log t_ν((x_v − x̂_v) / τ) − log τ in nats."""
        return self._distribution(decoded).log_prob(tf.cast(x, tf.float32))

    def mean(self, decoded: tf.Tensor) -> tf.Tensor:
        """The decoder's output, the location: mean (it exists since ν > 1), median and mode alike."""
        return tf.cast(decoded, tf.float32)

    def draw(self, decoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """A random image."""
        return self._distribution(decoded).sample(seed=seed)

    def numbers(self) -> dict[str, tf.Tensor]:
        """τ and ν."""
        return {"scale": self.current_scale(), "degrees_of_freedom": self.degrees()}

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "scale_value": self.initial_scale,
            "degrees_of_freedom": self.degrees_of_freedom,
            "learn_degrees_of_freedom": self.learn_degrees_of_freedom,
        }
