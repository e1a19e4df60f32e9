"""The brain of a simulated person: tissue, shape and volumes, before a scanner sees it. No TensorFlow.

Tissue is drawn at each voxel of the template from its expected fractions through a smooth Gaussian copula (Nelsen 2006,
"An Introduction to Copulas", 2nd ed.), which gives everyone their own sulci; grey matter is then lost beside fluid;
the result is deformed by one diffeomorphism that holds the random shape and the flows which open the ventricles and
shrink the hippocampi.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from kerasvae.data.anatomy import CSF_LEVEL, GM_LEVEL, REGIONS, SOURCE, WM_LEVEL, Anatomy, load_anatomy
from kerasvae.data.deformation import exponential, random_velocity, resample_lattice, smooth_noise
from kerasvae.data.population import LOG_HEAD_MEAN, Person, State
from kerasvae.types import Array, Grid, Mask

__all__ = ["LEVELS", "Brain", "Shape", "draw_shape", "grow", "inverse_displacement"]

# Fitted to IXI at 4 mm: the variance between people, its spectrum (PCA) and its map.
SHAPE_RMS_MM = 1.4
"""Root mean square of each component of the random velocity."""
SHAPE_SCALE_MM, SHAPE_EXPONENT, SHAPE_FINEST_MM = 18.5, 3.0, 5.0
"""Its spectrum; see `random_velocity`."""
SULCUS_WIDTH_MM = 2.8
"""Kernel of the copula field: how far a person's sulci stray together."""
CORTEX_SPREAD, DEEP_SPREAD = 0.8, 0.3
"""How much of the copula field is used: 1 draws tissue at random from its fractions, 0 takes the median."""
PARTIAL_VOLUME = 0.25
"""Width of the step from one tissue to the next, in units of the field's distribution function."""
SEX_MM, HEAD_MM = 0.2, 0.25
"""Root mean square velocity between the mean and one sex, and per standard deviation (0.11) of log head size."""
LEVELS = MappingProxyType({"csf": 0.38, "gm": 0.63, "wm": 0.87})
"""Intensity of pure tissues in the simulated T1, as in IXI; 1 is the brightest voxel of the template."""
LOWEST_LEVEL = 0.12
LARGEST_LOSS = 0.95

_SHAPE = 2
_VENTRICLE_MULTIPLES = tuple(np.linspace(-3.0, 6.0, 10))
_HIPPOCAMPUS_MULTIPLES = tuple(np.linspace(-1.5, 1.0, 6))


@dataclass(frozen=True)
class Shape:
    """What makes a brain individual and never changes.

    Args:
        velocity: float32 (3, x, y, z) on `LATTICE`, mm: the random part of the deformation.
        field: float32 on `SOURCE`, mean 0 and variance 1: where the person's sulci are.
    """

    velocity: Array
    field: NDArray[np.float32]


@dataclass(frozen=True)
class Brain:
    """A brain on an output grid.

    Args:
        t1: float32 (x, y, z), noiseless T1-weighted intensity, 0 to 1; only meaningful inside.
        gm: float32 (x, y, z), fraction of grey matter.
        inside: bool (x, y, z), brain and the fluid around it.
        ventricle_mm3: Volume of lateral and third ventricles in MNI space.
        hippocampus_mm3: Volume of both hippocampi in MNI space.
    """

    t1: Array
    gm: Array
    inside: Mask
    ventricle_mm3: float
    hippocampus_mm3: float


def draw_shape(seed: int, index: int) -> Shape:
    """The shape of the person of this index in the cohort of this seed."""
    rng = np.random.default_rng((seed, _SHAPE, index))
    velocity = random_velocity(
        rng, rms=SHAPE_RMS_MM, scale=SHAPE_SCALE_MM, exponent=SHAPE_EXPONENT, finest=SHAPE_FINEST_MM
    )
    return Shape(velocity, smooth_noise(rng, SOURCE.shape, spacing=SOURCE.spacing[0], width=SULCUS_WIDTH_MM))


def inverse_displacement(shape: Shape, person: Person, state: State) -> Array:
    """Where each point of the person's brain lies in the template, less itself: float32 (3, x, y, z) on `LATTICE`, mm.

    It is exp(−v), with v the random velocity plus multiples of the flows for ventricles, hippocampi, sex and head.
    """
    anatomy = load_anatomy()
    curves = _volume_curves()
    head = (np.log(person.head_size_ratio) - LOG_HEAD_MEAN) / 0.11
    terms = (
        (np.interp(state.ventricle, *curves["ventricles"]), anatomy.ventricle_flow),
        (np.interp(state.hippocampus, *curves["hippocampi"]), anatomy.hippocampus_flow),
        (SEX_MM if person.sex == "M" else -SEX_MM, anatomy.sex_flow),
        (HEAD_MM * head, anatomy.head_flow),
    )
    velocity = shape.velocity.copy()
    for factor, flow in terms:
        velocity += np.float32(factor) * flow
    return exponential(-velocity)


