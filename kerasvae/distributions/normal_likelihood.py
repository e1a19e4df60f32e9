"""The normal likelihood p(x|z): how an image differs from its reconstruction.

The scale of the residual is not a hyperparameter: with σ fixed by hand, β = 1 is a guess about noise.
Rybkin, Daniilidis & Levine 2021, Simple and Effective VAE Training with Calibrated Decoders (σ-VAE),
arXiv 2006.13202, the optimal σ: for a normal likelihood the optimal σ² is the mean squared residual.
Kingma & Welling 2014, arXiv 1312.6114, appendix C.2: σ given by the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from kerasvae.distributions.base import inverse_positive, positive
from kerasvae.distributions.scale import ScaledLikelihood
from kerasvae.errors import ArgumentError
from kerasvae.types import Mask

tfd = tfp.distributions

__all__ = ["NormalLikelihood"]


@keras.saving.register_keras_serializable("kerasvae")
class NormalLikelihood(ScaledLikelihood):
    """p(x|z) = Π over mask voxels of N(x; x̂(z), σ²).

    Which σ it is, `scale` says:

    - ``"optimal"``: one for all voxels, the maximum-likelihood estimate, the root of the mean squared residual (σ-VAE),
      followed during training by an average over steps: an M-step beside the gradient step, so that
      per-subject terms do not depend on who else is in the batch. The stored value is used at inference.
    - ``"fixed"``: `stddev` for all voxels.
    - ``"learned"``: one for all voxels, floor + softplus(r), with a trainable r.
    - ``"per_voxel"``: the same with one trainable r for each voxel; it depends on the voxel, not on the code.
    - ``"decoder"``: the decoder gives two numbers a voxel, x̂ and r, in its last axis;
      σ = floor + softplus(r + r₀), where r₀ is such that r = 0 means `stddev`.

    Args:
        scale: One of the five.
        stddev: σ where it is fixed, and its value before the first step otherwise (for ``"decoder"``: where r = 0).
        floor: The smallest σ, in the unit of the images.
        momentum: Weight of the past in the running mean squared residual, in [0, 1).
        mask: Boolean array of the data's shape; only True voxels count. None counts all.
        data_shape: Shape of one subject, for ``"per_voxel"``; by default the mask's.
    """

    kind = "normal"
    scales = ("optimal", "fixed", "learned", "per_voxel", "decoder")
    learned = ("learned", "per_voxel")

    def __init__(
        self,
        scale: str = "optimal",
        stddev: float = 1.0,
        floor: float = 1e-3,
        momentum: float = 0.9,
        mask: Mask | dict[str, Any] | None = None,
        data_shape: Iterable[int] | None = None,
        **kwargs: Any,
    ) -> None:
        shape = None if data_shape is None else tuple(int(n) for n in data_shape)
        own = _own_shape(mask) if shape is None else shape
        if scale == "per_voxel" and own is None:
            raise ArgumentError("data_shape", rule="be given for a σ per voxel", got="None", fix="Give it or a mask")
        super().__init__(
            scale,
            stddev,
            floor,
            momentum=momentum,
            name_of_value="stddev",
            shape=own if scale == "per_voxel" and own is not None else (),
            mask=mask,
            **kwargs,
        )
        if shape is not None and self.mask is not None and self.mask.shape != shape:
            raise ArgumentError("data_shape", rule=f"be the mask's {self.mask.shape}", got=shape, fix="Leave it out")
        self.stddev = float(stddev)
        self.data_shape = shape

    @property
    def channels(self) -> int:
        """Two where the decoder gives σ, else one."""
        return 2 if self.scale == "decoder" else 1

    def sigma(self) -> tf.Tensor:
        """The σ in use, in the unit of the images: float32 scalar, or the map (*data_shape) where it is per voxel.

        Raises:
            ArgumentError: Where the decoder gives it; then `voxel_sigma` has it.
        """
        if self.scale == "decoder":
            raise ArgumentError(
                "scale",
                rule="not be 'decoder' for a σ without a code",
                got="'decoder'",
                fix="Call voxel_sigma(decoded)",
            )
        return self.current_scale()

    def voxel_sigma(self, decoded: tf.Tensor) -> tf.Tensor:
        """The σ that goes with the decoder's output, in each case: it broadcasts against the images."""
        if self.scale != "decoder":
            return self.sigma()
        start = inverse_positive(self.stddev, self.floor)
        return positive(tf.cast(decoded[..., 1], tf.float32) + start, self.floor)

    def voxel_log_prob(self, x: tf.Tensor, decoded: tf.Tensor) -> tf.Tensor:
        """log N(x_v; x̂_v, σ²) in nats."""
        sigma = self.voxel_sigma(decoded)
        # The difference comes first: x/σ − x̂/σ would lose digits where σ is small beside x.
        z = (tf.cast(x, tf.float32) - self.mean(decoded)) / sigma
        return -0.5 * tf.square(z) - (tf.math.log(sigma) + 0.5 * math.log(2 * math.pi))

    def mean(self, decoded: tf.Tensor) -> tf.Tensor:
        """x̂: the decoder's output, or the first of its two numbers."""
        return tf.cast(decoded[..., 0] if self.scale == "decoder" else decoded, tf.float32)

    def draw(self, decoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """A random image."""
        return tfd.Normal(self.mean(decoded), self.voxel_sigma(decoded)).sample(seed=seed)

    def numbers(self) -> dict[str, tf.Tensor]:
        """σ; its root mean square over mask voxels where it is per voxel; nothing where the decoder gives it."""
        if self.scale == "decoder":
            return {}
        sigma = self.sigma()
        if self.scale != "per_voxel":
            return {"sigma": sigma}
        inside = sigma if self.mask is None else tf.boolean_mask(sigma, self.mask)
        return {"sigma": tf.sqrt(tf.reduce_mean(tf.square(inside)))}

    def best_voxel_log_prob(self, scale: float) -> float:
        """−½ (1 + log 2πσ̂²)."""
        return -0.5 * (1 + math.log(2 * math.pi * scale**2))

    def set_sigma(self, sigma: float) -> None:
        """Store a σ estimated elsewhere, e.g. on calibration people; see `set_scale`."""
        self.set_scale(sigma)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "stddev": self.stddev,
            "momentum": self.momentum,
            "data_shape": None if self.data_shape is None else list(self.data_shape),
        }


def _own_shape(mask: Mask | dict[str, Any] | None) -> tuple[int, ...] | None:
    """The shape of a mask, packed or not."""
    if mask is None:
        return None
    return tuple(int(n) for n in (mask["shape"] if isinstance(mask, dict) else np.shape(mask)))
