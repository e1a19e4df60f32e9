"""Resampling against the documented formulas written out, nilearn, nibabel and closed forms."""

from __future__ import annotations

import itertools
import math

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from kerasvae.preprocess import gaussian_variance, resample
from kerasvae.types import Grid


def _affine(spacing, degrees=(0.0, 0.0, 0.0), origin=(0.0, 0.0, 0.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def _blob(shape=(20, 22, 18), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)


def _by_the_book(data, affine, grid, fwhm, nearest=False) -> np.ndarray:
    """The module's formulas, step by step, in float64."""
    out = data.astype(np.float64)
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if not nearest:
        for axis in range(3):
            unit = affine[:3, axis] / spacing[axis]
            seen = math.sqrt(((grid.matrix[:3, :3].T @ unit) ** 2).sum())
            variance = (max(0.0, seen**2 - spacing[axis] ** 2) + fwhm**2) / (8 * math.log(2))
            sigma = math.sqrt(variance) / spacing[axis]
            if sigma < 1e-3:
                continue
            reach = math.floor(4 * sigma + 0.5)
            kernel = np.array([math.exp(-(k**2) / (2 * sigma**2)) for k in range(-reach, reach + 1)])
            kernel /= kernel.sum()
            padded = np.pad(out, [(reach, reach) if a == axis else (0, 0) for a in range(3)])
            out = sum(w * np.take(padded, range(k, k + out.shape[axis]), axis=axis) for k, w in enumerate(kernel))
    index = np.indices(grid.shape).reshape(3, -1)
    matrix = np.linalg.inv(affine) @ grid.matrix
    c = matrix[:3, :3] @ index + matrix[:3, 3:]

    def at(position):
        inside = ((position >= 0) & (position < np.array(out.shape)[:, None])).all(axis=0)
        safe = np.where(inside, position, 0)
        return np.where(inside, out[tuple(safe)], 0.0)

    if nearest:
        return at(np.floor(c + 0.5 + 1e-9).astype(int)).reshape(grid.shape)
    floor = np.floor(c)
    total = np.zeros(index.shape[1])
    for corner in itertools.product([0, 1], repeat=3):
        neighbour = floor + np.array(corner)[:, None]
        total += (1 - np.abs(c - neighbour)).prod(axis=0) * at(neighbour.astype(int))
    return total.reshape(grid.shape)


CASES = {
    "down": (_affine((1, 1, 1)), Grid.of((9, 10, 8), _affine((2.5, 2.5, 2.5), origin=(-2, -1, -3)), "g")),
    "up": (_affine((3, 3, 3)), Grid.of((30, 28, 26), _affine((1.3, 1.3, 1.3), origin=(4, 3, -5)), "g")),
    "turned": (_affine((1, 1.2, 0.8), (20, -10, 35)), Grid.of((9, 9, 9), _affine((2, 2, 2), origin=(-3, 2, 1)), "g")),
    "anisotropic": (_affine((0.9, 0.9, 4), (5, 5, 0)), Grid.of((8, 8, 20), _affine((3, 2, 2)), "g")),
    "elsewhere": (_affine((1, 1, 1)), Grid.of((4, 4, 4), _affine((2, 2, 2), origin=(500, 0, 0)), "g")),
    "far larger image": (_affine((1, 1, 1)), Grid.of((3, 3, 3), _affine((2, 2, 2), origin=(8, 9, 7)), "g")),
}


@pytest.mark.parametrize("fwhm", [0.0, 3.0])
@pytest.mark.parametrize("name", CASES)
def test_linear_is_as_documented(name, fwhm):
    affine, grid = CASES[name]
    data = _blob()
    ours = resample(data, affine, grid, smooth_fwhm_mm=fwhm)
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    np.testing.assert_allclose(ours, _by_the_book(data, affine, grid, fwhm), atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_nearest_is_as_documented(name):
    affine, grid = CASES[name]
    data = np.random.default_rng(0).integers(0, 9, (20, 22, 18)).astype(np.float32)
    np.testing.assert_array_equal(
        resample(data, affine, grid, interpolation="nearest"), _by_the_book(data, affine, grid, 0.0, nearest=True)
    )


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_as_nibabel_and_nilearn_where_nothing_is_averaged(interpolation):
    image_module = pytest.importorskip("nilearn.image")
    processing = pytest.importorskip("nibabel.processing")
    # the grid lies inside the image: beyond its edge the three differ in how they fade to zero
    affine = _affine((2, 2.2, 1.9), (12, -8, 5), (-18, -20, -15))
    centre = (affine @ [11.5, 11.5, 11.5, 1])[:3]
    grid = Grid.of((14, 13, 12), _affine((1.7, 1.7, 1.7), origin=centre - 1.7 * np.array([6.5, 6, 5.5])), "g")
    data = _blob((24, 24, 24))
    image = nibabel.Nifti1Image(data, affine)
    ours = resample(data, affine, grid, interpolation=interpolation)
    order = 1 if interpolation == "linear" else 0
    theirs = processing.resample_from_to(image, (grid.shape, grid.matrix), order=order).get_fdata()
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    theirs = image_module.resample_img(
        image, grid.matrix, grid.shape, interpolation=interpolation, force_resample=True, copy_header=True
    ).get_fdata()
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_own_grid_gives_the_same_voxels():
    data, affine = _blob(), _affine((2, 2, 2), (10, 20, 30), (1, 2, 3))
    out = resample(data, affine, Grid.of(data.shape, affine, "native"))
    np.testing.assert_array_equal(out, data)
    assert not np.shares_memory(out, data)


def test_variance_is_that_of_the_paper():
    # FWHM of 4 mm out of 1 mm: sqrt(16 - 1) mm
    variance = gaussian_variance(_affine((1, 2, 5)), _affine((4, 4, 4)))
    fwhm = np.sqrt(variance) * 2.354820045
    np.testing.assert_allclose(fwhm, [math.sqrt(15), math.sqrt(12), 0.0], rtol=1e-8)


def test_variance_sees_the_target_along_turned_axes():
    turned = _affine((1, 1, 1), (0, 0, 90))
    variance = gaussian_variance(turned, _affine((2, 3, 4))) * 8 * math.log(2)
    np.testing.assert_allclose(variance, [9 - 1, 4 - 1, 16 - 1], rtol=1e-9)
    tilted = _affine((1, 1, 1), (30, 20, 10))
    np.testing.assert_allclose(gaussian_variance(tilted, _affine((3, 3, 3))) * 8 * math.log(2), 8.0, rtol=1e-9)


def test_a_gaussian_widens_by_the_stated_variance():
    # second moment of a blurred Gaussian blob: the variances add; measured on the fine grid
    x = np.arange(-30, 31)
    blob = np.exp(-(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2) / (2 * 3.0**2)).astype(np.float32)
    affine = _affine((1, 1, 1), origin=(-30, -30, -30))
    grid = Grid.of((21, 21, 21), _affine((3, 3, 3), origin=(-30, -30, -30)), "g")
    out = resample(blob, affine, grid, smooth_fwhm_mm=2.0).astype(np.float64)
    mm = np.arange(-30, 31, 3)
    profile = out.sum(axis=(1, 2)) / out.sum()
    expected = 9.0 + (9 - 1 + 4) / (8 * math.log(2))
    assert (profile * mm**2).sum() == pytest.approx(expected, rel=1e-3)
    assert (profile * mm).sum() == pytest.approx(0, abs=1e-4)
    assert out.sum() * 27 == pytest.approx(blob.sum(), rel=1e-3)


def test_downsampling_averages_noise_instead_of_picking_it():
    noise = np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32)
    grid = Grid.of((8, 8, 8), _affine((4, 4, 4), origin=(4, 4, 4)), "g")
    assert resample(noise, np.eye(4), grid).std() < 0.25 * noise.std()


def test_labels_stay_labels():
    labels = np.random.default_rng(0).choice([0, 3, 7], (15, 15, 15)).astype(np.float32)
    out = resample(labels, _affine((1, 1, 1), (9, 9, 9)), Grid.of((9, 9, 9), _affine((2, 2, 2)), "g"),
                   interpolation="nearest", smooth_fwhm_mm=6)  # fmt: skip
    assert set(np.unique(out)) <= {0, 3, 7}
