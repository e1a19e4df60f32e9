"""Codes that do not tell the site: two prices for a category that they know, added to any objective.

Lopez, Regier, Jordan & Yosef 2018, Information constraints on auto-encoding variational Bayes, NeurIPS, arXiv
1805.08672, equation 5: the bound less λ HSIC between codes and the nuisance. HSIC is that of Gretton, Bousquet, Smola &
Schölkopf 2005, Measuring statistical dependence with Hilbert-Schmidt norms, ALT; here its unbiased estimate by Song,
Smola, Gretton, Bedo & Borgwardt 2012, Feature selection via dependence maximization, JMLR 13:1393, equation 5, whose
mean over small batches is that of large ones.
Ganin, Ustinova, Ajakan, Germain, Larochelle, Laviolette, Marchand & Lempitsky 2016, Domain-adversarial training of
neural networks, JMLR 17:59, equation 9: a classifier learns to tell the category, and the encoder is moved against its
gradient; for scanners Dinsdale, Jenkinson & Namburete 2021, NeuroImage 228:117689.

The site is needed where a model is trained, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from kerasvae.covariates import Covariate
from kerasvae.errors import ArgumentError
from kerasvae.objectives.adversarial import check_critic, critic_network, flat_codes
from kerasvae.objectives.base import Draws, Objective, Terms
from kerasvae.objectives.mmd import SCALES, check_choices, kernel_matrix
from kerasvae.objectives.rules import number, whole_number
from kerasvae.objectives.wrapper import Wrapper

__all__ = ["Independence", "WithAdversary", "WithHSIC", "hsic"]

FEWEST = 4
"""People whose site is known below which HSIC has no unbiased estimate."""


def hsic(k: tf.Tensor, l_: tf.Tensor, known: tf.Tensor | None = None) -> tf.Tensor:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion, a float32 scalar without unit.

    Its expectation is 0 where the two are independent; it may be negative.

    Args:
        k: Kernel between the codes of n subjects, (n, n); its diagonal is not looked at.
        l_: Kernel between their sites, (n, n).
        known: 1 where a subject counts, 0 where not, (n,); by default all do. 0 is given where fewer than four count.
    """
    n = tf.shape(k)[0]
    counts = tf.ones([n]) if known is None else tf.cast(known, tf.float32)
    pairs = counts[:, None] * counts[None] * (1.0 - tf.eye(n))
    k, l_ = tf.cast(k, tf.float32) * pairs, tf.cast(l_, tf.float32) * pairs
    total = tf.reduce_sum(counts)
    m = tf.maximum(total, float(FEWEST))
    both = tf.reduce_sum(tf.reduce_sum(k, axis=1) * tf.reduce_sum(l_, axis=1))
    alone = tf.reduce_sum(k) * tf.reduce_sum(l_) / ((m - 1.0) * (m - 2.0))
    value = (tf.reduce_sum(k * l_) + alone - 2.0 * both / (m - 2.0)) / (m * (m - 3.0))
    return tf.where(total >= FEWEST, value, 0.0)


