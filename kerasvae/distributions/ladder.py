"""The ladder: codes in levels, each inferred from the image and from the level above it.

Sønderby, Raiko, Maaløe, Sønderby & Winther 2016, Ladder Variational Autoencoders, NeurIPS, arXiv 1602.02282.
Section 2, the generative side, from the top level z_L down to z_1: p(z) = p(z_L) Π_i p(z_i|z_{i+1}), with
p(z_L) = N(0, I) and p(z_i|z_{i+1}) = N(μ_p, σ_p²). Section 2.1, the inference: q(z|x) = q(z_L|x) Π_i q(z_i|z_{i+1}, x),
where the image's own estimate N(μ̂, σ̂²), read bottom-up, and the one of the level above meet as two measurements of
z_i do, weighted by their precisions:

    σ_q² = 1 / (σ̂⁻² + σ_p⁻²)        μ_q = (μ̂ σ̂⁻² + μ_p σ_p⁻²) / (σ̂⁻² + σ_p⁻²)

As in the paper the top level is the image's own estimate alone,
N(μ̂_L, σ̂_L²), not combined with N(0, I), and a level hangs on the one directly above it, not on all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from kerasvae.distributions.base import Output, Posterior, inverse_positive, positive
from kerasvae.errors import ArgumentError

tfd = tfp.distributions

__all__ = ["LadderPosterior"]

Moments = tuple[tf.Tensor, tf.Tensor]
"""Mean and standard deviation of a normal, dimension by dimension."""


@keras.saving.register_keras_serializable("kerasvae")
class LadderPosterior(Posterior):
    """q(z|x) = q(z_L|x) Π_i q(z_i|z_{i+1}, x), and the networks of p(z_i|z_{i+1}), which `LadderPrior` shares.

    The code is all levels side by side, the top one first. The encoder's output of width 2d is that of a normal
    posterior: μ̂ of all dimensions (d), then their raw scales r (d) with σ̂ = floor + softplus(r).

    The top-down networks are dense ones with SiLU; their last layers start at zero, so that p(z) is N(0, I) at first.
    They belong to the posterior, since q is made of them; with another prior they are a part of q and no more.

    Args:
        latent_size: Number of latent dimensions d.
        levels: Widths of the levels from the top, the most abstract, to the bottom; they sum to `latent_size`. One
            level is a normal posterior.
        units: Widths of the hidden layers of each top-down network; empty for linear ones.
        floor: The smallest σ̂ and σ_p, in prior standard deviations, in (0, 1). Where two meet, σ_q ≥ floor / √2.
        seed: Of the hidden layers' weights at the start, 0 or more.

    Raises:
        ArgumentError: If an argument is out of its range, or the levels do not sum to `latent_size`.
    """

    kind = "ladder"
    outputs = (
        Output(
            "mean",
            "mean of q level by level, top first, each given the mean of the level above; the person's coordinates, in "
            "prior standard deviations; below the top not the mean of q(z|x), which has no closed form",
        ),
        Output(
            "stddev",
            "conditional standard deviation of q per dimension given the mean of the level above: how uncertain the "
            "coordinate is beside the uncertainty of that level",
        ),
    )

    def __init__(
        self,
        latent_size: int,
        levels: Sequence[int],
        units: Sequence[int] = (32,),
        floor: float = 1e-4,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.levels = _widths("levels", levels, "Use (2, 4) for a top level of 2 and one of 4 dimensions")
        self.units = _widths("units", units, "Use (32,)")
        if not self.levels or sum(self.levels) != latent_size:
            raise ArgumentError(
                "levels",
                rule=f"sum to latent_size, {latent_size}",
                got=f"{self.levels}, which sum to {sum(self.levels)}",
                fix="Give the width of each level from top to bottom, or change latent_size",
            )
        if not 0 < floor < 1:
            raise ArgumentError("floor", rule="lie in (0, 1)", got=floor, fix="Use 1e-4")
        if int(seed) != seed or seed < 0:
            raise ArgumentError("seed", rule="be a whole number of 0 or more", got=seed, fix="Use 0")
        self.latent_size, self.floor, self.seed = int(latent_size), float(floor), int(seed)
        self.networks = [
            _TopDown((above, *self.units), width, self.floor, [self.seed, level], name=f"level_{level}")
            for level, (above, width) in enumerate(itertools.pairwise(self.levels), start=1)
        ]
        self.built = True

    @property
    def groups(self) -> list[list[int]]:
        """The dimensions of each level, top first: what ``FreeBits(groups=…, per="group")`` takes.

        >>> LadderPosterior(3, levels=(1, 2)).groups
        [[0], [1, 2]]
        """
        ends = [0, *itertools.accumulate(self.levels)]
        return [list(range(*ends[level : level + 2])) for level in range(len(self.levels))]

    def parameter_size(self, latent_size: int) -> int:
        """2d."""
        if latent_size != self.latent_size:
            raise ArgumentError(
                "latent_size",
                rule=f"be that of the ladder, {self.latent_size}",
                got=latent_size,
                fix="Give model and posterior the same",
            )
        return 2 * latent_size

    # --- the generative side: p(z_i|z_{i+1}) -----------------------------------------------------

    def descend(self, place: Callable[[int, Moments], tf.Tensor]) -> tf.Tensor:
        """A code from the top down, (…, d).

        Args:
            place: Makes the code of a level, (…, width), from its number, 0 at the top, and from mean and standard
                deviation of p(z_i|z_{i+1}) at the code of the level above; at the top those are 0 and 1, scalars.
        """
        codes = [place(0, (tf.constant(0.0), tf.constant(1.0)))]
        for level, network in enumerate(self.networks, start=1):
            codes.append(place(level, network(codes[-1])))
        return tf.concat(codes, axis=-1)

    def top_down(self, z: tf.Tensor) -> Moments:
        """Mean and standard deviation of p(z_i|z_{i+1}) at a code, (…, d) to twice (…, d)."""
        return _side_by_side(self._top_down(tf.split(tf.cast(z, tf.float32), self.levels, axis=-1)))

    def _top_down(self, parts: Sequence[tf.Tensor]) -> list[Moments]:
        """As `top_down`, of each level."""
        below = [network(above) for network, above in zip(self.networks, parts[:-1], strict=True)]
        return [(tf.zeros_like(parts[0]), tf.ones_like(parts[0])), *below]

    # --- the inference: q(z_i|z_{i+1}, x) --------------------------------------------------------

    def _bottom_up(self, parameters: tf.Tensor) -> list[Moments]:
        """μ̂ and σ̂ of each level, each (B, width)."""
        mean, raw = tf.split(tf.cast(parameters, tf.float32), 2, axis=-1)
        means, stddevs = (tf.split(each, self.levels, axis=-1) for each in (mean, positive(raw, self.floor)))
        return list(zip(means, stddevs, strict=True))

    def conditional(self, parameters: tf.Tensor, z: tf.Tensor) -> Moments:
        """Mean and standard deviation of q(z_i|z_{i+1}, x) at codes (S, B, d), each (S, B, d)."""
        above = self._top_down(tf.split(tf.cast(z, tf.float32), self.levels, axis=-1))
        return _side_by_side(
            [_meet(level, *pair) for level, pair in enumerate(zip(self._bottom_up(parameters), above, strict=True))]
        )

    def deterministic(self, parameters: tf.Tensor) -> dict[str, tf.Tensor]:
        """mean and stddev along the path of the means, each (B, d), float32."""
        bottom_up, stddevs = self._bottom_up(parameters), []

        def place(level: int, above: Moments) -> tf.Tensor:
            mean, stddev = _meet(level, bottom_up[level], above)
            stddevs.append(stddev)
            return mean

        return {"mean": self.descend(place), "stddev": tf.concat(stddevs, axis=-1)}

    def center(self, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """The mean, (B, d)."""
        return outputs["mean"]

    def draw(self, parameters: tf.Tensor, samples: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """z_i = μ_q + σ_q ε_i from the top down, (S, B, d), and log q(z|x), (S, B)."""
        bottom_up, batch = self._bottom_up(parameters), tf.shape(parameters)[0]
        seeds = tf.unstack(tf.random.experimental.stateless_split(seed, len(self.levels)))

        def place(level: int, above: Moments) -> tf.Tensor:
            mean, stddev = _meet(level, bottom_up[level], above)
            return mean + stddev * tf.random.stateless_normal((samples, batch, self.levels[level]), seeds[level])

        z = self.descend(place)
        return z, self.log_prob(parameters, z)

    def log_prob(self, parameters: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """log q(z|x) = Σ_i log q(z_i|z_{i+1}, x), (S, B, d) to (S, B)."""
        z = tf.cast(z, tf.float32)
        return tf.reduce_sum(tfd.Normal(*self.conditional(parameters, z)).log_prob(z), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "latent_size": self.latent_size,
            "levels": list(self.levels),
            "units": list(self.units),
            "floor": self.floor,
            "seed": self.seed,
        }


class _TopDown(keras.layers.Layer):
    """Mean and standard deviation of a level from the code of the one above, (…, above) to twice (…, width).

    Args:
        widths: Of the level above and of the hidden layers.
        width: Of the level.
        floor: The smallest standard deviation.
        seed: Of the hidden layers' weights.
    """

    def __init__(self, widths: Sequence[int], width: int, floor: float, seed: list[int], name: str) -> None:
        super().__init__(dtype="float32", name=name)  # mixed precision must not touch a density
        seeds = [int(number) for number in np.random.SeedSequence(seed).generate_state(len(widths))]
        shapes = [*itertools.pairwise(widths), (widths[-1], 2 * width)]
        starts = [*map(keras.initializers.GlorotUniform, seeds[:-1]), "zeros"]
        self.kernels = [
            self.add_weight(shape, start, name=f"kernel_{i}")
            for i, (shape, start) in enumerate(zip(shapes, starts, strict=True))
        ]
        self.biases = [self.add_weight(shape[1:], "zeros", name=f"bias_{i}") for i, shape in enumerate(shapes)]
        self.floor = floor
        self.raw = inverse_positive(1, floor)  # the standard deviation is 1 where the network gives 0
        self.built = True

    def call(self, x: tf.Tensor) -> Moments:
        layers = [
            (tf.convert_to_tensor(kernel), tf.convert_to_tensor(bias))
            for kernel, bias in zip(self.kernels, self.biases, strict=True)
        ]
        for kernel, bias in layers[:-1]:
            x = tf.nn.silu(tf.matmul(x, kernel) + bias)
        mean, raw = tf.split(tf.matmul(x, layers[-1][0]) + layers[-1][1], 2, axis=-1)
        return mean, positive(self.raw + raw, self.floor)


def _meet(level: int, bottom_up: Moments, above: Moments) -> Moments:
    """μ_q and σ_q of a level: the two estimates weighted by their precisions, the image's own alone at the top."""
    if level == 0:
        broadcast = tf.zeros_like(above[0])
        return bottom_up[0] + broadcast, bottom_up[1] + broadcast
    own, theirs = (1 / tf.square(stddev) for _, stddev in (bottom_up, above))
    return (bottom_up[0] * own + above[0] * theirs) / (own + theirs), tf.math.rsqrt(own + theirs)


def _side_by_side(levels: Sequence[Moments]) -> Moments:
    """The moments of all levels in one."""
    mean, stddev = (tf.concat(each, axis=-1) for each in zip(*levels, strict=True))
    return mean, stddev


def _widths(name: str, values: Any, fix: str) -> tuple[int, ...]:
    if not isinstance(values, Sequence) or not all(isinstance(n, Integral) and int(n) >= 1 for n in values):
        raise ArgumentError(name, rule="be a list of whole numbers, each 1 or more", got=values, fix=fix)
    return tuple(int(n) for n in values)
