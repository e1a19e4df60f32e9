"""What a scanner makes of a brain: contrast, gain, a bias field and Rician noise. No TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kerasvae.types import Array, Grid, Mask

__all__ = ["BIAS_TERMS", "Site", "acquire", "draw_site", "site_of"]

FULL_SCALE = 195.0
"""Value in the file of intensity 1 where the bias field is 1; pure white matter comes out at about 170, as in IXI."""
COIL_FALLOFF = 0.2
"""How much the logarithm of the intensity falls from the centre of the brain to 75 mm away, along each axis."""
SCAN_BIAS_SD = 0.04
"""Between scans, of each of the nine coefficients of the bias field; units of log intensity at 75 mm."""
SCAN_GAIN_SD = 0.05
"""Between scans, of the logarithm of the gain."""
NOISE = 0.026
"""Standard deviation of the noise of the first site, in units of intensity."""
SITE_GAIN_SD, SITE_CONTRAST_SD, SITE_NOISE_SD, SITE_BIAS_SD = 0.15, 0.10, 0.25, 0.05
"""Between sites, of the logarithms of gain, contrast and noise, and of the coefficients of the bias field: a choice."""

BIAS_TERMS = ("x", "y", "z", "xy", "xz", "yz", "xx", "yy", "zz")
"""The polynomials of the bias field, in units of 75 mm from `CENTRE_MM`."""
CENTRE_MM, RADIUS_MM = (0.0, -18.0, 8.0), 75.0

_SCAN, _SITE, _PLACE = 3, 5, 6


@dataclass(frozen=True)
class Site:
    """A scanner and its protocol.

    Args:
        number: Counts from 0.
        gain: Factor of the intensity.
        contrast: Exponent of the intensity, which is 1 for the brightest tissue; above 1 darkens grey matter more
            than white.
        noise: Standard deviation of the noise in each of two channels, units of intensity.
        bias: Coefficients of `BIAS_TERMS` in log intensity.
    """

    number: int
    gain: float
    contrast: float
    noise: float
    bias: tuple[float, ...]

    @property
    def name(self) -> str:
        """As in the tables: ``site-1`` is the first."""
        return f"site-{self.number + 1}"


def draw_site(seed: int, number: int) -> Site:
    """The scanner of this number; the first one (0) is the reference, like IXI's."""
    if number == 0:
        return Site(0, 1.0, 1.0, NOISE, (0.0,) * len(BIAS_TERMS))
    normal = np.random.default_rng((seed, _SITE, number)).standard_normal(3 + len(BIAS_TERMS))
    return Site(
        number=number,
        gain=float(np.exp(SITE_GAIN_SD * normal[0])),
        contrast=float(np.exp(SITE_CONTRAST_SD * normal[1])),
        noise=float(NOISE * np.exp(SITE_NOISE_SD * normal[2])),
        bias=tuple(float(SITE_BIAS_SD * value) for value in normal[3:]),
    )


def site_of(seed: int, index: int, sites: int) -> int:
    """Number of the site of a person, drawn evenly: age, sex and disease are alike at all sites."""
    return int(np.random.default_rng((seed, _PLACE, index)).integers(sites))


def acquire(
    t1: Array, inside: Mask, grid: Grid, site: Site, *, seed: int, index: int, visit: int
) -> tuple[NDArray[np.uint8], dict[str, float]]:
    """A skull-stripped scan of a brain.

    The signal is gain · t1^contrast · exp(bias); the noise is Rician, the length of a vector with independent normal
    noise in both components (Gudbjartsson and Patz 1995, Magn. Reson. Med. 34:910, eq. 1).

    Args:
        t1: float32 (x, y, z), noiseless intensity, 0 to 1.
        inside: bool (x, y, z); everything else is 0 in the scan.
        grid: Where the voxels are, in MNI millimetres.
        site: The scanner.
        seed: Of the cohort.
        index: Of the person.
        visit: Number of the visit, from 0.

    Returns:
        uint8 (x, y, z), and what was drawn for this scan: its gain, and its bias field by `BIAS_TERMS`.
    """
    rng = np.random.default_rng((seed, _SCAN, index, visit))
    normal = rng.standard_normal(1 + len(BIAS_TERMS))
    gain = site.gain * float(np.exp(SCAN_GAIN_SD * normal[0]))
    bias = np.array(site.bias) + SCAN_BIAS_SD * normal[1:]
    falloff = COIL_FALLOFF * np.array([name in ("xx", "yy", "zz") for name in BIAS_TERMS])
    signal = np.float32(gain) * np.maximum(t1, 0) ** np.float32(site.contrast) * _bias_field(grid, bias - falloff)
    noise = rng.standard_normal((2, *grid.shape), dtype=np.float32) * np.float32(site.noise)
    scan = np.hypot(signal + noise[0], noise[1]) * inside
    drawn = {"gain": gain} | {f"bias_{name}": float(value) for name, value in zip(BIAS_TERMS, bias, strict=True)}
    return np.clip(np.rint(scan * np.float32(FULL_SCALE)), 0, 255).astype(np.uint8), drawn


def _bias_field(grid: Grid, coefficients: NDArray[np.float64]) -> Array:
    """exp of a polynomial of second degree, float32 (x, y, z), about 1 on average over a brain."""
    lines = [
        (grid.matrix[axis, 3] + grid.spacing[axis] * np.arange(size) - CENTRE_MM[axis]) / RADIUS_MM
        for axis, size in enumerate(grid.shape)
    ]
    place = dict(zip("xyz", np.meshgrid(*lines, indexing="ij", sparse=True), strict=True))
    log_field = np.full(grid.shape, 0.65 * COIL_FALLOFF)  # a brain's mean of (x² + y² + z²) / 75² is about 0.65
    for name, coefficient in zip(BIAS_TERMS, coefficients, strict=True):
        term = place[name[0]] if len(name) == 1 else place[name[0]] * place[name[1]]
        log_field = log_field + coefficient * term
    return np.exp(log_field).astype(np.float32)
