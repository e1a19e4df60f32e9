"""Posteriors on the unit sphere S^(d−1): a direction and how sure it is.

De Cao & Aziz 2020, The Power Spherical distribution, arXiv 2006.04437 (density, entropy and draws). Davidson, Falorsi,
De Cao, Kipf & Tomczak 2018, Hyperspherical Variational Auto-Encoders, arXiv 1804.00891 (the von Mises–Fisher density;
draws by rejection, from Wood 1994, Simulation of the von Mises Fisher Distribution). Figurnov, Mohamed & Mnih 2018,
Implicit Reparameterization Gradients, arXiv 1805.08498: a draw y with distribution function F(y; κ) and density f moves
by dy/dκ = −(∂F/∂κ)/f, which is exact, where the gradient through accepted proposals alone is biased.

Both densities are exp(log peak − κ s(θ)), with θ the angle between z and the mean direction and κ the concentration.
They are with respect to the surface measure, whose total is 2 π^(d/2) / Γ(d/2). The angle has the density
g(θ) ∝ sin^(d−2) θ exp(−κ s). All is written in sin² θ/2 = ‖z − mean direction‖²/4: float32 keeps small angles there,
which cos θ loses where κ is large.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from kerasvae.distributions.base import Output, Posterior, positive
from kerasvae.errors import ArgumentError

tfd = tfp.distributions

__all__ = ["PowerSphericalPosterior", "VonMisesFisherPosterior"]

LOG_2 = math.log(2.0)
TINY = 1e-30
SHORT = 1e-3
"""Length below which the encoder's vector gives no direction."""
NODES, WEIGHTS = (np.asarray(values, np.float32) for values in np.polynomial.legendre.leggauss(64))
REACH = 10.0
"""Half-width of an integral over angles, in standard deviations."""


