"""The anatomy that the simulator starts from: tissue maps, regions and structured deformations. No TensorFlow.

Everything is derived, when first asked for, from nilearn's packaged MNI ICBM152 2009a symmetric templates
(Fonov, Evans, Botteron, Almli, McKinstry and Collins 2011, "Unbiased average age-appropriate atlases for pediatric
studies", NeuroImage 54; T1, grey and white matter). Nothing is downloaded. Coordinates are MNI millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kerasvae.data.deformation import LATTICE, potential_flow, random_velocity
from kerasvae.types import Array, Grid, Mask

__all__ = ["CSF_LEVEL", "GM_LEVEL", "REGIONS", "SOURCE", "WM_LEVEL", "Anatomy", "load_anatomy", "output_grid"]

SOURCE = Grid.of((96, 120, 96), np.array([[2, 0, 0, -94], [0, 2, 0, -134], [0, 0, 2, -76], [0, 0, 0, 1]]), "MNI152")
"""The 2 mm lattice on which a person's anatomy is made before it is deformed."""

CSF_LEVEL, GM_LEVEL, WM_LEVEL = 0.27, 0.655, 0.87
"""Intensity of pure cerebrospinal fluid, grey and white matter in the T1 template, whose largest value is 1."""

# Points that stand for a region, on the right; the left mirrors them. A voxel belongs to its nearest point.
_SEEDS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "frontal": (
        (10, 60, 0), (30, 52, 5), (8, 50, 30), (30, 38, 35), (44, 25, 20), (48, 8, 32), (10, 20, 55), (28, 8, 55),
        (25, 35, -15), (45, 30, -5), (8, 35, -20), (8, -8, 65), (38, -12, 55), (36, 8, 0),
    ),
    "parietal": (
        (10, -35, 65), (40, -30, 52), (55, -25, 35), (25, -58, 58), (45, -52, 45), (8, -58, 42), (55, -42, 25),
    ),
    "temporal": (
        (48, 12, -25), (58, -8, -12), (60, -32, -5), (55, -18, 5), (48, -30, -25), (55, -52, 0), (35, -40, -20),
    ),
    "occipital": (
        (10, -75, 8), (10, -92, 10), (28, -85, 22), (38, -78, -5), (20, -92, -8), (10, -75, -8), (12, -80, 30),
    ),
    "limbic": ((7, 38, 12), (7, 15, 35), (7, -15, 40), (7, -45, 25), (24, -8, -28), (25, -30, -18)),
    "deep": ((12, -18, 8), (26, 2, 2), (13, 12, 10), (8, -18, -10), (5, -30, -35), (27, -12, 20), (27, 25, 15)),
    "cerebellum": ((10, -60, -20), (25, -60, -30), (40, -62, -40), (15, -55, -48), (5, -75, -28), (40, -50, -32)),
}  # fmt: skip
REGIONS = tuple(_SEEDS)
"""Names of the regions that atrophy at their own rates."""

_HIPPOCAMPUS = ((22.0, -10.0, -21.0), (28.0, -20.0, -15.0), (29.0, -30.0, -8.0), (23.0, -38.0, -2.0))
_HIPPOCAMPUS_RADIUS_MM = 6.5
_LATERAL_VENTRICLE = (14.0, -15.0, 15.0)
_BRAIN_STEM, _BRAIN_STEM_RADII_MM = (0.0, -28.0, -35.0), (18.0, 15.0, 28.0)
_CONSTANT_SEED = 152


@dataclass(frozen=True)
class Anatomy:
    """Maps in template space that every simulated person shares.

    Args:
        inside: bool on `SOURCE`; the voxels of the brain that the vectors below run over, in C order.
        t1: float32 (voxels,), template intensity, 1 at most.
        csf: float32 (voxels,), expected fraction of cerebrospinal fluid.
        gm: float32 (voxels,), expected fraction of grey matter; white matter is the rest.
        exposure: float32 (regions, voxels): where grey matter is lost, weighted so that a loss of a in region r takes
            the fraction a of that region's grey matter.
        ventricles: float32 on `SOURCE`, 0 to 1: lateral and third ventricles.
        hippocampi: float32 on `SOURCE`, 0 to 1.
        ventricle_flow: float32 (3, x, y, z) on `LATTICE`: velocity that fills the ventricles; unit: log volume.
        hippocampus_flow: The same for the hippocampi; a negative multiple shrinks them.
        sex_flow: A fixed smooth velocity of 1 mm root mean square, the shape that tells men from women.
        head_flow: The same for the size of the head.
    """

    inside: Mask
    t1: Array
    csf: Array
    gm: Array
    exposure: Array
    ventricles: Array
    hippocampi: Array
    ventricle_flow: Array
    hippocampus_flow: Array
    sex_flow: Array
    head_flow: Array

    @property
    def white(self) -> Array:
        """float32 (voxels,), expected fraction of white matter."""
        return 1 - self.csf - self.gm


