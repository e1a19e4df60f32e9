"""How much of the latent space is in use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError

__all__ = ["active_units", "level_kl", "mutual_information"]


def active_units(means: NDArray, threshold: float = 0.01) -> int:
    """Number of latent dimensions whose posterior mean varies between people.

    Var over people of E[z_d | x] > threshold: Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders,
    arXiv 1509.00519, section 5.2 (threshold 10⁻²).

    Args:
        means: Posterior means, (n, d).
        threshold: In squared units of the prior's standard deviation.
    """
    return int((np.asarray(means, dtype=np.float64).var(axis=0) > threshold).sum())


def level_kl(kl_per_dimension: NDArray, levels: Sequence[int]) -> NDArray[np.float64]:
    """KL of each level of a ladder in nats, top first: how much of the image each level holds; 0 in one that collapsed.

    Sønderby et al. 2016, Ladder Variational Autoencoders, arXiv 1602.02282, section 3: the KL of each layer.

    Args:
        kl_per_dimension: (…, d), from ``VAE.elbo``.
        levels: Widths of the levels, top first, as given to LadderPosterior.

    Returns:
        (…, number of levels).

    Raises:
        ArgumentError: If the levels do not sum to d.

    >>> level_kl(np.array([[2.0, 0.5, 0.25]]), (1, 2))
    array([[2.  , 0.75]])
    """
    kl = np.asarray(kl_per_dimension, np.float64)
    if sum(levels) != kl.shape[-1]:
        raise ArgumentError(
            "levels", rule=f"sum to {kl.shape[-1]} dimensions", got=tuple(levels), fix="Give the posterior's levels"
        )
    return np.stack([part.sum(axis=-1) for part in np.split(kl, np.cumsum(levels)[:-1], axis=-1)], axis=-1)


def mutual_information(means: NDArray, stddevs: NDArray, draws: int = 16, seed: int = 0) -> float:
    """I(x; z) under q in nats: average over scans of log q(z|xᵢ) − log 1/n Σⱼ q(z|xⱼ), z ~ q(z|xᵢ).

    Hoffman & Johnson 2016, ELBO surgery, NIPS workshop: KL = I(x; z) + KL(q(z) ‖ p(z)). The estimate from n scans
    cannot exceed log n, which it reaches where every scan is told apart, those of one person, too.

    Args:
        means: Posterior means, (n, d).
        stddevs: Posterior standard deviations, (n, d).
        draws: Monte-Carlo draws a scan.
        seed: Seed of the draws.
    """
    from scipy.special import logsumexp

    mean, stddev = np.asarray(means, np.float64), np.asarray(stddevs, np.float64)
    rng = np.random.default_rng(seed)
    total = 0.0
    for i in range(len(mean)):
        z = mean[i] + stddev[i] * rng.standard_normal((draws, mean.shape[1]))
        # log q(z|x_j) for every draw and scan, less the constant that cancels
        log_q = -0.5 * np.square((z[:, None] - mean) / stddev).sum(-1) - np.log(stddev).sum(-1)
        total += np.mean(log_q[:, i] - logsumexp(log_q, axis=1) + np.log(len(mean)))
    return float(total / len(mean))