class Independence(Wrapper):
    """What both penalties share: the category, and its weight, which may be scheduled as ``site_weight``.

    Args:
        objective: What is added to.
        site: The category that codes are not to tell.
        site_weight: Price, ≥ 0.
        constants: Those of the penalty.

    Raises:
        ArgumentError: If the covariate is no category, the weight is negative, or the objective has such a penalty.
    """

    def __init__(
        self,
        objective: Objective | dict[str, Any],
        site: Covariate | dict[str, Any],
        site_weight: float,
        **constants: Any,
    ) -> None:
        covariate = Covariate.model_validate(site) if isinstance(site, dict) else site
        if covariate.kind != "categorical":
            raise ArgumentError("site", rule="be a category", got=f"{covariate.name}, a number", fix="Name another")
        weight = number("site_weight", site_weight, least=0)
        super().__init__(objective, site_weight=weight, **constants)
        if self.objective.site is not None:
            got = type(self.objective).__name__
            raise ArgumentError("objective", rule="have no price for a site yet", got=got, fix="Use one of them")
        self.own = {"site_weight": weight, **constants}
        self.site = covariate
        self._report(scheduled=("site_weight",))

    def one_hot(self, draws: Draws) -> tf.Tensor:
        """The level of each subject, (B, levels) float32; zeros where it is not known."""
        assert self.site is not None
        if draws.site is None:
            return tf.zeros((tf.shape(draws.z)[1], len(self.site.levels)))
        place = tf.where(tf.math.is_nan(draws.site), -1.0, draws.site)
        return tf.one_hot(tf.cast(place, tf.int32), len(self.site.levels))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments; the objective serialised by Keras."""
        assert self.site is not None
        inner = keras.saving.serialize_keras_object(self.objective)
        return {"objective": inner, "site": self.site.model_dump(mode="json"), **self.own}


@keras.saving.register_keras_serializable("kerasvae")
class WithHSIC(Independence):
    """Another objective plus site_weight · HSIC(codes, site), the aggregate term ``hsic`` of the batch.

    Codes are compared by the kernel of `kerasvae.objectives.mmd.kernel_matrix`, sites by equality, so that HSIC is 0
    only where nothing in the codes tells the site. With codes on the scale of a standard normal it is at most of order
    0.1; the weight is the price in nats of one unit, beside a log-likelihood that is summed over voxels.

    What is judged is draws of the posterior, not its means. Batches need four people or more; the more, the less noise.

    Args:
        objective: What is added to.
        site: The category; people of whom it is not known do not count.
        site_weight: Price of one unit of HSIC in nats, ≥ 0. It may be scheduled.
        kernel: ``"imq"`` or ``"rbf"``.
        scales: Multiples of the kernel's width, > 0.
    """

    kind = "with_hsic"

    def __init__(
        self,
        objective: Objective | dict[str, Any],
        site: Covariate | dict[str, Any],
        site_weight: float = 1000.0,
        kernel: str = "imq",
        scales: Sequence[float] = SCALES,
    ) -> None:
        check_choices(kernel, scales, "unbiased")
        self.kernel, self.scales = kernel, [float(scale) for scale in scales]
        super().__init__(objective, site, site_weight, kernel=kernel, scales=self.scales)
        self._report(aggregates=("hsic",))

    def terms(self, draws: Draws) -> Terms:
        """The terms of the objective within, and ``hsic``, the mean over draws."""
        terms, levels = self.objective.terms(draws), self.one_hot(draws)
        same, known = tf.matmul(levels, levels, transpose_b=True), tf.reduce_sum(levels, axis=1)
        found = [hsic(kernel_matrix(z, z, self.kernel, self.scales), same, known) for z in tf.unstack(draws.z)]
        value = tf.add_n(found) / len(found)
        return terms._replace(
            penalty=terms.penalty + draws.scheduled["site_weight"] * value, aggregate=terms.aggregate | {"hsic": value}
        )


@keras.saving.register_keras_serializable("kerasvae")
class WithAdversary(Independence):
    """Another objective less site_weight · E_q[−log D(site | z)], where a critic D learns to tell the site from codes.

    ``site_surprise``, −log D of the true site in nats, has the entropy of the sites as its value where codes do not
    tell and the critic knows it, e.g. log 2 of two as large; a smaller one tells how much codes still do, at least.
    A larger one says that the critic is behind, and nothing about the site: give it a larger rate, or less weight.

    Args:
        objective: What is added to; it must have no critic of its own.
        site: The category; people of whom it is not known do not count.
        site_weight: Price of a nat, ≥ 0, beside a log-likelihood that is summed over voxels. It may be scheduled.
        units: Widths of the critic's hidden layers.
        learning_rate: Of the critic's own Adam.
        seed: Seed of the critic's initial weights.
    """

    kind = "with_adversary"

    def __init__(
        self,
        objective: Objective | dict[str, Any],
        site: Covariate | dict[str, Any],
        site_weight: float = 100.0,
        units: Iterable[int] = (64, 64),
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        self.units, self.learning_rate = check_critic(units, learning_rate), float(learning_rate)
        self.seed = whole_number("seed", seed, least=0)
        own = {"units": self.units, "learning_rate": self.learning_rate, "seed": self.seed}
        super().__init__(objective, site, site_weight, **own)
        if self.objective.critic_optimizer() is not None:
            got = type(self.objective).__name__
            raise ArgumentError("objective", rule="have no critic of its own", got=got, fix="Use WithHSIC")
        self._report(extras=("site_surprise",))
        for name in ("build_critic", "critic_optimizer", "critic_loss"):  # not those of the objective within
            del self.__dict__[name]

    def build_critic(self, latent_size: int) -> keras.Model:
        """Codes (n, d) to a logit of each level, (n, levels)."""
        assert self.site is not None
        return critic_network(latent_size, self.units, self.seed, outputs=len(self.site.levels))

    def critic_optimizer(self) -> keras.optimizers.Optimizer:
        """Adam with the momentum that is usual for adversarial pairs, β₁ = 0.5."""
        return keras.optimizers.Adam(self.learning_rate, beta_1=0.5)

    def critic_loss(self, critic: keras.Model, draws: Draws) -> tf.Tensor:
        """Mean of −log D over the people whose site is known, nats."""
        known = tf.reduce_sum(self.one_hot(draws))
        return tf.reduce_sum(self.surprise(critic, draws)) / tf.maximum(known, 1.0)

    def surprise(self, critic: Any, draws: Draws) -> tf.Tensor:
        """−log D(site | z) of each subject, the mean over draws, (B,) nats; 0 where the site is not known."""
        levels, samples = self.one_hot(draws), draws.z.shape[0]
        logits = critic(flat_codes(draws.z))
        nats = tf.nn.softmax_cross_entropy_with_logits(tf.tile(levels, [samples, 1]), logits)
        return tf.reduce_mean(tf.reshape(nats, tf.shape(draws.z)[:2]), axis=0)

    def terms(self, draws: Draws) -> Terms:
        """The terms of the objective within, and ``site_surprise``."""
        assert draws.critic is not None  # `build_critic` gives one
        terms, surprise = self.objective.terms(draws), self.surprise(draws.critic, draws)
        return terms._replace(
            loss=terms.loss - draws.scheduled["site_weight"] * surprise,
            per_subject=terms.per_subject | {"site_surprise": surprise},
        )