def output_grid(spacing_mm: float) -> Grid:
    """The grid of the simulated images: the MNI box of FSL, x −90…90, y −126…90, z −72…108 mm, at any spacing.

    >>> output_grid(4.0).shape
    (46, 55, 46)
    """
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = (-90, -126, -72)
    x, y, z = (int(np.floor(extent / spacing_mm + 1e-9)) + 1 for extent in (180, 216, 180))
    return Grid.of((x, y, z), affine, "MNI152NLin2009aSym")


@cache
def load_anatomy() -> Anatomy:
    """The shared anatomy, made once per process (about three seconds)."""
    t1, gm, wm = _templates()
    inside = t1 > 0.05
    ventricles = _ventricles(t1, inside)
    gm, wm = _without_false_grey(gm, wm, ventricles)
    points = np.argwhere(inside) @ SOURCE.matrix[:3, :3].T + SOURCE.matrix[:3, 3]
    level, grey, white = t1[inside], gm[inside], wm[inside]
    # The packaged tissue maps leave no room for sulcal fluid, so it is read off the T1 intensity as a partial volume.
    csf = np.clip((GM_LEVEL - level) / (GM_LEVEL - CSF_LEVEL), 0, 1) * (white < 0.5)
    grey = (1 - csf) * grey / np.maximum(grey + white, 1e-3)
    hippocampi = _hippocampi(gm)
    return Anatomy(
        inside=inside,
        t1=level,
        csf=csf,
        gm=grey,
        exposure=_exposure(points, csf, grey),
        ventricles=ventricles,
        hippocampi=hippocampi,
        ventricle_flow=_filling(ventricles, _coarse(wm) * _within(ventricles, 30.0)),
        hippocampus_flow=_filling(hippocampi, _within(hippocampi, 14.0)),
        sex_flow=_fixed_shape(0),
        head_flow=_fixed_shape(1),
    )


