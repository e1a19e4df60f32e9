"""The one positive scale that a likelihood of real-valued images has: fixed, learned, or at its running optimum.

With a scale fixed by hand, β = 1 is a guess about noise. Rybkin, Daniilidis & Levine 2021, Simple and Effective VAE
Training with Calibrated Decoders (σ-VAE), arXiv 2006.13202: the scale learned beside the weights, or set to
its maximum-likelihood value given the residuals.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.distributions.base import Likelihood, inverse_positive, positive
from kerasvae.errors import ArgumentError, nearest
from kerasvae.types import Mask

__all__ = ["ScaledLikelihood"]


class ScaledLikelihood(Likelihood):
    """A likelihood with a scale, in the unit of the images.

    Where the scale is optimal it is the maximum-likelihood estimate (mean |x − x̂|^power)^(1/power) over mask voxels,
    followed during training by an average over steps: an M-step beside the gradient step, so that per-subject terms do
    not depend on who else is in the batch. The stored value is used at inference.

    Args:
        scale: One of the class's `scales`: ``"optimal"``; ``"fixed"``; ``"learned"``, a trainable raw number r with
            scale = floor + softplus(r).
        value: The scale where it is fixed, and before the first step otherwise.
        floor: The smallest scale.
        momentum: Weight of the past in the running mean, in [0, 1).
        name_of_value: What the subclass calls `value`, for messages.
        shape: Shape of the raw number.
        mask: Boolean array of the data's shape; only True voxels count. None counts all.

    Attributes:
        scales: Kinds of scale that the class knows.
        learned: Those of them with a trainable variable.
        power: Exponent of the residual in the optimal scale.
    """

    scales: ClassVar[tuple[str, ...]] = ("optimal", "fixed", "learned")
    learned: ClassVar[tuple[str, ...]] = ("learned",)
    power: ClassVar[int] = 2

    def __init__(
        self,
        scale: str,
        value: float,
        floor: float,
        *,
        momentum: float = 0.9,
        name_of_value: str = "scale_value",
        shape: tuple[int, ...] = (),
        mask: Mask | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(mask=mask, **kwargs)
        if scale not in self.scales:
            guess = nearest(scale, self.scales) or self.scales[0]
            raise ArgumentError("scale", rule=f"be one of {self.scales}", got=repr(scale), fix=f"Write {guess!r}")
        closed = scale in ("optimal", "fixed")  # elsewhere the floor itself has no finite raw number
        if not (0 < floor and (floor <= value if closed else floor < value) and math.isfinite(value)):
            raise ArgumentError(
                "floor",
                rule=f"be positive and {'not above' if closed else 'below'} a finite {name_of_value}",
                got=f"floor={floor}, {name_of_value}={value}",
                fix="Lower it",
            )
        if not 0 <= momentum < 1:
            raise ArgumentError("momentum", rule="lie in [0, 1)", got=momentum, fix="Use 0.9")
        self.scale = scale
        self.floor = float(floor)
        self.momentum = float(momentum)
        self.initial_scale = float(value)
        if closed:
            # The running mean is kept with its total weight, so that the first step already gives an unbiased scale.
            self.weighted_residual = self._number("weighted_residual", 0.0)
            self.total_weight = self._number("total_weight", 0.0)
        elif scale in self.learned:
            raw = inverse_positive(self.initial_scale, self.floor)
            self.raw_scale = self._number("raw_scale", raw, shape, trainable=True)
        self.built = True

    def _number(
        self, name: str, value: float, shape: tuple[int, ...] = (), *, trainable: bool = False
    ) -> keras.Variable:
        """A variable that stays float32 under mixed precision."""
        initial = keras.initializers.Constant(value)
        return self.add_weight(
            name=name, shape=shape, initializer=initial, trainable=trainable, dtype="float32", autocast=False
        )

    def current_scale(self) -> tf.Tensor:
        """The scale in use, float32: a scalar, or of the raw number's shape."""
        if self.scale == "fixed":
            return tf.constant(self.initial_scale)
        if self.scale in self.learned:
            return positive(tf.convert_to_tensor(self.raw_scale), self.floor)
        weight = tf.convert_to_tensor(self.total_weight)
        residual = tf.math.divide_no_nan(tf.convert_to_tensor(self.weighted_residual), weight)
        return tf.maximum(tf.where(weight > 0, residual ** (1 / self.power), self.initial_scale), self.floor)

    @property
    def is_calibrated(self) -> bool:
        """Whether the scale is ``"optimal"``."""
        return self.scale == "optimal"

    def residual(self, x: tf.Tensor, decoded: tf.Tensor) -> tf.Tensor:
        """Mean over mask voxels of |x − x̂|^power, per subject, (B,): what the optimal scale is made of."""
        return self.mean_residual(x, decoded, self.power)

    def calibrate(self, residual: NDArray[Any]) -> None:
        """Set an optimal scale to (mean residual)^(1/power) of subjects, (n,); another stays as it is."""
        if self.is_calibrated:
            self.set_scale(float(np.mean(residual, dtype=np.float64)) ** (1 / self.power))

    def calibrated_log_prob(self, residual: NDArray[Any], x: Any) -> float:
        """log p(x|z) in nats per subject, averaged, were the scale at its optimum for these very subjects.

        What a comparison of models on held-out people needs, since the scale is set on other held-out people in the
        end.

        Args:
            residual: Of each subject, from `residual`, (n,).
            x: The images, (n, *data_shape).

        Raises:
            ArgumentError: Where the scale is not ``"optimal"``: then `log_prob` is what compares.
        """
        if not self.is_calibrated:
            raise ArgumentError(
                "scale",
                rule="be 'optimal' for a log-probability at the optimal scale",
                got=repr(self.scale),
                fix="Use log_prob: this scale is part of the model",
            )
        scale = max(float(np.mean(residual, dtype=np.float64)) ** (1 / self.power), self.floor)
        return self.count(x) * self.best_voxel_log_prob(scale)

    def best_voxel_log_prob(self, scale: float) -> float:
        """Mean log p(x_v) in nats where `scale` is the maximum-likelihood one."""
        raise NotImplementedError

    def update(self, x: tf.Tensor, decoded: tf.Tensor) -> None:
        """Follow the optimal scale with one batch; does nothing where it is not ``"optimal"``."""
        if self.scale == "optimal":
            residual = tf.reduce_mean(self.residual(x, decoded))
            self.weighted_residual.assign(self.momentum * self.weighted_residual + (1 - self.momentum) * residual)
            self.total_weight.assign(self.momentum * self.total_weight + (1 - self.momentum))

    def set_scale(self, value: float) -> None:
        """Store a scale estimated elsewhere, e.g. on calibration people; one that is fixed stays as it is.

        Args:
            value: Positive, in the unit of the images; what lies at or below the floor becomes the floor (where the
                scale is learned, a thousandth more, so that its raw number is finite).

        Raises:
            ArgumentError: If the value is not positive and finite, or there is not one scale for all voxels.
        """
        if self.scale not in ("optimal", "fixed", "learned"):
            raise ArgumentError(
                "scale",
                rule="be one number for all voxels where it is to be set",
                got=repr(self.scale),
                fix="Leave this scale to training",
            )
        if not (np.isfinite(value) and value > 0):
            raise ArgumentError("The scale", rule="be positive and finite", got=value, fix="Check the residuals")
        if self.scale == "learned":
            self.raw_scale.assign(inverse_positive(max(float(value), 1.001 * self.floor), self.floor))
        else:
            self.weighted_residual.assign(float(value) ** self.power)
            self.total_weight.assign(1.0)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments that all such likelihoods share."""
        return {**super().get_config(), "scale": self.scale, "floor": self.floor}
