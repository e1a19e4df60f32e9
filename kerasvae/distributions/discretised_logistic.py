"""The discretised logistic likelihood of images stored with few grey levels.

Salimans, Karpathy, Chen & Kingma 2017, PixelCNN++, ICLR, arXiv 1701.05517, equation 2 with one component:
P(x) = sigmoid((x + Δ/2 − μ) / s) − sigmoid((x − Δ/2 − μ) / s) on a lattice of step Δ; the lowest level takes the whole
lower tail (its second term is 0), the highest the whole upper tail (its first term is 1).
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from numpy.typing import NDArray

from kerasvae.distributions.scale import ScaledLikelihood
from kerasvae.errors import ArgumentError
from kerasvae.types import Mask

tfd = tfp.distributions

__all__ = ["DiscretisedLogisticLikelihood"]

TOLERANCE = 0.01
"""How far from a level, in steps, a value may lie: what rounding to float32 moves it by."""


@keras.saving.register_keras_serializable("kerasvae")
class DiscretisedLogisticLikelihood(ScaledLikelihood):
    """p(x|z) = Π over mask voxels of P(x), with the decoder's output as the location μ; one s for all voxels.

    Probabilities of levels, so log p ≤ 0; off the lattice it is −∞.

    Args:
        levels: Number of grey levels, equally spaced from `low` to `high`, both included; at least 2.
        low: The lowest level.
        high: The highest level.
        scale: ``"learned"``: s = floor + softplus(r) with a trainable r; or ``"fixed"``.
        scale_value: s where it is fixed, and before the first step otherwise; by default a twentieth of high − low, but
            not below the step between levels. The logistic's standard deviation is π s / √3.
        floor: The smallest s; by default a tenth of the step between levels.
        mask: Boolean array of the data's shape; only True voxels count. None counts all.
    """

    kind = "discretised_logistic"
    scales = ("learned", "fixed")

    def __init__(
        self,
        levels: int = 256,
        low: float = 0.0,
        high: float = 1.0,
        scale: str = "learned",
        scale_value: float | None = None,
        floor: float | None = None,
        mask: Mask | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if levels != int(levels) or levels < 2:
            raise ArgumentError(
                "levels", rule="be a whole number from 2 on", got=levels, fix="Use 256 for 8-bit images"
            )
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ArgumentError("low", rule="lie below high", got=f"low={low}, high={high}", fix="Swap them")
        step = (high - low) / (levels - 1)
        if max(abs(low), abs(high)) * np.finfo(np.float32).eps > TOLERANCE * step:
            raise ArgumentError(
                "levels", rule="be few enough for float32 to tell them apart", got=levels, fix="Give fewer levels"
            )
        value = max((high - low) / 20, step) if scale_value is None else scale_value
        super().__init__(scale, value, step / 10 if floor is None else floor, mask=mask, **kwargs)
        self.levels = int(levels)
        self.low, self.high, self.step = float(low), float(high), float(step)
        self.given_scale, self.given_floor = scale_value, floor

    def voxel_log_prob(self, x: tf.Tensor, decoded: tf.Tensor) -> tf.Tensor:
        """log P(x_v) in nats; −∞ where x_v is not a level."""
        s, index = self.current_scale(), (tf.cast(x, tf.float32) - self.low) / self.step
        level = tf.round(index)
        on_lattice = (level >= 0) & (level <= self.levels - 1) & (tf.abs(index - level) <= TOLERANCE)
        level = tf.where(on_lattice, level, 0.0)
        z = (self.low + level * self.step - self.location(decoded)) / s
        half = 0.5 * self.step / s
        # log(sigmoid(b) − sigmoid(a)) = log sigmoid(b) + log sigmoid(−a) + log(1 − e^(a − b)): nothing cancels
        lowest, highest = level <= 0, level >= self.levels - 1
        below_upper = tf.where(highest, 0.0, tf.math.log_sigmoid(z + half))
        above_lower = tf.where(lowest, 0.0, tf.math.log_sigmoid(half - z))
        overlap = tf.where(lowest | highest, 0.0, tf.math.log(-tf.math.expm1(-2 * half)))
        log_prob = below_upper + above_lower + overlap
        return tf.where(on_lattice, log_prob, -np.inf)

    def location(self, decoded: tf.Tensor) -> tf.Tensor:
        """μ, the decoder's output."""
        return tf.cast(decoded, tf.float32)

    def mean(self, decoded: tf.Tensor) -> tf.Tensor:
        """The mean of the logistic cut to [low, high], whose tails lie on the two ends.

        It is the mean of the levels but for their rounding: within 0.03 of a step where s is at least half a step, and
        within half a step always.
        """
        mu, s = self.location(decoded), self.current_scale()
        below, above = (s * tf.nn.softplus(-tf.abs(mu - end) / s) for end in (self.low, self.high))
        return tf.clip_by_value(mu, self.low, self.high) + below - above

    def draw(self, decoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """A random image, on the lattice."""
        values = tfd.Logistic(self.location(decoded), self.current_scale()).sample(seed=seed)
        level = tf.round((tf.clip_by_value(values, self.low, self.high) - self.low) / self.step)
        return self.low + level * self.step

    def numbers(self) -> dict[str, tf.Tensor]:
        """s."""
        return {"scale": self.current_scale()}

    def check(self, x: NDArray) -> None:
        """Refuse images with values off the lattice in the mask.

        Args:
            x: (n, *data_shape).

        Raises:
            ArgumentError: Naming the range received.
        """
        values = np.asarray(x, dtype=np.float64)
        values = values if self.mask is None else values[..., self.mask]
        index = (values - self.low) / self.step
        level = np.clip(np.round(index), 0, self.levels - 1)
        if not (np.abs(index - level) <= TOLERANCE).all():
            raise ArgumentError(
                "x",
                rule=f"hold only {self.levels} equally spaced levels from {self.low:g} to {self.high:g}",
                got=f"values from {values.min():g} to {values.max():g}, some off these levels",
                fix="Round the images to the levels, or take a continuous likelihood",
            )

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "levels": self.levels,
            "low": self.low,
            "high": self.high,
            "scale_value": self.given_scale,
            "floor": self.given_floor,
        }
