"""What is expected of a person's residual map given covariates, and how far from it each voxel is. No TensorFlow.

A residual is an image less its reconstruction, r = x − x̂. Two steps make a deviation of it, each learned from other
people than the one who is judged:

*Expectation*, from people the model learned from. They are many, but the model knows them, so that only the shape of
what is learned is used, not its size: the slope of each voxel's residual on the covariates, each voxel's variance, and
by what factor variances grow with a covariate (older people differ more). Slopes are drawn towards 0 by the share of
them that chance would give: with bᵥ/seᵥ = tᵥ, and β ~ N(0, τ² se²) over voxels, E[t²] = 1 + τ², and the posterior mean
is b τ² / (1 + τ²) (James & Stein 1961, Estimation with quadratic loss, Proc. 4th Berkeley Symp. 1:361; Efron & Morris
1973, Stein's estimation rule and its competitors, J. Am. Stat. Assoc. 68:117). A new person's residual less its slope,
in such standard deviations together with what the posterior leaves open of x̂, is a *standardised* residual.

*Calibration*, from people no weight was fitted to: mean and variance of standardised residuals, voxel by voxel; a
variance borrows from those of all voxels (`kerasvae.scoring.moderated_variance`). A new person's t = (u − m) / (s √(1 +
1/n)) has a Student's distribution with d₀ + n − 1 degrees of freedom if residuals are normal.

For a guarantee without that "if", `left_out` treats n calibration people and the new one alike: of each of the n + 1
the same t, calibrated on the n others. Any score of these maps is exchangeable if the people are, so that the rank of
the new person among the n + 1 is a conformal p-value (Vovk, Gammerman & Shafer 2005, Algorithmic Learning in a Random
World, section 2.2: full conformal prediction), and no calibration people are spent on scales alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasvae.errors import ArgumentError
from kerasvae.scoring import moderated_variance, normal_quantile

__all__ = ["Calibration", "Expectation", "calibrate", "fit_expectation", "left_out"]

Numbers = NDArray[np.float64]
SMALLEST = 1e-12
"""Part of the mean variance that no voxel's falls below."""
FURTHEST = 1e6
"""t beyond which it is no matter how far, as of a voxel in which all others are alike."""


@dataclass(frozen=True)
class Expectation:
    """Of v values, e.g. the voxels of a mask, given k covariates.

    Args:
        center: Means of the covariates, (k,); an unknown covariate is taken to have it.
        unit: Their standard deviations, (k,).
        slopes: Of the values for a standard deviation of a covariate, (k, v), drawn towards 0.
        variance: Of the values, (v,), those of people the model knows.
        growth: Of the logarithm of all variances for a standard deviation of a covariate, (k,).
    """

    center: Numbers
    unit: Numbers
    slopes: Numbers
    variance: Numbers
    growth: Numbers

    def less_trend(self, residual: ArrayLike, covariates: ArrayLike) -> Numbers:
        """Residuals less what goes with the covariates, in the unit of the spread for such covariates: (n, v).

        Args:
            residual: (n, v).
            covariates: (n, k), NaN where unknown.
        """
        known = self._coded(covariates)
        return (np.asarray(residual, np.float64) - known @ self.slopes) / np.exp(known @ self.growth / 2)[:, None]

    def standardise(self, residual: ArrayLike, covariates: ArrayLike, uncertainty: ArrayLike | None = None) -> Numbers:
        """Standardised residuals, (n, v): (r − trend) / √(variance · growth + uncertainty).

        Args:
            residual: (n, v).
            covariates: (n, k), NaN where unknown.
            uncertainty: Variance of the reconstruction over the person's posterior, (n, v).
        """
        found = self.less_trend(residual, covariates)
        if uncertainty is None:
            return np.asarray(found / np.sqrt(self.variance))
        extra = np.asarray(uncertainty, np.float64) / np.exp(self._coded(covariates) @ self.growth)[:, None]
        return np.asarray(found / np.sqrt(self.variance + extra))

    def _coded(self, covariates: ArrayLike) -> Numbers:
        given = np.asarray(covariates, np.float64)
        if given.ndim != 2 or given.shape[1] != len(self.center):
            rule = f"have a column for each of {len(self.center)}"
            raise ArgumentError(
                "covariates", rule=rule, got=f"shape {given.shape}", fix="Give those it was fitted with"
            )
        return np.nan_to_num((given - self.center) / self.unit, nan=0.0)


@dataclass(frozen=True)
class Calibration:
    """Mean and spread of v values over n people.

    Args:
        mean: (v,).
        stddev: Of a new person's value about it, (v,).
        degrees: Of freedom, of the spread; may be infinite.
    """

    mean: Numbers
    stddev: Numbers
    degrees: float

    def t(self, values: ArrayLike) -> Numbers:
        """How far values are from the mean, in their spread, (n, v)."""
        return np.asarray((np.asarray(values, np.float64) - self.mean) / self.stddev)

    def z(self, values: ArrayLike) -> Numbers:
        """The same as quantiles of a standard normal distribution: Φ⁻¹(T(t)), (n, v)."""
        return normal_quantile(self.t(values), self.degrees)