def _templates() -> tuple[Array, Array, Array]:
    """T1, grey and white matter on `SOURCE`, after a Gaussian of 2 mm full width at half maximum."""
    from nilearn import datasets

    loaders = (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    maps = []
    for load in loaders:
        image = load(resolution=1)
        data = ndimage.gaussian_filter(np.asarray(image.dataobj, dtype=np.float32), 2.0 / np.sqrt(8 * np.log(2)))
        to_voxel = np.linalg.inv(image.affine) @ SOURCE.matrix
        maps.append(ndimage.affine_transform(data, to_voxel[:3, :3], to_voxel[:3, 3], SOURCE.shape, order=1))
    return maps[0], maps[1], maps[2]


def _coordinates() -> NDArray[np.float64]:
    """MNI coordinates of the nodes of `SOURCE`, shape (x, y, z, 3)."""
    return np.moveaxis(np.indices(SOURCE.shape), 0, -1) @ SOURCE.matrix[:3, :3].T + SOURCE.matrix[:3, 3]


def _ventricles(t1: Array, inside: Mask) -> Array:
    """Lateral ventricles, grown from one point on each side, and the third, as soft maps of the dark fluid."""
    x, y, z = np.moveaxis(_coordinates(), -1, 0)
    fluid = np.clip((GM_LEVEL - 0.02 - t1) / (GM_LEVEL - 0.02 - 0.35), 0, 1)
    dark = inside & (fluid > 0.5) & (np.abs(x) < 45) & (z > -12) & (ndimage.distance_transform_edt(inside) > 9)
    labels, _ = ndimage.label(dark)
    core = np.zeros(SOURCE.shape, dtype=bool)
    for side in (-1, 1):
        away = (
            (x - side * _LATERAL_VENTRICLE[0]) ** 2
            + (y - _LATERAL_VENTRICLE[1]) ** 2
            + (z - _LATERAL_VENTRICLE[2]) ** 2
        )
        core |= labels == labels.flat[np.argmin(np.where(dark, away, np.inf))]
    core |= (fluid > 0.4) & (np.abs(x) < 4) & (y > -33) & (y < 6) & (z > -14) & (z < 8)
    return (fluid * ndimage.binary_dilation(core)).astype(np.float32)


def _without_false_grey(gm: Array, wm: Array, ventricles: Array) -> tuple[Array, Array]:
    """Tissue maps in which the rim of the ventricles and the brain stem, half grey in the template, are white."""
    rim = ndimage.binary_dilation(ventricles > 0.3, iterations=2) & (gm < 0.75)
    stem = (((_coordinates() - _BRAIN_STEM) / _BRAIN_STEM_RADII_MM) ** 2).sum(axis=-1) < 1
    false = np.where(rim | stem, gm, 0).astype(np.float32)
    return gm - false, wm + false


def _hippocampi(gm: Array) -> Array:
    """Grey matter within a tube along each hippocampus."""
    where = _coordinates()
    tube = np.zeros(SOURCE.shape)
    for side in (-1, 1):
        line = np.array(_HIPPOCAMPUS) * (side, 1, 1)
        for start, stop in pairwise(line):
            along = np.clip((where - start) @ (stop - start) / ((stop - start) @ (stop - start)), 0, 1)
            distance = np.linalg.norm(where - start - along[..., None] * (stop - start), axis=-1)
            tube = np.maximum(tube, np.clip((_HIPPOCAMPUS_RADIUS_MM - distance) / 2 + 0.5, 0, 1))
    return (tube * gm).astype(np.float32)


def _exposure(points: NDArray[np.float64], csf: Array, gm: Array) -> Array:
    """Where the grey matter of each region is lost first: beside fluid, never deep inside a nucleus."""
    seeds = np.array([(side * x, y, z) for group in _SEEDS.values() for x, y, z in group for side in (-1, 1)])
    owner = np.repeat(np.arange(len(REGIONS)), [2 * len(group) for group in _SEEDS.values()])
    nearest = np.full(len(points), np.inf)
    region = np.zeros(len(points), dtype=int)
    for seed, own in zip(seeds, owner, strict=True):
        distance = ((points - seed) ** 2).sum(axis=1)
        closer = distance < nearest
        nearest[closer], region[closer] = distance[closer], own
    wanted = np.minimum(csf, 0.4) + 0.04
    rows = []
    for number in range(len(REGIONS)):
        here = region == number
        scale = gm[here].sum() / (wanted * gm)[here].sum()
        rows.append(np.where(here, wanted * scale, 0).astype(np.float32))
    return np.stack(rows)


def _coarse(field: Array) -> NDArray[np.float64]:
    """A map on `SOURCE` at the nodes of `LATTICE` (every second one), after a Gaussian of 4 mm width."""
    smooth = ndimage.gaussian_filter(np.asarray(field, dtype=np.float64), 4.0 / np.sqrt(8 * np.log(2)) / 2.0)
    return smooth[::2, ::2, ::2]


def _within(field: Array, reach: float) -> NDArray[np.float64]:
    """1 on `LATTICE` near a structure but outside it, falling off as a Gaussian of width `reach` / 2 in mm."""
    structure = _coarse(field)
    distance = ndimage.distance_transform_edt(structure < 0.3) * LATTICE.spacing[0]
    return np.exp(-2 * (distance / reach) ** 2) * (distance > 5)


def _filling(structure: Array, around: NDArray[np.float64]) -> Array:
    """The flow that expands a structure at unit rate and takes the room from what is around it."""
    source = np.minimum(_coarse(structure) * 1.3, 1.0)
    return potential_flow(source - around * (source.sum() / around.sum()))


def _fixed_shape(number: int) -> Array:
    """A smooth random velocity that is the same for every cohort."""
    rng = np.random.default_rng((_CONSTANT_SEED, number))
    return random_velocity(rng, rms=1.0, scale=30.0, exponent=3.0, finest=6.0)
