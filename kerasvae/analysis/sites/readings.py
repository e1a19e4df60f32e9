"""What can be read from codes of people: where they were scanned, how old they are; in cross-validation, by person.

Categories are read by linear discriminants, one prior probability for all, with a covariance shrunk as far as Ledoit &
Wolf 2004 (A well-conditioned estimator for large-dimensional covariance matrices, J. Multivar. Anal. 88:365) say;
numbers by ridge regression, see `kerasvae.metrics.nested_ridge`. Both see what is linear: that a site stretches codes
without shifting them they do not notice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.design import Term
from kerasvae.metrics import nested_ridge

__all__ = ["FOLDS", "SiteReading", "level_chances", "measure_of", "read_site", "read_term"]

Numbers = NDArray[np.float64]
FOLDS = 5
"""Parts of the people; of each category there must be as many people or more."""
FEWEST = 3 * FOLDS
"""People below whom nothing is read of a number."""


class SiteReading(NamedTuple):
    """How well codes tell the site.

    Attributes:
        accuracy: Mean over sites of the share of their people who are put there, in cross-validation.
        chance: One over the sites.
        p: Part of random orders of the sites, the true one among them, that are read as well or better.
    """

    accuracy: float
    chance: float
    p: float


def read_site(codes: Numbers, site: NDArray[Any], *, permutations: int = 199, seed: int = 0) -> SiteReading | None:
    """How well a linear discriminant tells the site of people from their codes.

    Args:
        codes: (n, d), a row a person.
        site: (n,); people of sites that have fewer than five are not looked at.
        permutations: Random orders of the sites for p, by which the whole cross-validation is repeated.
        seed: Of these, and of the parts.

    Returns:
        None where fewer than two sites have five people, or codes do not vary.
    """
    from sklearn.metrics import balanced_accuracy_score

    names, counts = np.unique(site, return_counts=True)
    enough = np.isin(site, names[counts >= FOLDS])
    codes, names = codes[enough], names[counts >= FOLDS]
    place = np.searchsorted(names, site[enough])
    if len(names) < 2 or not _readable(codes, place):
        return None
    rng = np.random.default_rng(seed)
    orders = [np.arange(len(place)), *(rng.permutation(len(place)) for _ in range(permutations))]
    found = np.array(
        [balanced_accuracy_score(place[o], level_chances(codes, place[o], seed).argmax(axis=1)) for o in orders]
    )
    return SiteReading(float(found[0]), 1 / len(names), float(np.mean(found >= found[0] - 1e-12)))


def read_term(codes: Numbers, term: Term, *, seed: int = 0) -> float | None:
    """How well codes tell a variable, as `measure_of` says, in cross-validation.

    Args:
        codes: (n, d), a row a person.
        term: Known of all of them.
        seed: Of the parts.

    Returns:
        None where there are fewer than 15 people, or than five of a level, or codes do not vary.
    """
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    if not term.levels:
        few = len(codes) < FEWEST or np.ptp(term.values) == 0 or not np.ptp(codes, axis=0).any()
        return None if few else nested_ridge(codes, term.values[:, 0], folds=FOLDS, seed=seed).r
    level = np.rint(term.values @ np.arange(1, len(term.levels))).astype(np.int64)
    if not _readable(codes, level) or len(set(level.tolist())) < len(term.levels):
        return None
    chances = level_chances(codes, level, seed)
    if len(term.levels) == 2:
        return float(roc_auc_score(level, chances[:, 1]))
    return float(balanced_accuracy_score(level, chances.argmax(axis=1)))


def measure_of(term: Term) -> str:
    """What `read_term` gives: r of a number; AUC of two levels; balanced accuracy of more."""
    return "r" if not term.levels else "AUC" if len(term.levels) == 2 else "balanced accuracy"


def _readable(codes: Numbers, level: NDArray[np.int64]) -> bool:
    return bool(np.ptp(codes, axis=0).any() and np.unique(level, return_counts=True)[1].min() >= FOLDS)


def level_chances(codes: Numbers, level: NDArray[np.int64], seed: int) -> Numbers:
    """Probability of each level for each person, from discriminants of other people, (n, levels).

    Args:
        codes: (n, d), a row a person.
        level: (n,), from 0; five people or more of each.
        seed: Of the parts.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import StratifiedKFold

    count = int(level.max()) + 1
    chances = np.empty((len(codes), count))
    for learn, left in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(codes, level):
        spread = codes[learn].std(axis=0)
        z = (codes - codes[learn].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        reader = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(count, 1 / count))
        chances[left] = reader.fit(z[learn], level[learn]).predict_proba(z[left])
    return chances
