"""A start that is not the mean brain: probabilistic PCA as the linear core of encoder and decoder.

Tipping & Bishop 1999, Probabilistic Principal Component Analysis, J. R. Stat. Soc. B 61(3):611-622.
With sample covariance eigenvalues λ₁ ≥ λ₂ ≥ …, N voxels and q components (their equations 7 and 8, R = I):

    σ² = (Σ_{i>q} λᵢ) / (N − q),    W = U_q (Λ_q − σ² I)^½,
    p(z|x) = N(M⁻¹ Wᵀ (x − μ), σ² M⁻¹),    M = WᵀW + σ² I = Λ_q  (diagonal).

So the exact posterior is a diagonal normal that a VAE can hold: at step 0 the model *is* probabilistic PCA (the
optimum of the linear VAE; Lucas et al. 2019, Don't Blame the ELBO!, arXiv 1911.02469), and the convolutional
branches, multiplied by gates that start at zero, can only be learned beside it. The core itself is not trained: an
Adam step moves every weight by the learning rate, which is more than most of these weights measure.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError
from kerasvae.types import Mask

__all__ = ["Core", "fit_core", "linear_start"]


class Core(NamedTuple):
    """Probabilistic PCA of masked images.

    Attributes:
        mean: Mean image over mask voxels, (v,).
        axes: Orthonormal principal axes as rows, (q, v).
        eigenvalues: Variances along them, largest first, (q,).
        noise_variance: σ² per voxel.
    """

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    eigenvalues: NDArray[np.float64]
    noise_variance: float


def fit_core(images: NDArray[np.float32], latent_size: int, mask: Mask | None = None) -> Core:
    """Exact probabilistic PCA through the n × n Gram matrix (n people, far fewer than voxels).

    Args:
        images: (n, *data_shape), training people only.
        latent_size: Number of components q; components beyond n − 1 get eigenvalue σ² and stay inactive.
        mask: Voxels to use.

    Raises:
        ArgumentError: With fewer than three images, or images that do not differ.
    """
    if len(images) < 3:
        raise ArgumentError("images", rule="hold at least three people", got=len(images), fix="Train on more people")
    flat = images.reshape(len(images), -1) if mask is None else images[:, mask]
    mean = flat.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = flat - mean
    gram = centred.astype(np.float64) @ centred.T.astype(np.float64) / len(flat)
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    kept = min(latent_size, int((values > values[0] * 1e-10).sum()), len(flat) - 2, flat.shape[1] - 1)
    if values[0] <= 0 or kept < 1:
        raise ArgumentError("images", rule="differ between people", got="no variance", fix="Check the preprocessing")
    noise = float((values.sum() - values[:kept].sum()) / (flat.shape[1] - kept))
    noise = max(noise, 1e-12 * float(values[0]))
    axes = np.zeros((latent_size, flat.shape[1]), np.float32)
    axes[:kept] = (vectors[:, :kept] / np.sqrt(values[:kept] * len(flat))).T @ centred
    eigenvalues = np.full(latent_size, noise)
    eigenvalues[:kept] = np.maximum(values[:kept], noise)
    return Core(mean, axes, eigenvalues, noise)


@keras.saving.register_keras_serializable("kerasvae")
class Gate(keras.layers.Layer):
    """Multiply by one learned number per channel of the last axis, zero at the start."""

    def build(self, input_shape: Any) -> None:
        """Create the gate."""
        self.gate = self.add_weight(name="gate", shape=(input_shape[-1],), initializer="zeros")

    def call(self, x: Any) -> Any:
        """Gated features, same shape."""
        return x * self.gate


def linear_start(
    encoder: keras.Model, decoder: keras.Model, core: Core, mask: Mask | None = None, *, floor: float = 1e-4
) -> tuple[keras.Model, keras.Model]:
    """Put probabilistic PCA beside a pair of networks, which then learn what it cannot express.

    Args:
        encoder: (batch, *data_shape) to (batch, 2q), parameters of a `NormalPosterior`.
        decoder: (batch, q) to (batch, *data_shape).
        core: From `fit_core`.
        mask: The mask that `core` was fitted in.
        floor: The `NormalPosterior`'s floor, so that its standard deviations come out as probabilistic PCA's.

    Returns:
        Encoder and decoder of the same shapes, equal to probabilistic PCA until they are trained.
    """
    shape = tuple(encoder.input_shape[1:])
    inside = np.ones(shape, bool) if mask is None else np.asarray(mask, bool)
    loading_scale = np.sqrt(np.maximum(core.eigenvalues - core.noise_variance, 0.0))
    loadings = np.zeros((len(core.axes), math.prod(shape)), np.float32)
    loadings[:, inside.ravel()] = core.axes * loading_scale[:, None]
    mean = np.zeros(math.prod(shape), np.float32)
    mean[inside.ravel()] = core.mean
    stddev = np.sqrt(core.noise_variance / core.eigenvalues)
    projection = loadings.T / core.eigenvalues[None].astype(np.float32)
    image = keras.Input(shape, name="image")
    flat = keras.layers.Flatten()(image)
    posterior_mean = keras.layers.Dense(len(core.axes), trainable=False, name="linear_encoder")(flat)
    # softplus⁻¹ of the exact posterior's standard deviation, as a constant bias of the second half.
    raw = np.log(np.expm1(np.maximum(stddev - floor, 1e-6)))
    residual = Gate(name="encoder_gate")(encoder(image))
    parameters = Spread(raw.tolist(), name="parameters")([posterior_mean, residual])
    linear_encoder = keras.Model(image, parameters, name="encoder")

    z = keras.Input((len(core.axes),), name="z")
    linear = keras.layers.Dense(math.prod(shape), trainable=False, name="linear_decoder")(z)
    linear = keras.layers.Reshape(shape)(linear)
    extra = keras.layers.Reshape((*shape, 1))(decoder(z))
    extra = keras.layers.Reshape(shape)(Gate(name="decoder_gate")(extra))
    linear_decoder = keras.Model(z, keras.layers.Add(name="mean")([linear, extra]), name="decoder")
    linear_encoder.get_layer("linear_encoder").set_weights([projection, -mean @ projection])
    linear_decoder.get_layer("linear_decoder").set_weights([loadings, mean])
    return linear_encoder, linear_decoder


@keras.saving.register_keras_serializable("kerasvae")
class Spread(keras.layers.Layer):
    """Join a posterior mean and a constant raw scale, and add a residual to both halves.

    Args:
        raw: The raw scale of each dimension at the start (before the posterior's softplus), length q.
    """

    def __init__(self, raw: list[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.raw = [float(value) for value in raw]
        constant = np.asarray(self.raw, np.float32)
        self.bias = self.add_weight(
            name="raw", shape=constant.shape, initializer=lambda shape, dtype=None: ops.convert_to_tensor(constant)
        )
        self.built = True

    def call(self, inputs: list[Any]) -> Any:
        """(batch, q) mean and (batch, 2q) residual to (batch, 2q) posterior parameters."""
        mean, residual = inputs
        raw = ops.broadcast_to(ops.cast(self.bias, mean.dtype), ops.shape(mean))
        return ops.concatenate([mean, raw], axis=-1) + residual

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "raw": self.raw}
