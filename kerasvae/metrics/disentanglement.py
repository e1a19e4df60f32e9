"""Is each factor of variation in a latent dimension of its own?

Codes are (n, d): one row a person, e.g. posterior means. Factors are (n, f): what is known about the same people, as
numbers; `kerasvae.metrics.factors` says which count as discrete and which as continuous. Rows should be different
people: repeated scans of one person flatter every figure.

All are computed in float64. Permuting latent dimensions, or changing their signs, changes no figure at all. None can be
measured without known factors, and factors that go together in the sample cannot be told apart by any of them.

Locatello et al. 2019, Challenging Common Assumptions in the Unsupervised Learning of Disentangled Representations,
ICML, arXiv 1811.12359, compares them; mutual information from 20 bins of equal width is theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasvae.errors import ArgumentError
from kerasvae.metrics.factors import Discrete, FactorTable, Numbers, factor_table, information, numbered

__all__ = ["DCI", "dci", "explicitness", "factor_vae_score", "modularity", "mutual_information_gap", "sap"]

FOLDS = 4
"""Parts of the people; each is predicted from the others."""
LEAF = 5
"""The fewest people in a leaf of a tree: fewer would let the trees find importance in noise."""


def mutual_information_gap(codes: ArrayLike, factors: ArrayLike, *, bins: int = 20, discrete: Discrete = None) -> float:
    """MIG: how much more the best dimension for a factor tells about it than the second best.

    1/f Σₖ (I(z_j(k); vₖ) − max over j ≠ j(k) of I(z_j; vₖ)) / H(vₖ), j(k) the best: Chen et al. 2018, Isolating Sources
    of Disentanglement, NeurIPS, arXiv 1802.04942. In [0, 1]: 1 where each factor is known from one
    dimension and no other knows of it. There z is drawn from the posterior; here I is that of the codes as given, from
    counts in bins. Counting overstates I by up to (bins − 1)² / 2n nats, most for dimensions that know nothing, which
    pulls the gap of good codes down where people are few: use fewer bins then.

    Args:
        codes: (n, d), d ≥ 2.
        factors: (n, f).
        bins: Bins of equal width between smallest and largest value, of each dimension and each continuous factor;
            where there are no more than `bins` different values, each is its own bin.
        discrete: Which factors are discrete; see `factors`.
    """
    table = factor_table(codes, factors, discrete, dimensions=2)
    known, entropy = information(table, bins)
    ranked = np.sort(known, axis=0)
    return float(np.mean((ranked[-1] - ranked[-2]) / entropy))


def modularity(codes: ArrayLike, factors: ArrayLike, *, bins: int = 20, discrete: Discrete = None) -> float:
    """Modularity: does each dimension know of one factor only?

    Mean over dimensions i of 1 − Σ over f ≠ f(i) of I(zᵢ; v_f)² / (θᵢ² (F − 1)), θᵢ = I(zᵢ; v_f(i)) the largest, F the
    number of factors: Ridgeway & Mozer 2018, Learning Deep Disentangled Embeddings with the F-Statistic Loss, NeurIPS,
    arXiv 1802.05312. In [0, 1]: 1 where no dimension knows of two factors, 0 where all know alike of all. Several
    dimensions may share a factor. Dimensions that know of none are left out; where all are such, it is 0. Counting
    overstates I more for factors with more levels or bins, so that on few people useless dimensions look as if they
    knew of that factor only: read it beside a figure that says whether the factors are known at all.

    Args:
        codes: (n, d).
        factors: (n, f), f ≥ 2.
        bins: As for `mutual_information_gap`.
        discrete: Which factors are discrete; see `factors`.
    """
    table = factor_table(codes, factors, discrete, of_factors=2)
    known, _entropy = information(table, bins)
    known = known[known.max(axis=1) > 1e-12]
    if not len(known):
        return 0.0
    relative = np.square(known / known.max(axis=1, keepdims=True)).sum(axis=1) - 1
    return float(np.mean(1 - relative / (known.shape[1] - 1)))


def sap(codes: ArrayLike, factors: ArrayLike, *, discrete: Discrete = None) -> float:
    """SAP: how much better the best dimension alone predicts a factor than the second best alone.

    Mean over factors of the gap between the two largest scores of single dimensions: Kumar, Sattigeri & Balakrishnan
    2018, Variational Inference of Disentangled Latent Concepts, ICLR, arXiv 1711.00848, section 3. The score is R² of a
    straight line for a continuous factor, and for a discrete one the accuracy of a linear support vector machine (C =
    1, levels weighed alike) averaged over levels, on the people it was fitted to: the program of Locatello et al. 2019,
    arXiv 1811.12359. A constant dimension scores as chance; the paper sets it to 0. In [0, 1] for continuous factors;
    at most 1 − 1/L for one with L levels, ½ for two.

    Args:
        codes: (n, d), d ≥ 2.
        factors: (n, f). Time grows with n² for discrete ones.
        discrete: Which factors are discrete; see `factors`.
    """
    table = factor_table(codes, factors, discrete, dimensions=2)
    gaps = []
    for values, is_discrete in zip(table.factors.T, table.discrete, strict=True):
        score = _balanced_accuracy if is_discrete else _squared_correlation
        ranked = np.sort([score(column, values) for column in table.codes.T])
        gaps.append(ranked[-1] - ranked[-2])
    return float(np.mean(gaps))


class DCI(NamedTuple):
    """Disentanglement, completeness, informativeness; higher is better in all three.

    Attributes:
        disentanglement: In [0, 1]: 1 where each dimension matters for one factor only.
        completeness: In [0, 1]: 1 where for each factor one dimension only matters.
        informativeness: In [0, 1]: how well the factors are predicted for people who were left out of the fit.
        importance: Of each dimension for each factor, (d, f); columns sum to 1, or to 0 where nothing matters.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importance: Numbers


