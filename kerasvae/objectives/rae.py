"""Deterministic autoencoders: plain, and regularised.

Ghosh, Sajjadi, Vergari, Black & Schölkopf 2020, From Variational to Deterministic Autoencoders, ICLR,
arXiv 1903.12436: L = L_REC + β·½‖z‖² + λ·L_REG, where L_REG keeps the decoder smooth.

Here L_REC is −log p(x|z), so β is in nats whatever the grid. λ·L_REG belongs elsewhere. For the decoder's weights (the
paper's RAE-L2) weight decay of the optimiser does its work, at a strength w that is not λ:
``keras.optimizers.AdamW(weight_decay=w)`` with
``optimizer.exclude_from_weight_decay(var_list=model.encoder.trainable_variables)`` before `compile`; Keras does not
write that exclusion to a file. For spectral normalisation (RAE-SN) the decoder's layers are wrapped in
`keras.layers.SpectralNormalization`.

A point posterior has no density, so the ELBO and KL that are reported beside these losses bound nothing.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from kerasvae.objectives.base import Draws, Objective, Terms, standard_terms
from kerasvae.objectives.rules import number

__all__ = ["RAE", "Reconstruction"]


@keras.saving.register_keras_serializable("kerasvae")
class Reconstruction(Objective):
    """−E_q[log p(x|z)] alone, in nats per subject: the plain autoencoder."""

    kind = "reconstruction"

    def terms(self, draws: Draws) -> Terms:
        """The reconstruction."""
        return standard_terms(draws, -tf.reduce_mean(draws.log_likelihood, axis=0))


@keras.saving.register_keras_serializable("kerasvae")
class RAE(Objective):
    """−log p(x|z) + β·½‖z‖², in nats per subject.

    The second term only keeps the codes from growing while the decoder's weights shrink. New images need a density
    fitted to the codes after training (the paper's ex-post density estimation; `kerasvae.MixtureSampler`): draws of the
    prior are not where the codes are.

    Args:
        beta: Weight of ½‖z‖², ≥ 0; 1 is −log p(z) of a standard normal prior but for its constant. It may be
            scheduled.
    """

    kind = "rae"
    scheduled = ("beta",)
    extras = ("half_square_norm",)

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__(beta=number("beta", beta, least=0))

    def terms(self, draws: Draws) -> Terms:
        """Reconstruction and size of the codes."""
        size = tf.reduce_mean(0.5 * tf.reduce_sum(tf.square(draws.z), axis=-1), axis=0)
        loss = draws.scheduled["beta"] * size - tf.reduce_mean(draws.log_likelihood, axis=0)
        return standard_terms(draws, loss, per_subject={"half_square_norm": size})
