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

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError
from kerasvae.networks.box import Crop, Pad
from kerasvae.networks.condition import condition_input, inputs_of, with_condition
from kerasvae.networks.core import Core
from kerasvae.networks.refine import Refine
from kerasvae.networks.spline import Coarse, SplineDown, SplineUp
from kerasvae.types import Mask

__all__ = ["linear_start", "use_core"]

ENCODER_LINE, DECODER_LINE, SPLINE_UP = "linear_encoder", "linear_decoder", "spline_up"


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
    encoder: keras.Model | None,
    decoder: keras.Model | None,
    core: Core,
    mask: Mask | None = None,
    *,
    data_shape: Sequence[int] | None = None,
    refine: Sequence[int] = (),
    floor: float = 1e-4,
    reading: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> tuple[keras.Model, keras.Model]:
    """Put probabilistic PCA beside a pair of networks, which then learn what it cannot express.

    Args:
        encoder: (batch, *data_shape) to (batch, 2q), parameters of a `NormalPosterior`, or more, as `RegressionVAE`
            needs; with covariates from [images, condition]. None for no network beside the line.
        decoder: (batch, q) to (batch, *data_shape); with covariates from [codes, condition]. None as for the encoder.
        core: From `fit_core`.
        mask: The mask that `core` was fitted in.
        data_shape: Shape of one subject, where neither encoder nor mask tells it.
        refine: Hidden channels of a `Refine` layer before the encoder's line, and of another behind the decoder's;
            empty for none.
        floor: The `NormalPosterior`'s floor, so that its standard deviations come out as probabilistic PCA's.
        reading: What the encoder gives beside the posterior's parameters, e numbers, at first: weights (q, e) and
            biases (e,) of a line in the posterior mean; by default zeros, as many as `encoder` is wider than 2q.

    Returns:
        Encoder and decoder of the same shapes, equal to probabilistic PCA until they are trained.

    Raises:
        ArgumentError: If the shape of a subject is not known.
    """
    shape, inside = _whole(encoder, mask, data_shape)
    size = 2 * len(core.axes)
    image, condition = keras.Input(shape, name="image"), condition_input(len(core.slopes))
    lattice = Coarse.of(inside, core.step)
    seen, box = image, lattice.box
    small = any(ends != (0, size) for ends, size in zip(box, shape, strict=True))
    if small:
        seen = Crop(box, name="crop")(image)
    if refine:
        seen = _refined(seen, core, lattice, refine, "encoder_refine")
    if core.step > 1:
        seen = SplineDown(lattice.mask, core.step, name="spline_down")(seen)
    flat = with_condition(keras.layers.Flatten()(seen), condition)
    posterior_mean = keras.layers.Dense(len(core.axes), trainable=False, name=ENCODER_LINE)(flat)
    # softplus⁻¹ of the exact posterior's standard deviation, as a constant bias of the second half.
    stddev = np.sqrt(core.noise_variance / core.eigenvalues)
    raw = np.log(np.expm1(np.maximum(stddev - floor, 1e-6)))
    residual = None if encoder is None else Gate(name="encoder_gate")(encoder(inputs_of(image, condition)))
    beside = [] if residual is None else [residual[:, :size]]
    parameters = Spread(raw.tolist(), name="parameters")([posterior_mean, *beside])
    rest = 0 if encoder is None else encoder.output_shape[-1] - size
    if reading is not None:
        rest = len(reading[1])
    if rest:  # what a model reads beside the posterior begins as linear in its mean
        line = keras.layers.Dense(rest, kernel_initializer="zeros", name="reading")
        read = line(posterior_mean)
        if reading is not None:
            line.set_weights(list(reading))
        read = read if residual is None else keras.layers.Add()([read, residual[:, size:]])
        parameters = keras.layers.Concatenate()([parameters, read])
    linear_encoder = keras.Model(inputs_of(image, condition), parameters, name="encoder")

    z, condition = keras.Input((len(core.axes),), name="z"), condition_input(len(core.slopes))
    places = lattice.inside.size
    linear = keras.layers.Dense(places, trainable=False, name=DECODER_LINE)(with_condition(z, condition))
    made = keras.layers.Reshape(lattice.inside.shape)(linear)
    if core.step > 1:
        made = SplineUp(lattice.mask, core.step, name=SPLINE_UP)(made)
    if refine:
        made = _refined(made, core, lattice, refine, "decoder_refine")
    if small:
        made = Pad(box, shape, name="pad")(made)
    if decoder is not None:
        extra = keras.layers.Reshape((*shape, 1))(decoder(inputs_of(z, condition)))
        extra = keras.layers.Reshape(shape)(Gate(name="decoder_gate")(extra))
        made = keras.layers.Add(name="mean")([made, extra])
    linear_decoder = keras.Model(inputs_of(z, condition), made, name="decoder")
    use_core(linear_encoder, linear_decoder, core, inside)
    return linear_encoder, linear_decoder