def dci(codes: ArrayLike, factors: ArrayLike, *, trees: int = 100, seed: int = 0, discrete: Discrete = None) -> DCI:
    """DCI, with the importances of random forests.

    Eastwood & Williams 2018, A Framework for the Quantitative Evaluation of Disentangled Representations, ICLR, with R
    the importances: disentanglement Σᵢ ρᵢ (1 − H_f(Pᵢ)), Pᵢ the row Rᵢ divided by its sum, ρᵢ its share of the total;
    completeness mean over k of 1 − H_d(Qₖ), Qₖ the column R.ₖ divided by its sum; entropies to the base f and d.
    Informativeness is an error there; here it is the mean over factors of R² for continuous ones, and for discrete ones
    of the accuracy averaged over levels, set so that chance is 0; both from trees that had not seen the person, and
    what falls below 0 counts as 0.

    Args:
        codes: (n, d), d ≥ 2.
        factors: (n, f), f ≥ 2.
        trees: Trees a factor, at least 50.
        seed: Seed of the forests.
        discrete: Which factors are discrete; see `factors`.
    """
    table = factor_table(codes, factors, discrete, people=4 * LEAF, dimensions=2, of_factors=2)
    if trees < 50:
        raise ArgumentError("trees", rule="be 50 or more", got=trees, fix="Use 100")
    importance = np.zeros((table.codes.shape[1], len(table.discrete)))
    scores = []
    for k, (values, is_discrete) in enumerate(zip(table.factors.T, table.discrete, strict=True)):
        importance[:, k], score = _forest(table.codes, values, bool(is_discrete), trees, seed)
        scores.append(max(score, 0.0))
    rows = importance.sum(axis=1)
    used = rows > 0
    share = rows[used] / max(rows.sum(), 1e-300)
    original = np.empty_like(importance)
    original[table.order] = importance
    return DCI(
        disentanglement=float(share @ _concentration(importance[used])),
        completeness=float(np.mean(_concentration(importance.T))),
        informativeness=float(np.mean(scores)),
        importance=original,
    )


