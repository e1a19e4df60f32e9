"""Which voxels go with a variable: permutation tests with voxel-wise and cluster-wise family-wise error.

Freedman & Lane (1983), as `kerasvae.analysis.permutation` has it. Clusters are voxels that touch by a face, beyond a
threshold, of one sign (Bullmore et al. 1999, IEEE Trans. Med. Imaging 18:32); a cluster's p holds for the cluster and
not for each of its voxels. With k of n permutations that reach what is there p is (1 + k) / (1 + n) throughout: k / n
is too small (Phipson & Smyth 2010, Permutation p-values should never be zero, Stat. Appl. Genet. Mol. Biol. 9:39).
Threshold-free cluster enhancement (Smith & Nichols 2009, NeuroImage 44:83) is nilearn's `permuted_ols`, of one scan a
person: those with several it cannot exchange as a whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from kerasvae.analysis.maps.slopes import Contrast
from kerasvae.analysis.permutation import SAME, orthonormal, permute
from kerasvae.errors import ArgumentError
from kerasvae.preprocess.nifti import image_of, sform_code_of
from kerasvae.types import Grid, Mask

__all__ = ["VoxelTest", "refuse_visits", "voxel_test"]

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class VoxelTest:
    """A test of each voxel; images are (x, y, z), 0 outside the mask and where no image varies.

    Args:
        t: Student's t, its sign that of the slope.
        logp: −log10 of p, two-sided, family-wise over the voxels (largest |t| of each permutation).
        logp_size: −log10 of the cluster's p, family-wise, by its number of voxels; 0 outside clusters.
        logp_mass: The same by its mass, the sum of |t| − threshold.
        logp_tfce: The same by threshold-free cluster enhancement, of each voxel; None where it was not asked for.
        degrees: Degrees of freedom.
        threshold: |t| beyond which voxels make clusters.
        voxels: How many were tested.
    """

    t: NDArray[np.float32]
    logp: NDArray[np.float32]
    logp_size: NDArray[np.float32]
    logp_mass: NDArray[np.float32]
    logp_tfce: NDArray[np.float32] | None
    degrees: int
    threshold: float
    voxels: int


def refuse_visits(people: Sequence[str]) -> None:
    """Refuse to enhance, without a threshold, what is known of scans of people: (m,), whose.

    Raises:
        ArgumentError: If somebody has several scans, which nilearn would exchange one by one.
    """
    if len(set(people)) < len(people):
        rule, got = "be asked for where each person has one scan", f"{len(people)} scans of {len(set(people))} people"
        raise ArgumentError(
            "--tfce", rule=rule, got=got, fix="Leave it out: voxels and clusters are tested all the same"
        )


def voxel_test(
    values: NDArray[np.floating],
    contrast: Contrast,
    people: Sequence[str],
    inside: Mask,
    grid: Grid,
    *,
    permutations: int = 1000,
    cluster_p: float = 0.001,
    tfce: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> VoxelTest:
    """Test voxels of images, or of their reconstructions.

    Args:
        values: (m, v): of the scans where all is known, in the mask.
        contrast: What is asked about, and what is held the same.
        people: (m,): whose. Those with several scans are exchanged as a whole.
        inside: (x, y, z): the mask, v voxels.
        grid: Where they lie.
        permutations: How many are drawn.
        cluster_p: Of a voxel alone, two-sided: voxels with less make clusters.
        tfce: Enhance as well; one scan a person only.
        seed: Of the draws.
        progress: Told how many permutations are done.

    Raises:
        ArgumentError: If no voxel varies, no degrees of freedom are left, or enhancement is asked for where people have
            several scans.
    """
    if tfce:
        refuse_visits(people)
    moving = np.ptp(values, axis=0) > 0
    base = np.concatenate([np.ones((len(values), 1)), contrast.held], axis=1)
    degrees = int(len(values) - np.linalg.matrix_rank(base) - 1)
    if not moving.any() or degrees < 1:
        rule, got = "leave something to test", f"{int(moving.sum())} voxels that vary, {degrees} degrees of freedom"
        raise ArgumentError(contrast.name, rule=rule, got=got, fix="Use fewer covariates, or more people")
    tested = np.zeros_like(inside)
    tested[inside] = moving
    numbers = np.asarray(values[:, moving], np.float64)
    threshold = float(stats.t.isf(cluster_p / 2, degrees))
    found = _tested(numbers, contrast, people, tested, permutations, threshold, seed, progress)
    if tfce:
        found["logp_tfce"] = _enhanced(numbers, contrast, tested, grid, permutations, seed)

    def image(name: str) -> Any:
        if name not in found:
            return None
        out = np.zeros(inside.shape, np.float32)
        out[tested] = found[name]
        return out

    return VoxelTest(
        t=image("t"),
        logp=image("logp"),
        logp_size=image("logp_size"),
        logp_mass=image("logp_mass"),
        logp_tfce=image("logp_tfce"),
        degrees=degrees,
        threshold=threshold,
        voxels=int(moving.sum()),
    )


def _tested(
    values: Numbers,
    contrast: Contrast,
    people: Sequence[str],
    tested: Mask,
    permutations: int,
    threshold: float,
    seed: int,
    progress: Callable[[int, int], None],
) -> dict[str, Numbers]:
    """Voxels and clusters, (v,) each."""
    largest: list[tuple[float, float]] = []

    def watch(statistics: Numbers) -> None:
        for row in statistics:
            _, sizes, masses = _clusters(row, tested, threshold)
            largest.append((sizes.max(initial=0.0), masses.max(initial=0.0)))

    found = permute(
        values, contrast.values, contrast.held, blocks=list(people), permutations=permutations, seed=seed,
        progress=progress, watch=watch,
    )  # fmt: skip
    where, *measures = _clusters(found.statistic, tested, threshold)
    nulls = np.array(largest).T
    size, mass = (np.concatenate([[0.0], _logp(*each)])[where] for each in zip(measures, nulls, strict=True))
    return {"t": found.statistic, "logp": -np.log10(found.p_family), "logp_size": size, "logp_mass": mass}


def _enhanced(values: Numbers, contrast: Contrast, tested: Mask, grid: Grid, permutations: int, seed: int) -> Numbers:
    """−log10 p of the enhanced t of each voxel, (v,)."""
    from nilearn.maskers import NiftiMasker
    from nilearn.mass_univariate import permuted_ols

    # a column that is constant here, as of a level that none of these has, nilearn would take for the intercept
    held = orthonormal(contrast.held - contrast.held.mean(axis=0), least=contrast.held)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Data array used to create a new image contains 64-bit ints")  # its own
        found = permuted_ols(
            contrast.values[:, None],
            values,
            confounding_vars=held if held.shape[1] else None,
            n_perm=permutations,
            two_sided_test=True,
            random_state=seed,
            masker=NiftiMasker(image_of(tested, grid.matrix, sform_code_of(grid.space)), standardize=None).fit(),
            tfce=True,
            output_type="dict",
        )
    # nilearn's own p takes rounding for a difference
    return _logp(np.abs(found["tfce"][0]), found["h0_max_tfce"][0])


def _logp(measure: Numbers, null: Numbers) -> Numbers:
    """−log10 p of each measure, (c,), beside the largest of each permutation, (n,)."""
    reached = len(null) - np.searchsorted(np.sort(null), measure * (1 - SAME))
    return np.asarray(-np.log10((1 + reached) / (1 + len(null))))


def _clusters(t: Numbers, tested: Mask, threshold: float) -> tuple[NDArray[np.intp], Numbers, Numbers]:
    """Number of each voxel's cluster, (v,), 0 outside; size of each, and mass."""
    image = np.zeros(tested.shape)
    image[tested] = t
    numbers, above = ndimage.label(image > threshold)
    below, under = ndimage.label(image < -threshold)
    where = np.where(below > 0, below + above, numbers)[tested]
    count = above + under + 1
    weights = np.stack([np.ones_like(t), np.abs(t) - threshold])
    sizes, masses = (np.asarray(np.bincount(where, each, minlength=count)[1:], np.float64) for each in weights)
    return where, sizes, masses
