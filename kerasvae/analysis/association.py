"""What goes with a latent code: a linear model of each dimension and of all together, given covariates.

Each dimension is the outcome, the variable what is asked about. p is by permutation (`kerasvae.analysis.permutation`),
so that it holds for heavy tails, dimensions that go together and repeated visits; over dimensions it is corrected for
the family (max-T), over everything that was asked for the false discovery rate (Benjamini & Hochberg 1995, Controlling
the false discovery rate, J. R. Stat. Soc. B 57:289). Slopes and their intervals are those of least squares; where
people have several visits, of a mixed model with an intercept for each person, fitted by restricted likelihood
(`kerasvae.analysis.visits`), and so are the statistics whose p is by permutation. r and intervals then have the degrees
of freedom of as many people, not scans: right of a variable that is the same at all visits of a person, careful of one
that changes.

A code is known with an uncertainty, its posterior's standard deviation. Were codes drawn from their posteriors again
and again, and the results pooled by Rubin's rules (Rubin 1987, Multiple Imputation for Nonresponse in Surveys, chapter
3), the variance of a slope would grow by what draws differ by. As a slope of least squares is linear in the code, both
parts have a closed form, and nothing is drawn: see `posterior_variance`.

The axes of a VAE are not identifiable: another training gives a rotation of them. The joint test does not depend on
the axes; a test of one dimension does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kerasvae.analysis.design import Term, beside, held_same, model_of
from kerasvae.analysis.latents import read_latents, refuse_told
from kerasvae.analysis.permutation import orthonormal, permute
from kerasvae.analysis.rotation import Kind, rotated
from kerasvae.analysis.visits import Visits
from kerasvae.errors import ArgumentError
from kerasvae.training.run import Run, table_path, write_described

__all__ = ["Association", "Associations", "associate", "associate_run", "fisher_interval", "posterior_variance"]

Numbers = NDArray[np.float64]
LEVEL = 0.95
JOINT = "joint"
"""In the place of a dimension: all of them together."""
MOST = 5
"""Dimensions that are named in a sentence."""
COLUMNS = {
    "variable": "what is asked about, a column of the cohort",
    "dimension": "of the latent code, from 0; joint: all of them together",
    "people": "in the test",
    "scans": "theirs",
    "slope": "latent units for one more of the variable's unit, or for its second level against its first",
    "low": "lower end of the slope's 95 % interval, by a linear model, or a mixed one where people have several visits",
    "high": "upper end",
    "stderr": "standard error of the slope",
    "stderr_posterior": "the same, with the uncertainty of the codes themselves (Rubin's rules in closed form)",
    "statistic": "t; F of a category of three levels or more; Pillai's trace of the joint test",
    "r": "partial correlation given the covariates, counting people; no sign of several columns, and jointly",
    "r_low": "lower end of its 95 % interval (Fisher's z, counting people)",
    "r_high": "upper end",
    "p": "two-sided, by permutation (Freedman-Lane; of a mixed model where people have several visits), alone",
    "p_family": "the same, family-wise over the dimensions (largest statistic of each permutation)",
    "p_bonferroni": "p times the number of dimensions",
    "q": "false discovery rate over all dimensions and variables of the table (Benjamini-Hochberg); joint tests apart",
    "p_model": "by the linear or mixed model, which supposes normal errors (F; degrees of freedom as of people)",
}


@dataclass(frozen=True, kw_only=True)
class Association:
    """A variable and a dimension.

    Args:
        variable: Its name.
        dimension: From 0; or "joint".
        people: In the test.
        scans: Theirs.
        slope: Latent units for one more of the variable's unit, or for its level against the first; NaN of a category
            of three levels or more, and of the joint test.
        low: Lower end of its 95 % interval.
        high: Upper end.
        stderr: Its standard error.
        stderr_posterior: The same, with the codes' own uncertainty; NaN where that is not known.
        statistic: t; F of a category of three levels or more; Pillai's trace of the joint test.
        r: Partial correlation (of a category and of the joint test its size, √R²); of several visits what as many
            people with one each would need for the same statistic.
        r_low: Lower end of its 95 % interval; NaN where it has no sign.
        r_high: Upper end.
        p: By permutation, two-sided, of this test alone.
        p_family: Corrected for the family of the dimensions.
        p_bonferroni: p times the number of dimensions, 1 at most.
        q: Benjamini and Hochberg's, over all dimensions of all variables that were asked about; of joint tests over
            these.
        p_model: Of the linear or mixed model, which supposes normal errors; NaN of the joint test.
    """

    variable: str
    dimension: int | str
    people: int
    scans: int
    slope: float = math.nan
    low: float = math.nan
    high: float = math.nan
    stderr: float = math.nan
    stderr_posterior: float = math.nan
    statistic: float
    r: float
    r_low: float = math.nan
    r_high: float = math.nan
    p: float
    p_family: float
    p_bonferroni: float
    q: float = math.nan
    p_model: float = math.nan

    def as_json(self) -> dict[str, Any]:
        """Its fields; a number that is not known is None."""
        return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in vars(self).items()}


@dataclass(frozen=True)
class Associations:
    """What `associate_run` found.

    Args:
        rows: One for each variable and dimension, the joint test of a variable last.
        held: Of each variable, what was held the same, see `kerasvae.analysis.design.held_same`.
        path: Of the table.
        rotation: Axes that dimensions are those of.
    """

    rows: list[Association]
    held: Mapping[str, Sequence[str]]
    path: Path
    rotation: Kind = "none"

    def describe(self) -> list[str]:
        """Of each variable a sentence: its joint test, and the dimensions that go with it."""
        axes = "" if self.rotation == "none" else f" on {self.rotation} axes"
        lines = []
        for joint in [row for row in self.rows if row.dimension == JOINT]:
            same = self.held.get(joint.variable)
            held = f", {', '.join(same)} held the same" if same else ""
            own = [row for row in self.rows if row.variable == joint.variable and row.dimension != JOINT]
            found = sorted((row for row in own if row.p_family <= 1 - LEVEL), key=lambda row: -abs(row.r))
            told = ", ".join(f"{row.dimension} (r {row.r:+.2f}, p {row.p_family:.4f})" for row in found[:MOST])
            more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
            together = (
                "not tested, as there are too few people"
                if math.isnan(joint.p)
                else f"R {joint.r:.2f}, p {joint.p:.4f}"
            )
            lines.append(
                f"{joint.variable}, {joint.people} people{held}: all {len(own)} dimensions together {together}; "
                f"one by one{axes}, family-wise p at most {1 - LEVEL:.2f}: {told or 'none'}{more}."
            )
        return lines


def associate_run(
    run: Run,
    variables: Sequence[str],
    covariates: Sequence[str] = (),
    *,
    roles: Sequence[str] | None = None,
    rotation: Kind = "none",
    permutations: int = 10_000,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Associations:
    """Test columns of a run's cohort against its codes, and write associations.tsv, which associations.json explains.

    A table of the same name is replaced.

    Args:
        run: Finished.
        variables: Columns that are asked about; see `kerasvae.analysis.latents.refuse_told`.
        covariates: Columns that are held the same.
        roles: Whose codes; None: all people's.
        rotation: Axes that dimensions are those of, see `kerasvae.analysis.rotation`.
        permutations: See `associate`.
        seed: See `associate`.
        out: The table; by default associations.tsv in the run's folder.
        progress: See `associate`.

    Raises:
        ArgumentError: If a column is missing or unfit, or the model was given it.
        RunError: If the run is not finished.
    """
    path = table_path(out, run.path / "associations.tsv")
    latents, turned = rotated(run, read_latents(run), rotation)
    latents = latents if roles is None else latents.of(roles)
    if not variables:
        raise ArgumentError("--variables", rule="name a column", got="none", fix="Add one, as in --variables age")
    refuse_told(run, variables, latents.roles)
    terms = [latents.term(name) for name in dict.fromkeys(variables)]
    known = [latents.term(name) for name in dict.fromkeys(covariates)]
    held = {term.name: held_same(term, beside(term, known)) for term in terms}
    rows = associate(
        latents.codes,
        latents.people,
        terms,
        known,
        stddev=latents.stddev,
        permutations=permutations,
        seed=seed,
        progress=progress,
    )
    about = {"covariates": list(covariates), "roles": sorted(set(latents.roles)), "permutations": permutations}
    about |= {"variables": {term.name: model_of(term, beside(term, known)).meaning for term in terms}}
    about |= {"held_same": held, "seed": seed}
    sections: dict[str, Any] = {"Settings": about}
    if rotation != "none":
        text = "a column for each axis that is tested, in the dimensions of latents.tsv; fitted to training people"
        sections["Rotation"] = {"Description": text, "Kind": rotation, "Matrix": turned.matrix.tolist()}
    write_described(path, map(vars, rows), COLUMNS, **sections)
    return Associations(rows, held, path, rotation)


def associate(
    codes: Numbers,
    people: Sequence[str],
    variables: Sequence[Term],
    covariates: Sequence[Term] = (),
    *,
    stddev: Numbers | None = None,
    permutations: int = 10_000,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Association]:
    """Test each variable against each dimension.

    Args:
        codes: (n, d), a row a scan.
        people: (n,): whose.
        variables: What is asked about, one at a time; others of them are no covariates unless named there too.
        covariates: What is held the same. A variable that is also one is left out of them for its own test.
        stddev: (n, d): standard deviations of the posteriors.
        permutations: See `kerasvae.analysis.permutation.permute`.
        seed: Of the permutations.
        progress: Told how many permutations of all are done.

    Returns:
        Of each variable d rows and one of the joint test. A scan where the variable or a covariate is not known is left
        out.

    Raises:
        ArgumentError: If too few scans are left, or as `permute` does.
    """
    from statsmodels.stats.multitest import multipletests

    codes = np.asarray(codes, np.float64)
    rows: list[Association] = []
    total = permutations * len(variables)
    for index, variable in enumerate(variables):
        rows += _of_variable(
            variable,
            beside(variable, covariates),
            codes,
            np.asarray(people),
            stddev,
            permutations,
            seed,
            lambda done, _, before=index * permutations: progress(before + done, total),  # type: ignore[misc]
        )
    joint = np.array([row.dimension == JOINT for row in rows])
    p, q = np.array([row.p for row in rows]), np.full(len(rows), np.nan)
    for asked in (joint, ~joint):
        told = asked & np.isfinite(p)
        if told.any():
            q[told] = multipletests(p[told], method="fdr_bh")[1]
    return [replace(row, q=float(each)) for row, each in zip(rows, q, strict=True)]


def _of_variable(
    variable: Term,
    covariates: list[Term],
    codes: Numbers,
    people: NDArray[np.str_],
    stddev: Numbers | None,
    permutations: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> list[Association]:
    known, x, z, *_ = model_of(variable, covariates)
    codes, people = codes[known], people[known]
    n_people, d, k = len(set(people.tolist())), codes.shape[1], x.shape[1]
    blocks = people if n_people < len(people) else None
    found = permute(
        codes, x, z, blocks=blocks, permutations=permutations, seed=seed, progress=progress, name=variable.name
    )
    base = orthonormal(np.concatenate([np.ones((len(z), 1)), z], axis=1))
    # scans of one person are not so many people
    free = max(1, n_people - base.shape[1] - k)
    slopes = _slopes(codes, x, base, blocks, free, None if stddev is None else stddev[known]) if k == 1 else None
    of_all: dict[str, Any] = {"variable": variable.name, "people": n_people, "scans": len(codes)}
    rows = []
    for index in range(d):
        f = found.statistic[index] ** 2 if k == 1 else found.statistic[index]
        own: dict[str, Any] = {
            "statistic": float(found.statistic[index]),
            "r": _correlation(f * k, free),
            "p": float(found.p[index]),
            "p_family": float(found.p_family[index]),
            "p_bonferroni": min(1.0, d * float(found.p[index])),
            "p_model": float(stats.f.sf(f, k, free)),
        }
        if slopes is not None:
            own["r"] = math.copysign(own["r"], found.statistic[index])
            own["r_low"], own["r_high"] = fisher_interval(own["r"], n_people - base.shape[1])
            own |= {name: float(values[index]) for name, values in slopes.items()}
        rows.append(Association(dimension=index, **of_all, **own))
    p, share = found.p_joint, found.joint / k
    r = _correlation(found.degrees * share / (1 - share), free) if share < 1 else math.sqrt(share)
    rows.append(Association(dimension=JOINT, statistic=found.joint, r=r, p=p, p_family=p, p_bonferroni=p, **of_all))
    return rows


def _correlation(explained: float, free: int) -> float:
    """√R² of what is explained, in units of the residual's variance."""
    return math.sqrt(explained / (explained + free)) if math.isfinite(explained) else 1.0


