"""How unusual a person is for a model: the same mathematics in graphs, engines and analysis. No TensorFlow.

Three scores, each larger for a more unusual person:

- *surprise*: KL(q(z|x) ‖ p(z)) − log p(x|ẑ), nats, ẑ being the code that stands for the person: minus the bound on
  log p(x), with the likelihood at ẑ in the place of its mean over q, so that it needs no draws. The KL is left out
  where it has no closed form;
- *residual*: root mean squared difference between image and reconstruction over the mask, in model units;
- *distance*: √((ẑ − c)ᵀ P (ẑ − c)), Mahalanobis 1936: c the mean of the codes of people learned from, P the inverse of
  their covariance, shrunk (Ledoit & Wolf 2004, A well-conditioned estimator for large-dimensional covariance matrices,
  J. Multivar. Anal. 88:365, lemma 3.3 and section 3.3).

Each is placed among people whom no weight was fitted to: its *percentile* is 100 times the part of them who score
lower, those who score the same counting half.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from kerasvae.errors import ArgumentError
from kerasvae.types import Mask

__all__ = ["SCORES", "Reference", "distance", "normal_surprise", "percentiles", "residual", "shrunk_precision"]

SCORES = ("surprise", "residual", "distance")
Numbers = NDArray[np.float64]


class Reference(BaseModel):
    """How people whom no weight was fitted to score, so that a new scan can be placed among them.

    Args:
        role: The role of these people.
        people: Their number.
        surprise: Theirs, sorted, nats.
        residual: Theirs, sorted, model units.
        distance: Theirs, sorted.
        center: Mean code of the people learned from, (d,).
        precision: Inverse of the covariance of their codes, (d, d).
        sigma: Standard deviation of the noise, where posterior, prior and likelihood are normal and one σ serves all
            voxels: `normal_surprise` then gives the surprise. None for other models.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    role: str
    people: int
    surprise: tuple[float, ...]
    residual: tuple[float, ...]
    distance: tuple[float, ...]
    center: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    sigma: float | None = None


def residual(image: ArrayLike, reconstruction: ArrayLike, mask: Mask | None = None) -> Numbers:
    """Root mean squared difference over the mask, (n,).

    Args:
        image: (n, *data_shape).
        reconstruction: The same.
        mask: (*data_shape); None counts all.
    """
    difference = np.asarray(image, np.float64) - np.asarray(reconstruction, np.float64)
    flat = difference.reshape(len(difference), -1) if mask is None else difference[:, mask]
    return np.sqrt(np.square(flat).mean(axis=1))


def distance(codes: ArrayLike, center: ArrayLike, precision: ArrayLike) -> Numbers:
    """Mahalanobis distance of codes (n, d) from a centre (d,), (n,).

    >>> distance([[3.0, 4.0]], [0.0, 0.0], np.eye(2)).tolist()
    [5.0]
    """
    away = np.asarray(codes, np.float64) - np.asarray(center, np.float64)
    return np.sqrt(np.maximum(np.einsum("nd,de,ne->n", away, np.asarray(precision, np.float64), away), 0.0))


def normal_surprise(
    image: ArrayLike, reconstruction: ArrayLike, mean: ArrayLike, stddev: ArrayLike, sigma: float, mask: Mask | None
) -> Numbers:
    """KL(N(mean, stddev²) ‖ N(0, I)) − log N(x; x̂, σ² I) over the mask, nats, (n,).

    Args:
        image: (n, *data_shape).
        reconstruction: The same.
        mean: (n, d).
        stddev: (n, d).
        sigma: Of the noise.
        mask: (*data_shape); None counts all.
    """
    mean, stddev = np.asarray(mean, np.float64), np.asarray(stddev, np.float64)
    kl = 0.5 * (np.square(mean) + np.square(stddev) - 1).sum(axis=1) - np.log(stddev).sum(axis=1)
    voxels = math.prod(np.shape(image)[1:]) if mask is None else int(mask.sum())
    squares = np.square(residual(image, reconstruction, mask)) * voxels
    return kl + 0.5 * squares / sigma**2 + 0.5 * voxels * math.log(2 * math.pi * sigma**2)


def percentiles(values: ArrayLike, ranked: ArrayLike) -> Numbers:
    """100 times the part of a sorted reference that is lower, those that are equal counting half; (n,).

    >>> percentiles([0.0, 2.0, 2.5, 9.0], [1.0, 2.0, 3.0, 4.0]).tolist()
    [0.0, 37.5, 50.0, 100.0]
    """
    values, ranked = np.asarray(values, np.float64), np.asarray(ranked, np.float64)
    below, most = (np.searchsorted(ranked, values, side=side) for side in ("left", "right"))
    return 50.0 * (below + most) / len(ranked)


def shrunk_precision(codes: ArrayLike) -> tuple[Numbers, Numbers]:
    """Mean of codes, (d,), and inverse of their covariance shrunk towards a multiple of the identity, (d, d).

    S* = (b²/d²) m I + (1 − b²/d²) S with m = tr S / p, d² = ‖S − m I‖²/p and b² = min(d², Σₖ ‖xₖ xₖᵀ − S‖² / (n² p)):
    Ledoit & Wolf 2004, lemmas 3.2 to 3.4, p the number of dimensions. Codes that do not vary in any direction give the
    identity.

    Args:
        codes: (n, d), two people or more.
    """
    codes = np.asarray(codes, np.float64)
    if codes.ndim != 2 or len(codes) < 2 or not np.isfinite(codes).all():
        raise ArgumentError(
            "codes", rule="be finite numbers (n, d) of two people or more", got=f"shape {codes.shape}", fix="Check them"
        )
    n, size = codes.shape
    center = codes.mean(axis=0)
    x = codes - center
    scatter = x.T @ x / n
    level = np.trace(scatter) / size
    if not level > 0:
        return center, np.eye(size)
    spread = np.square(scatter - level * np.eye(size)).sum() / size
    # Σₖ ‖xₖ xₖᵀ − S‖² = Σₖ (xₖᵀ xₖ)² − n ‖S‖²
    error = (np.square(np.square(x).sum(axis=1)).sum() - n * np.square(scatter).sum()) / (n**2 * size)
    share = 1.0 if spread <= 0 else min(error, spread) / spread
    return center, np.linalg.inv(share * level * np.eye(size) + (1 - share) * scatter)
