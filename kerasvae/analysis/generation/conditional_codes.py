"""Where the codes of people lie of whom something is known: z | c ~ N(B d(c), S). No TensorFlow.

What is wanted is the aggregate posterior of such people, q(z|c) = E[q(z|x) | c]: a decoder has learned to make images
of its draws. Its mean is that of the posterior means given c, and its covariance, by the law of total variance, the
covariance of these means given c and the mean of the posterior covariances:

- B is that of least squares of the means; what the posteriors leave open does not move it;
- S is the covariance of the residuals, over n − k degrees of freedom, shrunk (Ledoit & Wolf 2004, A well-conditioned
  estimator for large-dimensional covariance matrices, J. Multivar. Anal. 88:365), and the mean of the posterior
  covariances. Without them draws would lie too close, the more so the less a code says: of a dimension that the
  model does not use the means are all alike, and what it decodes are draws of the prior.

d(c) holds 1, for each category an indicator of each level but the first, and for each number a natural cubic spline:
straight beyond its outer knots, and with two knots a straight line. There are no interactions: an effect of age is the
same for women and men. S is the same for all c.

Moving a code from c to c′, z′ = z + B (d(c′) − d(c)), leaves the residual z − B d(c) as it is: what is the person's
own. It is the counterfactual of a model with additive noise (Pearl 2009, Causality, 2nd edition, section 7.1:
abduction, action, prediction), and causal only as far as nothing else makes codes and c go together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasvae.analysis.design import Term
from kerasvae.covariates import MISSING
from kerasvae.errors import ArgumentError, nearest

__all__ = ["KNOTS", "ConditionalCodes", "Variable"]

Numbers = NDArray[np.float64]
KNOTS: Mapping[int, tuple[float, ...]] = {
    2: (0.0, 1.0),
    3: (0.1, 0.5, 0.9),
    4: (0.05, 0.35, 0.65, 0.95),
    5: (0.05, 0.275, 0.5, 0.725, 0.95),
}
"""Quantiles of a number at which its knots stand (Harrell 2015, Regression Modeling Strategies, table 2.3)."""
LEAST, EACH = 10, 4
"""People that there must be, in all and for each column of d(c)."""


@dataclass(frozen=True)
class Variable:
    """A variable as columns of d(c).

    Args:
        name: Of the column.
        levels: Of a category; none of a number.
        low: Smallest number among the people learned from; 0 of a category.
        high: Largest.
        knots: Of a number's spline, two or more, rising.
    """

    name: str
    levels: tuple[str, ...]
    low: float
    high: float
    knots: tuple[float, ...]

    @classmethod
    def of(cls, term: Term, knots: int) -> Variable:
        """Of a term whose values are all known.

        Args:
            term: Its values are those of the people learned from.
            knots: See `KNOTS`; fewer where quantiles coincide.
        """
        if term.levels:
            return cls(term.name, term.levels, 0.0, len(term.levels) - 1.0, ())
        x = term.values[:, 0]
        low, high = float(x.min()), float(x.max())
        places = tuple(np.unique(np.quantile(x, KNOTS[knots])).tolist())
        return cls(term.name, (), low, high, places if len(places) > 1 else (low, high))

    def number(self, cell: str) -> float:
        """A cell of a table as a number: itself, or the place of a level, from 0.

        Raises:
            ArgumentError: If it is no level, no number, or not known.
        """
        text = str(cell).strip()
        what = f"The value of {self.name}"
        if self.levels:
            if text not in self.levels:
                close = nearest(text, self.levels)
                fix = f"Did you mean {close}?" if close else "Use one of these"
                raise ArgumentError(what, rule=f"be one of {', '.join(self.levels)}", got=repr(text)[:60], fix=fix)
            return float(self.levels.index(text))
        try:
            value = math.nan if text.casefold() in MISSING else float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ArgumentError(what, rule="be a number", got=repr(text)[:60], fix="Give it in the cohort's unit")
        return value

    def columns(self, numbers: Numbers) -> Numbers:
        """Columns of d(c), (n, k), of numbers, (n,)."""
        if self.levels:
            return np.equal.outer(numbers, np.arange(1, len(self.levels))).astype(np.float64)
        from scipy.interpolate import CubicSpline

        # the splines that are 1 at one knot and 0 at all others; they sum to 1, so that the first says nothing new
        spline = CubicSpline(self.knots, np.eye(len(self.knots)), bc_type="natural")
        inside = np.clip(numbers, self.knots[0], self.knots[-1])
        return (spline(inside) + spline(inside, 1) * (numbers - inside)[:, None])[:, 1:]

    def beyond(self, number: float) -> str:
        """A sentence about a number outside the range of the people learned from; else nothing."""
        if self.low <= number <= self.high:
            return ""
        return (
            f"{self.name} {number:g} is outside {self.low:g} to {self.high:g}, the range of the people learned from: "
            "what is made of it is extrapolated."
        )


@dataclass(frozen=True)
class ConditionalCodes:
    """Codes given v variables: z | c ~ N(B d(c), S).

    Args:
        variables: In the order of the columns of `numbers`; none where codes depend on nothing.
        slopes: B, (k, d), the first row that of the intercept.
        covariance: S, (d, d).
        people: How many it was fitted to.
    """

    variables: tuple[Variable, ...]
    slopes: Numbers
    covariance: Numbers
    people: int

    @classmethod
    def fit(
        cls,
        codes: ArrayLike,
        terms: Sequence[Term] = (),
        *,
        stddev: ArrayLike | None = None,
        people: Sequence[Any] | None = None,
        knots: int = 2,
    ) -> ConditionalCodes:
        """Least squares. Scans of which a variable is not known are left out; of several of a person the first counts.

        Args:
            codes: Posterior means, (n, d), a row a scan.
            terms: What codes may depend on.
            stddev: Standard deviations of the posteriors, (n, d); where dimensions go together in them A, (n, d, k),
                with A Aᵀ their covariances; None where they have none.
            people: (n,): whose each scan is; None: each is another's.
            knots: Of the curve of each number, 2 to 5; 2 is a straight line.

        Raises:
            ArgumentError: If there are too few people, or a variable follows from the others.
        """
        from sklearn.covariance import ledoit_wolf

        z = np.asarray(codes, np.float64)
        if knots not in KNOTS:
            raise ArgumentError("knots", rule="be 2 (a line) to 5", got=knots, fix="Use 2, or 4 for a curve")
        known = np.logical_and.reduce([np.ones(len(z), bool), *(term.known for term in terms)])
        first: dict[Any, int] = {}
        for row in np.flatnonzero(known).tolist():
            first.setdefault(row if people is None else people[row], row)
        rows = list(first.values())
        own = [Term(term.name, term.levels, term.values[rows]) for term in terms]
        width = 1 + sum(term.values.shape[1] if term.levels else knots - 1 for term in own)
        least = max(LEAST, EACH * width)
        if len(rows) < least:
            names = ", ".join(term.name for term in terms)
            raise ArgumentError(
                "The run",
                rule=f"have {least} people to learn from" + (f", with {names} known" if names else ""),
                got=len(rows),
                fix="Name fewer variables, or use fewer knots" if width > 1 else "Train on more people",
            )
        variables = tuple(Variable.of(term, knots) for term in own)
        x = _design(variables, np.stack([_places(term) for term in own], axis=1) if own else np.empty((len(rows), 0)))
        if np.linalg.matrix_rank(x) < x.shape[1]:
            names = ", ".join(term.name for term in terms)
            rule = "vary, each beside the others, among the people learned from"
            raise ArgumentError(names, rule=rule, got="one that follows from the others", fix="Leave one out")
        slopes = np.asarray(np.linalg.lstsq(x, z[rows], rcond=None)[0], np.float64)
        scaled = (z[rows] - x @ slopes) * math.sqrt(len(rows) / (len(rows) - x.shape[1]))
        # along one axis there is nothing to shrink, which scikit-learn warns of
        alone = z.shape[1] == 1
        spread = np.asarray(np.cov(scaled.T, ddof=0) if alone else ledoit_wolf(scaled, assume_centered=True)[0])
        spread = spread.reshape(z.shape[1], z.shape[1])
        if stddev is not None:
            spread = spread + _mean_covariance(np.asarray(stddev, np.float64)[rows])
        return cls(variables, slopes, spread, len(rows))

    def numbers(self, table: Mapping[str, Sequence[str]]) -> Numbers:
        """Cells of a table as numbers, (n, v); of no variable, (1, 0), which stands for anybody.

        Args:
            table: Name to cells; others than the variables' are not looked at.

        Raises:
            ArgumentError: As `Variable.number`, or if a variable is missing.
        """
        if absent := [variable.name for variable in self.variables if variable.name not in table]:
            raise ArgumentError(absent[0], rule="be given, as codes depend on it", got="nothing", fix="Give a value")
        cells = [[variable.number(cell) for cell in table[variable.name]] for variable in self.variables]
        return np.array(cells, np.float64).T if cells else np.empty((1, 0))

    def mean(self, rows: Numbers) -> Numbers:
        """B d(c), (n, d), of rows of `numbers`, (n, v)."""
        return _design(self.variables, rows) @ self.slopes

    def sample(self, rows: Numbers, count: int, seed: int) -> Numbers:
        """Draws of z | c, (count, n, d), of rows of `numbers`, (n, v)."""
        noise = np.random.default_rng(seed).standard_normal((count, len(rows), len(self.covariance)))
        return self.mean(rows) + noise @ np.linalg.cholesky(self.covariance).T

    def shift(self, codes: ArrayLike, before: Numbers, after: Numbers) -> Numbers:
        """z + B (d(c′) − d(c)), (n, d): codes, (n, d), of people with the rows `before`, were they as `after` says."""
        return np.asarray(codes, np.float64) + (self.mean(after) - self.mean(before))

    def whitened(self, codes: ArrayLike) -> Numbers:
        """Codes, (n, d), in axes in which S is the identity: their distances are Mahalanobis's, whatever the axes."""
        root = np.linalg.cholesky(self.covariance)
        return np.linalg.solve(root, np.asarray(codes, np.float64).T).T


def _mean_covariance(spread: Numbers) -> Numbers:
    """Of posteriors, (d, d): of their standard deviations, (n, d), or of A, (n, d, k), with A Aᵀ their covariances."""
    if spread.ndim == 2:
        return np.diag(np.square(spread).mean(axis=0))
    side_by_side = spread.transpose(1, 0, 2).reshape(spread.shape[1], -1)
    return np.asarray(side_by_side @ side_by_side.T / len(spread))


def _places(term: Term) -> Numbers:
    """The numbers of a term, (n,): its own, or the place of each level."""
    return term.values @ np.arange(1.0, term.values.shape[1] + 1) if term.levels else term.values[:, 0]


def _design(variables: Sequence[Variable], rows: Numbers) -> Numbers:
    """d(c), (n, k), of (n, v)."""
    columns = [variable.columns(rows[:, index]) for index, variable in enumerate(variables)]
    return np.concatenate([np.ones((len(rows), 1)), *columns], axis=1)
