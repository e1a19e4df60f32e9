"""Flow posteriors: a diagonal normal pushed through an invertible network, so that q(z|x) may bend.

Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling 2016, Improving Variational Inference with Inverse
Autoregressive Flow, arXiv 1606.04934 (Algorithm 1 and equations 10–14): quick to draw from, slow to invert. Its
networks are those of Germain, Gregor, Murray & Larochelle 2015, MADE, arXiv 1502.03509: dense, with masked
weights. Dinh, Sohl-Dickstein & Bengio 2017, Density Estimation Using Real NVP, arXiv 1605.08803 (section 3.4,
equation 9): quick both ways.

z_T = f(z_0), z_0 = mean + stddev · ε, ε ~ N(0, I): log q(z_T|x) = Σ (−½ε² − ½ log 2π − log stddev) − log |det ∂f/∂z_0|.
Beside mean and stddev the encoder gives a context, which every step of the flow sees: without it the flow would bend
all people's posteriors alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.distributions.base import Output, Posterior, positive
from kerasvae.errors import ArgumentError

__all__ = ["AutoregressiveFlow", "CouplingFlow", "InverseAutoregressiveFlowPosterior", "RealNVPPosterior"]

GATE = 2.0
"""Added to the raw gate of an autoregressive step, so that it starts near 1; the paper asks for 1 to 2."""
LOG_SCALE = 2.0
"""Bound of |log scale| of a coupling step: s = 2 tanh(raw/2)."""


class _Network(keras.layers.Layer):
    """Two hidden layers of ELUs from z (…, d) and a context (…, c) to two numbers a dimension, zero at first.

    Args:
        sizes: d, hidden units, hidden units.
        masks: Of the three kernels; a zero takes a weight out.
        context_size: c; 0 for none.
        seed: Of the initial weights.
    """

    def __init__(
        self, sizes: tuple[int, int, int], masks: Sequence[NDArray], context_size: int, seed: list[int], name: str
    ) -> None:
        super().__init__(dtype="float32", name=name)  # mixed precision must not touch a density
        seeds = [int(number) for number in np.random.SeedSequence(seed).generate_state(3)]
        glorot = [keras.initializers.GlorotUniform(number) for number in seeds]
        self.masks = [np.asarray(mask, np.float32) for mask in masks]
        widths, starts = (*sizes, 2 * sizes[0]), (glorot[0], glorot[1], "zeros")
        self.kernels = [self.add_weight(widths[i : i + 2], start, name=f"kernel_{i}") for i, start in enumerate(starts)]
        self.biases = [self.add_weight(widths[i + 1 : i + 2], "zeros", name=f"bias_{i}") for i in range(3)]
        self.context = self.add_weight((context_size, sizes[1]), glorot[2], name="context") if context_size else None
        self.built = True

    def call(self, z: tf.Tensor, context: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Two tensors of z's shape."""
        kernels = [tf.convert_to_tensor(w) * mask for w, mask in zip(self.kernels, self.masks, strict=True)]
        biases = [tf.convert_to_tensor(bias) for bias in self.biases]
        hidden = tf.matmul(z, kernels[0]) + biases[0]
        if self.context is not None:
            hidden += tf.matmul(tf.cast(context, tf.float32), tf.convert_to_tensor(self.context))
        hidden = tf.nn.elu(tf.matmul(tf.nn.elu(hidden), kernels[1]) + biases[1])
        first, second = tf.split(tf.matmul(hidden, kernels[2]) + biases[2], 2, axis=-1)
        return first, second


