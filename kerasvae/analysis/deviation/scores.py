"""How far a person's image is from what is expected of such a person: in each voxel, in each region, as a whole.

Standardised residuals (`kerasvae.analysis.deviation.normative`) of calibration people and of new ones become

- *z* of each voxel: parametric, a standard normal deviate if residuals are normal. Benjamini and Hochberg's procedure
  on its two-sided p tells voxels with a false discovery rate that holds as far as the normal distribution does; it has
  no finite-sample guarantee;
- *extent*: root mean square of t over all voxels: how unusual the whole is;
- *focus*: the largest |t| of any band (`kerasvae.analysis.deviation.focal`), each person's bands in units of that
  person's own spread: how far one place stands out from all others;
- *t of each region*: of the mean of standardised residuals over it.

Extent, focus and regions have conformal p-values with a finite-sample guarantee (`left_out` in
`kerasvae.analysis.deviation.normative`); of all voxels, and of all regions, the largest is compared with the largest of
each calibration person, so that a healthy person has any told with a probability of at most α. No TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasvae.analysis.deviation.focal import Bands
from kerasvae.analysis.deviation.normative import calibrate, left_out
from kerasvae.conformal import conformal_p
from kerasvae.scoring import normal_quantile

__all__ = ["Deviation", "Judge", "region_means", "told"]

Numbers = NDArray[np.float64]
NORMAL_MAD = 1.4826022185056018
"""Standard deviation of a normal distribution over its median absolute deviation, 1 / Φ⁻¹(3/4)."""
SCORES = ("extent", "focus")


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """One person's.

    Args:
        z: Of each voxel, (v,), parametric.
        extent: Root mean square of t over voxels.
        focus: Largest |band| in the person's own spread.
        place: Voxel of it, an index into v.
        focus_map: (v,): in each voxel the largest |band| over widths, with the band's sign.
        p: Conformal p by score: extent, focus, and regions, the most unusual of all regions.
        p_voxels: Conformal, family-wise over voxels and bands, (v,).
        regions: t of each region, (r,), as quantiles of a normal distribution.
        p_regions: Conformal, of each region alone, (r,).
        p_regions_family: Family-wise over the regions, (r,).
    """

    z: NDArray[np.float32]
    extent: float
    focus: float
    place: int
    focus_map: NDArray[np.float32]
    p: dict[str, float]
    p_voxels: NDArray[np.float32]
    regions: Numbers
    p_regions: Numbers
    p_regions_family: Numbers


class Judge:
    """What calibration people look like, against whom new people are judged, one at a time.

    Args:
        standardised: Theirs, (n, v), n at least 3.
        detrended: Residuals less their trend, which bands are made of, (n, v); see `Expectation.less_trend`.
        bands: The filter.
        regions: Voxels of each region as indices into v.
    """

    def __init__(
        self, standardised: ArrayLike, detrended: ArrayLike, bands: Bands, regions: Sequence[NDArray[np.intp]] = ()
    ) -> None:
        self._u = np.asarray(standardised, np.float64)
        self._bands, self._filter = [np.asarray(band) for band in bands(detrended)], bands
        self._places = list(regions)
        self._regions = region_means(self._u, self._places)
        self._scale = calibrate(self._u)

    def __call__(self, standardised: ArrayLike, detrended: ArrayLike) -> Deviation:
        """Judge one person.

        Args:
            standardised: (v,).
            detrended: (v,).
        """
        u, rest = (np.asarray(each, np.float64)[None] for each in (standardised, detrended))
        t, _ = left_out(np.concatenate([self._u, u]))
        extents = np.sqrt(np.square(t).mean(axis=1))
        maxima, own = self._of_bands(list(self._filter(rest)))
        largest = np.take_along_axis(own, np.abs(own).argmax(axis=0)[None], axis=0)[0]
        p_voxels = conformal_p(np.abs(largest), maxima[:-1])
        found = {"extent": float(conformal_p(extents[-1:], extents[:-1])[0])}
        found["focus"] = float(conformal_p(maxima[-1:], maxima[:-1])[0])
        regions, p_regions, p_family = self._of_regions(u)
        if len(regions):
            found["regions"] = float(p_family.min())
        return Deviation(
            z=self._scale.z(u)[0].astype(np.float32),
            extent=float(extents[-1]),
            focus=float(maxima[-1]),
            place=int(np.abs(largest).argmax()),
            focus_map=largest.astype(np.float32),
            p=found,
            p_voxels=p_voxels.astype(np.float32),
            regions=regions,
            p_regions=p_regions,
            p_regions_family=p_family,
        )

    def _of_bands(self, bands: Sequence[Numbers]) -> tuple[Numbers, Numbers]:
        """The focus of each calibration person and of the new one, (n + 1,), and the new one's bands, (b, v)."""
        found, own = np.zeros(len(self._u) + 1), []
        for known, new in zip(self._bands, bands, strict=True):
            t = self._in_own_spread(left_out(np.concatenate([known, new]))[0])
            found = np.maximum(found, np.abs(t).max(axis=1))
            own.append(t[-1])
        return found, np.stack(own)

    @staticmethod
    def _in_own_spread(t: Numbers) -> Numbers:
        """Less its median, in its median absolute deviation, that of a normal distribution being 1: (n, v)."""
        away = t - np.median(t, axis=1, keepdims=True)
        spread = np.median(np.abs(away), axis=1, keepdims=True) * NORMAL_MAD
        return np.asarray(away / np.where(spread > 0, spread, 1.0))

    def _of_regions(self, u: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        if not self._places:
            return np.empty(0), np.empty(0), np.empty(0)
        t, degrees = left_out(np.concatenate([self._regions, region_means(u, self._places)]))
        size = np.abs(t)
        alone = np.array([conformal_p(column[-1:], column[:-1])[0] for column in size.T])
        family = conformal_p(size[-1], size[:-1].max(axis=1))
        return normal_quantile(t[-1], degrees), alone, np.asarray(family)


def region_means(values: ArrayLike, regions: Sequence[NDArray[np.intp]]) -> Numbers:
    """Mean of maps (n, v) over each region, (n, r).

    Args:
        values: (n, v).
        regions: Indices into v, one or more each.
    """
    rows = np.asarray(values, np.float64)
    if not regions:
        return np.empty((len(rows), 0))
    # contiguous, so that a person's mean is the same to the last digit whoever else is there
    return np.stack([np.ascontiguousarray(rows[:, places]).mean(axis=1) for places in regions], axis=1)


def told(z: ArrayLike, alpha: float = 0.05) -> NDArray[np.bool_]:
    """Voxels that Benjamini and Hochberg's procedure tells at a false discovery rate, from parametric z, (v,).

    It supposes that z of healthy people is standard normal. For two-sided p of voxels that go together the procedure is
    proved for no more than positive dependence (Benjamini & Yekutieli 2001, Ann. Stat. 29:1165), which residuals do
    not keep to everywhere: take it as approximate.

    Args:
        z: (v,).
        alpha: The rate.
    """
    from scipy.stats import false_discovery_control, norm

    return np.asarray(false_discovery_control(2 * norm.sf(np.abs(np.asarray(z, np.float64)))) <= alpha)