def explicitness(codes: ArrayLike, factors: ArrayLike, *, seed: int = 0, discrete: Discrete = None) -> float:
    """Explicitness: can each level of each factor be told from the others by a linear function of the whole code?

    Mean over levels and factors of 2 (A − ½), A the area under the ROC curve of a logistic regression of one level
    against the rest, after Ridgeway & Mozer 2018, arXiv 1802.05312. In [−1, 1]: 1 is perfect, 0 chance; useless codes
    of few people fall on either side of 0. Each person's score comes from a fit to the other three quarters of the
    people. A continuous factor is cut at its median into two levels. A level in the middle of an ordered factor is not
    linear in one dimension; this lowers the figure. Levels that all but one person, or only one, hold are left out.

    Args:
        codes: (n, d).
        factors: (n, f).
        seed: Seed of the division of the people.
        discrete: Which factors are discrete; see `factors`.
    """
    from sklearn.metrics import roc_auc_score

    table = factor_table(codes, factors, discrete, people=2 * FOLDS)
    rng = np.random.default_rng(seed)
    of_factors = []
    for k, (values, is_discrete) in enumerate(zip(table.factors.T, table.discrete, strict=True)):
        labels = numbered(values) if is_discrete else _halves(values)
        counts = np.bincount(labels)
        members = [labels == level for level in np.flatnonzero((counts >= 2) & (counts <= len(labels) - 2))]
        if not members:
            raise ArgumentError(
                f"Factor {k}", rule="have a level that two people hold and two do not", got="none", fix="Leave it out"
            )
        areas = [roc_auc_score(member, _logistic(table.codes, member, _folds(member, rng))) for member in members]
        of_factors.append(np.mean(2 * np.array(areas) - 1))
    return float(np.mean(of_factors))


Draw = Callable[[int, np.random.Generator], ArrayLike]
"""From a factor's index and a random generator to the codes, (L, d), of people who have one value of it in common."""


def factor_vae_score(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    draw: Draw | None = None,
    batch: int = 64,
    votes: int = 800,
    levels: int = 5,
    seed: int = 0,
    discrete: Discrete = None,
) -> float:
    """FactorVAE's score: does the dimension that varies least tell which factor was held fixed?

    Kim & Mnih 2018, Disentangling by Factorising, ICML, arXiv 1802.05983, section 4: in a batch that shares a value of
    one factor, take the dimension with the smallest variance, each divided by its variance over all people; the
    classifier gives each dimension the factor that it was seen with most often, and the score is its accuracy on new
    batches. In [0, 1]; chance is about 1/f, which is also given where all dimensions are constant. Constant dimensions
    are left out.

    The paper makes new images for each batch, all other factors drawn anew and independently. A fixed table cannot do
    so: without `draw`, a batch is drawn with replacement from the people who have the level of one drawn at random. So
    the other factors vary as they do in the sample, factors that go together count for one another, and the same people
    come again. Levels of one person are never drawn. A continuous factor is cut into `levels` groups of equal size and
    is only nearly fixed. With a simulator, give `draw`. In either way the score cannot see that one factor is missing
    from the code: the dimensions that belong to no other are taken for it.

    Args:
        codes: (n, d), of people as they come.
        factors: (n, f), f ≥ 2.
        draw: Makes a batch that shares a value of a factor: (factor's index, generator) to codes (L, d).
        batch: People in a batch, L, where `draw` is not given.
        votes: Batches for the classifier, and as many for its accuracy.
        levels: Groups of a continuous factor.
        seed: Seed of the batches.
        discrete: Which factors are discrete; see `factors`.
    """
    for name, count, least in (("batch", batch, 2), ("votes", votes, 1), ("levels", levels, 2)):
        if count < least:
            raise ArgumentError(name, rule=f"be {least} or more", got=count, fix="Use the default")
    table = factor_table(codes, factors, discrete, people=2 * levels, of_factors=2)
    rng = np.random.default_rng(seed)
    all_codes = table.codes if draw is None else np.asarray(codes, np.float64)
    make = _resampling(table, batch, levels) if draw is None else draw
    spread = all_codes.var(axis=0)
    active = np.ptp(all_codes, axis=0) > 0
    if not active.any():
        return 1 / len(table.discrete)
    counts = np.zeros((2, int(active.sum()), len(table.discrete)))
    for part in counts:
        for factor in rng.integers(len(table.discrete), size=votes).tolist():
            made = np.asarray(make(factor, rng), np.float64)
            if made.ndim != 2 or made.shape[1] != all_codes.shape[1] or len(made) < 2:
                raise ArgumentError(
                    "draw", rule=f"give codes of shape (L, {all_codes.shape[1]}), L ≥ 2", got=made.shape, fix="Mend it"
                )
            part[np.argmin(made.var(axis=0)[active] / spread[active]), factor] += 1
    learned, new = counts
    return float(new[np.arange(len(new)), learned.argmax(axis=1)].sum() / votes)