class _Flow(keras.layers.Layer):
    """An invertible function of z in d dimensions, perhaps given a context.

    Args:
        latent_size: d.
        flows: Number of steps.
        units: Width of each step's two hidden layers.
        context_size: Width c of the context; 0 for none.
        seed: Of the initial weights, 0 or more.
    """

    smallest: int = 1

    def __init__(
        self, latent_size: int, flows: int, units: int = 64, context_size: int = 0, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        given = {"latent_size": latent_size, "flows": flows, "units": units, "context_size": context_size, "seed": seed}
        least = {"latent_size": self.smallest, "flows": 1, "units": 1, "context_size": 0, "seed": 0}
        for name, value in given.items():
            if int(value) != value or value < least[name]:
                rule, fix = f"be a whole number of {least[name]} or more", "Change it"
                raise ArgumentError(name, rule=rule, got=value, fix=fix)
        self.latent_size, self.flows, self.units, self.context_size, self.seed = map(int, given.values())
        sizes = (self.latent_size, self.units, self.units)
        self.networks = [
            _Network(sizes, self._masks(step), self.context_size, [self.seed, step], name=f"step_{step}")
            for step in range(self.flows)
        ]
        self.built = True

    def _masks(self, step: int) -> Sequence[NDArray]:
        """Masks of a step's three kernels."""
        raise NotImplementedError

    def forward(self, z: tf.Tensor, context: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """f(z), (…, d), and log |det ∂f/∂z|, (…), in nats; the context (…, c) broadcasts against z."""
        raise NotImplementedError

    def inverse(self, z: tf.Tensor, context: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """f⁻¹(z), (…, d), and log |det ∂f⁻¹/∂z|, (…): less the one of `forward` at f⁻¹(z)."""
        raise NotImplementedError

    def call(self, z: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        """f(z)."""
        return self.forward(z, context)[0]

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        names = ("latent_size", "flows", "units", "context_size", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("kerasvae")
class AutoregressiveFlow(_Flow):
    """Steps z ← σ ⊙ z + (1 − σ) ⊙ m with σ = sigmoid(s + 2).

    m_i and s_i see z_1 … z_i−1, in every second step z_i+1 … z_d instead. Each step starts as z ← sigmoid(2) z. The
    inverse takes d passes through each network, one a dimension.
    """

    def _masks(self, step: int) -> Sequence[NDArray]:
        rank = self._ranks(step)
        hidden = np.arange(self.units) * self.latent_size // self.units  # 0 sees the context alone
        last = rank[None, :] > hidden[:, None]
        return hidden >= rank[:, None], hidden[None, :] >= hidden[:, None], np.concatenate([last, last], axis=1)

    def _ranks(self, step: int) -> NDArray:
        """Place of each dimension in the order of a step, from 1."""
        rank = 1 + np.arange(self.latent_size)
        return rank[::-1] if step % 2 else rank

    def _gate(self, step: int, z: tf.Tensor, context: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        shift, raw = self.networks[step](z, context)
        return shift, raw + GATE

    def forward(self, z: tf.Tensor, context: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """f(z) and log |det ∂f/∂z| = Σ log σ."""
        z = tf.cast(z, tf.float32)
        log_det = tf.zeros_like(z[..., 0])
        for step in range(self.flows):
            shift, raw = self._gate(step, z, context)
            z = tf.sigmoid(raw) * z + tf.sigmoid(-raw) * shift
            log_det += tf.reduce_sum(tf.math.log_sigmoid(raw), axis=-1)
        return z, log_det

    def inverse(self, z: tf.Tensor, context: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """f⁻¹(z) and −Σ log σ."""
        z = tf.cast(z, tf.float32)
        log_det = tf.zeros_like(z[..., 0])
        for step in reversed(range(self.flows)):
            z = self._step_inverse(step, z, context)
            log_det -= tf.reduce_sum(tf.math.log_sigmoid(self._gate(step, z, context)[1]), axis=-1)
        return z, log_det

    def _step_inverse(self, step: int, z: tf.Tensor, context: tf.Tensor | None) -> tf.Tensor:
        rank = tf.constant(self._ranks(step), tf.int32)

        def fill(place: tf.Tensor, known: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            shift, raw = self._gate(step, known, context)
            solved = (z - tf.sigmoid(-raw) * shift) / tf.sigmoid(raw)
            return place + 1, tf.where(rank == place, solved, known)

        start = tf.constant(1), tf.zeros_like(z)
        return tf.while_loop(
            lambda place, _: place <= self.latent_size, fill, start, maximum_iterations=self.latent_size
        )[1]


@keras.saving.register_keras_serializable("kerasvae")
class CouplingFlow(_Flow):
    """Steps z ← b ⊙ z + (1 − b) ⊙ (z ⊙ exp(s) + t), where s and t see b ⊙ z; b keeps even and odd dimensions by turns.

    It starts as the identity. Both directions take one pass a step. |s| ≤ 2, so that no step can explode.
    """

    smallest = 2

    def __init__(
        self, latent_size: int, flows: int = 4, units: int = 64, context_size: int = 0, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(latent_size, flows, units, context_size, seed, **kwargs)

    def _masks(self, step: int) -> Sequence[NDArray]:
        keep = self._keep(step)
        moved = np.tile(~keep, (self.units, 2))
        return np.tile(keep[:, None], (1, self.units)), np.ones((self.units, self.units)), moved

    def _keep(self, step: int) -> NDArray:
        """b of a step."""
        return np.arange(self.latent_size) % 2 == step % 2

    def _scale(self, step: int, z: tf.Tensor, context: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """s and t, zero in the dimensions that are kept."""
        raw, shift = self.networks[step](z, context)
        moved = tf.constant(~self._keep(step), tf.float32)
        return moved * LOG_SCALE * tf.tanh(raw / LOG_SCALE), moved * shift

    def forward(self, z: tf.Tensor, context: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """f(z) and log |det ∂f/∂z| = Σ s."""
        z = tf.cast(z, tf.float32)
        log_det = tf.zeros_like(z[..., 0])
        for step in range(self.flows):
            log_scale, shift = self._scale(step, z, context)
            z = z * tf.exp(log_scale) + shift
            log_det += tf.reduce_sum(log_scale, axis=-1)
        return z, log_det

    def inverse(self, z: tf.Tensor, context: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """f⁻¹(z) and −Σ s."""
        z = tf.cast(z, tf.float32)
        log_det = tf.zeros_like(z[..., 0])
        for step in reversed(range(self.flows)):
            log_scale, shift = self._scale(step, z, context)
            z = (z - shift) * tf.exp(-log_scale)
            log_det -= tf.reduce_sum(log_scale, axis=-1)
        return z, log_det


class _FlowPosterior(Posterior):
    """A diagonal normal, pushed through a flow that sees a context.

    The encoder's output of width 2d + c is the base's mean (d), its raw standard deviation r (d; stddev = floor +
    softplus(r)) and the context (c).

    Args:
        latent_size: d.
        flows: Number of steps of the flow.
        units: Width of the two hidden layers of each step.
        seed: Of the flow's initial weights, 0 or more.
        context_size: c, 0 or more.
        floor: The smallest standard deviation of the base.
    """

    outputs = (
        Output("mean", "the base's mean pushed forward through the flow: a typical point of q(z|x), not its mean"),
        Output("base_stddev", "standard deviation per dimension of the base, before the flow: not of z"),
    )
    flow_class: type[_Flow]

    def __init__(
        self,
        latent_size: int,
        flows: int,
        units: int = 64,
        seed: int = 0,
        context_size: int = 16,
        floor: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not floor > 0:
            raise ArgumentError("floor", rule="be positive", got=floor, fix="Give a small number such as 1e-4")
        self.floor = float(floor)
        self.flow = self.flow_class(latent_size, flows, units, context_size, seed, dtype="float32", name="flow")
        self.built = True

    def parameter_size(self, latent_size: int) -> int:
        """2d + c."""
        if latent_size != self.flow.latent_size:
            raise ArgumentError(
                "latent_size",
                rule=f"be that of the flow, {self.flow.latent_size}",
                got=latent_size,
                fix="Give model and posterior the same",
            )
        return 2 * latent_size + self.flow.context_size

    def _base(self, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Mean and standard deviation of the base, and the context."""
        size, context_size = self.flow.latent_size, self.flow.context_size
        mean, raw, context = tf.split(tf.cast(parameters, tf.float32), [size, size, context_size], axis=-1)
        return mean, positive(raw, self.floor), context if context_size else None

    def deterministic(self, parameters: tf.Tensor) -> dict[str, tf.Tensor]:
        """mean and base_stddev, each (B, d), float32."""
        mean, stddev, context = self._base(parameters)
        return {"mean": self.flow.forward(mean, context)[0], "base_stddev": stddev}

    def center(self, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """The base's mean pushed forward, (B, d)."""
        return outputs["mean"]

    def draw(self, parameters: tf.Tensor, samples: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """z = f(mean + stddev · ε), (S, B, d), and log q(z|x), (S, B), without inverting f."""
        mean, stddev, context = self._base(parameters)
        noise = tf.random.stateless_normal((samples, tf.shape(mean)[0], self.flow.latent_size), seed)
        z, log_det = self.flow.forward(mean + stddev * noise, context)
        return z, _log_base(noise, stddev) - log_det

    def log_prob(self, parameters: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """log q(z|x) by inverting f, (S, B, d) to (S, B)."""
        mean, stddev, context = self._base(parameters)
        base, log_det = self.flow.inverse(tf.cast(z, tf.float32) + tf.zeros_like(mean), context)
        return _log_base((base - mean) / stddev, stddev) + log_det

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        names = ("latent_size", "flows", "units", "seed", "context_size")
        return {**super().get_config(), **{name: getattr(self.flow, name) for name in names}, "floor": self.floor}


@keras.saving.register_keras_serializable("kerasvae")
class InverseAutoregressiveFlowPosterior(_FlowPosterior):
    """Inverse autoregressive flow; see `AutoregressiveFlow`, and the base class for the arguments.

    Draws and their log-density take one pass a step; `log_prob` elsewhere takes d.
    """

    kind = "iaf"
    flow_class = AutoregressiveFlow

    def __init__(self, latent_size: int, flows: int = 2, units: int = 64, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(latent_size, flows, units, seed, **kwargs)


@keras.saving.register_keras_serializable("kerasvae")
class RealNVPPosterior(_FlowPosterior):
    """Alternating affine couplings; see `CouplingFlow`, and the base class for the arguments. A normal at first."""

    kind = "real_nvp"
    flow_class = CouplingFlow

    def __init__(self, latent_size: int, flows: int = 4, units: int = 64, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(latent_size, flows, units, seed, **kwargs)


def _log_base(noise: tf.Tensor, stddev: tf.Tensor) -> tf.Tensor:
    """log N(mean + stddev ε; mean, stddev²), from ε (S, B, d)."""
    return -tf.reduce_sum(0.5 * (tf.square(noise) + math.log(2 * math.pi)) + tf.math.log(stddev), axis=-1)
