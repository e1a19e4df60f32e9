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

Voxel by voxel, a *deviation* says where: the difference between image and reconstruction, less its mean over such
people, in its standard deviations over them, as the quantile of a standard normal distribution. With few people a
variance is uncertain; that of a voxel borrows from those of all (Smyth 2004, Linear models and empirical Bayes methods
for assessing differential expression in microarray experiments, Stat. Appl. Genet. Mol. Biol. 3:3, sections 4 and 6.2).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from kerasvae.errors import ArgumentError
from kerasvae.types import Mask

__all__ = [
    "SCORES",
    "Reference",
    "deviation",
    "distance",
    "moderated_variance",
    "normal_quantile",
    "normal_surprise",
    "percentiles",
    "predictive_p",
    "residual",
    "shrunk_precision",
]

SCORES = ("surprise", "residual", "distance")
Numbers = NDArray[np.float64]
LARGE = 1e6
"""Half of as many degrees of freedom as are told apart from infinitely many."""
TINY = float(np.finfo(np.float64).tiny)


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
        degrees: Degrees of freedom of the deviations' standard deviations; None where there are no maps of them.
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
    degrees: float | None = None


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


def predictive_p(values: ArrayLike, reference: ArrayLike) -> Numbers:
    """How often a person like those of a reference scores as high or higher, (n,): 1 − T(t).

    t = (log s − m) / (v √(1 + 1/n)), with m and v mean and standard deviation of the logarithms of the reference, T
    Student's distribution function with n − 1 degrees of freedom: the prediction of one new value from a normal sample
    (Geisser 1993, Predictive Inference, section 2.2). Unlike a percentile it says how far beyond a few people's range a
    score lies. 1 where the reference does not vary.

    Args:
        values: Scores, above 0.
        reference: Those of two people or more, above 0.
    """
    from scipy.special import stdtr  # as in `moderated_variance`

    logs, known = (np.log(np.maximum(np.asarray(each, np.float64), TINY)) for each in (values, reference))
    n, spread = len(known), known.std(ddof=1)
    if not spread > 0:
        return np.ones_like(logs)
    return stdtr(n - 1, -(logs - known.mean()) / (spread * math.sqrt(1 + 1 / n)))


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


def moderated_variance(variance: ArrayLike, degrees: float) -> tuple[Numbers, float]:
    """Variances that borrow from each other, and their degrees of freedom.

    s̃ᵥ² = (d₀ s₀² + d sᵥ²) / (d₀ + d) has d₀ + d degrees of freedom (Smyth 2004, section 4); d₀ and s₀² are found from
    mean and variance of log sᵥ² (section 6.2). Where the variances differ by no more than chance, d₀ is infinite and
    all become s₀².

    Args:
        variance: (v,), not negative; those that are 0 say nothing about the others.
        degrees: d, of each.
    """
    from scipy.optimize import brentq  # here, so that a process that only encodes starts sooner
    from scipy.special import digamma, polygamma

    variance = np.asarray(variance, np.float64)
    known = variance[variance > 0]
    if len(known) < 2:
        return variance, float(degrees)
    logs = np.log(known) - digamma(degrees / 2) + math.log(degrees / 2)
    spread = float(logs.var(ddof=1) - polygamma(1, degrees / 2))
    if spread <= polygamma(1, LARGE):
        return np.full_like(variance, math.exp(logs.mean())), math.inf
    half = brentq(lambda half: polygamma(1, half) - spread, 1e-8, LARGE)
    center = math.exp(logs.mean() + digamma(half) - math.log(half))
    return (2 * half * center + degrees * variance) / (2 * half + degrees), 2 * half + degrees


def deviation(
    image: ArrayLike, reconstruction: ArrayLike, mean: ArrayLike, stddev: ArrayLike, degrees: float
) -> NDArray[np.float32]:
    """How far each voxel is from its reconstruction, as a quantile of the standard normal distribution.

    Φ⁻¹(T(t)) with t = (x − x̂ − m) / s, T being Student's distribution function with `degrees` degrees of freedom.

    Args:
        image: (n, *data_shape).
        reconstruction: The same.
        mean: m, mean of x − x̂ over people whom no weight was fitted to, (*data_shape).
        stddev: s, the standard deviation of a new person's x − x̂, (*data_shape); 0 where nothing is said.
        degrees: Of `stddev`; may be infinite.

    Returns:
        The same shape as `image`; 0 where `stddev` is 0.

    >>> deviation([[1.0, 3.0]], [[0.0, 0.0]], [0.0, 0.0], [1.0, 0.0], math.inf).tolist()
    [[1.0, 0.0]]
    """
    stddev = np.asarray(stddev, np.float64)
    away = np.asarray(image, np.float64) - np.asarray(reconstruction, np.float64) - np.asarray(mean, np.float64)
    t = np.divide(away, stddev, out=np.zeros_like(away), where=stddev > 0)
    return normal_quantile(t, degrees).astype(np.float32)


def normal_quantile(t: ArrayLike, degrees: float) -> Numbers:
    """Φ⁻¹(T(t)), T being Student's distribution function with `degrees` degrees of freedom, in the shape of t."""
    from scipy.special import ndtri, stdtr  # as in `moderated_variance`

    t = np.asarray(t, np.float64)
    # far out a probability near 1 has no digits left, one near 0 has
    return t if math.isinf(degrees) else -np.sign(t) * ndtri(np.maximum(stdtr(degrees, -np.abs(t)), TINY))
