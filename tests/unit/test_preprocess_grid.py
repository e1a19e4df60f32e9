"""Named grids against the packaged template, crop and pad against a plain loop."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasvae.errors import ArgumentError
from kerasvae.preprocess import fit_to_shape, grid_of, named_grid, unfit_from_shape


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mni-1mm", (181, 217, 181)), ("mni-2mm", (91, 109, 91)), ("mni-3mm", (61, 73, 61)), ("mni-4mm", (46, 55, 46)),
     ("mni-1.5mm", (121, 145, 121)), ("mni-8mm", (23, 28, 23))],
)  # fmt: skip
def test_shapes_and_origin(name, shape):
    grid = named_grid(name)
    assert grid.shape == shape
    assert grid.space == "MNI152NLin6Asym"
    np.testing.assert_array_equal(grid.matrix[:3, 3], [-90, -126, -72])
    np.testing.assert_allclose(grid.spacing, float(name[4:-2]))
    last = grid.matrix @ [*(n - 1 for n in shape), 1]
    assert (last[:3] <= [90, 90, 108]).all()
    assert (last[:3] > np.array([90, 90, 108]) - grid.spacing[0]).all()


def test_two_mm_grid_is_the_fsl_box():
    # FSL's MNI152_T1_2mm: 91 × 109 × 91, x stored right to left from +90
    fsl = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(np.zeros((91, 109, 91), np.uint8), fsl))
    assert named_grid("mni-2mm").shape == image.shape
    np.testing.assert_array_equal(named_grid("mni-2mm").matrix, image.affine)


@pytest.mark.parametrize("name", ["mni4mm", "mni-4", "mni-0.1mm", "mni-50mm", "", "mni-1e1mm", "MNI-4mm"])
def test_unknown_name_is_refused_with_a_suggestion(name):
    with pytest.raises(ArgumentError, match="Try 'mni-"):
        named_grid(name)


def test_grid_of_an_image_is_in_ras_order(tmp_path):
    affine = np.array([[0.0, -2, 0, 10], [3, 0, 0, -5], [0, 0, 4, 1], [0, 0, 0, 1]])
    data = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    path = tmp_path / "template.nii.gz"
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    expected = nibabel.as_closest_canonical(nibabel.load(path))
    grid = grid_of(path, space="study")
    assert grid.shape == expected.shape
    np.testing.assert_allclose(grid.matrix, expected.affine)
    assert grid.space == "study"


sizes = st.tuples(*[st.integers(1, 7)] * 3)


@given(original=sizes, shape=sizes)
def test_fit_moves_every_voxel_by_the_stated_shift(original, shape):
    data = np.random.default_rng(0).uniform(1, 2, original)
    expected = np.zeros(shape)
    for i, j, k in np.ndindex(*original):
        target = [a + (m - n) // 2 for a, n, m in zip((i, j, k), original, shape, strict=True)]
        if all(0 <= t < m for t, m in zip(target, shape, strict=True)):
            expected[tuple(target)] = data[i, j, k]
    fitted = fit_to_shape(data, shape)
    np.testing.assert_array_equal(fitted, expected)
    back = unfit_from_shape(fitted, original)
    assert back.shape == original
    kept = back != 0
    np.testing.assert_array_equal(back[kept], data[kept])
    assert kept.sum() == (expected != 0).sum()


@given(original=sizes, more=sizes)
def test_padding_is_undone_exactly(original, more):
    data = np.random.default_rng(0).normal(size=original)
    larger = tuple(a + b for a, b in zip(original, more, strict=True))
    np.testing.assert_array_equal(unfit_from_shape(fit_to_shape(data, larger), original), data)


def test_ranks_must_agree():
    with pytest.raises(ArgumentError, match="3 entries"):
        fit_to_shape(np.zeros((2, 2, 2)), (2, 2))
