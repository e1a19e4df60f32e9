"""Do trainings on other folds or from other seeds find the same latent space?

Codes are (n, d): one row a person, the same people in the same order in all that are compared; d may differ. A latent
space is known only up to what the prior cannot see, rotations at least, so every figure here stays the same when codes
are shifted, rotated, or scaled as a whole. Compare people whom none of the models learned from: of people that both
learned, agreement may be memory. Rows should be different people.

All are computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import orthogonal_procrustes, subspace_angles

from kerasvae.errors import ArgumentError

__all__ = ["Agreement", "debiased_cka", "procrustes_r2", "same_people", "stability", "subspace_similarity"]

Numbers = NDArray[np.float64]


class Agreement(NamedTuple):
    """How far two of the given latent spaces agree.

    Attributes:
        first: Place of one in the list.
        second: Place of the other.
        procrustes: `procrustes_r2`.
        cka: `debiased_cka`.
        procrustes_null: Mean of the former over permutations of the people.
        cka_null: Of the latter, likewise.
        procrustes_p: Part of the permutations, the one given among them, that agree as much or more.
        cka_p: Likewise.
    """

    first: int
    second: int
    procrustes: float
    cka: float
    procrustes_null: float
    cka_null: float
    procrustes_p: float
    cka_p: float


def stability(
    codes: Sequence[ArrayLike], *, permutations: int = 100, folds: int | None = None, seed: int = 0
) -> list[Agreement]:
    """Every pair of latent spaces, beside what codes of other people would give.

    The null breaks the tie between the two: people of one are permuted, which leaves each space as it is.

    Args:
        codes: For each training, the codes of the same people, (n, d).
        permutations: Number of permutations, 1 or more; a p-value is at least 1 / (permutations + 1).
        folds: As for `procrustes_r2`.
        seed: Of the permutations and folds.

    Returns:
        One row a pair, in the order of `itertools.combinations`; `Agreement._asdict` makes it a row of a table.
    """
    if len(codes) < 2:
        raise ArgumentError("codes", rule="be of two trainings or more", got=len(codes), fix="Train again")
    if permutations < 1:
        raise ArgumentError("permutations", rule="be 1 or more", got=permutations, fix="Use 100")
    tables = [same_people(codes[0], other)[1] for other in codes]
    orders = [np.random.default_rng((seed, k)).permutation(len(tables[0])) for k in range(permutations)]
    measures: list[Callable[[Numbers, Numbers], float]] = [
        lambda a, b: procrustes_r2(a, b, folds=folds, seed=seed),
        debiased_cka,
    ]
    rows = []
    for (i, a), (j, b) in combinations(enumerate(tables), 2):
        found = [measure(a, b) for measure in measures]
        null = np.array([[measure(a, b[order]) for measure in measures] for order in orders])
        p = (1 + (null >= found).sum(axis=0)) / (1 + permutations)
        means = null.mean(axis=0)
        rows.append(Agreement(i, j, found[0], found[1], float(means[0]), float(means[1]), float(p[0]), float(p[1])))
    return rows


def procrustes_r2(a: ArrayLike, b: ArrayLike, *, folds: int | None = None, seed: int = 0) -> float:
    """Part of the spread of codes that an orthogonal alignment to the other codes of the *same, left-out* people keeps.

    1 − Σ‖y − s Q x‖² / Σ‖y − ȳ‖², with ȳ, x̄, the rotation Q and the scale s fitted to the other folds' people
    (Schönemann 1966, A generalized solution of the orthogonal Procrustes problem, Psychometrika 31:1), summed over the
    people left out; the mean of both directions, a to b and b to a. The codes of smaller width get columns of zeros.
    Without leaving people out the fit alone reaches 1 as soon as d ≥ n. At most 1: the same codes but for a shift, a
    rotation or reflection, and a scale. Independent codes give about 0, mostly a little less: ȳ is estimated, and s
    with it. A rotation of d dimensions is determined by more than d people: where fewer are left to fit it to, the
    figure is too low, even of codes that are the same.

    Args:
        a: (n, d).
        b: (n, e), the same people.
        folds: Parts of the people, 2 to n / 2. By default 2, or as many as it takes to fit to more people than there
            are dimensions.
        seed: Of the parts.
    """
    a, b = same_people(a, b)
    width, most = max(a.shape[1], b.shape[1]), len(a) // 2
    if folds is None:
        folds = next((f for f in range(2, most) if len(a) - -(-len(a) // f) > width), most)
    if not 2 <= folds <= most:
        raise ArgumentError("folds", rule=f"be from 2 to {most}, half the people", got=folds, fix="Use 2")
    a, b = (np.pad(each, ((0, 0), (0, width - each.shape[1]))) for each in (a, b))
    part = np.random.default_rng(seed).permutation(np.arange(len(a)) % folds)
    parts = []
    for x, y in ((a, b), (b, a)):
        lost = spread = 0.0
        for k in range(folds):
            fit, left = part != k, part == k
            x_mean, y_mean = x[fit].mean(axis=0), y[fit].mean(axis=0)
            centred = x[fit] - x_mean
            rotation, trace = orthogonal_procrustes(centred, y[fit] - y_mean)
            scale = trace / max(np.square(centred).sum(), 1e-300)
            guess = y_mean + scale * (x[left] - x_mean) @ rotation
            lost += np.square(y[left] - guess).sum()
            spread += np.square(y[left] - y_mean).sum()
        parts.append(1 - lost / spread)
    return float(np.mean(parts))


def debiased_cka(a: ArrayLike, b: ArrayLike) -> float:
    """Linear centred kernel alignment from the unbiased estimator of HSIC.

    HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)), K = A Aᵀ and L = B Bᵀ: Kornblith et al. 2019, Similarity of Neural Network
    Representations Revisited, ICML, arXiv 1905.00414; each HSIC the unbiased estimator of Song et al. 2012, Feature
    Selection via Dependence Maximization, JMLR 13:1393, with K̃ = K but for a diagonal of 0:
    [tr(K̃ L̃) + 1ᵀK̃1 · 1ᵀL̃1 / ((n − 1)(n − 2)) − 2 · 1ᵀK̃L̃1 / (n − 2)] / (n (n − 3)). The biased form grows towards 1
    with d / n whatever the codes. At most 1: the same codes but for a shift, a rotation or reflection, and a scale.
    Independent codes give 0 on average, whatever their widths, and so may fall below it. Dimensions count by their
    variance.

    Args:
        a: (n, d).
        b: (n, e), the same people.

    Raises:
        ArgumentError: If codes vary so little between people that HSIC(K, K) is not positive.
    """
    a, b = same_people(a, b)
    kernels = []
    for table in (a, b):
        away = table - table.mean(axis=0)
        kernel = away @ away.T
        np.fill_diagonal(kernel, 0.0)
        kernels.append(kernel)
    k, l_ = kernels
    own = _hsic(k, k) * _hsic(l_, l_)
    if _hsic(k, k) <= 0 or own <= 0:
        raise ArgumentError("codes", rule="vary between people", got="hardly any variance", fix="Leave them out")
    return float(_hsic(k, l_) / np.sqrt(own))


def _hsic(k: Numbers, other: Numbers) -> float:
    """The unbiased estimator, from kernels with a diagonal of 0."""
    n = len(k)
    trace, sums = (k * other).sum(), (k.sum(), other.sum())
    both = k.sum(axis=0) @ other.sum(axis=0)
    return float((trace + sums[0] * sums[1] / ((n - 1) * (n - 2)) - 2 * both / (n - 2)) / (n * (n - 3)))


def subspace_similarity(a: ArrayLike, b: ArrayLike, dimensions: int) -> float:
    """Do two decoders move images in the same directions?

    Mean of cos² of the principal angles (Björck & Golub 1973, Numerical Methods for Computing Angles Between Linear
    Subspaces, Math. Comp. 27:579) between the leading principal subspaces of two sets of reconstructions of the same
    people. In [0, 1]: 1 the same subspace, 0 orthogonal ones. Two random subspaces of v voxels have dimensions / v on
    average; but images have few directions in which they vary at all, so compare with reconstructions by another
    method, e.g. PCA, rather than with that.

    Args:
        a: Reconstructions in the mask, (n, v).
        b: Of the same people, (n, v).
        dimensions: Of the subspaces, at most n − 1; usually the number of active units.

    Raises:
        ArgumentError: If the reconstructions vary in fewer directions.
    """
    a, b = same_people(a, b)
    if a.shape[1] != b.shape[1]:
        raise ArgumentError("b", rule=f"have {a.shape[1]} voxels, as a has", got=b.shape[1], fix="Use one mask")
    bases = []
    for table in (a, b):
        _left, values, axes = np.linalg.svd(table - table.mean(axis=0), full_matrices=False)
        rank = int((values > 1e-6 * values[0]).sum()) if values[0] > 0 else 0
        if not 1 <= dimensions <= rank:
            raise ArgumentError(
                "dimensions",
                rule=f"be from 1 to {rank}, the directions in which the reconstructions vary",
                got=dimensions,
                fix="Use fewer",
            )
        bases.append(axes[:dimensions].T)
    return float(np.mean(np.square(np.cos(subspace_angles(*bases)))))


def same_people(a: ArrayLike, b: ArrayLike) -> tuple[Numbers, Numbers]:
    """Two tables of finite numbers with the same four rows or more, which are not all alike."""
    tables = []
    for name, given in (("a", a), ("b", b)):
        table = np.asarray(given, dtype=np.float64)
        if table.ndim != 2 or len(table) < 4 or not table.shape[1] or not np.isfinite(table).all():
            raise ArgumentError(
                name, rule="be finite numbers (n, d) of 4 people or more", got=f"shape {table.shape}", fix="Check them"
            )
        if not np.ptp(table, axis=0).any():
            raise ArgumentError(name, rule="vary between people", got="one row for all", fix="Leave them out")
        tables.append(table)
    if len(tables[0]) != len(tables[1]):
        raise ArgumentError("b", rule=f"have the {len(tables[0])} people of a", got=len(tables[1]), fix="Match rows")
    return tables[0], tables[1]
