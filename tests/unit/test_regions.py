"""Regions of a map beside NumPy on a made label image, whatever lattice it lies on."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from kerasvae.analysis.maps.folder import MapFolder
from kerasvae.analysis.maps.regions import REGION_COLUMNS, Region, place_labels, read_label_names, summarise
from kerasvae.errors import ArgumentError, VolumeError
from kerasvae.preprocess import Pipeline
from kerasvae.preprocess.nifti import image_of, read_volume
from kerasvae.types import Grid

AFFINE = np.array([[4.0, 0, 0, -20], [0, 4.0, 0, -16], [0, 0, 5.0, -30], [0, 0, 0, 1]])
SLOPE = np.array([0.02, 0.01, -0.03])
"""Of a map, per mm."""
GRID = Grid.of((10, 9, 12), AFFINE, "MNI152NLin6Asym")


def pipeline(**options):
    return Pipeline(grid=GRID, intensity={"kind": "range", "low": 0, "high": 1}, **options)


def labels_on(shape, affine, seed=0):
    """A random segmentation in blocks, as an image."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 5, [-(-n // 3) for n in shape])
    data = blocks.repeat(3, 0).repeat(3, 1).repeat(3, 2)[: shape[0], : shape[1], : shape[2]]
    return nibabel.Nifti1Image(data.astype(np.int16), affine)


def test_sums_of_a_region():
    rng = np.random.default_rng(1)
    values, inside = rng.normal(size=GRID.shape).astype(np.float32), rng.random(GRID.shape) < 0.6
    labels = rng.integers(0, 4, GRID.shape) * 7
    labels[labels == 21] = -3
    inside[labels == 7] = False
    rows = {row.label: row for row in summarise(values, labels, inside, GRID, names={14: "Putamen"})}
    assert list(rows) == [-3, 7, 14]
    assert [row.name for row in rows.values()] == ["-3", "7", "Putamen"]
    for label in (-3, 14):
        row, here = rows[label], (labels == label) & inside
        assert row.voxels == here.sum()
        assert row.volume_mm3 == pytest.approx(here.sum() * 80)
        assert row.covered == pytest.approx(here.sum() / (labels == label).sum())
        assert row.mean == pytest.approx(np.float64(values[here]).mean(), rel=1e-6)
        assert row.sd == pytest.approx(np.float64(values[here]).std(), rel=1e-6)
        far = max(np.argwhere(here), key=lambda place: abs(values[tuple(place)]))
        assert row.peak == values[tuple(far)]
        assert [row.peak_x, row.peak_y, row.peak_z] == (AFFINE[:3, :3] @ far + AFFINE[:3, 3]).tolist()
    empty = rows[7]
    assert (empty.voxels, empty.volume_mm3, empty.covered, empty.mean, empty.peak_x) == (0, 0, 0, None, None)
    assert {"map", *Region.__dataclass_fields__} == set(REGION_COLUMNS)


@pytest.mark.parametrize("flip", [False, True])
def test_labels_are_placed_by_nearest_neighbour(flip):
    """Each voxel of the grid gets the label of the voxel that its centre lies in, also from a file in LAS order."""
    affine = np.diag([-2.0 if flip else 2.0, 2.5, 3.0, 1.0])
    affine[:3, 3] = (17.3 if flip else -19.1, -15.2, -28.9)
    image = labels_on((20, 14, 19), affine)
    data = np.asarray(image.dataobj)
    placed = place_labels(image, pipeline(smooth_fwhm_mm=6.0))
    for place in np.ndindex(*GRID.shape):
        mm = AFFINE @ [*place, 1]
        index = np.rint((np.linalg.inv(affine) @ mm)[:3]).astype(int)
        seen = (index >= 0).all() and (index < data.shape).all()
        assert placed[place] == (data[tuple(index)] if seen else 0)


