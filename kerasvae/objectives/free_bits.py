"""Free bits: information that costs nothing up to a threshold, against codes that are never used.

Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling 2016, Improving Variational Inference with Inverse
Autoregressive Flow, arXiv 1606.04934, appendix C.8, for groups j of latent dimensions and batches M:
E_M[E_q[log p(x|z)]] − Σ_j max(λ, E_M[KL(q(z_j|x) ‖ p(z_j))]).
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from kerasvae.errors import ArgumentError, ModelError
from kerasvae.objectives.base import Draws, Objective, Terms, standard_terms
from kerasvae.objectives.rules import number, one_of, whole_number

__all__ = ["FreeBits"]

PER = ("dimension", "group")


@keras.saving.register_keras_serializable("kerasvae")
class FreeBits(Objective):
    """−E_q[log p(x|z)] + Σ_j max(λ, KL_j), in nats.

    With ``batch_averaged=True`` (the paper) KL_j is the mean over the batch: the sum belongs to the batch as a whole
    and depends on who is in it. With False each subject's own KL_j is held above λ; the term then belongs to the
    subject, and is larger or equal on average. Both are reported, in nats: ``clamped_kl`` per subject, and the
    aggregate ``batch_clamped_kl``.

    Args:
        free_bits: λ ≥ 0, in nats in spite of its name, for each dimension or group; 0 is the ELBO. It may be scheduled.
        groups: With ``per="group"``: lists of dimensions, numbered from 0, every dimension in exactly one list; None
            is one group of all dimensions, which serves posteriors whose KL is no sum over dimensions too.
        per: What λ is granted to: each ``"dimension"`` or each ``"group"``.
        batch_averaged: Whether the batch's mean KL is held above λ, or each subject's.
        samples: Posterior draws a subject, ≥ 1.

    Raises:
        ArgumentError: If a constant is out of its range, or the groups do not divide the dimensions.
        ModelError: In `terms`, if the KL is no sum over dimensions and is needed for each.
    """

    kind = "free_bits"
    scheduled = ("free_bits",)
    extras = ("clamped_kl",)
    aggregates = ("batch_clamped_kl",)

    def __init__(
        self,
        free_bits: float = 0.5,
        groups: Sequence[Sequence[int]] | None = None,
        per: str = "dimension",
        batch_averaged: bool = True,
        samples: int = 1,
    ) -> None:
        self.per = one_of("per", per, PER)
        if groups is not None and self.per == "dimension":
            raise ArgumentError("groups", rule='be left out with per="dimension"', got=groups, fix='Use per="group"')
        if not isinstance(batch_averaged, bool):
            raise ArgumentError("batch_averaged", rule="be True or False", got=repr(batch_averaged), fix="Use True")
        self.groups = None if groups is None else [[int(index) for index in group] for group in groups]
        self.batch_averaged = batch_averaged
        self.samples = whole_number("samples", samples, least=1)
        if self.groups is not None:
            self._check_groups(self.groups, sum(map(len, self.groups)))
        super().__init__(
            free_bits=number("free_bits", free_bits, least=0),
            groups=self.groups,
            per=self.per,
            batch_averaged=batch_averaged,
            samples=self.samples,
        )

    @property
    def needs_dimensions(self) -> bool:
        """Whether the KL must be a sum over dimensions: not where all of them are one group."""
        return self.per == "dimension" or self.groups is not None

    @staticmethod
    def _check_groups(groups: list[list[int]], size: int) -> None:
        if not size or not all(groups) or sorted(index for group in groups for index in group) != list(range(size)):
            raise ArgumentError(
                "groups",
                rule="name every latent dimension once, numbered from 0, and have no empty list",
                got=groups,
                fix="Give lists such as [[0, 1], [2]]",
            )

    def terms(self, draws: Draws) -> Terms:
        """The KL held above λ, beside the log-likelihood."""
        parts = self._parts(draws)
        free = draws.scheduled["free_bits"]
        own = tf.reduce_sum(tf.maximum(parts, free), axis=-1)
        batch = tf.reduce_sum(tf.maximum(tf.reduce_mean(parts, axis=0), free))
        reconstruction = -tf.reduce_mean(draws.log_likelihood, axis=0)
        return standard_terms(
            draws,
            reconstruction if self.batch_averaged else reconstruction + own,
            penalty=batch if self.batch_averaged else 0.0,
            per_subject={"clamped_kl": own},
            aggregate={"batch_clamped_kl": batch},
        )

    def _parts(self, draws: Draws) -> tf.Tensor:
        """The KL of each dimension or group, (B, parts)."""
        if self.per == "group" and self.groups is None:
            return draws.kl[:, None]
        kl = draws.kl_per_dimension
        if kl is None:
            raise ModelError(
                "The KL of posterior and prior",
                rule="be a sum over dimensions for free bits of dimensions or of lists of them",
                got="a pair without one",
                fix='Use per="group" without groups',
            )
        if self.groups is None:
            return kl
        self._check_groups(self.groups, kl.shape[-1])
        return tf.stack([tf.reduce_sum(tf.gather(kl, group, axis=-1), axis=-1) for group in self.groups], axis=-1)
