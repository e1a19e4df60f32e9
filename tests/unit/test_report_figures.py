"""Figures of the report: orientation, proportions, common scales, and what is told apart without colour."""

import numpy as np
import pytest

from kerasvae.analysis.figures import kl_bars, latent_scatter, learning_curves, to_svg
from kerasvae.analysis.panel import Examples, axial_levels, montage, person_panel
from kerasvae.analysis.report.beside import mean_correlation, pair_of, people_figure


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


def two_runs(scans, order, shape=(6, 8, 5)):
    """Examples of the same scans in two orders; the other run reconstructs the mean brain."""
    rng = np.random.default_rng(1)
    image = rng.standard_normal((len(scans), *shape)).astype("f4")
    mean, mask = np.full(shape, 0.5, "f4"), np.ones(shape, bool)
    ours = Examples(scans, image, image * 0.75, image, mean, mask, np.eye(4))
    trapped = np.broadcast_to(mean, image.shape) + 0.01 * np.arange(len(scans), dtype="f4")[order, None, None, None]
    return ours, Examples([scans[i] for i in order], image[order], trapped, image[order], mean, mask, np.eye(4))


def test_people_stand_beside_another_run_in_our_order_whatever_its_own():
    scans, order = ["b", "a", "b", "c"], [3, 1, 0, 2]  # two scans of b, which keep their order
    ours, theirs = two_runs(scans, order)
    pair = pair_of(ours, theirs, "other")
    offsets = pair.other.mean(axis=(1, 2, 3)) - 0.5
    np.testing.assert_allclose(offsets, 0.01 * np.arange(4), atol=1e-6)
    for i, (share, other) in enumerate(pair.explained()):
        total = np.square(ours.image[i].astype(float) - 0.5).sum()
        assert share == pytest.approx(1 - np.square(0.25 * ours.image[i].astype(float)).sum() / total, rel=1e-5)
        assert other == pytest.approx(1 - np.square(ours.image[i] - 0.5 - 0.01 * i).sum() / total, abs=1e-5)


def test_figure_of_people_subtracts_each_runs_reconstruction_on_one_symmetric_scale():
    ours, theirs = two_runs(["a", "b", "c"], [2, 0, 1])
    drawn = [axes.images[0] for axes in people_figure(pair_of(ours, theirs, "other")).axes if axes.images]
    assert len(drawn) == 3 * 5
    level = axial_levels(ours.mask)[-2:]
    for person in range(3):
        image, mine, missed, other, lost = (
            shown.get_array()
            for _, shown in sorted((s.axes.get_position().x0, s) for s in drawn[5 * person : 5 * person + 5])
        )
        np.testing.assert_allclose(image, montage(ours.image[person], ours.mask, level))
        np.testing.assert_allclose(missed, image - mine, atol=1e-6)
        np.testing.assert_allclose(lost, image - other, atol=1e-6)
        np.testing.assert_allclose(mine, 0.75 * image, atol=1e-6)
    grey, differences = ({s.get_clim() for s in drawn if (s.cmap.name == "gray") == kind} for kind in (True, False))
    assert len(grey) == len(differences) == 1
    low, high = differences.pop()
    assert low == -high
    words = [text.get_text() for axes in people_figure(pair_of(ours, theirs, "other")).axes for text in axes.texts]
    assert sum("explained" in each for each in words) == 6
    assert words.count("L") == 1


def test_mean_correlation_is_that_of_numpy():
    a = np.random.default_rng(0).standard_normal((4, 30)) + 3
    expected = np.corrcoef(a)[np.triu_indices(4, 1)].mean()
    assert mean_correlation(a) == pytest.approx(expected)
    assert np.isnan(mean_correlation(np.ones((2, 5))))


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
