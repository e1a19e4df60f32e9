"""How much of the latent space is in use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["active_units", "mutual_information"]


def active_units(means: NDArray, threshold: float = 0.01) -> int:
    """Number of latent dimensions whose posterior mean varies between people.

    Var over people of E[z_d | x] > threshold: Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders,
    arXiv 1509.00519, section 5.2 (threshold 10⁻²).

    Args:
        means: Posterior means, (n, d).
        threshold: In squared units of the prior's standard deviation.
    """
    return int((np.asarray(means, dtype=np.float64).var(axis=0) > threshold).sum())


def mutual_information(means: NDArray, stddevs: NDArray, draws: int = 16, seed: int = 0) -> float:
    """I(x; z) under q in nats: average over people of log q(z|xᵢ) − log 1/n Σⱼ q(z|xⱼ), z ~ q(z|xᵢ).

    Hoffman & Johnson 2016, ELBO surgery, NIPS workshop: KL = I(x; z) + KL(q(z) ‖ p(z)). The estimate from n people
    cannot exceed log n, which it reaches where every person is told apart.

    Args:
        means: Posterior means, (n, d).
        stddevs: Posterior standard deviations, (n, d).
        draws: Monte-Carlo draws a person.
        seed: Seed of the draws.
    """
    from scipy.special import logsumexp

    mean, stddev = np.asarray(means, np.float64), np.asarray(stddevs, np.float64)
    rng = np.random.default_rng(seed)
    total = 0.0
    for i in range(len(mean)):
        z = mean[i] + stddev[i] * rng.standard_normal((draws, mean.shape[1]))
        # log q(z|x_j) for every draw and person, less the constant that cancels
        log_q = -0.5 * np.square((z[:, None] - mean) / stddev).sum(-1) - np.log(stddev).sum(-1)
        total += np.mean(log_q[:, i] - logsumexp(log_q, axis=1) + np.log(len(mean)))
    return float(total / len(mean))
