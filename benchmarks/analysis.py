"""`analysis`: whether what is said about codes and people holds: on null data, on real people, with lesions put in.

Null data keep what makes real ones hard: the variable goes with a covariate that the codes follow, errors have heavy
tails, dimensions go together, people come back. Each repetition is one draw of all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from analysis_deviation import deviation_rows
from analysis_ixi import ixi_rows
from analysis_simulated import simulated_rows
from nilearn.mass_univariate import permuted_ols
from numpy.typing import NDArray
from rows import Row, as_row
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests

from kerasvae.analysis.permutation import permute

REPETITIONS = 500
PERMUTATIONS = 499
LEVEL, SURE = 0.05, 0.999
DIMENSIONS = 16
PACKAGES = ("kerasvae", "tensorflow", "keras", "numpy", "scipy", "scikit-learn", "statsmodels", "nilearn")
Numbers = NDArray[np.float64]


class Null(NamedTuple):
    """One draw in which the variable has nothing to do with the outcomes, given the covariates."""

    outcomes: Numbers
    variable: Numbers
    covariates: Numbers
    people: NDArray[np.intp]


def run(folder: Path, *, work: Path, only: str | None = None) -> list[Row]:
    """The rows of the benchmark.

    Args:
        folder: The folder of real data, of which `ixi` is read.
        work: Where runs are kept.
        only: One part.
    """
    parts: dict[str, Callable[[], list[Row]]] = {
        "null": null_rows,
        "statistics": statistics_rows,
        "simulated": lambda: simulated_rows(work / "simulated"),
        "ixi": lambda: ixi_rows(folder / "ixi", work),
        "deviation": lambda: deviation_rows(folder / "ixi", work),
    }
    if only not in (None, *parts):
        raise ValueError(f"--only must be one of {', '.join(parts)}; got {only!r}")
    rows = [row for name, part in parts.items() if only in (None, name) for row in part()]
    versions = {name: version(name) for name in PACKAGES}
    return [row | {"versions": versions} for row in rows]


def null_rows() -> list[Row]:
    """Rates of what is found where there is nothing, and of false ones among what is found."""
    kinds = {"covariates, heavy tails": _once, "two and three visits": _visits, "few of a group, five sites": _groups}
    single, family, joint, rows = [], [], [], []
    for number, (kind, draw) in enumerate(kinds.items()):
        found = [_tested(draw, 10_000 * number + seed) for seed in range(REPETITIONS)]
        alone = [each.p[0] <= LEVEL for each in found]
        any_ = [each.p_family.min() <= LEVEL for each in found]
        together = [each.p_joint <= LEVEL for each in found]
        for name, values in (("one dimension", alone), ("any of 16, family-wise", any_), ("jointly", together)):
            rows.append(_rate(f"{kind}: {name}", values))
        single += alone
        family += any_
        joint += together
    pooled = [("one dimension", single), ("any of 16, family-wise", family), ("jointly", joint)]
    rows = [_rate(f"pooled: {name}", values) for name, values in pooled] + rows
    naive = [
        ("without the covariates", _once, {"covariates": None}),
        ("rows taken for people", _visits, {"blocks": None}),
    ]
    for words, draw, left_out in naive:
        values = [_tested(draw, seed, **left_out).p[0] <= LEVEL for seed in range(REPETITIONS)]
        rows.append(as_row(f"{words}: one dimension", float(np.mean(values)), "rate"))
    return [*rows, *_false_discoveries()]


def _tested(draw: Callable[[np.random.Generator], Null], seed: int, **changed: Any) -> Any:
    made = draw(np.random.default_rng(seed))
    repeated = len(set(made.people.tolist())) < len(made.people)
    given: dict[str, Any] = {"covariates": made.covariates, "blocks": made.people if repeated else None}
    return permute(made.outcomes, made.variable, **(given | changed), permutations=PERMUTATIONS, seed=seed)


def _errors(rng: np.random.Generator, n: int) -> Numbers:
    """Student's t of 2.5 degrees of freedom, whose variance is large and whose fourth moment is infinite; mixed."""
    return rng.standard_t(2.5, (n, DIMENSIONS)) @ (np.eye(DIMENSIONS) + 0.5 * rng.normal(size=(DIMENSIONS, DIMENSIONS)))


