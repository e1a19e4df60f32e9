"""Normal posterior whose covariance is diagonal plus low rank: a few directions of shared uncertainty.

Ong, Nott & Smith 2018, Gaussian Variational Approximation with a Factor Covariance Structure, Journal of Computational
and Graphical Statistics 27, arXiv 1701.03208: z = mean + D ε₁ + U ε₂ with ε ~ N(0, I), so the covariance is D² + U Uᵀ.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from kerasvae.distributions.base import Output, Posterior, positive
from kerasvae.errors import ArgumentError

__all__ = ["LowRankNormalPosterior"]

LOG_2PI = math.log(2 * math.pi)


@keras.saving.register_keras_serializable("kerasvae")
class LowRankNormalPosterior(Posterior):
    """q(z|x) = N(z; mean, D² + U Uᵀ), D diagonal and U (d, r).

    The encoder's output of width d(2 + r) is the mean (d), the raw diagonal (d; D_ii = floor + softplus) and U, row by
    row (d·r).

    Args:
        rank: Number r of columns of U, from 1 to the number of latent dimensions.
        floor: The smallest D_ii, in prior standard deviations.
    """

    kind = "low_rank_normal"
    outputs = (
        Output("mean", "mean of q(z|x), the person's coordinates in the latent space, in prior standard deviations"),
        Output("stddev", "marginal standard deviation of q(z|x) per dimension: how uncertain the coordinate is"),
        Output("diagonal", "standard deviation per dimension of the part that is independent between dimensions"),
        Output("factor", "U, one column for each direction of shared uncertainty; the covariance is diagonal² + U Uᵀ"),
    )

    def __init__(self, rank: int = 2, floor: float = 1e-4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if int(rank) != rank or rank < 1:
            raise ArgumentError(
                "rank", rule="be a whole number of 1 or more", got=rank, fix="Use 2, or NormalPosterior"
            )
        if not floor > 0:
            raise ArgumentError("floor", rule="be positive", got=floor, fix="Give a small number such as 1e-4")
        self.rank = int(rank)
        self.floor = float(floor)
        self.built = True

    def parameter_size(self, latent_size: int) -> int:
        """d(2 + r)."""
        if self.rank > latent_size:
            raise ArgumentError(
                "rank", rule=f"not be above latent_size, {latent_size}", got=self.rank, fix="Use FullNormalPosterior"
            )
        return latent_size * (2 + self.rank)

    def deterministic(self, parameters: tf.Tensor) -> dict[str, tf.Tensor]:
        """mean, stddev and diagonal (B, d), factor (B, d, r), float32."""
        parameters = tf.cast(parameters, tf.float32)
        size = parameters.shape[-1] // (2 + self.rank)
        mean, raw, flat = tf.split(parameters, [size, size, size * self.rank], axis=-1)
        diagonal, factor = positive(raw, self.floor), tf.reshape(flat, (-1, size, self.rank))
        stddev = tf.sqrt(tf.square(diagonal) + tf.reduce_sum(tf.square(factor), axis=-1))
        return {"mean": mean, "stddev": stddev, "diagonal": diagonal, "factor": factor}

    def center(self, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """The mean, (B, d)."""
        return outputs["mean"]

    def draw(self, parameters: tf.Tensor, samples: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """z = mean + D ε₁ + U ε₂, (S, B, d), and log q(z|x), (S, B)."""
        outputs = self.deterministic(parameters)
        mean, diagonal, factor = outputs["mean"], outputs["diagonal"], outputs["factor"]
        shape = (samples, tf.shape(mean)[0], mean.shape[-1] + self.rank)
        own, shared = tf.split(tf.random.stateless_normal(shape, seed), [mean.shape[-1], self.rank], axis=-1)
        offset = diagonal * own + tf.einsum("bir,sbr->sbi", factor, shared)
        return mean + offset, _log_density(offset, diagonal, factor)

    def log_prob(self, parameters: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """log q(z|x), (S, B, d) to (S, B)."""
        outputs = self.deterministic(parameters)
        return _log_density(tf.cast(z, tf.float32) - outputs["mean"], outputs["diagonal"], outputs["factor"])

    def entropy(self, parameters: tf.Tensor) -> tf.Tensor:
        """−E_q[log q] in nats, (B,)."""
        outputs = self.deterministic(parameters)
        diagonal, factor = _double(outputs["diagonal"]), _double(outputs["factor"])
        log_volume = _log_volume(diagonal, _capacitance_root(factor / diagonal[..., None]))
        return tf.cast(0.5 * diagonal.shape[-1] * (1 + LOG_2PI) + log_volume, tf.float32)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "rank": self.rank, "floor": self.floor}


# In float64: with a small diagonal and columns of U that are nearly parallel, I + WᵀW is singular to float32.


def _double(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(values, tf.float64)


def _capacitance_root(white: tf.Tensor) -> tf.Tensor:
    """Cholesky root of I + WᵀW, (B, r, r), with W = D⁻¹ U."""
    identity = tf.eye(white.shape[-1], dtype=tf.float64)
    return tf.linalg.cholesky(identity + tf.matmul(white, white, transpose_a=True))


def _log_volume(diagonal: tf.Tensor, root: tf.Tensor) -> tf.Tensor:
    """½ log det(D² + U Uᵀ), (B,), by the matrix determinant lemma."""
    own = tf.reduce_sum(tf.math.log(diagonal), axis=-1)
    return own + tf.reduce_sum(tf.math.log(tf.linalg.diag_part(root)), axis=-1)


def _log_density(offset: tf.Tensor, diagonal: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """log N(offset; 0, D² + U Uᵀ), (S, B, d) to (S, B).

    With y = D⁻¹ offset, Woodbury's form yᵀy − yᵀW (I + WᵀW)⁻¹ Wᵀy is a difference of large numbers where D is small. It
    equals the least value of ‖y − W e‖² + ‖e‖² over e, a sum of squares.
    """
    offset, diagonal, factor = _double(offset), _double(diagonal), _double(factor)
    white = factor / diagonal[..., None]
    root = _capacitance_root(white)
    y = tf.transpose(offset / diagonal, (1, 2, 0))
    best = tf.linalg.cholesky_solve(root, tf.matmul(white, y, transpose_a=True))
    square = tf.reduce_sum(tf.square(y - tf.matmul(white, best)), axis=1) + tf.reduce_sum(tf.square(best), axis=1)
    density = -0.5 * (tf.transpose(square) + offset.shape[-1] * LOG_2PI) - _log_volume(diagonal, root)
    return tf.cast(density, tf.float32)
