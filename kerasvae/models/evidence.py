"""log p(x), importance-weighted.

Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders, arXiv 1509.00519, equation 8:
log p(x) ≥ E[log 1/n Σ w_s], w_s = p(x|z_s) p(z_s) / q(z_s|x), z_s ~ q(z|x). The bound rises with n to log p(x).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from kerasvae.errors import ModelError
from kerasvae.objectives.rules import whole_number

if TYPE_CHECKING:
    from kerasvae.models.core import Core

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


def log_evidence(model: Core, x: Mapping[str, NDArray[np.float32]], samples: int, *, chunk: int, seed: int) -> Evidence:
    """The evidence of each subject, one subject and `chunk` draws at a time; see `VAE.log_evidence`.

    Voxels are summed in float64: of a million of them, float32 would lose the differences between draws.

    Draws depend on `seed`, on the subject's row in `x` and on `chunk`: the same three give the same numbers, others
    move them by Monte-Carlo error alone. No two seeds and no two rows share draws; more samples keep those of the full
    chunks before them.

    Args:
        model: Posterior, which must have a density, prior and likelihood are used; the objective is not.
        x: Images, (n, *data_shape), as ``image``, and what else the model takes.
        samples: Draws a subject, ≥ 1.
        chunk: Draws decoded at a time, ≥ 1; memory grows with it.
        seed: Seed of the draws.

    Raises:
        ModelError: With a posterior that has no density.
        ArgumentError: If `samples` or `chunk` is not a whole number, 1 or more.
    """
    if not model.posterior.has_density:
        raise ModelError(
            "The posterior",
            rule="have a density to weigh draws by",
            got=repr(model.posterior.kind),
            fix="Use `elbo`, or train with a posterior that has one, e.g. NormalPosterior",
        )
    samples, chunk = whole_number("samples", samples, least=1), whole_number("chunk", chunk, least=1)
    weights = np.array(
        [
            _log_weights(model, {name: values[row][None] for name, values in x.items()}, samples, chunk, (seed, row))
            for row in range(len(x["image"]))
        ]
    )
    # The weights are normalised before they are squared: at −10⁶ nats, differences of logarithms lose their digits.
    effective = 1 / np.sum(softmax(weights, axis=1) ** 2, axis=1)
    return Evidence(logsumexp(weights, axis=1) - np.log(samples), effective)


def _log_weights(
    model: Core, subject: dict[str, NDArray[np.float32]], samples: int, chunk: int, seed: tuple[int, int]
) -> NDArray[np.float64]:
    """log w of each draw for one subject, (samples,)."""
    parts = []
    batch = {name: tf.constant(values) for name, values in subject.items()}
    for start in range(0, samples, chunk):
        # Folded in, not added: else neighbouring seeds would share most of their draws.
        chunk_seed = tf.random.experimental.stateless_fold_in(tf.constant(seed, tf.int32), start)
        draws, decoded = model.draws(batch, chunk_seed, samples=min(chunk, samples - start))
        likelihood = model.likelihood.log_prob(batch["image"], decoded, dtype=tf.float64).numpy()
        prior, posterior = (value[:, 0].numpy().astype(np.float64) for value in (draws.log_prior, draws.log_posterior))
        parts.append(likelihood + prior - posterior)
    return np.concatenate(parts)