def fit_expectation(residual: ArrayLike, covariates: ArrayLike) -> Expectation:
    """Learn slopes, variances and their growth.

    Args:
        residual: Of people the model learned from, (n, v), n at least k + 3.
        covariates: Theirs, (n, k), NaN where unknown; k may be 0.

    Raises:
        ArgumentError: If people are too few, or a number is not finite.
    """
    r, given = np.asarray(residual, np.float64), np.asarray(covariates, np.float64)
    if r.ndim != 2 or given.ndim != 2 or len(given) != len(r) or len(r) < given.shape[1] + 3 or not r.shape[1]:
        rule = "be tables of the same people, three more than covariates at least"
        got = f"{r.shape} and {given.shape}"
        raise ArgumentError("residual and covariates", rule=rule, got=got, fix="Give more people, or fewer covariates")
    if not np.isfinite(r).all() or np.isinf(given).any():
        raise ArgumentError("residual and covariates", rule="be finite", got="other numbers", fix="Correct them")
    counted = np.isfinite(given)
    center = np.where(counted.any(axis=0), np.nansum(given, axis=0) / np.maximum(counted.sum(axis=0), 1), 0.0)
    away = np.nan_to_num(given - center, nan=0.0)
    unit = np.sqrt(np.square(away).sum(axis=0) / np.maximum(counted.sum(axis=0), 1))
    same = unit <= 1e-9 * np.maximum(1.0, np.abs(center))  # of a covariate that does not vary nothing is learned
    away, unit = np.where(same, 0.0, away), np.where(same, 1.0, unit)
    full = np.c_[np.ones(len(r)), away / unit]
    inverse = np.linalg.pinv(full)
    degrees = len(r) - np.linalg.matrix_rank(full)
    found = inverse @ r
    own = np.square(inverse).sum(axis=1)[1:]  # variance of a slope, in that of the values
    variance = moderated_variance(np.square(r - full @ found).sum(axis=0) / degrees, float(degrees))[0]
    least = max(SMALLEST * float(variance.mean()), np.finfo(np.float64).tiny)
    t2 = np.square(found[1:]) / np.maximum(own[:, None] * np.maximum(variance, least), np.finfo(np.float64).tiny)
    slopes = found[1:] * _shares(t2.mean(axis=1), degrees)[:, None]
    rest = r - found[0] - full[:, 1:] @ slopes
    variance = np.maximum(moderated_variance(np.square(rest).sum(axis=0) / degrees, float(degrees))[0], least)
    levels = np.log(np.maximum((np.square(rest) / variance).mean(axis=1), SMALLEST))
    growth = inverse @ levels
    error = np.square(levels - full @ growth).sum() / degrees
    growth = growth[1:] * _shares(np.square(growth[1:]) / np.maximum(own * error, SMALLEST), degrees)
    rest = rest / np.exp(full[:, 1:] @ growth / 2)[:, None]
    variance = np.maximum(moderated_variance(np.square(rest).sum(axis=0) / degrees, float(degrees))[0], least)
    return Expectation(center, unit, slopes, variance, growth)


def _shares(mean_square: Numbers, degrees: int) -> Numbers:
    """τ² / (1 + τ²) from the mean of t², whose mean by chance is degrees / (degrees − 2)."""
    chance = degrees / (degrees - 2) if degrees > 2 else math.inf
    return np.maximum(0.0, 1 - chance / np.maximum(mean_square, SMALLEST))


def calibrate(values: ArrayLike) -> Calibration:
    """Mean and spread of standardised values over people no weight was fitted to.

    Args:
        values: (n, v), n at least 3.
    """
    u = _people(values)
    n, mean = len(u), u.mean(axis=0)
    variance, degrees = moderated_variance(np.square(u - mean).sum(axis=0) / (n - 1), n - 1)
    return Calibration(mean, np.sqrt(_positive(variance) * (1 + 1 / n)), degrees)


def left_out(values: ArrayLike) -> tuple[Numbers, float]:
    """Of each person t by the calibration on all others, (n, v), and its degrees of freedom.

    How much variances borrow from each other is found once, from all n, so that everyone is treated alike.

    Args:
        values: (n, v), n at least 4.
    """
    u = _people(values, 4)
    n = len(u)
    total = u.sum(axis=0)
    mean = total / n
    scatter = np.square(u - mean).sum(axis=0)
    own = scatter / (n - 1)
    moderated, degrees = moderated_variance(own, n - 1)
    away = (u - mean) * (n / (n - 1))  # from the mean of the others
    rest = np.maximum(scatter - np.square(away) * ((n - 1) / n), 0.0) / (n - 2)
    if math.isinf(degrees):
        variance = np.broadcast_to(moderated, rest.shape)
    else:
        prior = degrees - (n - 1)
        here = int(own.argmin())  # where the least is lost in taking the two apart
        common = (degrees * moderated[here] - (n - 1) * own[here]) / prior if prior > 0 else 0.0
        variance = (prior * common + (n - 2) * rest) / (prior + n - 2)
        degrees -= 1
    t = away / np.sqrt(_positive(variance) * (1 + 1 / (n - 1)))
    return np.clip(t, -FURTHEST, FURTHEST), degrees


def _people(values: ArrayLike, least: int = 3) -> Numbers:
    u = np.asarray(values, np.float64)
    if u.ndim != 2 or len(u) < least or not u.shape[1] or not np.isfinite(u).all():
        rule = f"be finite numbers (n, v) of {least} people or more"
        raise ArgumentError("values", rule=rule, got=f"shape {u.shape}", fix="Add calibration people")
    return u


def _positive(variance: Numbers) -> Numbers:
    """Where nothing varies nothing is told: infinite there would hide it, zero would divide."""
    return np.maximum(variance, np.finfo(np.float64).tiny)
