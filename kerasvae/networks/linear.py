"""A start that is not the mean brain: probabilistic PCA as the linear core of encoder and decoder.

Tipping & Bishop 1999, Probabilistic Principal Component Analysis, J. R. Stat. Soc. B 61(3):611-622. With sample
covariance eigenvalues λ₁ ≥ λ₂ ≥ …, N voxels and q components (their maximum-likelihood solution with R = I, and the
posterior that follows):

    σ² = (Σ_{i>q} λᵢ) / (N − q),    W = U_q (Λ_q − σ² I)^½,
    p(z|x) = N(M⁻¹ Wᵀ (x − μ), σ² M⁻¹),    M = WᵀW + σ² I = Λ_q  (diagonal).

So the exact posterior is a diagonal normal that a VAE can hold: at step 0 the model *is* probabilistic PCA (the
optimum of the linear VAE; Lucas et al. 2019, Don't Blame the ELBO!, arXiv 1911.02469), and the convolutional
branches, multiplied by gates that start at zero, can only be learned beside it. The core itself is not trained: an
Adam step moves every weight by the learning rate, which is more than most of these weights measure.

With covariates c the model is x = μ + S c + W z + ε: S by least squares, probabilistic PCA of what is left, and μ + S c
in the place of μ.

U_q, Λ_q and σ² define the model, however they were found: `kerasvae.networks.fit_core` can also count mirrored people
and a smooth prior.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from kerasvae.networks.condition import condition_input, inputs_of, with_condition
from kerasvae.networks.core import Core
from kerasvae.types import Mask

__all__ = ["linear_start"]


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
    encoder: keras.Model,
    decoder: keras.Model,
    core: Core,
    mask: Mask | None = None,
    *,
    floor: float = 1e-4,
    reading: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> tuple[keras.Model, keras.Model]:
    """Put probabilistic PCA beside a pair of networks, which then learn what it cannot express.

    Args:
        encoder: (batch, *data_shape) to (batch, 2q), parameters of a `NormalPosterior`, or more, as `RegressionVAE`
            needs; with covariates from [images, condition].
        decoder: (batch, q) to (batch, *data_shape); with covariates from [codes, condition].
        core: From `fit_core`.
        mask: The mask that `core` was fitted in.
        floor: The `NormalPosterior`'s floor, so that its standard deviations come out as probabilistic PCA's.
        reading: What the encoder gives beside the posterior's parameters, e numbers, at first: weights (q, e) and
            biases (e,) of a line in the posterior mean; by default zeros.

    Returns:
        Encoder and decoder of the same shapes, equal to probabilistic PCA until they are trained.
    """
    shape = tuple((encoder.input_shape[0] if isinstance(encoder.input_shape, list) else encoder.input_shape)[1:])
    inside = np.ones(shape, bool) if mask is None else np.asarray(mask, bool)
    loading_scale = np.sqrt(np.maximum(core.eigenvalues - core.noise_variance, 0.0))
    loadings, slopes = (_spread(rows, inside) for rows in (core.axes * loading_scale[:, None], core.slopes))
    mean = _spread(core.mean[None], inside)[0]
    stddev = np.sqrt(core.noise_variance / core.eigenvalues)
    projection = loadings.T / core.eigenvalues[None].astype(np.float32)
    image, condition = keras.Input(shape, name="image"), condition_input(len(slopes))
    flat = with_condition(keras.layers.Flatten()(image), condition)
    posterior_mean = keras.layers.Dense(len(core.axes), trainable=False, name="linear_encoder")(flat)
    # softplus⁻¹ of the exact posterior's standard deviation, as a constant bias of the second half.
    raw = np.log(np.expm1(np.maximum(stddev - floor, 1e-6)))
    residual = Gate(name="encoder_gate")(encoder(inputs_of(image, condition)))
    size = 2 * len(core.axes)
    parameters = Spread(raw.tolist(), name="parameters")([posterior_mean, residual[:, :size]])
    if rest := encoder.output_shape[-1] - size:  # what a model reads beside the posterior begins as linear in its mean
        line = keras.layers.Dense(rest, kernel_initializer="zeros", name="reading")
        read = line(posterior_mean)
        if reading is not None:
            line.set_weights(list(reading))
        parameters = keras.layers.Concatenate()([parameters, keras.layers.Add()([read, residual[:, size:]])])
    linear_encoder = keras.Model(inputs_of(image, condition), parameters, name="encoder")

    z, condition = keras.Input((len(core.axes),), name="z"), condition_input(len(slopes))
    linear = keras.layers.Dense(math.prod(shape), trainable=False, name="linear_decoder")(with_condition(z, condition))
    linear = keras.layers.Reshape(shape)(linear)
    extra = keras.layers.Reshape((*shape, 1))(decoder(inputs_of(z, condition)))
    extra = keras.layers.Reshape(shape)(Gate(name="decoder_gate")(extra))
    linear_decoder = keras.Model(
        inputs_of(z, condition), keras.layers.Add(name="mean")([linear, extra]), name="decoder"
    )
    by_image = np.concatenate([projection, -slopes @ projection])
    linear_encoder.get_layer("linear_encoder").set_weights([by_image, -mean @ projection])
    linear_decoder.get_layer("linear_decoder").set_weights([np.concatenate([loadings, slopes]), mean])
    return linear_encoder, linear_decoder


def _spread(rows: NDArray[np.float32], inside: Mask) -> NDArray[np.float32]:
    """Values of mask voxels, (r, v), on the whole flattened grid, 0 elsewhere: (r, grid)."""
    whole = np.zeros((len(rows), inside.size), np.float32)
    whole[:, inside.ravel()] = rows
    return whole


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