def grow(shape: Shape, person: Person, state: State, grid: Grid) -> Brain:
    """The brain of a person at a visit on a grid whose axes are parallel to MNI's."""
    anatomy = load_anatomy()
    t1, gm = _tissue(anatomy, shape.field, np.asarray(state.loss, dtype=np.float32))
    where = _source_voxels(inverse_displacement(shape, person, state), grid)
    look = lambda volume: ndimage.map_coordinates(volume, where, order=1)  # noqa: E731
    voxel = float(np.prod(grid.spacing))
    return Brain(
        t1=look(t1),
        gm=look(gm),
        inside=look(anatomy.inside.astype(np.float32)) > 0.5,
        ventricle_mm3=float(look(anatomy.ventricles).sum(dtype=np.float64)) * voxel,
        hippocampus_mm3=float(look(anatomy.hippocampi).sum(dtype=np.float64)) * voxel,
    )


def _source_voxels(displacement: Array, grid: Grid) -> Array:
    """Voxel coordinates in `SOURCE` that the voxels of a grid come from, (3, x, y, z)."""
    here = resample_lattice(displacement, grid.shape, grid.matrix)
    for axis in range(3):
        line = grid.matrix[axis, 3] + grid.spacing[axis] * np.arange(grid.shape[axis]) - SOURCE.matrix[axis, 3]
        here[axis] += line.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        here[axis] /= np.float32(SOURCE.spacing[axis])
    return here


def _tissue(anatomy: Anatomy, field: Array, loss: Array) -> tuple[Array, Array]:
    """T1 intensity and grey-matter fraction on `SOURCE` before deformation.

    A voxel with expected fractions (csf, gm, wm) and copula value q in (0, 1) is fluid where q < csf, white where
    q > csf + gm, grey between; steps are softened over `PARTIAL_VOLUME`. The intensity is the template's plus what the
    drawn tissue differs from the expected.
    """
    inside = anatomy.inside
    deep = anatomy.exposure[REGIONS.index("deep")] > 0
    q = 0.5 + np.where(deep, np.float32(DEEP_SPREAD), np.float32(CORTEX_SPREAD)) * (special.ndtr(field[inside]) - 0.5)
    q = PARTIAL_VOLUME / 2 + (1 - PARTIAL_VOLUME) * q
    lost = np.clip(loss @ anatomy.exposure, -0.5, LARGEST_LOSS) * anatomy.gm
    csf = np.clip(anatomy.csf + lost, 0, anatomy.csf + anatomy.gm)
    is_csf = np.clip((csf - q) / PARTIAL_VOLUME + 0.5, 0, 1)
    is_wm = np.clip((q - anatomy.csf - anatomy.gm) / PARTIAL_VOLUME + 0.5, 0, 1)
    is_gm = np.clip(1 - is_csf - is_wm, 0, 1)
    template = np.interp(anatomy.t1, [0, CSF_LEVEL, GM_LEVEL, WM_LEVEL, 1], [0, *LEVELS.values(), 1])
    t1 = template + LEVELS["csf"] * (is_csf - anatomy.csf)
    t1 += LEVELS["gm"] * (is_gm - anatomy.gm) + LEVELS["wm"] * (is_wm - anatomy.white)
    volumes = np.zeros((2, *SOURCE.shape), dtype=np.float32)
    volumes[0, inside] = np.maximum(t1, LOWEST_LEVEL)
    volumes[1, inside] = is_gm
    return volumes[0], volumes[1]


@cache
def _volume_curves() -> Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """For each structure the log volumes, rising, and the multiples of its flow that bring them about."""
    anatomy = load_anatomy()
    curves = {}
    for name, structure, flow, multiples in (
        ("ventricles", anatomy.ventricles, anatomy.ventricle_flow, _VENTRICLE_MULTIPLES),
        ("hippocampi", anatomy.hippocampi, anatomy.hippocampus_flow, _HIPPOCAMPUS_MULTIPLES),
    ):
        volumes = []
        for multiple in multiples:
            where = _source_voxels(exponential(np.float32(-multiple) * flow), SOURCE)
            volumes.append(ndimage.map_coordinates(structure, where, order=1).sum(dtype=np.float64))
        curves[name] = (np.log(np.array(volumes) / structure.sum(dtype=np.float64)), np.array(multiples))
    return MappingProxyType(curves)
