"""Normal posterior with a full covariance: uncertainty that is correlated between latent dimensions.

Kingma & Welling 2019, An Introduction to Variational Autoencoders, arXiv 1906.02691, section 2.5.1 "Full-covariance
Gaussian posterior": z = mean + L ε with L lower triangular and ε ~ N(0, I), log q = log N(ε; 0, I) − Σ log L_ii.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasvae.distributions.base import Output, Posterior, positive
from kerasvae.errors import ArgumentError

__all__ = ["FullNormalPosterior"]

LOG_2PI = math.log(2 * math.pi)


@keras.saving.register_keras_serializable("kerasvae")
class FullNormalPosterior(Posterior):
    """q(z|x) = N(z; mean, L Lᵀ), L lower triangular with a positive diagonal.

    The encoder's output of width d + d(d+1)/2 is the mean (d), the raw diagonal r of L (d; L_ii = floor + softplus(r))
    and L below its diagonal, row by row (d(d−1)/2).

    Args:
        floor: The smallest L_ii, in prior standard deviations. L_ii is the standard deviation of z_i given z_1 … z_i−1.
    """

    kind = "full_normal"
    outputs = (
        Output("mean", "mean of q(z|x), the person's coordinates in the latent space, in prior standard deviations"),
        Output("stddev", "marginal standard deviation of q(z|x) per dimension: how uncertain the coordinate is"),
        Output("scale_tril", "lower triangular L with L Lᵀ the covariance of q(z|x)"),
    )

    def __init__(self, floor: float = 1e-4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not floor > 0:
            raise ArgumentError("floor", rule="be positive", got=floor, fix="Give a small number such as 1e-4")
        self.floor = float(floor)
        self.built = True

    def parameter_size(self, latent_size: int) -> int:
        """d + d(d+1)/2."""
        return latent_size + latent_size * (latent_size + 1) // 2

    def deterministic(self, parameters: tf.Tensor) -> dict[str, tf.Tensor]:
        """mean and stddev (B, d), scale_tril (B, d, d), float32."""
        parameters = tf.cast(parameters, tf.float32)
        size = _latent_size(parameters.shape[-1])
        mean, raw, below = tf.split(parameters, [size, size, size * (size - 1) // 2], axis=-1)
        entries = tf.concat([tf.zeros_like(mean[:, :1]), positive(raw, self.floor), below], axis=-1)
        scale = tf.gather(entries, _places(size), axis=1)
        return {"mean": mean, "stddev": tf.sqrt(tf.reduce_sum(tf.square(scale), axis=-1)), "scale_tril": scale}

    def center(self, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """The mean, (B, d)."""
        return outputs["mean"]

    def draw(self, parameters: tf.Tensor, samples: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """z = mean + L ε, (S, B, d), and log q(z|x), (S, B)."""
        outputs = self.deterministic(parameters)
        mean, scale = outputs["mean"], outputs["scale_tril"]
        noise = tf.random.stateless_normal((samples, tf.shape(mean)[0], mean.shape[-1]), seed)
        return mean + tf.einsum("bij,sbj->sbi", scale, noise), _log_density(noise, scale)

    def log_prob(self, parameters: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """log q(z|x), (S, B, d) to (S, B)."""
        outputs = self.deterministic(parameters)
        scale = outputs["scale_tril"]
        columns = tf.transpose(tf.cast(z, tf.float32) - outputs["mean"], (1, 2, 0))
        noise = tf.linalg.triangular_solve(scale, columns)
        return _log_density(tf.transpose(noise, (2, 0, 1)), scale)

    def entropy(self, parameters: tf.Tensor) -> tf.Tensor:
        """−E_q[log q] in nats, (B,)."""
        scale = self.deterministic(parameters)["scale_tril"]
        return 0.5 * scale.shape[-1] * (1 + LOG_2PI) + _log_volume(scale)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "floor": self.floor}


def _latent_size(parameters: int) -> int:
    """The d with d + d(d+1)/2 parameters."""
    return (math.isqrt(9 + 8 * parameters) - 3) // 2


def _places(size: int) -> np.ndarray:
    """Where each entry of L stands in (0, the diagonal, what is below it row by row), (d, d)."""
    places = np.zeros((size, size), np.int32)
    places[np.diag_indices(size)] = 1 + np.arange(size)
    places[np.tril_indices(size, -1)] = 1 + size + np.arange(size * (size - 1) // 2)
    return places


def _log_volume(scale: tf.Tensor) -> tf.Tensor:
    """log det L, (B,)."""
    return tf.reduce_sum(tf.math.log(tf.linalg.diag_part(scale)), axis=-1)


def _log_density(noise: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """log q of z = mean + L ε, from ε (S, B, d)."""
    return -0.5 * tf.reduce_sum(tf.square(noise) + LOG_2PI, axis=-1) - _log_volume(scale)