def use_core(encoder: keras.Model, decoder: keras.Model, core: Core, mask: Mask | None = None) -> None:
    """Exchange the lines of networks from `linear_start` for those of another core of the same size.

    Args:
        encoder: From `linear_start`.
        decoder: As well.
        core: Its mean, axes, slopes and rotation are taken; the posterior's standard deviation stays as it is.
        mask: As for `linear_start`.
    """
    lattice = Coarse.of(_whole(encoder, mask, None)[1], core.step)
    inside = lattice.inside
    loadings, slopes = (_spread(rows, inside) for rows in (core.axes * core.loading_scale[:, None], core.slopes))
    mean = _spread(core.mean[None], inside)[0]
    projection = loadings.T / core.eigenvalues[None].astype(np.float32)
    if core.rotation is not None:
        loadings, projection = core.rotation @ loadings, projection @ core.rotation.T
    by_image = np.concatenate([projection, -slopes @ projection])
    encoder.get_layer(ENCODER_LINE).set_weights([by_image, -mean @ projection])
    if core.background is not None:  # the decoder adds it voxel by voxel
        decoder.get_layer(SPLINE_UP).mean.assign(
            _spread(core.background[None], lattice.mask)[0].reshape(lattice.mask.shape)
        )
        mean = np.zeros_like(mean)
    decoder.get_layer(DECODER_LINE).set_weights([np.concatenate([loadings, slopes]), mean])


def _whole(
    encoder: keras.Model | None, mask: Mask | None, data_shape: Sequence[int] | None
) -> tuple[tuple[int, ...], Mask]:
    """The shape of a subject, and the mask on it."""
    if encoder is not None:
        shape = (encoder.input_shape[0] if isinstance(encoder.input_shape, list) else encoder.input_shape)[1:]
    elif data_shape is not None:
        shape = data_shape
    elif mask is not None:
        shape = mask.shape
    else:
        raise ArgumentError(
            "data_shape", rule="be given without encoder and mask", got=None, fix="Give the shape of one subject"
        )
    shape = tuple(int(n) for n in shape)
    return shape, np.ones(shape, bool) if mask is None else np.asarray(mask, bool)


def _refined(x: keras.KerasTensor, core: Core, lattice: Coarse, filters: Sequence[int], name: str) -> keras.KerasTensor:
    """A `Refine` layer that knows the core's mean and the standard deviation that it gives each voxel."""
    layer = Refine(x.shape[1:], filters, name=name)
    refined = layer(x)
    loadings = core.loading_scale[:, None].astype(np.float32) * core.axes
    if core.step > 1:
        loadings = lattice.up(loadings)
    stddev = np.sqrt(core.noise_variance + np.square(loadings).sum(axis=0))
    center = core.mean if core.background is None else core.background
    mean, spread = (_spread(row[None], lattice.mask)[0].reshape(x.shape[1:]) for row in (center, stddev))
    layer.set_maps(mean, spread, lattice.mask)
    return refined


def _spread(rows: NDArray[Any], inside: Mask) -> NDArray[np.float32]:
    """Values of the places that count, (r, v), on all places, flattened, 0 elsewhere: (r, places)."""
    spread = np.zeros((len(rows), inside.size), np.float32)
    spread[:, inside.ravel()] = rows
    return spread


@keras.saving.register_keras_serializable("kerasvae")
class Spread(keras.layers.Layer):
    """Join a posterior mean and a constant raw scale, and add a residual to both halves where there is one.

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
        """(batch, q) mean and, where there is one, (batch, 2q) residual to (batch, 2q) posterior parameters."""
        mean, *residual = inputs
        raw = ops.broadcast_to(ops.cast(self.bias, mean.dtype), ops.shape(mean))
        parameters = ops.concatenate([mean, raw], axis=-1)
        return parameters + residual[0] if residual else parameters

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "raw": self.raw}
