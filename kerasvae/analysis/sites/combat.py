"""ComBat: what a site shifts and stretches is estimated from people of several sites, and taken out.

Johnson, Li & Rabinovic 2007, Adjusting batch effects in microarray expression data using empirical Bayes methods,
Biostatistics 8:118; for scanners Fortin et al. 2018, Harmonization of cortical thickness measurements across scanners
and sites, NeuroImage 167:104, equation 2: feature v of person j at site i is

    y_ijv = α_v + x_ij β_v + σ_v (γ_iv + δ_iv ε_ijv),

with x what is to be kept (age, sex). Harmonised, it is α_v + x_ij β_v + (y_ijv − α_v − x_ij β_v − σ_v γ_iv) / δ_iv. The
sites' γ and δ² get priors whose constants are estimated over the features (normal and inverse gamma), so that a site
with few people is not taken at its word.

It is fitted to some people and applied to others, whose codes then depend on nobody else. As x enters, what is known of
a person is mixed into the harmonised features wherever δ ≠ 1: `ComBat.apply` without it leaves the person at the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasvae.errors import ArgumentError

__all__ = ["FEWEST", "ComBat"]

Numbers = NDArray[np.float64]
Cells = Sequence[str] | NDArray[np.str_]
FEWEST = 5
"""Scans of a site below which they say next to nothing about its scale."""
CLOSE = 1e-8
ROUNDING = 1e-9
"""Standard deviations that are a smaller part of the largest number of a feature are none."""
STEPS = 1000
"""The two estimates of a site are computed in turn until they change by a smaller part than CLOSE, at most so often."""


@dataclass(frozen=True)
class ComBat:
    """A harmoniser, fitted.

    Args:
        sites: Names of s sites.
        mean: α at the fitted people's mean of what is kept, in the features' unit, (v,).
        slopes: β, (k, v).
        kept_mean: Mean of what is kept, (k,).
        scale: σ, (v,).
        shift: γ of each site, in σ, (s, v).
        factor: δ of each site, without unit, (s, v).
    """

    sites: tuple[str, ...]
    mean: Numbers
    slopes: Numbers
    kept_mean: Numbers
    scale: Numbers
    shift: Numbers
    factor: Numbers

    @classmethod
    def fit(cls, data: ArrayLike, site: Cells, kept: ArrayLike | None = None, *, shrink: bool = True) -> ComBat:
        """Estimate what sites do.

        Args:
            data: (n, v): codes, or voxels of a mask, a row a person. A feature that does not vary within sites is left
                as it is; one that does not vary at a site is shifted there, and not stretched.
            site: (n,): where each was scanned.
            kept: (n, k): numbers that the features may follow whatever the site; by default none.
            shrink: Whether the features share the priors of empirical Bayes; a single feature has none.

        Raises:
            ArgumentError: If there is one site, a site has fewer than five scans, scans are too few for so many columns
                that are kept, or what is kept says where a person was scanned.
        """
        data = np.asarray(data, np.float64)
        sites, place = np.unique(np.asarray(site), return_inverse=True)
        counts = np.bincount(place)
        if len(sites) < 2:
            raise ArgumentError("The site", rule="have two levels or more", got=len(sites), fix="Nothing is to be done")
        if counts.min() < FEWEST:
            rule = f"have {FEWEST} scans or more of every level, one a person, to be fitted to"
            got = f"{counts.min()} of {str(sites[counts.argmin()])!r}"
            raise ArgumentError("The site", rule=rule, got=got, fix="Join sites, or leave these scans out")
        x = np.empty((len(data), 0)) if kept is None else np.asarray(kept, np.float64)
        kept_mean = x.mean(axis=0)
        design = np.concatenate([np.eye(len(sites))[place], _unit(x - kept_mean)], axis=1)
        if np.linalg.matrix_rank(design) < design.shape[1] or len(design) <= design.shape[1]:
            rule = "vary within sites, and be known of more scans than there are columns"
            raise ArgumentError("What is kept", rule=rule, got="columns that follow from the site", fix="Keep less")
        raw = np.concatenate([design[:, : len(sites)], x - kept_mean], axis=1)
        weights = np.linalg.lstsq(raw, data, rcond=None)[0]
        mean, slopes = counts / len(data) @ weights[: len(sites)], weights[len(sites) :]
        left, least = data - raw @ weights, ROUNDING * np.abs(data).max(axis=0)
        scale = np.sqrt(np.mean(np.square(left), axis=0))
        varies = scale > least
        scale = np.where(varies, scale, 1.0)
        shift, factor = np.zeros((len(sites), data.shape[1])), np.ones((len(sites), data.shape[1]))
        for index in range(len(sites)):
            own = place == index
            z = (data[own] - mean - (x[own] - kept_mean) @ slopes) / scale
            found, moves = z.mean(axis=0), varies & (left[own].std(axis=0) > least)
            variance = z.var(axis=0, ddof=1)[moves]
            shift[index, varies] = found[varies]
            if shrink and moves.sum() > 1:
                shift[index, moves], variance = _shrunk(found[moves], variance, len(z))
            factor[index, moves] = np.sqrt(variance)
        return cls(tuple(map(str, sites)), mean, slopes, kept_mean, scale, shift, factor)

    def apply(self, data: ArrayLike, site: Cells, kept: ArrayLike | None = None) -> Numbers:
        """Harmonised features, (n, v).

        Args:
            data: (n, v).
            site: (n,).
            kept: (n, k), as `fit` was given; by default the fitted people's mean for all, so that nothing but data and
                site enters.

        Raises:
            ArgumentError: If a site was not there to be fitted to.
        """
        place = self._places(site)
        away = None if kept is None else np.asarray(kept, np.float64) - self.kept_mean
        expected = self.mean if away is None else self.mean + away @ self.slopes
        rest = np.asarray(data, np.float64) - expected - self.scale * self.shift[place]
        return expected + rest / self.factor[place]

    def factors(self, site: Cells) -> Numbers:
        """By what the features of each person were divided, and standard deviations are to be: (n, v)."""
        return self.factor[self._places(site)]

    def _places(self, site: Cells) -> NDArray[np.int64]:
        known = {name: index for index, name in enumerate(self.sites)}
        if unseen := sorted({str(name) for name in site} - set(known)):
            rule = f"be one of those that it was fitted to: {', '.join(self.sites)}"
            fix = "Fit to people of that site, too, or leave them out"
            raise ArgumentError("The site", rule=rule, got=repr(unseen[0])[:60], fix=fix)
        return np.array([known[str(name)] for name in site], np.int64)

    def to_config(self) -> dict[str, Any]:
        """A JSON-serialisable description; `from_config` reverses it."""
        numbers = {name: value.tolist() for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return {"sites": list(self.sites), **numbers}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ComBat:
        """The harmoniser that `to_config` described."""
        numbers = {name: np.array(value, np.float64) for name, value in config.items() if name != "sites"}
        numbers["slopes"] = numbers["slopes"].reshape(-1, len(numbers["mean"]))
        return cls(tuple(config["sites"]), **numbers)


def _unit(x: Numbers) -> Numbers:
    """Columns of length 1, so that their rank does not depend on units."""
    length = np.linalg.norm(x, axis=0)
    return x / np.where(length > 0, length, 1.0)


def _shrunk(shift: Numbers, variance: Numbers, n: int) -> tuple[Numbers, Numbers]:
    """γ* and δ²* of a site: Johnson et al., section 3.2, whose hyperparameters come from moments over the features.

    The inverse gamma's constants grow without bound as the features' variances come to be the same, so both sides of
    the equation for δ²* are multiplied by the variance of these.

    Args:
        shift: Means of a site's standardised features, (v,).
        variance: Their variances, (v,).
        n: Scans of the site.
    """
    centre, spread = shift.mean(), shift.var(ddof=1)
    level, differ = variance.mean(), variance.var(ddof=1)
    gamma, delta = shift, variance
    for _ in range(STEPS):
        before = gamma, delta
        gamma = (n * spread * shift + delta * centre) / (n * spread + delta)
        squares = (n - 1) * variance + n * np.square(shift - gamma)
        delta = (level * (level**2 + differ) + differ * squares / 2) / (level**2 + differ * (n / 2 + 1))
        if all(np.allclose(new, old, rtol=CLOSE, atol=CLOSE) for new, old in zip((gamma, delta), before, strict=True)):
            break
    return gamma, delta
