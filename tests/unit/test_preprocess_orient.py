"""Orientation against nibabel, over generated affines."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from kerasvae.preprocess import orientation_of

PERMUTATIONS = list(itertools.permutations(range(3)))


@st.composite
def affines(draw, largest_degrees: float):
    """A signed permutation with a rotation, spacings and an origin."""
    matrix = np.zeros((3, 3))
    for column, row in enumerate(draw(st.sampled_from(PERMUTATIONS))):
        matrix[row, column] = draw(st.sampled_from([-1.0, 1.0]))
    axis = np.array([draw(st.floats(-1, 1)) for _ in range(3)]) + 1e-3
    degrees = draw(st.floats(0, largest_degrees))
    turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.deg2rad(degrees)).as_matrix()
    spacing = [draw(st.floats(0.3, 5)) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = turn @ matrix @ np.diag(spacing)
    affine[:3, 3] = [draw(st.floats(-200, 200)) for _ in range(3)]
    return affine


shapes = st.tuples(*[st.integers(1, 6)] * 3)


@settings(max_examples=200, deadline=None)
@given(affine=affines(30.0), shape=shapes)
def test_same_as_nibabel(affine, shape):
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    ours, ras = orientation_of(affine).to_ras(data, affine)
    theirs = nibabel.as_closest_canonical(nibabel.Nifti1Image(data, affine))
    np.testing.assert_array_equal(ours, np.asarray(theirs.dataobj))
    np.testing.assert_allclose(ras, theirs.affine, atol=1e-9)
    assert nibabel.aff2axcodes(ras) == ("R", "A", "S")


@settings(max_examples=200, deadline=None)
@given(affine=affines(180.0), shape=shapes)
def test_exact_there_and_back_and_every_voxel_keeps_its_place(affine, shape):
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    orientation = orientation_of(affine)
    ours, ras = orientation.to_ras(data, affine)
    np.testing.assert_array_equal(orientation.from_ras(ours), data)

    def places(array, matrix):
        index = np.indices(array.shape).reshape(3, -1)
        mm = matrix[:3, :3] @ index + matrix[:3, 3:]
        return {(*np.round(p, 4), v) for p, v in zip(mm.T, array.ravel(), strict=True)}

    values = {v: p for *p, v in places(data, affine)}
    for *p, v in places(ours, ras):
        np.testing.assert_allclose(p, values[v], atol=2e-4)


def test_all_48_signed_permutations_are_recovered():
    for permutation in PERMUTATIONS:
        for signs in itertools.product([-1.0, 1.0], repeat=3):
            affine = np.zeros((4, 4))
            affine[3, 3] = 1
            for column, row in enumerate(permutation):
                affine[row, column] = signs[column]
            _, ras = orientation_of(affine).to_ras(np.zeros((2, 3, 4)), affine)
            np.testing.assert_array_equal(ras[:3, :3], np.eye(3))
