"""Figures of what a study adds: which value is where, on which side, in which colour, and what is said of it."""

import base64
import io

import matplotlib.image
import numpy as np
import pytest

from kerasvae.analysis.figures import OURS, PEER
from kerasvae.analysis.maps.folder import Traversal, read_traversals
from kerasvae.analysis.report.associations import heat_map, read_associations
from kerasvae.analysis.report.deviations import Judged, strip_chart
from kerasvae.analysis.report.focus import focus_figure
from kerasvae.analysis.report.maps import association_figure, step_of
from kerasvae.analysis.report.strips import strip_of
from tests.studies import AFFINE, POSITIONS, SHAPE, inside, write_associations, write_maps

BLACK = 0.02


def picture(data):
    """Rows of a PNG in a data URI, from above, red, green and blue."""
    head, _, content = data.partition(",")
    assert head == "data:image/png;base64"
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(content)))[..., :3]


@pytest.fixture
def rows(tmp_path):
    write_associations(tmp_path)
    return read_associations(tmp_path / "associations.tsv")


def test_heat_map_has_each_r_in_its_cell_and_white_at_zero(rows):
    axes = heat_map(rows).axes[0]
    signed, sizes = (image.get_array() for image in axes.images)
    r = {"age": [0.1, 0.55, -0.2], "group": [0.3, 0.2, 0.1], "sex": [-0.47, 0.0, 0.3]}
    assert [label.get_text() for label in axes.get_yticklabels()] == list(r)
    np.testing.assert_allclose(signed[[0, 2]], [r["age"], r["sex"]])
    np.testing.assert_allclose(sizes[1], r["group"])
    assert np.isnan(np.ma.filled(signed[1], np.nan)).all()
    assert np.isnan(np.ma.filled(sizes[[0, 2]], np.nan)).all()
    low, high = axes.images[0].get_clim()
    assert low == -high
    assert high >= 0.55
    red, blue = (axes.images[0].cmap(axes.images[0].norm(value)) for value in (0.5, -0.5))
    assert red[0] > red[2]
    assert blue[2] > blue[0]


def test_dots_mark_what_is_told_family_wise(rows):
    (dots,) = heat_map(rows).axes[0].collections
    assert sorted(map(tuple, np.asarray(dots.get_offsets()).tolist())) == [(0.0, 2.0), (1.0, 0.0)]  # x, y


def test_maps_show_their_values_on_a_scale_of_their_own(tmp_path):
    slope = write_maps(tmp_path)
    figure = association_figure({"slope": slope, "z": 3 * slope}, AFFINE, {"slope": "model units", "z": "z"})
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert [image.get_clim() for image in images] == [(-1, 1), (-3, 3)]
    shown = np.ma.filled(images[0].get_array(), np.nan)
    first = shown[:, : SHAPE[0]]  # a slice is as wide as the mask and a voxel at each side, here the grid
    assert np.nanmax(first[:, 4:]) == -1
    assert np.nanmin(first[:, :4]) == 1
    assert {"model units", "z"} <= {axes.get_ylabel() for axes in figure.axes}


def test_a_map_of_nothing_is_drawn():
    figure = association_figure({"slope": np.zeros(SHAPE, "f4")}, AFFINE, {"slope": ""})
    assert np.isfinite(figure.axes[0].images[0].get_clim()).all()


