"""How codes change with a variable: slopes of least squares, and what they would be of other people.

The slope of each dimension on a variable, covariates held the same, is that of the residuals of both (Frisch & Waugh
1933, Partial time regressions as compared with individual trends, Econometrica 1:387). Where people have several visits
it is still that of least squares, with all visits; its uncertainty is not what least squares says, so people are drawn
again with replacement, each with all visits (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 8.5
and 9.5: cases, in clusters).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.design import Term, model_of
from kerasvae.analysis.permutation import orthonormal
from kerasvae.errors import ArgumentError

__all__ = ["Contrast", "bootstrap_slopes", "contrasts_of", "residuals_of", "slopes_of"]

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
        reach: How far from the middle it is typically, in its unit: the standard deviation; half a step to a level.
    """

    name: str
    meaning: str
    known: NDArray[np.bool_]
    values: Numbers
    held: Numbers
    covariates: tuple[str, ...]
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
    covariates = [term for term in covariates if term.name != variable.name]
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
            reach=0.5 if level else float(x[:, index].std(ddof=1)),
        )
        left = residuals_of(contrast.values[:, None], contrast)
        if np.linalg.norm(left) <= 1e-8 * np.linalg.norm(contrast.values):
            raise ArgumentError(variable.name, rule="be no mix of the covariates", got="one", fix="Leave one out")
        found.append(contrast)
    return found


def residuals_of(columns: Numbers, contrast: Contrast) -> Numbers:
    """What an intercept and that which is held the same leave of columns, (m, d)."""
    basis = _basis(contrast)
    return np.asarray(columns - basis @ (basis.T @ columns))


def slopes_of(codes: Numbers, contrast: Contrast) -> Numbers:
    """Slope of each dimension, (d,), latent units for one more of the variable.

    Args:
        codes: (m, d), of the scans that are known.
        contrast: What is asked about.
    """
    left = residuals_of(contrast.values[:, None], contrast)[:, 0]
    return np.asarray(left @ codes / (left @ left))


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
    left = residuals_of(contrast.values[:, None], contrast)
    size = np.linalg.norm(left)
    full = np.concatenate([_basis(contrast), left / size], axis=1)
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


def _basis(contrast: Contrast) -> Numbers:
    return orthonormal(np.concatenate([np.ones((len(contrast.held), 1)), contrast.held], axis=1))