class _SphericalPosterior(Posterior):
    """A density of the angle to a mean direction alone.

    The encoder's output of width d + 1 is a vector v (d), whose direction v/‖v‖ is the mean direction, and a raw value
    r with concentration = floor + softplus(r). A vector shorter than 1e-3 is moved by 1e-3 along the first axis, so
    that there is a direction, and a gradient, at v = 0 too.

    Args:
        floor: The smallest concentration; at 0 the density is uniform.
    """

    outputs = (
        Output("mean_direction", "the direction that stands for the person, a unit vector: the mode of q(z|x)"),
        Output("concentration", "how certain the direction is: 0 is uniform, the variance falls as 1/concentration"),
    )

    def __init__(self, floor: float = 1e-2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not floor > 0:
            raise ArgumentError("floor", rule="be positive", got=floor, fix="Give a small number such as 1e-2")
        self.floor = float(floor)
        self.built = True

    def parameter_size(self, latent_size: int) -> int:
        """d + 1."""
        if latent_size < 2:
            raise ArgumentError("latent_size", rule="be 2 or more on a sphere", got=latent_size, fix="Use 3 or more")
        return latent_size + 1

    def deterministic(self, parameters: tf.Tensor) -> dict[str, tf.Tensor]:
        """mean_direction (B, d) and concentration (B, 1), float32."""
        parameters = tf.cast(parameters, tf.float32)
        size = parameters.shape[-1] - 1
        vector, raw = tf.split(parameters, [size, 1], axis=-1)
        short = tf.reduce_sum(tf.square(vector), axis=-1, keepdims=True) < SHORT**2
        vector += tf.cast(short, tf.float32) * tf.constant([SHORT] + [0.0] * (size - 1))
        square = tf.reduce_sum(tf.square(vector), axis=-1, keepdims=True)
        return {"mean_direction": vector / tf.sqrt(square + TINY), "concentration": positive(raw, self.floor)}

    def center(self, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """The mean direction, (B, d)."""
        return outputs["mean_direction"]

    def draw(self, parameters: tf.Tensor, samples: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """z = cos θ · mean direction + sin θ · u with u uniform among the directions at right angles to it, (S, B, d).

        log q(z|x) is (S, B). The gradient with respect to the mean direction is that of a rotation of the whole sphere.
        """
        direction, concentration = self._split(parameters)
        for_angle, for_rest = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        angle = self._moving_angles(concentration, direction.shape[-1], samples, for_angle)[..., None]
        still = tf.stop_gradient(direction)
        across = tf.random.stateless_normal((samples, tf.shape(direction)[0], direction.shape[-1]), for_rest)
        for _ in range(2):  # a second time for what rounding left
            across -= tf.reduce_sum(across * still, axis=-1, keepdims=True) * still
            across /= tf.sqrt(tf.reduce_sum(tf.square(across), axis=-1, keepdims=True) + TINY)
        across -= tf.reduce_sum(across * (direction - still), axis=-1, keepdims=True) * still
        z = tf.cos(angle) * direction + tf.sin(angle) * across
        return z, self.log_prob(parameters, z)

    def log_prob(self, parameters: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """log q(z|x) at unit vectors z, (S, B, d) to (S, B)."""
        z = tf.cast(z, tf.float32)
        direction, concentration = self._split(parameters)
        near = 0.25 * tf.reduce_sum(tf.square(z - direction), axis=-1)
        far = 0.25 * tf.reduce_sum(tf.square(z + direction), axis=-1)
        log_peak, _ = self._peak_and_mean(concentration, direction.shape[-1])
        return log_peak - concentration * self._statistic(near, far)

    def entropy(self, parameters: tf.Tensor) -> tf.Tensor:
        """−E_q[log q] in nats, (B,)."""
        direction, concentration = self._split(parameters)
        log_peak, mean = self._peak_and_mean(concentration, direction.shape[-1])
        return concentration * mean - log_peak

    def _split(self, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean direction (B, d) and concentration κ (B,)."""
        outputs = self.deterministic(parameters)
        return outputs["mean_direction"], outputs["concentration"][:, 0]

    def _statistic(self, near: tf.Tensor, far: tf.Tensor) -> tf.Tensor:
        """s with q ∝ exp(−κ s), zero at the mean direction, from near = sin² θ/2 and far = cos² θ/2."""
        raise NotImplementedError

    def _peak_and_mean(self, concentration: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
        """log q at the mean direction and E s, each (B,)."""
        raise NotImplementedError

    def _bulk(self, concentration: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Mode of the density of the angle and its width there, each (B,)."""
        raise NotImplementedError

    def _angles(self, concentration: tf.Tensor, size: int, samples: int, seed: tf.Tensor) -> tf.Tensor:
        """Draws of θ, (S, B)."""
        raise NotImplementedError

    def _log_density(self, angle: tf.Tensor, concentration: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
        """log g(θ) = (d−2) log sin θ − κ s, up to a constant, and s."""
        half = 0.5 * angle
        statistic = self._statistic(tf.square(tf.sin(half)), tf.square(tf.cos(half)))
        return (size - 2) * tf.math.log(tf.maximum(tf.sin(angle), TINY)) - concentration * statistic, statistic

    def _moving_angles(self, concentration: tf.Tensor, size: int, samples: int, seed: tf.Tensor) -> tf.Tensor:
        """Draws of θ with their gradient."""
        drawn = self._angles(tf.stop_gradient(concentration), size, samples, seed)
        angle = tf.stop_gradient(tf.clip_by_value(drawn, 1e-10, math.pi - 1e-6))

        @tf.custom_gradient
        def moving(concentration: tf.Tensor) -> tuple[tf.Tensor, Any]:
            def backward(gradient: tf.Tensor) -> tf.Tensor:
                return tf.reduce_sum(gradient * self._slope(angle, concentration, size), axis=0)

            return tf.identity(angle), backward

        return moving(concentration)

    def _slope(self, angle: tf.Tensor, concentration: tf.Tensor, size: int) -> tf.Tensor:
        """dθ/dκ = ∫₀^θ (s − E s) g / g(θ), (S, B); far out −∫ from θ to π, where g is smaller."""
        mode, width = self._bulk(concentration, size)
        beyond = angle > mode + width
        low = tf.where(beyond, angle, tf.maximum(angle - REACH * width, 0.0))
        high = tf.where(beyond, tf.minimum(angle + REACH * width, math.pi), angle)
        nodes, weights = _rule(low, high)
        log_density, statistic = self._log_density(nodes, concentration[..., None], size)
        ratio = tf.exp(log_density - self._log_density(angle, concentration, size)[0][..., None])
        excess = statistic - self._peak_and_mean(concentration, size)[1][..., None]
        return tf.where(beyond, -1.0, 1.0) * tf.reduce_sum(weights * ratio * excess, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "floor": self.floor}


@keras.saving.register_keras_serializable("kerasvae")
class PowerSphericalPosterior(_SphericalPosterior):
    """q(z|x) ∝ (1 + mean directionᵀ z)^κ on the unit sphere of R^d, d ≥ 2, with κ the concentration.

    cos² θ/2 is a Beta(a, b) variable with a = (d−1)/2 + κ and b = (d−1)/2.
    """

    kind = "power_spherical"

    def _statistic(self, near: tf.Tensor, far: tf.Tensor) -> tf.Tensor:
        close, distant = tf.math.log1p(-tf.minimum(near, 0.5)), tf.math.log(tf.maximum(far, TINY))
        return -tf.where(near < 0.5, close, distant)

    def _peak_and_mean(self, concentration: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Differences of large numbers, so in float64."""
        b = 0.5 * (size - 1)
        a = tf.cast(concentration, tf.float64) + b
        log_peak = tf.math.lgamma(a + b) - tf.math.lgamma(a) - 2 * b * LOG_2 - b * math.log(math.pi)
        return tf.cast(log_peak, tf.float32), tf.cast(tf.math.digamma(a + b) - tf.math.digamma(a), tf.float32)

    def _bulk(self, concentration: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
        mode = 2 * tf.atan(tf.sqrt((size - 2) / (2 * concentration + size - 2)))
        return mode, tf.sqrt(2 / (concentration + size - 2))

    def _angles(self, concentration: tf.Tensor, size: int, samples: int, seed: tf.Tensor) -> tf.Tensor:
        """From the two gamma variables of the Beta variable, so that neither it nor its complement is rounded off.

        Their own gradient is not used: at large concentrations it is far off.
        """
        seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        b = tf.fill(tf.shape(concentration), 0.5 * (size - 1))
        near = tfd.Gamma(b, 1.0).sample(samples, seed=seeds[0])
        far = tfd.Gamma(b + concentration, 1.0).sample(samples, seed=seeds[1])
        return 2 * tf.atan2(tf.sqrt(near), tf.sqrt(far))


@keras.saving.register_keras_serializable("kerasvae")
class VonMisesFisherPosterior(_SphericalPosterior):
    """q(z|x) ∝ exp(κ mean directionᵀ z) on the unit sphere of R^d, d ≥ 2, with κ the concentration.

    Normaliser and entropy are integrals over θ by a Gauss–Legendre rule over the bulk. In float32 the Bessel functions
    of order d/2 − 1 that they equal would lose their gradients to rounding.
    """

    kind = "von_mises_fisher"

    def _statistic(self, near: tf.Tensor, far: tf.Tensor) -> tf.Tensor:
        return 2 * near

    def _peak_and_mean(self, concentration: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
        mode, width = self._bulk(tf.stop_gradient(concentration), size)
        nodes, weights = _rule(tf.maximum(mode - REACH * width, 0.0), tf.minimum(mode + REACH * width, math.pi))
        log_density, statistic = self._log_density(nodes, concentration[..., None], size)
        logs = log_density + tf.math.log(weights)
        mean = tf.reduce_sum(tf.nn.softmax(logs, axis=-1) * statistic, axis=-1)
        return -_log_area(size - 1) - tf.reduce_logsumexp(logs, axis=-1), mean

    def _bulk(self, concentration: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
        cosine = 2 * concentration / (size - 2 + tf.sqrt((size - 2.0) ** 2 + 4 * tf.square(concentration)))
        mode = tf.atan2(tf.sqrt((size - 2) * cosine / concentration), cosine)
        return mode, tf.math.rsqrt(concentration * (cosine + 1 / cosine))

    def _angles(self, concentration: tf.Tensor, size: int, samples: int, seed: tf.Tensor) -> tf.Tensor:
        return _wood(concentration, size, samples, seed)


def _log_area(size: int) -> float:
    """log of the surface of the unit sphere of R^size."""
    return LOG_2 + 0.5 * size * math.log(math.pi) - math.lgamma(0.5 * size)


def _rule(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Nodes and weights between two angles, (…, 64)."""
    half = 0.5 * (high - low)[..., None]
    return low[..., None] + half * (1 + NODES), half * WEIGHTS


def _wood(concentration: tf.Tensor, size: int, samples: int, seed: tf.Tensor) -> tf.Tensor:
    """Angles θ of draws, (S, B), by Wood's rejection; in terms of t = 1 − cos θ, which may be tiny."""
    m = size - 1.0
    b = m / (2 * concentration + tf.sqrt(4 * tf.square(concentration) + m**2))
    shape = (samples, tf.shape(concentration)[0])

    def propose(t: tf.Tensor, accepted: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        following, for_beta, for_uniform = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
        # The first coordinate of a uniform direction, mapped to [0, 1], is Beta(m/2, m/2); both it and its complement.
        normal = tf.random.stateless_normal((*shape, size), for_beta)
        first, rest = normal[..., 0], tf.reduce_sum(tf.square(normal[..., 1:]), axis=-1)
        length = tf.sqrt(tf.square(first) + rest)
        large, small = 0.5 + 0.5 * tf.abs(first) / length, 0.5 * rest / (length * (length + tf.abs(first)))
        beta, complement = tf.where(first > 0, large, small), tf.where(first > 0, small, large)
        proposal = 2 * b * beta / (complement + b * beta)
        log_ratio = concentration * (2 * b / (1 + b) - proposal)
        log_ratio += m * tf.math.log((1 + proposal * (1 - b) / (2 * b)) * (1 + b) / 2)
        # A NaN is accepted: it must reach the loss, not keep the loop waiting.
        accept = ~(log_ratio < tf.math.log(tf.random.stateless_uniform(shape, for_uniform, minval=TINY)))
        return tf.where(accepted, t, proposal), accepted | accept, following

    start = tf.zeros(shape), tf.zeros(shape, tf.bool), tf.cast(seed, tf.int32)
    t = tf.while_loop(lambda _, accepted, __: ~tf.reduce_all(accepted), propose, start)[0]
    return 2 * tf.asin(tf.sqrt(tf.minimum(0.5 * t, 1.0)))
