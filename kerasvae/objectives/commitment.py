"""The objective of the VQ-VAE.

van den Oord, Vinyals & Kavukcuoglu 2017, Neural Discrete Representation Learning, arXiv 1711.00937, equation 3:
L = −log p(x|z_q) + ‖sg[z_e] − e‖² + β ‖z_e − sg[e]‖², with z_e the encoder's output and sg the stopped gradient. The
second term, which moves the codebook, is replaced by moving averages (appendix A.1); see
`kerasvae.distributions.VectorQuantisedPosterior`. The KL to a uniform prior is a constant and is left out.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from kerasvae.objectives.base import Draws, Objective, Terms, standard_terms
from kerasvae.objectives.rules import number

__all__ = ["Commitment"]


@keras.saving.register_keras_serializable("kerasvae")
class Commitment(Objective):
    """−log p(x|z_q) + β ‖z_e − sg[z_q]‖², in nats per subject.

    The square is summed over latent dimensions, in squared latent units; β is in nats per squared unit. Since
    log p(x|z) is in nats whatever the grid, β is not to be divided by a number of voxels.

    Reported beside the standard terms: ``commitment``, the square without its weight, (B,). The reported ``kl`` and
    ``elbo`` hold the constant that the loss leaves out.

    Args:
        weight: β ≥ 0. It may be scheduled.

    Raises:
        ArgumentError: If the weight is out of its range.
    """

    kind = "commitment"
    scheduled = ("weight",)
    extras = ("commitment",)

    def __init__(self, weight: float = 0.25) -> None:
        super().__init__(weight=number("weight", weight, least=0))

    def terms(self, draws: Draws) -> Terms:
        """Reconstruction, and the distance of the encoder's output from its code."""
        square = tf.math.squared_difference(draws.parameters, tf.stop_gradient(draws.z))
        commitment = tf.reduce_mean(tf.reduce_sum(square, axis=-1), axis=0)
        loss = draws.scheduled["weight"] * commitment - tf.reduce_mean(draws.log_likelihood, axis=0)
        return standard_terms(draws, loss, per_subject={"commitment": commitment})
