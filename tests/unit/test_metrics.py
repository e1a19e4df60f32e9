"""Metrics against values worked by hand, and against what they are meant to expose."""

import numpy as np
import pytest
from sklearn.metrics import r2_score

from kerasvae.errors import ArgumentError
from kerasvae.metrics import (
    active_units,
    explained_variance,
    identification,
    identification_chance,
    mutual_information,
    pca_reconstruct,
    variance_ratio,
)

RNG = np.random.default_rng(1)
X = RNG.standard_normal((12, 40))
MEAN = RNG.standard_normal(40) * 0.1


def test_explained_variance_is_zero_for_the_mean_brain_and_one_for_the_truth():
    assert explained_variance(X, np.tile(MEAN, (12, 1)), MEAN) == pytest.approx(0, abs=1e-12)
    assert explained_variance(X, X, MEAN) == 1
    reconstruction = X + 0.3 * RNG.standard_normal(X.shape)
    # R² of scikit-learn, when the reference mean is the held-out mean of all cells
    flat = np.full(40, X.mean())
    assert explained_variance(X, reconstruction, flat) == pytest.approx(r2_score(X.ravel(), reconstruction.ravel()))


def test_identification_exposes_the_mean_brain():
    assert identification(X, X + 0.01) == 1
    assert identification(X, np.tile(X.mean(0), (12, 1))) == pytest.approx(1 / 12)
    assert identification(X, np.roll(X, 1, axis=0)) == 0


def test_identification_counts_any_scan_of_the_person():
    x = np.repeat(np.eye(3) * 5, 2, axis=0) + RNG.standard_normal((6, 3)) * 0.01
    swapped = x[[1, 0, 3, 2, 5, 4]]
    assert identification(x, swapped) == 0
    assert identification(x, swapped, list("aabbcc")) == 1


def test_variance_ratio():
    assert variance_ratio(X, 0.5 * X) == pytest.approx(0.25)
    assert variance_ratio(X, np.tile(MEAN, (12, 1))) == pytest.approx(0, abs=1e-12)


def test_active_units_counts_dimensions_that_vary():
    means = np.zeros((50, 4))
    means[:, 1] = RNG.standard_normal(50)
    means[:, 3] = 5.0  # constant: not active
    assert active_units(means) == 1


def test_chance_of_identification_with_unequal_numbers_of_scans():
    """Of reconstructions that know nothing, whichever scan is nearest."""
    people = list("aaaabbc")
    rng = np.random.default_rng(0)
    images = 1e4 * np.eye(7)  # as far from each other, so that every one is as often the nearest
    found = np.mean([identification(images, rng.standard_normal((7, 7)), people) for _ in range(4000)])
    assert identification_chance(people) == pytest.approx(found, abs=0.01)
    assert identification_chance(list("abcd")) == 0.25


def test_mutual_information_runs_from_zero_to_log_n():
    people = 20
    same = mutual_information(np.zeros((people, 2)), np.ones((people, 2)))
    apart = mutual_information(np.arange(people)[:, None] * 100.0, np.ones((people, 1)))
    assert same == pytest.approx(0, abs=1e-9)
    assert apart == pytest.approx(np.log(people))


def test_pca_beside_us_matches_the_singular_value_decomposition():
    fit, new = RNG.standard_normal((15, 30)), RNG.standard_normal((4, 30))
    mean = fit.mean(0)
    axes = np.linalg.svd(fit - mean, full_matrices=False)[2][:5]
    np.testing.assert_allclose(pca_reconstruct(fit, new, 5), (new - mean) @ axes.T @ axes + mean, atol=1e-5)
    assert pca_reconstruct(fit, new, 99).shape == new.shape


def test_shapes_must_agree():
    with pytest.raises(ArgumentError, match="shape of images"):
        identification(X, X[:, :-1])
