"""log p(x), importance-weighted.

Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders, arXiv 1509.00519, equation 8:
log p(x) ≥ E[log 1/n Σ w_s], w_s = p(x|z_s) p(z_s) / q(z_s|x), z_s ~ q(z|x). The bound rises with n to log p(x).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from scipy.special import logsumexp

if TYPE_CHECKING:
    from kerasvae.models.vae import VAE

__all__ = ["Evidence", "log_evidence"]


class Evidence(NamedTuple):
    """The evidence of n subjects.

    Attributes:
        log_evidence: Estimate of log p(x) in nats, (n,), float64. In expectation a lower bound.
        effective_samples: (Σ w)² / Σ w², (n,): 1 where one draw decides, the number of draws where all count alike
            (Kong 1992). Where it is small, trust the figure as a bound only.
    """

    log_evidence: NDArray[np.float64]
    effective_samples: NDArray[np.float64]


def log_evidence(model: VAE, x: NDArray[np.float32], samples: int, *, chunk: int, seed: int) -> Evidence:
    """The evidence of each subject, one subject and `chunk` draws at a time; see `VAE.log_evidence`.

    Voxels are summed in float64: of a million of them, float32 would lose the differences between draws.

    Args:
        model: Posterior, prior and likelihood are used; the objective is not.
        x: Images, (n, *data_shape).
        samples: Draws a subject.
        chunk: Draws decoded at a time.
        seed: Seed of the draws.
    """
    weights = np.array(
        [
            np.concatenate(
                [
                    _log_weights(model, image[None], min(chunk, samples - start), tf.constant([seed + start, row]))
                    for start in range(0, samples, chunk)
                ]
            )
            for row, image in enumerate(x)
        ]
    )
    total = logsumexp(weights, axis=1)
    effective = np.exp(2 * total - logsumexp(2 * weights, axis=1))
    return Evidence(total - np.log(samples), effective)


def _log_weights(model: VAE, image: NDArray[np.float32], count: int, seed: tf.Tensor) -> NDArray[np.float64]:
    """log w of `count` draws for one subject, (count,)."""
    draws, decoded = model.draws(tf.constant(image), seed, samples=count)
    likelihood = model.likelihood.log_prob(tf.constant(image), decoded, dtype=tf.float64).numpy()
    prior, posterior = (value[:, 0].numpy().astype(np.float64) for value in (draws.log_prior, draws.log_posterior))
    return likelihood + prior - posterior
