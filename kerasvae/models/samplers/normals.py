"""A mixture of normals over codes and covariates together, and what it says of codes at given covariates.

With y = (z, c) and p(y) = Σ_k w_k N(y; μ_k, Σ_k), each part in blocks (Bishop 2006, Pattern Recognition and Machine
Learning, equations 2.81, 2.82 and 2.98):

    p(z|c) = Σ_k w_k(c) N(z; μ_z + Σ_zc Σ_cc⁻¹ (c − μ_c), Σ_zz − Σ_zc Σ_cc⁻¹ Σ_cz),   w_k(c) ∝ w_k N(c; μ_c, Σ_cc).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

__all__ = ["JointNormals"]

Array = NDArray[np.float64]


class JointNormals(NamedTuple):
    """K normals over a code of d and a condition of c numbers; c may be 0.

    Attributes:
        weights: (K,), which sum to 1.
        means: (K, d + c), the code first.
        covariances: (K, d + c, d + c).
        size: d.
    """

    weights: Array
    means: Array
    covariances: Array
    size: int

    def given(self, condition: Array) -> tuple[Array, Array, Array]:
        """The mixture of codes at each condition.

        Args:
            condition: (n, c).

        Returns:
            log w_k(c), (n, K); means, (n, K, d); covariances, which depend on k alone, (K, d, d).
        """
        d = self.size
        of_code, of_both, of_condition = (
            self.covariances[:, :d, :d],
            self.covariances[:, d:, :d],
            self.covariances[:, d:, d:],
        )
        slopes = np.linalg.solve(of_condition, of_both)  # Σ_cc⁻¹ Σ_cz
        away = condition[:, None] - self.means[:, d:]
        means = self.means[:, :d] + np.einsum("nkc,kcd->nkd", away, slopes)
        log_weights = log_softmax(np.log(self.weights) + _log_normal(away, of_condition), axis=1)
        return log_weights, means, of_code - of_both.transpose(0, 2, 1) @ slopes

    def log_prob(self, codes: Array, condition: Array) -> Array:
        """log p(z|c) in nats of codes (n, d) at conditions (n, c), (n,)."""
        log_weights, means, covariances = self.given(condition)
        return logsumexp(log_weights + _log_normal(codes[:, None] - means, covariances), axis=1)

    def draw(self, condition: Array, generator: np.random.Generator) -> Array:
        """One code at each condition, (n, c) to (n, d)."""
        log_weights, means, covariances = self.given(condition)
        row = np.arange(len(condition))
        chosen = np.argmax(log_weights + generator.gumbel(size=log_weights.shape), axis=1)
        noise = generator.standard_normal((len(condition), self.size))
        return means[row, chosen] + np.einsum("nij,nj->ni", np.linalg.cholesky(covariances)[chosen], noise)


def _log_normal(away: Array, covariances: Array) -> Array:
    """log N(away; 0, Σ_k) in nats, (n, K, m) to (n, K)."""
    roots = np.linalg.cholesky(covariances)
    scaled = np.linalg.solve(roots, away.transpose(1, 2, 0))  # (K, m, n)
    log_root = np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
    return -0.5 * (scaled**2).sum(axis=1).T - log_root - 0.5 * away.shape[2] * math.log(2 * math.pi)
