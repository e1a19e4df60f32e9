"""Pictures of maps: what is in them, and that none is left open."""

from __future__ import annotations

import matplotlib.image
import numpy as np
import pytest

from kerasvae.analysis.figures import to_svg
from kerasvae.analysis.maps.figures import Frame, map_figure, save_png, traversal_figure, traversal_slices
from kerasvae.types import Grid

SHAPE = (12, 14, 10)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
AFFINE[:3, 3] = (-22, -26, -18)
GRID = Grid.of(SHAPE, AFFINE, "native")


@pytest.fixture(scope="module")
def inside():
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    return x**2 + y**2 + z**2 < 0.9


def shares(path):
    """Of red and of blue pixels in the left and in the right half of the picture."""
    picture = matplotlib.image.imread(path)[..., :3]
    red = (picture[..., 0] > picture[..., 2] + 0.2).mean(axis=0)
    blue = (picture[..., 2] > picture[..., 0] + 0.2).mean(axis=0)
    return red, blue


def test_what_rises_is_red_and_what_falls_blue(tmp_path, inside):
    import matplotlib.pyplot as plt

    background = inside.astype(np.float32)
    for sign, first in ((1, 0), (-1, 1)):
        figure = map_figure(sign * background, background, inside, GRID, label="model units", outline=inside)
        colours = shares(save_png(figure, tmp_path / "map.png"))
        body = slice(0, int(0.9 * len(colours[0])))  # beside the colour bar
        assert colours[first][body].sum() > 20 * colours[1 - first][body].sum()
        assert colours[first][body].mean() > 0.2
        assert "model units" in [text.get_text() for text in figure.texts]
    assert plt.get_fignums() == []


def test_left_is_left(tmp_path, inside):
    """A map that is red in the person's left half and blue in the right, slice by slice."""
    values = np.where(np.arange(SHAPE[0])[:, None, None] < SHAPE[0] / 2, 1, -1) * inside.astype(np.float32)
    figure = map_figure(values, inside.astype(np.float32), inside, GRID, label="")
    red, blue = shares(save_png(figure, tmp_path / "map.png"))
    painted = np.flatnonzero(red + blue)
    first = painted[painted < painted[0] + len(red) / 7]
    assert red[first].argmax() < blue[first].argmax()


def test_a_map_of_nothing_is_drawn(tmp_path, inside):
    figure = map_figure(
        np.zeros(SHAPE), inside.astype(float), inside, GRID, label="none", outline=np.zeros(SHAPE, bool)
    )
    assert save_png(figure, tmp_path / "map.png").stat().st_size > 1000


def test_slices_of_a_traversal(inside):
    images = np.arange(5.0)[:, None, None, None] * np.ones(SHAPE)
    frame = Frame(inside, AFFINE)
    slices = traversal_slices(images, frame, [3, 6])
    assert slices.shape[0] == 5
    for step, shown in enumerate(slices):
        assert np.isfinite(shown).sum() == inside[:, :, [3, 6]].sum()
        assert (shown[np.isfinite(shown)] == step).all()
    assert traversal_slices(images, frame).shape[2] == slices.shape[2] // 2 * 3


def test_the_figure_of_a_traversal(inside):
    images = np.linspace(-1, 1, 5)[:, None, None, None] * inside
    titles = ["-2", "-1", "age", "1", "2"]
    figure = traversal_figure(images, Frame(inside, AFFINE), titles)
    assert [axes.get_title() for axes in figure.axes[:5]] == titles
    below = [axes.images[0].get_array() for axes in figure.axes[5:10]]
    assert [float(np.nanmean(each)) for each in below] == [-1, -0.5, 0, 0.5, 1]
    assert "<svg" in to_svg(lambda: figure, "traversal", "age")
