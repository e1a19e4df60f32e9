"""What a code means in the image: the decoder's answer to a step in the latent space, with an interval.

All of it needs no more of a model than its decoder, a function from codes (n, d) to images (n, x, y, z). Maps are in
the image's units ("model units" after the pipeline), for one more of what is stepped along; a kerasvae image holds
intensities or tissue fractions, not displacements, so none is in millimetres.

The decoder's Jacobian is taken at the mean code by central differences, (f(c + hv) − f(c − hv)) / 2h, whose error is
h² f‴/6; h is a hundredth of a standard deviation, where that error and float32's are alike (each 3e-5 of the largest
value of a map of a t1-4mm model, beside TensorFlow's forward mode).

The map of an association moves the mean code along the slopes of the codes and decodes both ends. How sure it is comes
from a bootstrap over people (`kerasvae.analysis.maps.slopes`). Decoding each draw would cost hours; the Jacobian J
carries slopes to voxels instead: the map b ↦ Jb is linear, the interval is the map plus the percentiles of J(b* − b).
Of few people these are too narrow, as residuals are smaller than errors and quantiles are not Student's: they are
widened by √(n / (n − k)) and by Student's quantile over the normal one, n people and k columns of the model (Hesterberg
2015, What teachers should know about the bootstrap, Am. Stat. 69:371, the expanded percentile interval).
What is left out is how the decoder bends between draws, and how sure the decoder itself is: the model is taken as
given. `AssociationMap.bend` says how far the map itself is from Jb.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from kerasvae.analysis.maps.slopes import Contrast, bootstrap_slopes, count_people, residuals_of, slopes_of
from kerasvae.analysis.permutation import orthonormal
from kerasvae.types import Mask

__all__ = ["AssociationMap", "Decode", "association_map", "jacobian", "spread_of", "traverse"]

Numbers = NDArray[np.float64]
Decode = Callable[[Numbers], NDArray[np.floating]]
"""From codes (n, d) to their images (n, x, y, z), zero outside the mask."""
STEP = 0.01
"""Half the distance of a central difference, in standard deviations of the codes."""
INTERVAL = (2.5, 97.5)
VOXELS_AT_ONCE = 4096


def spread_of(codes: Numbers) -> tuple[Numbers, Numbers]:
    """Mean code and standard deviation of each dimension over scans, each (d,).

    Args:
        codes: (n, d).
    """
    return codes.mean(axis=0), codes.std(axis=0, ddof=1)


def traverse(decode: Decode, centre: ArrayLike, direction: ArrayLike, positions: ArrayLike) -> NDArray[np.float32]:
    """Images along a line through a code, (steps, x, y, z).

    Args:
        decode: The decoder.
        centre: (d,).
        direction: (d,): a step of length 1, e.g. one standard deviation of a dimension, or a slope.
        positions: (steps,): how many such steps from the centre each image is.
    """
    codes = np.asarray(centre, np.float64) + np.outer(
        np.asarray(positions, np.float64), np.asarray(direction, np.float64)
    )
    return np.asarray(decode(codes), np.float32)


def jacobian(decode: Decode, centre: ArrayLike, directions: ArrayLike, *, step: float = STEP) -> NDArray[np.float32]:
    """How each voxel moves per step in each direction, at a code, (k, x, y, z), by central differences.

    Args:
        decode: The decoder.
        centre: (d,).
        directions: (k, d): a row each, e.g. ``np.diag(stddev)`` for the standard deviation of each dimension.
        step: Half the distance, in lengths of the direction.
    """
    found = []
    for direction in np.asarray(directions, np.float64):
        low, high = np.asarray(traverse(decode, centre, direction, [-step, step]), np.float64)
        found.append(np.asarray((high - low) / (2 * step), np.float32))
    return np.stack(found)


@dataclass(frozen=True, kw_only=True)
class AssociationMap:
    """How the image changes with a variable, as far as codes and decoder know; images are (x, y, z), 0 outside.

    Args:
        slope: Model units for one more of the variable: decoded half a step of ±reach away on either side.
        low: Lower end of each voxel's 95 % interval; not corrected for their number.
        high: Upper end.
        z: slope over its bootstrap standard error.
        r: Partial correlation of the variable with the decoded voxel (to first order), given the covariates. It is of
            what codes hold of a voxel, and so larger than that of the voxel itself. Of several visits it counts people.
        centre: (d,): the mean code.
        code_slope: (d,): the slopes of the codes.
        bend: How far the map is from the Jacobian's, ‖map − Jb‖ / ‖map‖; 0 of a linear decoder.
        draws: How many bootstrap cohorts.
        offsets: (b, d): their slopes less `code_slope`, in standard deviations of the codes.
        widening: By what their percentiles are multiplied.
        gradient: (v, d): the Jacobian per standard deviation, in the mask.
        inside: (x, y, z): the mask.
    """

    slope: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    z: NDArray[np.float32]
    r: NDArray[np.float32]
    centre: Numbers
    code_slope: Numbers
    bend: float
    draws: int
    offsets: Numbers
    widening: float
    gradient: NDArray[np.float32]
    inside: Mask

    def mean_of(self, region: Mask) -> tuple[float, float, float]:
        """Mean of the map over a region's voxels in the mask, and the ends of its own 95 % interval.

        Args:
            region: (x, y, z).
        """
        mean = float(self.slope[region & self.inside].mean(dtype=np.float64))
        moved = self.offsets @ self.gradient[region[self.inside]].mean(axis=0, dtype=np.float64)
        low, high = mean + self.widening * np.percentile(moved, INTERVAL)
        return mean, float(low), float(high)


def association_map(
    decode: Decode,
    codes: Numbers,
    people: Sequence[str],
    contrast: Contrast,
    inside: Mask,
    *,
    bootstraps: int = 1000,
    seed: int = 0,
) -> AssociationMap:
    """The map of an association.

    Args:
        decode: The decoder.
        codes: (m, d): of the scans where all is known.
        people: (m,): whose.
        contrast: What is asked about.
        inside: (x, y, z): the mask.
        bootstraps: Cohorts that are drawn.
        seed: Of these.

    Raises:
        ArgumentError: As `bootstrap_slopes` does.
    """
    centre, stddev = spread_of(codes)
    stddev = np.where(stddev > 0, stddev, 1.0)
    slopes = slopes_of(codes, contrast, people)
    low_end, high_end = np.asarray(traverse(decode, centre, slopes, [-contrast.reach, contrast.reach]), np.float64)
    exact = ((high_end - low_end) / (2 * contrast.reach))[inside]
    gradient = np.ascontiguousarray(jacobian(decode, centre, np.diag(stddev))[:, inside].T)
    linear = gradient @ (slopes / stddev)
    drawn = bootstrap_slopes(codes, contrast, people, number=bootstraps, seed=seed)
    offsets = (drawn - slopes) / stddev
    widening = _widening(len(set(people)), contrast)
    low, high, error = np.empty_like(exact), np.empty_like(exact), np.empty_like(exact)
    for start in range(0, len(exact), VOXELS_AT_ONCE):
        part = slice(start, start + VOXELS_AT_ONCE)
        moved = gradient[part] @ offsets.T
        low[part], high[part] = exact[part] + widening * np.percentile(moved, INTERVAL, axis=1)
        error[part] = moved.std(axis=1, ddof=1)
    left, asked = residuals_of(codes, contrast, people)
    left = left / stddev
    together = gradient @ (left.T @ asked)
    scale = np.sqrt(np.einsum("vd,de,ve->v", gradient, left.T @ left, gradient, optimize=True) * (asked @ asked))
    size = float(np.linalg.norm(exact))

    def image(values: Numbers) -> NDArray[np.float32]:
        out = np.zeros(inside.shape, np.float32)
        out[inside] = values
        return out

    return AssociationMap(
        slope=image(exact),
        low=image(low),
        high=image(high),
        z=image(_ratio(exact, error)),
        r=image(count_people(_ratio(together, scale), contrast, people)),
        centre=centre,
        code_slope=slopes,
        bend=float(np.linalg.norm(exact - linear)) / size if size else 0.0,
        draws=len(drawn),
        offsets=offsets,
        widening=widening,
        gradient=gradient,
        inside=inside,
    )


def _widening(people: int, contrast: Contrast) -> float:
    """Of percentiles of the bootstrap, see above; more than 1, and near it where people are many."""
    held = orthonormal(contrast.held - contrast.held.mean(axis=0), least=contrast.held)
    degrees = max(1, people - 2 - held.shape[1])
    return float(np.sqrt(people / degrees) * stats.t.ppf(0.975, degrees) / stats.norm.ppf(0.975))


def _ratio(above: Numbers, below: Numbers) -> Numbers:
    """0 where nothing moves."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
