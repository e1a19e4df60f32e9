"""What an objective sees and what it gives back. One file an objective, citing its paper and equation.

An objective is a pure function from `Draws` to `Terms`, with its constants. All terms are nats, summed over voxels and
latent dimensions; the train step averages over subjects once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import keras
import tensorflow as tf

from kerasvae.covariates import Covariate

__all__ = ["Draws", "Objective", "Terms", "standard_terms"]


class Draws(NamedTuple):
    """What a step knows: S posterior draws of B subjects in d dimensions, float32.

    Attributes:
        z: Codes, (S, B, d).
        log_likelihood: log p(x|z), (S, B).
        log_prior: log p(z), (S, B).
        log_posterior: log q(z|x), (S, B).
        kl: KL(q(z|x) ‖ p(z)), (B,): in closed form where there is one, else the mean of log q − log p over draws.
        kl_per_dimension: (B, d) where the KL is a sum over dimensions, else None.
        parameters: The encoder's output, (B, p).
        outputs: The posterior's deterministic outputs, each (B, …).
        draw_prior: Makes draws from the prior: their number n to (n, d).
        memory: Codes of earlier steps, (m, d), without gradient; m = 0 where the objective keeps none, and in
            evaluation.
        pairwise: Makes log q(z_bj | x_i) for every pair of subjects from the first draw, (B, B, d): row b is whose
            code, column i is whose posterior. Only for posteriors that are a product over dimensions.
        people: Number N of training people.
        scheduled: The objective's scheduled numbers as scalar tensors.
        critic: The objective's critic as a function of codes, (n, d) to (n, outputs), or None.
        seed: A stateless seed for what else is random, e.g. permutations.
        image: Gives the images, (B, *data_shape), to objectives that look at voxels.
        reconstruction: Gives the mean image of each draw, (S, B, *data_shape).
        site: Number of each subject's level of the objective's `site`, NaN where unknown, (B,), or None.
    """

    z: tf.Tensor
    log_likelihood: tf.Tensor
    log_prior: tf.Tensor
    log_posterior: tf.Tensor
    kl: tf.Tensor
    kl_per_dimension: tf.Tensor | None
    parameters: tf.Tensor
    outputs: Mapping[str, tf.Tensor]
    draw_prior: Callable[[tf.Tensor], tf.Tensor]
    memory: tf.Tensor
    pairwise: Callable[[], tf.Tensor]
    people: tf.Tensor
    scheduled: Mapping[str, tf.Tensor]
    critic: Callable[[tf.Tensor], tf.Tensor] | None
    seed: tf.Tensor
    image: Callable[[], tf.Tensor] | None = None
    reconstruction: Callable[[], tf.Tensor] | None = None
    site: tf.Tensor | None = None


class Terms(NamedTuple):
    """Named terms of an objective, float32.

    Attributes:
        loss: The part of what is minimised that belongs to a subject, nats, (B,).
        per_subject: Named terms, each (B,): always elbo, log_likelihood and kl.
        penalty: The part that belongs to the batch as a whole, a scalar; the loss is mean(loss) + penalty.
        aggregate: Named terms of the batch as a whole, each a scalar; they depend on the batch size.
        kl_per_dimension: (B, d) or None.
    """

    loss: tf.Tensor
    per_subject: dict[str, tf.Tensor]
    penalty: tf.Tensor
    aggregate: dict[str, tf.Tensor]
    kl_per_dimension: tf.Tensor | None

    @property
    def total(self) -> tf.Tensor:
        """What is minimised, a scalar."""
        return tf.reduce_mean(self.loss) + self.penalty


class Objective:
    """Constants of an objective, and how they make a loss of draws.

    Subclasses take their constants as keyword arguments, pass them all to ``super().__init__`` and define `terms`;
    they are registered with ``keras.saving.register_keras_serializable("kerasvae")``.

    Attributes:
        kind: Name in the compatibility table and in recipes.
        constants: What the constructor was given; the configuration.
        samples: Posterior draws a subject.
        scheduled: Names of the constants that a schedule may move during training.
        memory: How many codes of earlier steps it wants to see; 0 for none.
        extras: Names of the terms per subject that `terms` reports beside elbo, log_likelihood and kl.
        aggregates: Names of the aggregate terms that `terms` reports.
        stops_density: Whether log q is to be taken with the encoder's parameters held fixed, so that the gradient
            flows through the codes alone.
        site: The category that it wants beside images, where they have it; None for none.
    """

    kind: ClassVar[str]
    scheduled: ClassVar[tuple[str, ...]] = ()
    extras: ClassVar[tuple[str, ...]] = ()
    aggregates: ClassVar[tuple[str, ...]] = ()
    stops_density: ClassVar[bool] = False
    site: Covariate | None = None
    samples: int = 1
    memory: int = 0

    def __init__(self, **constants: Any) -> None:
        self.constants = constants

    @property
    def innermost(self) -> Objective:
        """The objective that others were put around."""
        return self

    def terms(self, draws: Draws) -> Terms:
        """The named terms of a batch."""
        raise NotImplementedError

    def code_weight(self, draws: Draws) -> tf.Tensor | None:
        """By what the gradient that reaches each code is multiplied, (S, B); None leaves it alone."""
        return None

    def build_critic(self, latent_size: int) -> keras.Model | None:
        """A network beside the model that is trained by `critic_loss`, with an optimiser of its own; None for none."""
        return None

    def critic_optimizer(self) -> keras.optimizers.Optimizer | None:
        """The critic's optimiser."""
        return None

    def critic_loss(self, critic: keras.Model, draws: Draws) -> tf.Tensor:
        """What the critic minimises, a scalar; codes come without gradient."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return dict(self.constants)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Objective:
        """The objective that `get_config` described."""
        return cls(**config)


def standard_terms(
    draws: Draws,
    loss: tf.Tensor,
    *,
    penalty: tf.Tensor | float = 0.0,
    per_subject: Mapping[str, tf.Tensor] | None = None,
    aggregate: Mapping[str, tf.Tensor] | None = None,
) -> Terms:
    """Terms with the ELBO, log-likelihood and KL that every objective reports, whatever it minimises."""
    log_likelihood = tf.reduce_mean(draws.log_likelihood, axis=0)
    reported = {"elbo": log_likelihood - draws.kl, "log_likelihood": log_likelihood, "kl": draws.kl}
    return Terms(
        loss=loss,
        per_subject=reported | dict(per_subject or {}),
        penalty=tf.convert_to_tensor(penalty, tf.float32),
        aggregate=dict(aggregate or {}),
        kl_per_dimension=draws.kl_per_dimension,
    )
