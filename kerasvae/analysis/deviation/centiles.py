"""Centile charts: how a number is spread over people of each age, and where one person lies. No TensorFlow.

Each centile is a natural cubic spline in the covariate, by quantile regression (Koenker & Bassett 1978, Regression
Quantiles, Econometrica 46:33; statsmodels), so that neither a normal distribution nor an even spread is supposed.
Centiles that are estimated one by one can cross; sorting them at each age never makes them worse (Chernozhukov,
Fernández-Val & Galichon 2010, Quantile and probability curves without crossing, Econometrica 78:1093).

Beyond the outermost centile nothing is told but that: with n people a centile outside 1/n to 1 − 1/n is a guess.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from kerasvae.analysis.design import Term
from kerasvae.analysis.figures import LINE, OURS, PEER
from kerasvae.analysis.generation.conditional_codes import Variable
from kerasvae.errors import ArgumentError

__all__ = ["CENTILES", "Chart", "centile_figure", "fit_chart"]

Numbers = NDArray[np.float64]
CENTILES = (5.0, 25.0, 50.0, 75.0, 95.0)
LEAST = 20
"""People below whom 5 % is less than one."""
KNOTS = 3
STEPS = 61


@dataclass(frozen=True)
class Chart:
    """Of a number given a covariate.

    Args:
        at: Values of the covariate, rising, (m,), over the range of the people.
        curves: The centiles there, (m, c), rising in each row.
        people: How many it was fitted to.
    """

    at: Numbers
    curves: Numbers
    people: int

    def centile(self, value: float, covariate: float) -> float:
        """Where a person lies: between two centiles by a line, 0 or 100 beyond them; NaN outside the chart's range."""
        if not self.at[0] <= covariate <= self.at[-1]:
            return float("nan")
        here = [np.interp(covariate, self.at, curve) for curve in self.curves.T]
        return float(np.interp(value, here, CENTILES, left=0.0, right=100.0))


def fit_chart(values: ArrayLike, covariate: ArrayLike) -> Chart:
    """Fit the centiles.

    Args:
        values: (n,), n at least 20.
        covariate: (n,), e.g. age.

    Raises:
        ArgumentError: If people are too few, a number is not finite, or the covariate does not vary.
    """
    from statsmodels.regression.quantile_regression import QuantReg

    y, x = np.asarray(values, np.float64), np.asarray(covariate, np.float64)
    if y.shape != x.shape or y.ndim != 1 or len(y) < LEAST or not (np.isfinite(y).all() and np.isfinite(x).all()):
        rule = f"be finite numbers of the same {LEAST} people or more"
        got = f"shapes {y.shape} and {x.shape}"
        raise ArgumentError("values and covariate", rule=rule, got=got, fix="Leave out unknown ones, or add people")
    if np.ptp(x) == 0:
        raise ArgumentError("covariate", rule="vary", got=f"{x[0]:g} everywhere", fix="Name another")
    variable = Variable.of(Term("covariate", (), x[:, None]), KNOTS)
    at = np.linspace(x.min(), x.max(), STEPS)
    level, unit = y.mean(), y.std() or 1.0
    known, there = (np.c_[np.ones(len(places)), variable.columns(places)] for places in (x, at))
    fit = QuantReg((y - level) / unit, known)
    curves = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the covariance of the slopes, which is not used
        for centile in CENTILES:
            curves.append(there @ fit.fit(q=centile / 100, max_iter=5000).params)
    return Chart(at, level + unit * np.sort(np.stack(curves, axis=1), axis=1), len(y))


def centile_figure(
    charts: Mapping[str, Chart], points: Mapping[str, tuple[ArrayLike, ArrayLike]], covariate: str, unit: str
) -> Figure:
    """Charts side by side, at most three in a row, with people on them.

    Args:
        charts: By title.
        points: By title: covariate and value of the people to be shown.
        covariate: Its name.
        unit: Of the values.
    """
    rows = -(-len(charts) // 3)
    figure = Figure(figsize=(10, 3.1 * rows), layout="constrained")
    cells = figure.subplots(rows, min(3, len(charts)), squeeze=False).ravel()
    for axes in cells[len(charts) :]:
        axes.set_axis_off()
    for axes, (title, chart) in zip(cells, charts.items(), strict=False):
        middle = len(CENTILES) // 2
        for k in range(middle):
            axes.fill_between(chart.at, chart.curves[:, k], chart.curves[:, -1 - k], color=OURS, alpha=0.15, lw=0)
        axes.plot(chart.at, chart.curves[:, middle], color=OURS)
        axes.scatter(*points[title], s=14, color=PEER, zorder=3, edgecolor="white", linewidth=0.4)
        axes.set_title(title)
        axes.set_xlabel(covariate)
        axes.set_ylabel(unit)
        axes.grid(color=LINE, linewidth=0.6)
    return figure
