"""Likelihoods p(x|z): how an image differs from its reconstruction.

The scale of the residual is not a hyperparameter: with σ fixed by hand, β = 1 is a guess about noise.
Rybkin, Daniilidis & Levine 2021, Simple and Effective VAE Training with Calibrated Decoders (σ-VAE),
arXiv 2006.13202, section 3.2: for a normal likelihood the optimal σ² is the mean squared residual.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from numpy.typing import NDArray

from kerasvae.distributions.base import Likelihood
from kerasvae.errors import ArgumentError, nearest
from kerasvae.types import Mask

tfd = tfp.distributions

SCALES = ("optimal", "fixed")


@keras.saving.register_keras_serializable("kerasvae")
class NormalLikelihood(Likelihood):
    """p(x|z) = Π over mask voxels of N(x; x̂(z), σ²), one σ for all voxels.

    With ``scale="optimal"`` σ² is the maximum-likelihood estimate, the mean squared residual (σ-VAE, section
    3.2), followed during training by an average over steps: an M-step beside the gradient step, so that
    per-subject terms do not depend on who else is in the batch. The stored value is used at inference.

    Args:
        scale: ``"optimal"`` or ``"fixed"``.
        stddev: σ where it is fixed, and its value before the first step where it is optimal.
        floor: The smallest σ, in the unit of the images.
        momentum: Weight of the past in the running mean squared residual, in [0, 1).
        mask: Boolean array of the data's shape; only True voxels count. None counts all.
    """

    kind = "normal"

    def __init__(
        self,
        scale: str = "optimal",
        stddev: float = 1.0,
        floor: float = 1e-3,
        momentum: float = 0.9,
        mask: Mask | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(mask=mask, **kwargs)
        if scale not in SCALES:
            raise ArgumentError(
                "scale", rule=f"be one of {SCALES}", got=repr(scale), fix=f"Did you mean {nearest(scale, SCALES)!r}?"
            )
        if not 0 < floor <= stddev:
            raise ArgumentError(
                "floor", rule="be positive and not above stddev", got=f"floor={floor}, stddev={stddev}", fix="Lower it"
            )
        if not 0 <= momentum < 1:
            raise ArgumentError("momentum", rule="lie in [0, 1)", got=momentum, fix="Use 0.9")
        self.scale = scale
        self.stddev = float(stddev)
        self.floor = float(floor)
        self.momentum = float(momentum)
        # The running mean is kept with its total weight, so that the first step already gives an unbiased σ².
        self.weighted_square = self.add_weight(name="weighted_square", initializer="zeros", trainable=False)
        self.total_weight = self.add_weight(name="total_weight", initializer="zeros", trainable=False)
        self.built = True

    def sigma(self) -> tf.Tensor:
        """The σ in use: float32 scalar in the unit of the images."""
        if self.scale == "fixed":
            return tf.constant(self.stddev)
        weight = tf.convert_to_tensor(self.total_weight)
        square = tf.math.divide_no_nan(tf.convert_to_tensor(self.weighted_square), weight)
        return tf.maximum(tf.where(weight > 0, tf.sqrt(square), self.stddev), self.floor)

    def voxel_log_prob(self, x: tf.Tensor, decoded: tf.Tensor) -> tf.Tensor:
        """log N(x_v; decoded_v, σ²) in nats."""
        return tfd.Normal(tf.cast(decoded, tf.float32), self.sigma()).log_prob(tf.cast(x, tf.float32))

    def mean(self, decoded: tf.Tensor) -> tf.Tensor:
        """The decoder's output."""
        return tf.cast(decoded, tf.float32)

    def draw(self, decoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """A random image."""
        return tfd.Normal(tf.cast(decoded, tf.float32), self.sigma()).sample(seed=seed)

    def numbers(self) -> dict[str, tf.Tensor]:
        """The scale."""
        return {"sigma": self.sigma()}

    def calibrated_log_prob(self, squared_residual: NDArray, x: Any) -> float:
        """log p(x|z) in nats per subject, averaged, were σ at its optimum for these very subjects.

        −N/2 · (1 + log 2πσ̂²) with σ̂² the mean squared residual: what a comparison of models on held-out people
        needs, since σ is set on other held-out people in the end.

        Args:
            squared_residual: Per subject, from `squared_residual`, (n,).
            x: The images, (n, *data_shape).
        """
        square = max(float(np.mean(squared_residual, dtype=np.float64)), self.floor**2)
        return -0.5 * self.count(x) * (1 + math.log(2 * math.pi * square))

    def update(self, x: tf.Tensor, decoded: tf.Tensor) -> None:
        """Follow the optimal σ² with one batch; does nothing where σ is fixed."""
        if self.scale == "optimal":
            square = tf.reduce_mean(self.squared_residual(x, decoded))
            self.weighted_square.assign(self.momentum * self.weighted_square + (1 - self.momentum) * square)
            self.total_weight.assign(self.momentum * self.total_weight + (1 - self.momentum))

    def set_sigma(self, sigma: float) -> None:
        """Store a σ estimated elsewhere, e.g. on calibration people."""
        if not (np.isfinite(sigma) and sigma > 0):
            raise ArgumentError("sigma", rule="be positive and finite", got=sigma, fix="Check the residuals")
        self.weighted_square.assign(float(sigma) ** 2)
        self.total_weight.assign(1.0)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "scale": self.scale,
            "stddev": self.stddev,
            "floor": self.floor,
            "momentum": self.momentum,
        }