def fisher_interval(r: float, free: int) -> tuple[float, float]:
    """95 % interval of a partial correlation, whose artanh has the standard error 1/√(n − c − 3).

    Source: Fisher 1924, The distribution of the partial correlation coefficient, Metron 3:329.

    Args:
        r: Partial correlation.
        free: n − c − 1: people, less covariates and the intercept.
    """
    if free <= 2:
        return -1.0, 1.0
    if abs(r) >= 1:
        return r, r
    reach = stats.norm.ppf(0.5 + LEVEL / 2) / math.sqrt(free - 2)
    return math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach)


def posterior_variance(
    x: Numbers, base: Numbers, stddev: Numbers, visits: Visits | None = None, ratio: float = 0.0
) -> tuple[Numbers, Numbers]:
    """What drawing codes from their posteriors adds to the variance of slopes, (d,): between draws, and within them.

    With a the row of the pseudo-inverse of the model that gives the slope, draws of it differ by Σ aᵢ² sᵢ², and their
    own variance grows on average by Σ aᵢ² times Σ (1 − hᵢ) sᵢ² / (n − c − 2), hᵢ being the leverage of scan i. Of a
    mixed model a and h are those of whitened columns, which whitening takes back to scans.

    Args:
        x: (n, 1).
        base: (n, c + 1): columns that the intercept and the covariates span.
        stddev: (n, d): of the posteriors.
        visits: Whose scans, where people have several.
        ratio: Of the variance between people to that of visits.
    """
    full = np.concatenate([base, x], axis=1)
    weigh = (lambda columns: columns) if visits is None else (lambda columns: visits.whiten(columns, ratio))
    inverse = np.linalg.pinv(weigh(full))
    kept = np.ones(len(x))
    if visits is not None:
        kept -= (ratio / (1 + visits.counts * ratio))[visits.whose]
    leverage = np.einsum("ni,in->n", weigh(weigh(full)), weigh(inverse.T).T)
    squares = np.square(stddev, dtype=np.float64)
    slope = np.square(weigh(inverse[-1:].T)[:, 0])
    within = np.square(inverse[-1]).sum() * ((kept - leverage) @ squares) / (len(x) - full.shape[1])
    return slope @ squares, within


