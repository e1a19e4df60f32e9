"""Copies are found, new people are not accused: beside scipy, and by how often it errs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from kerasvae.analysis.generation.memorisation import memorisation
from kerasvae.errors import ArgumentError

T, N, M, V = 60, 25, 40, 6


def drawn(seed, *counts):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((count, V)) * np.linspace(2, 0.5, V) for count in counts]


def test_distances_and_ranks_beside_scikit_learn_and_scipy():
    train, held_out, made = drawn(0, T, N, M)
    found = memorisation(made, train, held_out)
    tree = NearestNeighbors(n_neighbors=1).fit(train)
    distance, nearest = (each[:, 0] for each in tree.kneighbors(made))
    reference = tree.kneighbors(held_out)[0][:, 0]
    np.testing.assert_array_equal(found.nearest, nearest)
    np.testing.assert_allclose(found.distance, distance)
    np.testing.assert_allclose(found.held_out, reference)
    assert found.ratio == pytest.approx(np.median(distance) / np.median(reference))
    ranks = stats.rankdata(np.r_[distance, reference])[:M]
    u = ranks.sum() - M * (M + 1) / 2
    assert found.statistic == pytest.approx((u - M * N / 2) / math.sqrt(M * N * (M + N + 1) / 12))
    assert found.p_copied == pytest.approx(stats.norm.cdf(found.statistic), abs=0.01)
    assert found.p_far == pytest.approx(stats.norm.sf(found.statistic), abs=0.01)
    np.testing.assert_allclose(found.p, [(1 + (reference <= each).sum()) / (N + 1) for each in distance])


def test_how_often_new_people_are_accused():
    """Of people drawn as held-out ones are, in 1000 cohorts: within an exact 99.9 % binomial interval."""
    runs = [memorisation(made, train, new) for train, new, made in (drawn(seed, T, N, M) for seed in range(1000))]
    low, high = stats.binom.interval(0.999, 1000, 0.05)
    for p in ([run.p_copied for run in runs], [run.p_far for run in runs]):
        assert low <= (np.array(p) <= 0.05).sum() <= high
    alone = np.array([run.p[0] for run in runs])
    assert (alone <= 0.1).sum() <= stats.binom.ppf(0.9995, 1000, 0.1)
    assert abs(np.mean([run.statistic for run in runs])) < 4 / math.sqrt(1000)


@pytest.mark.parametrize(("share", "p"), [(1.0, 0.001), (0.5, 0.025)])
def test_copies_are_found(share, p):
    train, held_out, made = drawn(1, T, N, M)
    copies = np.arange(int(share * M)) % T
    made[: len(copies)] = train[copies] + 0.01 * np.random.default_rng(2).standard_normal((len(copies), V))
    found = memorisation(made, train, held_out)
    assert found.p_copied < p < 0.9 < found.p_far
    assert found.ratio < 0.8
    np.testing.assert_array_equal(found.nearest[: len(copies)], copies)
    np.testing.assert_allclose(found.p[: len(copies)], 1 / (N + 1))
    assert "as copies are" in found.describe()


def test_people_unlike_any_are_found():
    train, held_out, made = drawn(3, T, N, M)
    found = memorisation(3 * made, train, held_out)
    assert found.p_far < 0.001 < 0.9 < found.p_copied
    assert found.ratio > 1.5
    assert "as people unlike any are" in found.describe()
    assert "as far from training people as real people are" in memorisation(made, train, held_out).describe()


def test_what_cannot_be_compared():
    train, held_out, made = drawn(4, T, N, M)
    with pytest.raises(ArgumentError, match="2 held-out people"):
        memorisation(made, train, held_out[:2])
    with pytest.raises(ArgumentError, match="rows of one width"):
        memorisation(made[:, :3], train, held_out)