# --- predictors and batches ----------------------------------------------------------------------


def _concentration(importance: Numbers) -> Numbers:
    """1 − H(row / its sum), entropy to the base of the row's length; 0 for a row of zeros."""
    total = importance.sum(axis=1, keepdims=True)
    p = np.divide(importance, total, out=np.full_like(importance, 1 / importance.shape[1]), where=total > 0)
    entropy = -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=1)
    return 1 - entropy / np.log(importance.shape[1])


def _squared_correlation(code: Numbers, values: Numbers) -> float:
    if np.ptp(code) == 0:
        return 0.0
    a, b = code - code.mean(), values - values.mean()
    return float((a @ b) ** 2 / ((a @ a) * (b @ b)))


def _balanced_accuracy(code: Numbers, values: Numbers) -> float:
    from sklearn.svm import SVC

    labels = numbered(values)
    if np.ptp(code) == 0:
        return 1 / (int(labels.max()) + 1)
    standard = ((code - code.mean()) / code.std())[:, None]
    predicted = SVC(kernel="linear", C=1.0, class_weight="balanced").fit(standard, labels).predict(standard)
    return _mean_recall(labels, predicted)


def _mean_recall(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Share of right predictions, averaged over levels."""
    return float(np.mean(np.bincount(labels, labels == predicted) / np.bincount(labels)))


def _forest(codes: Numbers, values: Numbers, is_discrete: bool, trees: int, seed: int) -> tuple[Numbers, float]:
    """Importance of each dimension, and the out-of-bag score with chance at 0."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    options: dict[str, Any] = {"max_features": None, "min_samples_leaf": LEAF, "oob_score": True, "random_state": seed}
    if not is_discrete:
        regressor = RandomForestRegressor(trees, **options).fit(codes, values)
        return regressor.feature_importances_, float(regressor.oob_score_)
    labels = numbered(values)
    classifier = RandomForestClassifier(trees, class_weight="balanced", **options).fit(codes, labels)
    predicted = np.argmax(classifier.oob_decision_function_, axis=1)
    chance = 1 / (int(labels.max()) + 1)
    return classifier.feature_importances_, (_mean_recall(labels, predicted) - chance) / (1 - chance)


def _halves(values: Numbers) -> NDArray[np.int64]:
    """1 above the median, 0 elsewhere; where the median is the largest value, 1 at it."""
    above = values > np.median(values)
    return (above if above.any() else values >= np.median(values)).astype(np.int64)


def _folds(member: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """A fold for each person, members and others each spread evenly over the folds."""
    order = rng.permutation(len(member))
    order = order[np.argsort(member[order], kind="stable")]
    fold = np.empty(len(member), np.int64)
    fold[order] = np.arange(len(member)) % FOLDS
    return fold


def _logistic(codes: Numbers, positive: NDArray[np.bool_], fold: NDArray[np.int64]) -> Numbers:
    """Score of each person, from a logistic regression on the people of the other folds."""
    from sklearn.linear_model import LogisticRegression

    scores = np.empty(len(codes))
    for part in range(FOLDS):
        rest, new = fold != part, fold == part
        spread = np.where(np.ptp(codes[rest], axis=0) > 0, codes[rest].std(axis=0), 1.0)
        z = (codes - codes[rest].mean(axis=0)) / spread
        scores[new] = LogisticRegression(max_iter=1000).fit(z[rest], positive[rest]).decision_function(z[new])
    return scores


def _resampling(table: FactorTable, batch: int, levels: int) -> Draw:
    """Batches from the table itself."""
    groups = []
    for values, is_discrete in zip(table.factors.T, table.discrete, strict=True):
        ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
        labels = numbered(values) if is_discrete else ranks * levels // len(values)
        groups.append([np.flatnonzero(labels == label) for label in np.unique(labels)])

    def draw(factor: int, rng: np.random.Generator) -> Numbers:
        sizes = np.array([len(group) if len(group) > 1 else 0 for group in groups[factor]])
        group = groups[factor][rng.choice(len(sizes), p=sizes / sizes.sum())]
        return table.codes[rng.choice(group, batch)]

    return draw