def test_a_segmentation_of_a_cropped_scan():
    """Where images are cropped to the grid's shape by their own voxels, labels are, too."""
    image = labels_on((12, 9, 10), AFFINE)
    placed = place_labels(image, pipeline(placement="crop"))
    np.testing.assert_array_equal(placed[:, :, 1:-1], np.asarray(image.dataobj)[1:-1])


@pytest.mark.parametrize(
    ("data", "offset", "words"),
    [
        (np.array([0, 1.5]), 0, "hold labels, whole numbers"),
        (np.array([0, 2]), 500, "a label on the model's grid"),
        (np.array([0, 0]), 0, "must hold labels, and 0 where there is none, but received 0 in every voxel"),
    ],
)
def test_what_is_no_label_image(data, offset, words):
    affine = AFFINE.copy()
    affine[0, 3] += offset
    with pytest.raises(VolumeError, match=words):
        place_labels(nibabel.Nifti1Image(np.resize(data, (4, 4, 4)).astype(np.float32), affine), pipeline())


def test_names_of_labels(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("Index,Code,Name\n4,M_4,3rd Ventricle\n,M,none\n51,M_51,Lateral Ventricle R\n")
    assert read_label_names(path) == {4: "3rd Ventricle", 51: "Lateral Ventricle R"}
    path = tmp_path / "dseg.tsv"
    path.write_text("index\tname\tcolor\n1\tgrey\t#fff\n-2\tother\t#000\n")
    assert read_label_names(path) == {1: "grey", -2: "other"}
    path.write_text("number\tname\n")
    with pytest.raises(ArgumentError, match="--label-names must have the columns index and name, but received number"):
        read_label_names(path)
    with pytest.raises(ArgumentError, match="--label-names must be a readable table"):
        read_label_names(tmp_path)


def test_maps_come_back_from_native_space(tmp_path):
    """A map without bends, which interpolation leaves as it is, in a scan's space, and from there on the grid again."""
    places = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), axis=-1)
    values = (1 + (places @ AFFINE[:3, :3].T + AFFINE[:3, 3]) @ SLOPE).astype(np.float32)
    affine = np.diag([-2.0, 2.0, 2.5, 1.0])
    affine[:3, 3] = (20, -20, -34)
    scan = tmp_path / "scan.nii.gz"
    nibabel.save(image_of(np.random.default_rng(0).random((22, 20, 28)), affine, 1), scan)
    inside = np.ones(GRID.shape, bool)
    folder = MapFolder(tmp_path / "maps", pipeline(), inside, {"Command": "x"}, read_volume(scan))
    folder.write("map", values, "a map", "units", People=3)
    folder.close()
    own = nibabel.load(tmp_path / "maps" / "native" / "map.nii.gz")
    assert own.shape == (22, 20, 28)
    np.testing.assert_array_equal(own.affine, affine)
    assert int(own.header["sform_code"]) == 1
    compared = 0
    for at in np.argwhere(np.asarray(own.dataobj))[::50]:
        mm = (affine @ [*at, 1])[:3]
        place = np.linalg.solve(AFFINE[:3, :3], mm - AFFINE[:3, 3])
        if ((place >= 0) & (place <= np.array(GRID.shape) - 1)).all():
            assert own.dataobj[tuple(at)] == pytest.approx(1 + mm @ SLOPE, abs=1e-5)
            compared += 1
    assert compared > 50
    within = (slice(3, -3), slice(3, -3), slice(3, -3))  # beyond the grid a map is 0
    np.testing.assert_allclose(pipeline().place(own)[within], values[within], atol=1e-4)
    on_grid = nibabel.load(tmp_path / "maps" / "map.nii.gz")
    np.testing.assert_array_equal(np.asarray(on_grid.dataobj), values)
    assert (on_grid.get_data_dtype(), int(on_grid.header["sform_code"])) == (np.float32, 4)
    assert {path.name for path in folder.written} == {"map.nii.gz"}
    assert not (tmp_path / "maps" / "regions.tsv").exists()
