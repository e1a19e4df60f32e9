"""Figures of the report: orientation, proportions, common scales, and what is told apart without colour."""

import numpy as np
import pytest

from kerasvae.analysis.figures import kl_bars, latent_scatter, learning_curves, to_svg
from kerasvae.analysis.panel import Examples, axial_levels, montage, person_panel


def test_slices_show_left_on_the_left_and_front_on_top():
    mask, volume = np.ones((4, 6, 3), bool), np.zeros((4, 6, 3))
    volume[0, 5, 1] = 1  # left, front
    shown = montage(volume, mask, [1])
    row, column = np.argwhere(shown == 1)[0]
    assert column == 0
    assert row == shown.shape[0] - 1  # drawn with the origin below


def test_slices_lie_in_the_mask():
    mask = np.zeros((5, 5, 30), bool)
    mask[:, :, 10:21] = True
    assert axial_levels(mask) == [13, 15, 18]


def test_panel_has_one_scale_and_true_proportions():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, 6, 8, 5)).astype("f4")
    mean = np.zeros((6, 8, 5), "f4")
    examples = Examples(
        ["a", "b"], image, image.copy(), image * 0, mean, np.ones((6, 8, 5), bool), np.diag([2.0, 3.0, 4.0, 1.0])
    )
    assert examples.explained(0, examples.reconstruction) == pytest.approx(1)
    assert examples.explained(0, examples.pca) == pytest.approx(0)
    drawn = [[axes.images[0] for axes in person_panel(examples, person).axes if axes.images] for person in (0, 1)]
    assert len(drawn[0]) == 7
    for first, second in zip(*drawn, strict=True):
        assert first.get_clim() == second.get_clim()
        assert first.axes.get_aspect() == pytest.approx(1.5)
    assert len({shown.get_clim() for shown in drawn[0][:4]}) == len({shown.get_clim() for shown in drawn[0][4:]}) == 1


def test_inactive_dimensions_are_told_apart_by_hatching():
    hatches = [bar.get_hatch() for bar in kl_bars([3.0, 0.0, 5.0], [True, False, True]).axes[0].patches]
    assert sorted(map(bool, hatches)) == [False, False, True]


def test_best_epoch_is_marked():
    history = [{"epoch": float(e), "val_calibrated_elbo": -abs(e - 2.0)} for e in range(4)]
    figure = learning_curves(history, 2, latent_size=3, chance=0.5, whose="validation")
    for axes in figure.axes:
        assert any(list(line.get_xdata()) == [2.0, 2.0] for line in axes.lines)


def test_scatter_with_some_ages_unknown():
    points, ages = np.arange(8.0).reshape(4, 2), np.array([20.0, np.nan, 40.0, 60.0])
    figure = latent_scatter(points, ["train", "train", "test", "test"], ages, ("a", "b"))
    drawn = [offset for points in figure.axes[0].collections for offset in np.asarray(points.get_offsets()).tolist()]
    assert sorted(drawn) == points.tolist()


def test_alternative_text_is_escaped():
    svg = to_svg(lambda: kl_bars([3.0, 0.0, 5.0], None), "kl", 'a "quoted" <b>')
    assert 'aria-label="a &#34;quoted&#34; &lt;b&gt;"' in svg
    assert "<b>" not in svg
