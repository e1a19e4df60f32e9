"""The covariance of few people's images at the maximum of its posterior, and its leading axes.

With n people and v ≫ n voxels the sample's principal axes are fitted to its noise: of another person they explain
less than they could. Under an inverse-Wishart prior with scale matrix Ψ the posterior's mode is

    Σ̂ = (n S + Ψ) / (n + ν + v + 1)  ∝  S + f T,    Ψ = n f T

(Gelman et al. 2013, Bayesian Data Analysis, 3rd ed., section 3.6: the posterior is inverse Wishart with scale matrix
Ψ + n S and ν + n degrees of freedom; S the mean scatter about the mean, which is taken as known). T is a smooth prior
covariance, see `kerasvae.networks.prior_covariance`. The axes are the leading eigenvectors of S + f T. The *scale* is
not taken from the mode: its denominator exceeds twice the number of voxels, whatever the data. Variances along the axes
and σ² are those of people left out of the fit, which is what maximises their likelihood given the axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from threadpoolctl import threadpool_limits

from kerasvae.errors import ArgumentError
from kerasvae.networks.left_out import folds_of, residuals_of, tempered
from kerasvae.networks.prior_covariance import Kind, PriorCovariance, SmoothPrior
from kerasvae.types import Array, Mask

__all__ = [
    "KINDS",
    "Choice",
    "choose_prior",
    "leading_axes",
    "mirror_index",
    "probable_axes",
    "sample_axes",
]

KINDS: tuple[Kind, ...] = ("variance", "deformation")
WIDTHS_MM = (8.0, 12.0, 16.0)
SHARES = (0.25, 0.5, 1.0, 2.0, 4.0)
MOST_PEOPLE = 160
"""A choice is made on so many people at most; more take longer and are not needed for it."""

Index = NDArray[np.intp]
MakePrior = Callable[[Array, Array], PriorCovariance]


def mirror_index(mask: Mask) -> Index:
    """Left and right exchanged, as an index of mask voxels: `values[index]` are the mirrored values.

    Axis 0 is turned about its middle. A voxel whose counterpart lies outside the mask keeps its own value, so that the
    exchange is its own inverse and no value from outside the mask is ever used.

    >>> mirror_index(np.array([[True], [True], [False], [True]])).tolist()
    [2, 1, 0]
    """
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(mask.sum())
    other = number[::-1][mask]
    return np.where(other < 0, np.arange(len(other)), other)


def deviation_of(residuals: Array, mirror: Index | None) -> Array:
    """Standard deviation of each voxel, (v,), over people and, where asked for, their mirror images."""
    variance = np.square(residuals).mean(axis=0)
    return np.sqrt(variance if mirror is None else (variance + variance[mirror]) / 2)


def sample_axes(residuals: Array, count: int, mirror: Index | None = None) -> tuple[NDArray[np.float64], Array]:
    """Eigenpairs of S, through the n × n Gram matrix.

    Args:
        residuals: Images minus what is expected of them, (n, v).
        count: Number of axes, at most; those without variance are left out.
        mirror: As for `leading_axes`.

    Returns:
        All eigenvalues that S can have, largest first, and the leading orthonormal axes as rows, (≤ count, v).
    """
    centred = residuals if mirror is None else np.concatenate([residuals, residuals[:, mirror]])
    gram = centred.astype(np.float64) @ centred.T.astype(np.float64) / len(centred)
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    kept = min(count, int((values > values[0] * 1e-10).sum()))
    return values, (vectors[:, :kept] / np.sqrt(values[:kept] * len(centred))).T @ centred


def leading_axes(
    residuals: Array, prior: PriorCovariance, count: int, mirror: Index | None = None, seed: int = 0
) -> tuple[NDArray[np.float64], Array]:
    """Leading eigenpairs of S + tr(S) T, T the prior with its shares, by Lanczos iteration.

    Memory is that of the images and of 2 · `count` vectors.

    Args:
        residuals: Images minus what is expected of them, (n, v).
        prior: T.
        count: Number of pairs, below v.
        mirror: From `mirror_index`: S is then the mean scatter of residuals and mirrored residuals.
        seed: Of the iteration's first vector; the result does not depend on it beyond its tolerance.

    Returns:
        Eigenvalues, largest first, (count,), and orthonormal axes as rows, (count, v).
    """
    people, voxels = residuals.shape
    total = np.float32(np.square(residuals, dtype=np.float64).sum() / people)

    def times(vector: NDArray[np.float64]) -> Array:
        u = vector.ravel().astype(np.float32)
        if mirror is None:
            scatter = residuals.T @ (residuals @ u)
        else:
            both = residuals.T @ (residuals @ np.stack([u, u[mirror]], axis=1))
            scatter = (both[:, 0] + both[mirror, 1]) / 2
        return scatter / np.float32(people) + total * prior.apply(u)

    start = np.random.default_rng(seed).standard_normal(voxels)
    operator = LinearOperator((voxels, voxels), matvec=times, dtype=np.float64)
    values, vectors = eigsh(operator, k=count, which="LA", v0=start, tol=1e-4)
    return values[::-1].copy(), np.ascontiguousarray(vectors[:, ::-1].T, dtype=np.float32)


def probable_axes(
    flat: Array, design: NDArray[np.float64], make_prior: MakePrior, count: int, mirror: Index | None, seed: int = 0
) -> tuple[Array, Array, Array]:
    """The axes of people's most probable covariance; see `leading_axes`.

    Args:
        flat: Images over mask voxels, (n, v).
        design: A column of ones and covariates, (n, c).
        make_prior: From the mean image and the standard deviation, (v,) each, to the prior.
        count: Number of axes.
        mirror: As for `leading_axes`.
        seed: As well.

    Returns:
        Coefficients of the design (c, v), residuals (n, v), in which nobody is scaled down yet, and axes (count, v).
    """
    coefficients, residuals = residuals_of(flat, design)
    learned = tempered(residuals)
    prior = make_prior(coefficients[0], deviation_of(learned, mirror))
    return coefficients, residuals, leading_axes(learned, prior, count, mirror, seed)[1]


class Choice(NamedTuple):
    """What cross-validation within the training people found.

    Attributes:
        priors: The best, or nothing where no prior is better than the sample alone.
        explained: Part of left-out people's variance that its axes explain.
        without: The same without a prior.
    """

    priors: tuple[SmoothPrior, ...]
    explained: float
    without: float


def choose_prior(
    flat: Array,
    design: NDArray[np.float64],
    mask: Mask,
    spacing_mm: Sequence[float],
    count: int,
    mirror: Index | None,
    groups: Sequence[Any] | NDArray[Any],
    seed: int = 0,
    kinds: Sequence[Kind] = KINDS,
) -> Choice:
    """Kind, width and share by what the axes explain of people left out, five-fold, among stated candidates.

    So that many candidates are affordable, the eigenvectors are approximated (Rayleigh-Ritz) in the span of the
    learners' images and the images that the prior makes of them; all else is algebra of people × people matrices. Each
    belief is formed from the mean and the standard deviation of all training people. Ψ = n f T is a constant of the
    inverse-Wishart prior, so the share that is best for the learners of a fold is made smaller in proportion to all.

    Args:
        flat: Images over mask voxels, (n, v).
        design: A column of ones and covariates, (n, c).
        mask: Two or three axes, v voxels.
        spacing_mm: See `PriorCovariance`.
        count: Number of axes.
        mirror: From `mirror_index`, or None.
        groups: The person of each image.
        seed: Of the folds, and of who is looked at where there are more than `MOST_PEOPLE` images.
        kinds: Those to choose among; where it is one, "none" is no candidate.

    Raises:
        ArgumentError: If the one kind has nothing to act on.
    """
    rows = _some(groups, seed)
    folds = folds_of(np.asarray(groups)[rows], seed)
    coefficients, residuals = residuals_of(flat[rows], design[rows])
    residuals = tempered(residuals)
    stddev = deviation_of(residuals, mirror)
    images = residuals if mirror is None else np.concatenate([residuals, residuals[:, mirror]])
    explained: dict[tuple[SmoothPrior, ...], float] = {}
    for unit in _candidates(kinds):
        try:
            prior = PriorCovariance(unit, coefficients[0], stddev, mask, spacing_mm)
        except ArgumentError:  # nothing for this kind to act on
            if len(kinds) == 1:
                raise
            continue
        products = _products(images, prior)
        left = dict.fromkeys((0.0, *SHARES), 0.0)
        whole = 0.0
        # matrices this small gain nothing from threads, which lose a lot by waiting for each other on a busy machine
        with threadpool_limits(1, user_api="blas"):
            for train, test in folds:
                energy, found = _fold(products, design[rows], train, test, len(images) // len(rows), count, tuple(left))
                whole += energy
                left = {share: left[share] + part for share, part in zip(left, found, strict=True)}
        for share, part in left.items():
            explained[_times(share, unit)] = part / whole
    without = explained.get((), 0.0)
    if len(kinds) == 1:
        del explained[()]
    best = max(explained, key=lambda priors: explained[priors], default=())
    learners = float(np.mean([len(train) for train, _ in folds]))
    return Choice(_times(learners / len(flat), best), explained.get(best, without), without)


def _candidates(kinds: Sequence[Kind]) -> list[tuple[SmoothPrior, ...]]:
    """Each kind in each width, and of both kinds a deformation with a little of the other; shares sum to 1."""
    found: list[tuple[SmoothPrior, ...]] = [(SmoothPrior(kind, w, 1.0),) for kind, w in product(kinds, WIDTHS_MM)]
    if len(kinds) > 1:
        found.append((SmoothPrior("deformation", 12.0, 0.8), SmoothPrior("variance", 12.0, 0.2)))
    return found


def _times(factor: float, priors: tuple[SmoothPrior, ...]) -> tuple[SmoothPrior, ...]:
    """The priors with `factor` times their shares; none for 0."""
    return tuple(replace(prior, share=factor * prior.share) for prior in priors) if factor else ()


def _some(groups: Sequence[Any] | NDArray[Any], seed: int) -> Index:
    """All rows, or those of as many groups, drawn by the seed, as make `MOST_PEOPLE` rows."""
    names, number, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    kept = order[: max(3, int((np.cumsum(counts[order]) <= MOST_PEOPLE).sum()))]
    return np.flatnonzero(np.isin(number, kept))


def _products(images: Array, prior: PriorCovariance) -> tuple[list[NDArray[np.float64]], float]:
    """Z Zᵀ, Z T Zᵀ, Z T² Zᵀ and Z T³ Zᵀ of images Z, (n, n) each, T scaled so that T Z is as large; and the scale."""
    smooth = prior.apply(images)
    scale = np.float32(np.linalg.norm(images) / np.linalg.norm(smooth))
    smooth *= scale
    thrice = np.empty((len(images), len(images)), np.float32)
    for start in range(0, len(images), 16):
        thrice[start : start + 16] = scale * prior.apply(smooth[start : start + 16]) @ smooth.T
    products = [images @ images.T, images @ smooth.T, smooth @ smooth.T, thrice]
    return [(p + p.T).astype(np.float64) / 2 for p in products], float(scale)


def _fold(
    products: tuple[Sequence[NDArray[np.float64]], float],
    design: NDArray[np.float64],
    train: Index,
    test: Index,
    copies: int,
    count: int,
    shares: Sequence[float],
) -> tuple[float, list[float]]:
    """Variance of the people left out, and how much of it the axes explain, for each share of the prior."""
    powers, scale = products
    pinv, size = np.linalg.pinv(design[train]), len(design)
    # learners' residuals and left-out people's, as combinations of images; mirror images follow the images
    once = np.zeros((len(train), size))
    once[:, train] = np.eye(len(train)) - design[train] @ pinv
    learn = np.kron(np.eye(copies), once)
    leave = np.zeros((len(test), size * copies))
    leave[np.arange(len(test)), test] = 1
    leave[:, train] -= design[test] @ pinv
    one, two, three, four = (learn @ p @ learn.T for p in powers)
    basis = np.block([[one, two], [two, three]])
    images = np.concatenate([one, two])
    scatter = images @ images.T / len(one)
    prior = np.block([[two, three], [three, four]]) * (np.trace(one) / len(one) / scale)
    values, vectors = np.linalg.eigh(basis)
    kept = values > values[-1] * 1e-6
    white = vectors[:, kept] / np.sqrt(values[kept])
    sample, believed = white.T @ scatter @ white, white.T @ prior @ white
    count = min(count, len(train) - design.shape[1])
    seen = np.concatenate([leave @ powers[0] @ learn.T, leave @ powers[1] @ learn.T], axis=1) @ white
    explained = []
    for share in shares:
        axes = np.linalg.eigh(sample + share * believed)[1][:, ::-1][:, :count]
        explained.append(float(np.square(seen @ axes).sum()))
    return float(np.trace(leave @ powers[0] @ leave.T)), explained
