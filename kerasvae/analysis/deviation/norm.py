"""What people of some covariates are expected to look like, maps and codes together. No TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.deviation.focal import Bands
from kerasvae.analysis.deviation.normative import Expectation, fit_expectation
from kerasvae.analysis.deviation.residuals import Residuals
from kerasvae.analysis.deviation.scores import Deviation, Judge
from kerasvae.analysis.deviation.symmetry import fit_symmetry
from kerasvae.conformal import conformal_p
from kerasvae.scoring import distance, shrunk_precision
from kerasvae.types import Mask

__all__ = ["Norm"]

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Norm:
    """What people of some covariates are expected to look like, from those the model learned from and from others.

    Args:
        voxels: Of residual maps.
        codes: Of codes.
        judge: Against whom maps are held.
        distances: Of calibration people's codes, (n,).
        center: Of the learned people's codes, less their trend, (d,).
        precision: Inverse of their covariance, (d, d).
        focal: What bands are made of: residuals less trend and other side.
    """

    voxels: Expectation
    codes: Expectation
    judge: Judge
    distances: Numbers
    center: Numbers
    precision: Numbers
    focal: Callable[[NDArray[Any], Numbers], Numbers]

    @classmethod
    def fit(
        cls,
        learned: Residuals,
        calibration: Residuals,
        codes: tuple[Numbers, Numbers],
        covariates: tuple[Numbers, Numbers],
        mask: Mask,
        spacing: Sequence[float],
        regions: Sequence[NDArray[np.intp]] = (),
    ) -> Norm:
        """Learn it.

        Args:
            learned: Of people the model learned from.
            calibration: Of people it did not, one scan each.
            codes: Of both.
            covariates: Of both, (n, k), NaN where unknown.
            mask: (x, y, z).
            spacing: mm.
            regions: Voxels of each, as indices into those of the mask.
        """
        voxels, of_codes = (fit_expectation(values, covariates[0]) for values in (learned.missed, codes[0]))
        sides = fit_symmetry(voxels.less_trend(learned.missed, covariates[0]), mask)

        def focal(missed: NDArray[Any], given: Numbers) -> Numbers:
            return sides.less_mirror(voxels.less_trend(missed, given))

        standardised = voxels.standardise(calibration.missed, covariates[1], calibration.open)
        judge = Judge(standardised, focal(calibration.missed, covariates[1]), Bands(mask, spacing), regions)
        rest, new = (of_codes.standardise(*each) for each in zip(codes, covariates, strict=True))
        center, precision = shrunk_precision(rest)
        return cls(voxels, of_codes, judge, distance(new, center, precision), center, precision, focal)

    def of(self, missed: NDArray[Any], open_: NDArray[Any] | None, given: Numbers) -> Deviation:
        """The deviation of one scan: its residual, (v,), its variance, and its covariates, (k,)."""
        u = self.voxels.standardise(missed[None], given[None], None if open_ is None else open_[None])
        return self.judge(u[0], self.focal(missed[None], given[None])[0])

    def distance_of(self, code: Numbers, given: Numbers) -> tuple[float, float]:
        """Of a code, (d,), and its conformal p."""
        found = distance(self.codes.standardise(code[None], given[None]), self.center, self.precision)
        return float(found[0]), float(conformal_p(found, self.distances)[0])