def _once(rng: np.random.Generator) -> Null:
    """One visit each; the variable goes with age (r about 0.6), and so do the codes."""
    n = 100
    age = rng.uniform(20, 80, n)
    variable = 0.75 * stats.zscore(age) + rng.normal(size=n)
    return Null(_errors(rng, n) + 0.1 * age[:, None], variable, age[:, None], np.arange(n))


def _visits(rng: np.random.Generator) -> Null:
    """Two or three visits; a variable of the person with a part of the visit, beside time, which codes follow."""
    people = np.repeat(np.arange(45), np.r_[np.full(25, 2), np.full(20, 3)])
    n = len(people)
    time = np.concatenate([np.arange(k) for k in np.bincount(people)]) + rng.uniform(0, 0.3, n)
    trait = rng.normal(size=45)[people]
    outcomes = _errors(rng, 45)[people] + 0.5 * _errors(rng, n) + 0.5 * time[:, None]
    return Null(outcomes, trait + 0.3 * time + 0.2 * rng.normal(size=n), time[:, None], people)


def _groups(rng: np.random.Generator) -> Null:
    """Twelve patients among eighty, more at some sites, where the codes differ."""
    n = 80
    site = rng.integers(0, 5, n)
    odds = np.exp(0.5 * site)
    patient = np.zeros(n)
    patient[rng.choice(n, 12, replace=False, p=odds / odds.sum())] = 1
    return Null(_errors(rng, n) + site[:, None], patient, np.eye(5)[site][:, 1:], np.arange(n))


def _false_discoveries() -> list[Row]:
    """4 of 20 dimensions follow the variable: Benjamini and Hochberg at 0.05 on p by permutation."""
    shares, power = [], []
    for seed in range(REPETITIONS):
        rng = np.random.default_rng(50_000 + seed)
        age = rng.uniform(20, 80, 100)
        variable = 0.75 * stats.zscore(age) + rng.normal(size=100)
        true = np.arange(20) < 4
        outcomes = rng.normal(size=(100, 20)) + 0.05 * age[:, None] + 0.45 * variable[:, None] * true
        p = permute(outcomes, variable, age, permutations=1999, seed=seed).p
        found = multipletests(p, LEVEL, "fdr_bh")[0]
        shares.append((found & ~true).sum() / max(1, found.sum()))
        power.append(found[true].mean())
    rate, error = float(np.mean(shares)), float(np.std(shares, ddof=1) / math.sqrt(REPETITIONS))
    name = f"false discoveries at q ≤ 0.05, 4 of 20 dimensions true (standard error {error:.4f})"
    return [
        as_row(name, rate, "share", None, LEVEL + 2 * error, None, rate <= LEVEL + 2 * error),
        as_row("true ones found", float(np.mean(power)), "share"),
    ]


def statistics_rows() -> list[Row]:
    """t and p beside nilearn's and statsmodels'."""
    rng = np.random.default_rng(1)
    made, draws = _once(rng), 20_000
    ours = permute(made.outcomes, made.variable, made.covariates, permutations=draws, seed=1)
    theirs = permuted_ols(
        made.variable[:, None], made.outcomes, confounding_vars=made.covariates, n_perm=draws, random_state=2,
        output_type="dict",
    )  # fmt: skip
    full = np.c_[np.ones(len(made.variable)), made.covariates, made.variable]
    by_ols = [OLS(column, full).fit().tvalues[-1] for column in made.outcomes.T]
    rows = [
        _close(f"greatest relative difference of t from {name}", ours.statistic / np.asarray(t) - 1, 1e-8)
        for name, t in (("nilearn's permuted_ols", theirs["t"][0]), ("statsmodels' OLS", by_ols))
    ]
    p = 10 ** -theirs["logp_max_t"][0]
    apart = (ours.p_family - p) / np.sqrt(2 * p * (1 - p) / draws + draws**-2.0)
    return [
        *rows,
        _close(f"greatest difference of family-wise p from nilearn's, in standard errors of {draws} draws", apart, 4.0),
    ]


def _close(name: str, differences: Numbers, most: float) -> Row:
    value = float(np.abs(differences).max())
    return as_row(name, f"{value:.2g}", "", None, f"{most:g}", None, value <= most)


def _rate(name: str, found: list[bool]) -> Row:
    """A rate inside the exact interval of a binomial with 0.05."""
    low, high = stats.binom.interval(SURE, len(found), LEVEL)
    value = float(np.mean(found))
    peer = f"0.05: {low / len(found):.4f} to {high / len(found):.4f} in {len(found)}"
    return as_row(name, value, "rate", peer, None, None, bool(low <= sum(found) <= high))