def test_strip_has_a_picture_a_step_with_front_up_and_left_left():
    images = np.zeros((3, *SHAPE), "f4")
    images[:, inside()] = 1
    images[:, 1, -2, 1:-1] = 5  # left, front
    images[2, 1:4][:, 1:-1, 1:-1] += 2  # the last step brightens the left
    strip = strip_of(Traversal("x_traversal", images, AFFINE, [-1.0, 0.0, 1.0], {}), ["a", "b", "c"], "scale")
    assert [each.alt.partition(":")[0] for each in strip.pictures] == ["a", "b", "c"]
    before, middle, after = (picture(each.data) for each in strip.pictures)
    half = middle.shape[1] // 2
    assert strip.ratio == pytest.approx(middle.shape[1] / middle.shape[0])  # voxels are square in a slice
    bright = np.argwhere(middle[:, :half].mean(axis=2) > 0.98)
    top = bright[bright[:, 0] < middle.shape[0] // len(strip.heights)]
    assert len(top) == 1
    assert top[0, 1] < half / 2
    inside_rows = np.flatnonzero((middle[: middle.shape[0] // len(strip.heights), :half] > BLACK).any(axis=(1, 2)))
    assert top[0, 0] == inside_rows[0]
    np.testing.assert_array_equal(before, middle)
    change = after[:, half:]
    painted = (change > BLACK).any(axis=2)
    red = painted & (change[..., 0] > change[..., 2] + 0.2)
    columns = np.flatnonzero(red.any(axis=0))
    assert len(columns) == 3
    assert columns.max() < half / 2
    neutral = middle[:, half:][painted]
    assert neutral.min() > 0.9  # no difference is nearly white


def test_strip_says_how_high_its_slices_lie_and_shows_large_grids_coarser(tmp_path):
    write_maps(tmp_path)
    along = read_traversals(tmp_path / "maps")[0]
    names = [str(each) for each in POSITIONS]
    strip = strip_of(along, names, "a")
    heights = [float(each.removesuffix(" mm")) for each in strip.heights]
    assert heights == sorted(heights, reverse=True)
    assert set(heights) <= {float(3 * level) for level in range(SHAPE[2])}
    large = np.repeat(np.repeat(along.images, 15, axis=1), 12, axis=2)
    affine = AFFINE @ np.diag([1 / 15, 1 / 12, 1, 1])
    coarse = strip_of(Traversal("x", large, affine, along.positions, {}), names, "b")
    assert picture(coarse.pictures[0].data).shape[1] / 2 <= 120
    assert coarse.heights == strip.heights


def test_steps_are_named_by_what_they_are(tmp_path):
    write_maps(tmp_path)
    write_maps(tmp_path, name="sex-M", meaning="M against F", dimensions=0)
    maps = tmp_path / "maps"
    age, dimension, sex = (step_of(each, maps) for each in read_traversals(maps))
    assert dimension.title == "dimension 0"
    assert dimension.labels == ["−2 SD", "−1 SD", "mean", "+1 SD", "+2 SD"]
    assert "1.5" in dimension.meaning
    assert age.labels == ["−2 SD*", *dimension.labels[1:]]  # aged 25, and the cohort begins at 26
    assert age.small == ["age −25", "age −12.5", "", "age +12.5", "age +25"]
    assert "Extrapolated" in age.meaning
    assert "xtrapolated" not in dimension.meaning
    assert sex.title == "M against F"
    assert sex.labels == ["−25*", "−12.5", "mean", "+12.5", "+25"]
    assert "SD" not in sex.meaning


def test_planes_meet_where_a_person_stands_out():
    z = np.random.default_rng(0).normal(size=SHAPE).astype("f4") * inside()
    z[6, 3, 2] = 9
    at = (AFFINE @ [6, 3, 2, 1])[:3]
    figure = focus_figure(z, AFFINE, at)
    panels = [axes for axes in figure.axes if axes.images]
    for axes, (across, up) in zip(panels, [(1, 2), (0, 2), (0, 1)], strict=True):
        image = axes.images[-1]
        left, _, bottom, _ = image.get_extent()
        row, column = np.unravel_index(np.ma.filled(image.get_array(), -np.inf).argmax(), image.get_array().shape)
        assert (column + left + 0.5, row + bottom + 0.5) == ((6, 3, 2)[across], (6, 3, 2)[up])
        crosses = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines}
        assert ((6, 3, 2)[across], 0) in crosses
        assert (0, (6, 3, 2)[up]) in crosses
    assert [axes.get_title() for axes in panels] == ["sagittal, x = 12 mm", "coronal, y = 6 mm", "axial, z = 6 mm"]


def test_over_an_image_only_what_is_large_is_painted():
    z = np.where(np.arange(SHAPE[2]) == 3, 2.5, 1.5) * inside().astype("f4")
    figure = focus_figure(z, AFFINE, (8.0, 10.0, 9.0), under=inside().astype("f4"))
    coronal = figure.axes[1].images[1].get_array()
    assert np.isfinite(np.ma.filled(coronal, np.nan)).any(axis=1).tolist() == [False, False, True, False, False]
    assert np.isfinite(np.ma.filled(figure.axes[1].images[0].get_array(), np.nan)).all()


def test_a_place_outside_the_grid_is_drawn_at_its_edge():
    z = inside().astype("f4")
    assert len([axes for axes in focus_figure(z, AFFINE, (999.0, -999.0, 0.0)).axes if axes.images]) == 3


def test_dots_of_small_p_are_filled_and_the_first_three_numbered():
    p = [0.01, 0.2, 0.05, 0.9]
    judged = [Judged(f"s{i}", "", "test", {"extent": 3.0 - i, "p_extent": each}, "") for i, each in enumerate(p)]
    axes = strip_chart(judged, ["extent"]).axes[0]
    hollow, filled = axes.collections
    assert sorted(np.asarray(filled.get_offsets())[:, 0].tolist()) == [1.0, 3.0]
    assert sorted(np.asarray(hollow.get_offsets())[:, 0].tolist()) == [0.0, 2.0]
    assert len(hollow.get_facecolors()) == 0
    assert matplotlib.colors.to_hex(filled.get_facecolors()[0]) == PEER
    assert matplotlib.colors.to_hex(hollow.get_edgecolors()[0]) == OURS
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]
