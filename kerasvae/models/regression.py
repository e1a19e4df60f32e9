"""A VAE that regresses: where a person is on a line of change, e.g. of age, is read from the image.

Zhao, Adeli, Honnorat, Leng & Pohl 2019, Variational AutoEncoder For Regression: Application to Brain Aging Analysis,
MICCAI, arXiv 1904.05948. The encoder also gives q(r|x) = N(r; f(x), g(x)²) for the target r, and the prior is
p(z|r) = N(z; r u, σ² I) (`RegressionPrior`). With p(r) = N(0, 1), r standardised, the bound of an image alone is

    E_q(z|x)[log p(x|z)] − E_q(r|x)[KL(q(z|x) ‖ p(z|r))] − KL(q(r|x) ‖ p(r)).

Where r is known, the last term gives way to −log q(r|x), what makes the encoder predict it. Here the expectation over r
is exact: r enters the KL as a square only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.covariates import Covariate, Covariates
from kerasvae.distributions import Context, Output, RegressionPrior, closed_kl, positive
from kerasvae.errors import ModelError
from kerasvae.models.coding import Coding
from kerasvae.models.inputs import Inputs
from kerasvae.models.shapes import input_shape_of
from kerasvae.models.vae import VAE
from kerasvae.objectives import Draws, Terms

__all__ = ["RegressionVAE"]

SAMPLED_POSTERIORS = ("iaf", "real_nvp")
SAMPLED_OBJECTIVES = ("monte_carlo_elbo", "sticking_the_landing", "iwae", "dreg", "miwae")
"""Parts that know the KL as a difference of log-densities of draws."""

FLOOR = 1e-3
"""The smallest g, in standard deviations of the target."""


@keras.saving.register_keras_serializable("kerasvae")
class RegressionVAE(VAE):
    """A VAE whose encoder also predicts a continuous target of each person, with an uncertainty.

    Images come as ``{"image": x, "target": r}`` for training, r of shape (n,) in its unit, NaN where unknown: people
    without it help too. What takes images otherwise needs no target. `encode` gives ``target_mean`` and
    ``target_stddev`` beside the latents, in the target's unit. `decode` along the prior's direction shows how the brain
    changes with the target.

    Args:
        encoder: As for `VAE`, with two more numbers, those of q(r|x), at the end: (batch, p + 2).
        decoder: As for `VAE`; it sees z, not r.
        target: What is regressed; continuous, its mean and standard deviation those of the training people. By default
            `missing` does not matter for it.
        prior: A `RegressionPrior`; by default a new one.
        kwargs: As for `VAE`.

    Raises:
        ModelError: If the target is categorical, the prior another, posterior or objective know the KL from draws alone
            (so that the expectation over r would be lost), or what `VAE` refuses.
    """

    extras = ("target_nats",)
    gives_condition = True

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        *,
        target: Covariate,
        prior: RegressionPrior | None = None,
        latent_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        if target.kind != "continuous":
            raise ModelError("target", rule="be continuous", got=f"{target.name}, a category", fix="Regress a number")
        self.target = target
        size = latent_size or input_shape_of(decoder)[0]
        prior = prior or RegressionPrior(size)
        if not isinstance(prior, RegressionPrior):
            raise ModelError(
                "The prior", rule="be a RegressionPrior", got=type(prior).__name__, fix="Leave it out, or use VAE"
            )
        super().__init__(encoder, decoder, latent_size=size, prior=prior, **kwargs)
        # what is learned or compared may be unknown, and lie anywhere
        free = target.model_copy(update={"missing": "mean", "low": None, "high": None})
        self.targets = Covariates([free])
        self.target_coding = Coding(self.targets)
        if self.posterior.kind in SAMPLED_POSTERIORS or self.objective.innermost.kind in SAMPLED_OBJECTIVES:
            raise ModelError(
                "The posterior and the objective of a RegressionVAE",
                rule="have and use a closed KL, which holds the expectation over the target",
                got=f"{self.posterior.kind!r} and {self.objective.innermost.kind!r}",
                fix="Take 'normal' and 'elbo'",
            )

    @property
    def optional_names(self) -> tuple[str, ...]:
        """As `VAE`, and the target."""
        return ("target", *super().optional_names)

    @property
    def encoder_width(self) -> int:
        """p + 2."""
        return super().encoder_width + 2

    @property
    def outputs_of_encoder(self) -> tuple[Output, ...]:
        """The posterior's, and the target's mean and standard deviation."""
        unit = f", {self.target.unit}" if self.target.unit else ""
        return (
            *self.posterior.outputs,
            Output("target_mean", f"{self.target.name} as read from the image{unit}"),
            Output("target_stddev", f"standard deviation of that reading{unit}"),
        )

    def parameters(self, encoded: tf.Tensor) -> tf.Tensor:
        """All but the last two numbers, (B, p)."""
        return encoded[:, :-2]

    def reading(self, encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """f and g of q(r|x), each (B, 1), in standard deviations of the target from its mean."""
        return encoded[:, -2:-1], positive(encoded[:, -1:], FLOOR)

    def outputs(self, encoded: tf.Tensor) -> dict[str, tf.Tensor]:
        """The posterior's outputs, and the target's in its unit, each (B, 1)."""
        f, g = self.reading(encoded)
        return {
            **self.posterior.deterministic(self.parameters(encoded)),
            "target_mean": self.target.mean + self.target.stddev * f,
            "target_stddev": self.target.stddev * g,
        }

    def inputs_of(self, batch: Any) -> Inputs:
        """As `VAE`, with the target, (B, 1), where it is given."""
        target = batch.get("target") if isinstance(batch, Mapping) else None
        return super().inputs_of(batch)._replace(target=target)

    def cost(self, inputs: Inputs, draws: Draws) -> tf.Tensor:
        """As `VAE`, with what is lost in reading the targets that are known: nats, (B,)."""
        return draws.kl + self._target_nats(inputs, draws)

    def _context(self, condition: tf.Tensor | None = None) -> Context:
        return super()._context(None)  # covariates are for the networks; the prior's condition is the target

    def divergence(
        self, encoded: tf.Tensor, context: Context, z: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor | None] | None:
        """E_q(r|x)[KL(q(z|x) ‖ p(z|r))], in closed form where the KL at a given r is, (B,), and per dimension."""
        f, g = self.reading(encoded)
        at_mean = closed_kl(self.posterior, self.parameters(encoded), self.prior, context._replace(condition=f), z)
        if at_mean is None:
            return None
        kl, per_dimension = at_mean
        # the KL holds (μ − r u)² / 2σ², whose mean over r is that at r = f plus g² u² / 2σ²
        spread = tf.square(g * self.prior.direction() / self.prior.stddev()) / 2
        return kl + tf.reduce_sum(spread, axis=-1), None if per_dimension is None else per_dimension + spread

    def bound(self, draws: Draws) -> dict[str, tf.Tensor]:
        """The ELBO of the image alone; its KL is that of z and r together, ``target_kl`` the part KL(q(r|x) ‖ p(r))."""
        bound, target_kl = super().bound(draws), self._target_kl(draws)
        return bound | {"elbo": bound["elbo"] - target_kl, "kl": bound["kl"] + target_kl, "target_kl": target_kl}

    def terms(self, inputs: Inputs, draws: Draws) -> Terms:
        """The objective's terms, and −log q(r|x) where r is known, else KL(q(r|x) ‖ p(r)), as ``target_nats``."""
        terms = super().terms(inputs, draws)
        nats = self._target_nats(inputs, draws)
        reported = {**terms.per_subject, **self.bound(draws), "target_nats": nats}
        return terms._replace(loss=terms.loss + nats, per_subject=reported)

    def _target_kl(self, draws: Draws) -> tf.Tensor:
        f, g = self.reading(draws.parameters)
        return tf.reduce_sum(0.5 * (tf.square(f) + tf.square(g) - 1) - tf.math.log(g), axis=-1)

    def _target_nats(self, inputs: Inputs, draws: Draws) -> tf.Tensor:
        nats = self._target_kl(draws)
        if inputs.target is None:
            return nats
        f, g = self.reading(draws.parameters)
        r = self.target_coding(inputs.target)
        surprise = 0.5 * (tf.square((r - f) / g) + math.log(2 * math.pi)) + tf.math.log(g)
        return tf.where(~tf.math.is_nan(inputs.target[:, 0]), surprise[:, 0], nats)

    def checked(self, x: Any) -> dict[str, NDArray[np.float32]]:
        """As `VAE`, with the target, (n, 1), where it is given."""
        given = dict(x) if isinstance(x, Mapping) else {"image": x}
        target = given.pop("target", None)
        checked = super().checked(given)
        if target is None:
            return checked
        values = np.asarray(target, dtype=object).reshape(-1).tolist()
        return checked | {"target": self.targets.matrix({self.target.name: values}, rows=len(checked["image"]))}

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "target": self.target.model_dump(mode="json")}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> RegressionVAE:
        """The model that `get_config` described."""
        return super().from_config({**config, "target": Covariate.model_validate(config["target"])}, custom_objects)
