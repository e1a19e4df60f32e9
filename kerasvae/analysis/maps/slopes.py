"""How codes change with a variable: slopes of a linear model, and what they would be of other people.

The slope of each dimension on a variable, covariates held the same, is that of the residuals of both (Frisch & Waugh
1933, Partial time regressions as compared with individual trends, Econometrica 1:387). Where people have several visits
all columns are first whitened for an intercept of each person (`kerasvae.analysis.visits`), by one variance ratio of
all dimensions, as in the joint test of `kerasvae.analysis.association`: so slopes do not depend on the axes. Their
uncertainty is not what the model says: people are drawn again with replacement, each with all visits (Efron &
Tibshirani 1993, An Introduction to the Bootstrap, chapters 8.5 and 9.5: cases, in clusters), the ratio kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.design import Term, beside, model_of
from kerasvae.analysis.permutation import orthonormal
from kerasvae.analysis.visits import Visits
from kerasvae.errors import ArgumentError

__all__ = ["Contrast", "bootstrap_slopes", "contrasts_of", "count_people", "residuals_of", "slopes_of"]

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One column of a variable: what one more of it does.

    Args:
        name: Of the variable; of a category with the level, as in sex-M.
        meaning: What one more is.
        known: (n,): the m scans where the variable and the covariates are known.
        values: (m,): the column.
        held: (m, c): covariates, and other levels of the same variable.
        covariates: Names of the covariates.
        level: Whether it is a level against another, 1 against 0.
        reach: How far from the middle it is typically, in its unit: the standard deviation; half a step to a level.
    """

    name: str
    meaning: str
    known: NDArray[np.bool_]
    values: Numbers
    held: Numbers
    covariates: tuple[str, ...]
    level: bool
    reach: float

    @property
    def words(self) -> str:
        """What is held the same, in brackets."""
        return f" ({', '.join(self.covariates)} held the same)" if self.covariates else ""


def contrasts_of(variable: Term, covariates: Sequence[Term]) -> list[Contrast]:
    """A contrast for a number; of a category one for each level against the first.

    Raises:
        ArgumentError: As `model_of` does, or if the variable is a mix of the covariates.
    """
    covariates = beside(variable, covariates)
    model = model_of(variable, covariates)
    known, x, z, levels = model.known, model.variable, model.covariates, model.levels
    found = []
    for index, level in enumerate(levels):
        held = np.concatenate([z, np.delete(x, index, axis=1)], axis=1)
        contrast = Contrast(
            name=f"{variable.name}-{level}" if level else variable.name,
            meaning=f"{level} against {model.reference}" if level else f"a unit more of {variable.name}",
            known=known,
            values=x[:, index],
            held=held,
            covariates=tuple(term.name for term in covariates),
            level=bool(level),
            reach=0.5 if level else float(x[:, index].std(ddof=1)),
        )
        base = _basis(contrast)
        if np.linalg.norm(_off(base, contrast.values)) <= 1e-8 * np.linalg.norm(contrast.values):
            raise ArgumentError(variable.name, rule="be no mix of the covariates", got="one", fix="Leave one out")
        found.append(contrast)
    return found


def residuals_of(codes: Numbers, contrast: Contrast, people: Sequence[str]) -> tuple[Numbers, Numbers]:
    """What an intercept and that which is held the same leave of codes, (m, d), and of the variable, (m,).

    Args:
        codes: (m, d), of the scans that are known.
        contrast: What is asked about.
        people: (m,): whose.
    """
    codes, base, values = _weighed(codes, contrast, people)
    return _off(base, codes), _off(base, values)


def count_people(r: Numbers, contrast: Contrast, people: Sequence[str]) -> Numbers:
    """Partial correlations of whitened scans, as as many people with one scan each would have them for the same t."""
    if len(set(people)) == len(people):
        return r
    used = _basis(contrast).shape[1] + 1
    share = max(1, len(set(people)) - used) / (len(people) - used)
    return np.asarray(r / np.sqrt(np.square(r) + (1 - np.square(r)) * share))


def slopes_of(codes: Numbers, contrast: Contrast, people: Sequence[str]) -> Numbers:
    """Slope of each dimension, (d,), latent units for one more of the variable; arguments as of `residuals_of`."""
    left, along = residuals_of(codes, contrast, people)
    return np.asarray(along @ left / (along @ along))


def bootstrap_slopes(
    codes: Numbers, contrast: Contrast, people: Sequence[str], *, number: int = 1000, seed: int = 0
) -> Numbers:
    """Slopes of cohorts of as many people, drawn with replacement, (b, d).

    Args:
        codes: (m, d), of the scans that are known.
        contrast: What is asked about.
        people: (m,): whose.
        number: Cohorts. One in which the slope is not defined, as where a level is not drawn, is left out: b ≤ number.
        seed: Of the draws.

    Raises:
        ArgumentError: If the slope is not defined in half of them.
    """
    names, whose = np.unique(np.asarray(people), return_inverse=True)
    codes, base, values = _weighed(codes, contrast, people)
    along = _off(base, values)
    size = np.linalg.norm(along)
    full = np.concatenate([base, along[:, None] / size], axis=1)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        weight = np.sqrt(np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[whose])[:, None]
        solved, _, rank, _ = np.linalg.lstsq(full * weight, codes * weight, rcond=1e-10)
        if rank == full.shape[1]:
            found.append(solved[-1] / size)
    if 2 * len(found) < number:
        rule, got = "have a slope among people drawn anew", f"none in {number - len(found)} of {number} draws"
        raise ArgumentError(contrast.name, rule=rule, got=got, fix="Use fewer covariates, or more people")
    return np.array(found)


def _weighed(codes: Numbers, contrast: Contrast, people: Sequence[str]) -> tuple[Numbers, Numbers, Numbers]:
    """Codes, an orthonormal basis of what is held the same, and the variable, whitened where people have several."""
    base, values = _basis(contrast), contrast.values
    if len(set(people)) == len(people):
        return codes, base, values
    visits = Visits.of(people)
    full = orthonormal(np.concatenate([base, values[:, None]], axis=1))
    ratio = visits.ratio(full, orthonormal(_off(full, codes)))
    codes, base, values = (visits.whiten(each, ratio) for each in (codes, base, values[:, None]))
    return codes, orthonormal(base), values[:, 0]


def _off(base: Numbers, columns: Numbers) -> Numbers:
    return np.asarray(columns - base @ (base.T @ columns))


def _basis(contrast: Contrast) -> Numbers:
    return orthonormal(np.concatenate([np.ones((len(contrast.held), 1)), contrast.held], axis=1))
