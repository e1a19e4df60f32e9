"""The algebra: what a posterior, a prior and a likelihood must be able to do.

Axes: S draws, B subjects, d latent dimensions; ``z`` is (S, B, d). Everything is float32, also under mixed precision.
Which of them go together is declared in `kerasvae.models.compatibility`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError
from kerasvae.types import Mask, pack_mask, unpack_mask

__all__ = [
    "NO_CONTEXT",
    "Context",
    "Likelihood",
    "Output",
    "Posterior",
    "Prior",
    "inverse_positive",
    "positive",
    "sum_over_event",
]


class Output(NamedTuple):
    """One deterministic output of a posterior: its name and what it means."""

    name: str
    meaning: str


class Context(NamedTuple):
    """What a prior may depend on beside the code.

    Attributes:
        condition: Covariates of each subject, (B, c), or None.
        posterior: The model's posterior and its encoder's parameters for any images: a function from
            (n, *data_shape) to (n, p). The VampPrior is made of posteriors.
        encode: See above.
    """

    condition: tf.Tensor | None = None
    posterior: Posterior | None = None
    encode: Callable[[tf.Tensor], tf.Tensor] | None = None


NO_CONTEXT = Context()
"""Nothing: enough for priors that depend on the code alone."""


class Posterior(keras.layers.Layer):
    """q(z|x), from the encoder's plain output tensor, the parameters (B, p).

    Attributes:
        kind: Name in the compatibility table and in recipes.
        outputs: The deterministic outputs, by name.
        has_density: Whether draws can be weighed by p(z) / q(z|x); if not, the class says what its log q is.
    """

    kind: ClassVar[str]
    outputs: ClassVar[tuple[Output, ...]]
    has_density: ClassVar[bool] = True

    def parameter_size(self, latent_size: int) -> int:
        """Width p of the encoder's output for `latent_size` dimensions."""
        raise NotImplementedError

    def deterministic(self, parameters: tf.Tensor) -> dict[str, tf.Tensor]:
        """The named deterministic outputs, each (B, …), float32, or int32 where they are codes."""
        raise NotImplementedError

    def center(self, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """The point that stands for the person when one code is needed, (B, d)."""
        raise NotImplementedError

    def draw(self, parameters: tf.Tensor, samples: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Reparameterised draws and their log-density.

        Args:
            parameters: (B, p).
            samples: S.
            seed: Stateless seed, two integers; draws depend on it alone.

        Returns:
            z, (S, B, d); log q(z|x) in nats, (S, B).
        """
        raise NotImplementedError

    def log_prob(self, parameters: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """log q(z|x) in nats at any z, (S, B, d) to (S, B); subject b's parameters go with z[:, b]."""
        raise NotImplementedError

    def sample(self, parameters: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """One reparameterised draw per person, (B, d)."""
        return self.draw(parameters, 1, seed)[0][0]

    def update(self, parameters: tf.Tensor, seed: tf.Tensor) -> None:
        """Follow one training batch with what is not learned by gradients; by default nothing is.

        Args:
            parameters: (B, p).
            seed: Stateless seed, two integers, of whatever is random in it.
        """

    def numbers(self) -> dict[str, tf.Tensor]:
        """Scalars worth following during training, by name; e.g. how much of a codebook is in use."""
        return {}

    @property
    def scheduled(self) -> dict[str, keras.Variable]:
        """Scalar weights, not trained, that a schedule may move, by name; e.g. a temperature."""
        return {}

    def call(self, parameters: tf.Tensor) -> tf.Tensor:
        """The code that stands for each person, (B, d)."""
        return self.center(self.deterministic(parameters))


class Prior(keras.layers.Layer):
    """p(z), perhaps given covariates.

    Attributes:
        kind: Name in the compatibility table and in recipes.
    """

    kind: ClassVar[str]

    def log_prob(self, z: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """log p(z) in nats, (S, B, d) to (S, B)."""
        raise NotImplementedError

    def sample(self, count: int, latent_size: int, seed: tf.Tensor, context: Context = NO_CONTEXT) -> tf.Tensor:
        """Draws, (count, d); with a condition, one a row of it. `seed` is a stateless pair of integers."""
        raise NotImplementedError

    def call(self, z: tf.Tensor) -> tf.Tensor:
        """log p(z) of codes (B, d), (B,)."""
        return self.log_prob(tf.cast(z, tf.float32)[None])[0]


class Likelihood(keras.layers.Layer):
    """p(x|z) = Π over mask voxels of p(x_v | decoded_v).

    The decoder gives `channels` numbers a voxel: an output of shape (B, *data_shape) where `channels` is 1, of
    (B, *data_shape, channels) otherwise.

    Args:
        mask: Boolean array of the data's shape; only True voxels count. None counts all.
    """

    kind: ClassVar[str]

    def __init__(self, mask: Mask | dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mask = unpack_mask(mask) if isinstance(mask, dict) else None if mask is None else np.asarray(mask, bool)
        if self.mask is not None and not self.mask.any():
            raise ArgumentError("mask", rule="contain at least one True voxel", got="none", fix="Check the brain mask")

    @property
    def channels(self) -> int:
        """Numbers that the decoder gives for each voxel."""
        return 1

    def voxel_log_prob(self, x: tf.Tensor, decoded: tf.Tensor) -> tf.Tensor:
        """log p(x_v | decoded_v) in nats, before the mask: (…, *data_shape), float32.

        Args:
            x: Images, (…, *data_shape).
            decoded: The decoder's output, (…, *data_shape) or (…, *data_shape, channels); leading axes broadcast.
        """
        raise NotImplementedError

    def mean(self, decoded: tf.Tensor) -> tf.Tensor:
        """The deterministic image, (…, *data_shape), float32: what `reconstruct` gives."""
        raise NotImplementedError

    def draw(self, decoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """A random image for each code, (…, *data_shape), float32."""
        raise NotImplementedError

    def log_prob(self, x: tf.Tensor, decoded: tf.Tensor, *, dtype: Any = tf.float32) -> tf.Tensor:
        """log p(x|z) in nats per subject: summed over mask voxels whatever the rank, (B,).

        Args:
            x: Images, (B, *data_shape).
            decoded: The decoder's output for them.
            dtype: Of the sum; float64 where differences between draws of large images matter.
        """
        if self.mask is None:
            return sum_over_event(tf.cast(self.voxel_log_prob(x, decoded), dtype))
        # what lies outside may be anything, NaN included, and must leave no trace in the gradient either
        x = tf.convert_to_tensor(x)
        values = tf.cast(self.voxel_log_prob(tf.where(self.mask, x, tf.zeros_like(x)), decoded), dtype)
        values = tf.where(self.mask, values, tf.zeros((), dtype))
        return sum_over_event(values)

    def check(self, x: NDArray[Any]) -> None:
        """Refuse images outside the support, where there is one: ArgumentError."""

    def count(self, x: Any) -> int:
        """Number of voxels the sum runs over."""
        return int(np.prod(x.shape[1:])) if self.mask is None else int(self.mask.sum())

    def update(self, x: tf.Tensor, decoded: tf.Tensor) -> None:
        """Follow one batch with what is estimated in closed form; by default nothing is."""

    @property
    def is_calibrated(self) -> bool:
        """Whether a scale is set, by `calibrate`, on people whom the weights were not fitted to."""
        return False

    def residual(self, x: tf.Tensor, decoded: tf.Tensor) -> tf.Tensor:
        """What a scale is set from: by default the mean over mask voxels of (x − mean)², per subject, (B,)."""
        return self.mean_residual(x, decoded, 2)

    def mean_residual(self, x: tf.Tensor, decoded: tf.Tensor, power: int) -> tf.Tensor:
        """Mean over mask voxels of |x − mean|^power, per subject, (B,)."""
        values = tf.abs(tf.cast(x, tf.float32) - self.mean(decoded)) ** power
        if self.mask is not None:
            values = tf.where(self.mask, values, 0.0)
        return sum_over_event(values) / self.count(x)

    def calibrate(self, residual: NDArray[Any]) -> None:
        """Set the scale from the `residual` of subjects, (n,), where `is_calibrated`; else nothing."""

    def numbers(self) -> dict[str, tf.Tensor]:
        """Scalars worth following during training, by name; e.g. the scale."""
        return {}

    def call(self, decoded: tf.Tensor) -> tf.Tensor:
        """The deterministic image."""
        return self.mean(decoded)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments; the mask packed as bits."""
        return {**super().get_config(), "mask": None if self.mask is None else pack_mask(self.mask)}


def sum_over_event(values: tf.Tensor) -> tf.Tensor:
    """Sum over every axis but the first, whatever the rank: (B, …) to (B,)."""
    return tf.reduce_sum(values, axis=list(range(1, values.shape.rank)))


def positive(raw: tf.Tensor, floor: float) -> tf.Tensor:
    """A positive number from a raw one: floor + softplus(raw); about exp for small ones, linear for large ones."""
    return floor + tf.nn.softplus(raw)


def inverse_positive(value: float, floor: float) -> float:
    """The raw number of which `positive` makes `value`, which must lie above `floor`."""
    above = value - floor
    return above + math.log(-math.expm1(-above))
