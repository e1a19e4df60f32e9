"""The importance-weighted bound, and its doubly reparameterised gradient.

Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders, arXiv 1509.00519, equation 8:
log p(x) ≥ E[log 1/K Σ_s w_s] with w_s = p(x|z_s) p(z_s) / q(z_s|x) and K draws z_s ~ q(z|x).

Tucker, Lawson, Gu & Maddison 2019, Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives,
arXiv 1810.04152. With w̃_s = w_s / Σ w, the bound's gradient for the encoder's parameters φ is
E[Σ_s w̃_s² ∂log w_s/∂z_s ∂z_s/∂φ], where log w_s depends on φ through z_s alone. The bound gives
w̃_s ∂log w_s/∂z_s to each code; its second factor w̃_s is the code's weight.
"""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from kerasvae.objectives.base import Draws, Objective, Terms, standard_terms
from kerasvae.objectives.rules import whole_number

__all__ = ["IWAE", "DReG", "log_mean_exp", "log_weights"]


def log_weights(draws: Draws) -> tf.Tensor:
    """log w = log p(x|z) + log p(z) − log q(z|x) of each draw in nats, (S, B)."""
    return draws.log_likelihood + draws.log_prior - draws.log_posterior


def log_mean_exp(values: tf.Tensor, axis: int) -> tf.Tensor:
    """log of the mean of exp(values) along an axis of static length, without overflow."""
    return tf.reduce_logsumexp(values, axis=axis) - math.log(values.shape[axis])


@keras.saving.register_keras_serializable("kerasvae")
class IWAE(Objective):
    """−log 1/K Σ_s w_s, in nats per subject; ``iwae_bound`` is its negative.

    With one draw it is the Monte-Carlo ELBO. The more draws, the tighter the bound and the weaker the encoder's
    signal (Rainforth et al. 2018, arXiv 1802.04537); `DReG` mends that.

    Args:
        samples: Posterior draws a subject, K ≥ 1. Each is decoded: memory and time grow with it.

    Raises:
        ArgumentError: If `samples` is not a whole number, 1 or more.
    """

    kind = "iwae"
    extras = ("iwae_bound",)

    def __init__(self, samples: int = 5) -> None:
        self.samples = whole_number("samples", samples, least=1)
        super().__init__(samples=self.samples)

    def terms(self, draws: Draws) -> Terms:
        """The importance-weighted bound."""
        bound = log_mean_exp(log_weights(draws), axis=0)
        return standard_terms(draws, -bound, per_subject={"iwae_bound": bound})


@keras.saving.register_keras_serializable("kerasvae")
class DReG(IWAE):
    """The bound of `IWAE` with the doubly reparameterised gradient for the encoder: unbiased, and of lower variance.

    Decoder and prior get the gradient of `IWAE`. It needs a posterior with reparameterised draws whose density depends
    on the encoder's output alone: the weights of a posterior that has some of its own are not held fixed.

    Args:
        samples: Posterior draws a subject, K ≥ 1; with 1 it is `StickingTheLanding`.
    """

    kind = "dreg"
    stops_density = True

    def code_weight(self, draws: Draws) -> tf.Tensor:
        """w̃, (S, B): positive, summing to 1 over draws."""
        return tf.nn.softmax(log_weights(draws), axis=0)
