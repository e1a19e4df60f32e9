"""Conformal p-values: their definition, and the guarantee by simulation with whatever distribution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kerasvae.conformal import conformal_p, fewest, threshold, voxels
from kerasvae.errors import ArgumentError


def test_p_is_a_rank_among_all():
    """Of a score among itself and the calibration scores: the share that is as high."""
    rng = np.random.default_rng(0)
    known = rng.integers(0, 6, 25).astype(float)  # with ties
    for score in (-1.0, 0.0, 2.0, 2.5, 5.0, 9.0):
        expected = np.mean(np.append(known, score) >= score)
        assert conformal_p(score, known) == pytest.approx(expected)
    assert conformal_p(np.nan, known) == pytest.approx(1 / 26)
    assert conformal_p(np.inf, known) == pytest.approx(1 / 26)
    assert conformal_p(np.zeros((2, 3)), known).shape == (2, 3)


@pytest.mark.parametrize("n", [19, 30])
@pytest.mark.parametrize("draw", ["standard_normal", "standard_cauchy", "three values"])
def test_a_healthy_person_is_told_as_seldom_as_promised(n, draw):
    """Over the draw of calibration people and person; exactly α where (n + 1) α is whole and no two scores tie."""
    rng = np.random.default_rng(n)
    times = 4000
    scores = rng.integers(0, 3, (times, n + 1)) if draw == "three values" else getattr(rng, draw)((times, n + 1))
    p = np.array([conformal_p(row[0], row[1:]) for row in scores])
    for alpha in (0.05, 0.1, 0.2):
        most = stats.binom.ppf(0.999, times, alpha)
        assert (p <= alpha).sum() <= most
        if n == 19 and draw != "three values":
            assert (p <= alpha).sum() >= stats.binom.ppf(0.001, times, alpha)


def test_the_threshold_is_that_of_p():
    rng = np.random.default_rng(1)
    for n in (5, 19, 20, 39, 40, 99):
        known = rng.normal(size=n)
        scores = np.r_[known, known + 1e-9, known - 1e-9, rng.normal(size=50)]
        for alpha in (0.01, 0.05, 0.1, 0.2):
            np.testing.assert_array_equal(scores > threshold(known, alpha), conformal_p(scores, known) <= alpha)
            assert np.isinf(threshold(known, alpha)) == (n < fewest(alpha))


def test_any_voxel_of_a_healthy_person():
    """Voxels that go together and differ in scale: any is told as seldom as promised, and a lesion where it is."""
    rng = np.random.default_rng(2)
    times, n, v = 1500, 39, 60
    mix = rng.normal(size=(v, v)) * rng.uniform(0.2, 3, v)
    told = 0
    for _ in range(times):
        scores = np.abs(rng.standard_t(3, (n + 1, v)) @ mix)
        told += (voxels(scores[:1], scores[1:]) <= 0.05).any()
    low, high = stats.binom.interval(0.998, times, 0.05)
    assert low <= told <= high
    scores[0, 7] = 1e6
    p = voxels(scores[:1], scores[1:])
    assert p[0, 7] == pytest.approx(1 / 40)
    assert (p[0] <= 0.05).sum() == 1 + (scores[0, np.arange(v) != 7] > threshold(scores[1:].max(axis=1), 0.05)).sum()


def test_false_discoveries_among_many_persons():
    """Twenty patients and eighty healthy people, placed among one calibration set of 199."""
    rng = np.random.default_rng(4)
    shares = []
    for _ in range(400):
        scores = np.r_[rng.normal(4, 1, 20), rng.normal(size=80)]
        found = stats.false_discovery_control(conformal_p(scores, rng.normal(size=199))) <= 0.1
        shares.append(found[20:].sum() / max(1, found.sum()))
    assert np.mean(shares) <= 0.1 + 3 * np.std(shares) / 20


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: conformal_p(1.0, []),
            r"calibration must be one score or more, all numbers, but received shape \(0,\)",
        ),
        (lambda: conformal_p(1.0, [1.0, np.nan]), "but received NaN"),
        (lambda: threshold([1.0], 0.0), "alpha must be between 0 and 1"),
        (lambda: voxels(np.zeros((1, 3)), np.zeros((5, 4))), "the same voxels"),
    ],
)
def test_wrong_arguments(call, words):
    with pytest.raises(ArgumentError, match=words):
        call()