def _slopes(
    y: Numbers, x: Numbers, base: Numbers, people: NDArray[np.str_] | None, free: int, stddev: Numbers | None
) -> dict[str, Numbers]:
    """Slopes' fields of `Association`, (d,) each; people are given where some have several visits."""
    full, d = np.concatenate([base, x], axis=1), y.shape[1]
    visits = None if people is None else Visits.of(people)
    ratios = np.zeros(d) if visits is None else visits.ratios(full, y)
    found = np.full((3, d), np.nan)
    for index, ratio in enumerate(ratios):
        columns, outcome = full, y[:, index : index + 1]
        if visits is not None:
            columns, outcome = visits.whiten(full, ratio), visits.whiten(outcome, ratio)
        inverse = np.linalg.pinv(columns)
        slopes = inverse @ outcome
        variance = np.square(outcome - columns @ slopes).sum() / (len(y) - full.shape[1])
        found[:2, index] = slopes[-1, 0], variance * np.square(inverse[-1]).sum()
        if stddev is not None:
            found[2, index] = np.add(*posterior_variance(x, base, stddev[:, [index]], visits, ratio))[0]
    slope, squared, added = found
    reach = float(stats.t.ppf(0.5 + LEVEL / 2, free)) * np.sqrt(squared)
    ends = {"low": slope - reach, "high": slope + reach}
    return {"slope": slope, "stderr": np.sqrt(squared), "stderr_posterior": np.sqrt(squared + added), **ends}
