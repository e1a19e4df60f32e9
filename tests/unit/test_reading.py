"""The reader of images, beside scikit-learn and what is known of the images."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV

from kerasvae.analysis.generation.reading import PENALTIES, Reader

N, V = 60, 200


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    age = rng.uniform(20, 80, N)
    sign = rng.standard_normal(V)
    return age, np.outer(age - 50, sign) / 30 + 2 * rng.standard_normal((N, V)) + 3, sign


def test_it_is_ridge_regression_of_the_voxels(images):
    age, x, _ = images
    reader = Reader.fit(x, age, range(N))
    scale = np.sqrt(np.square(x - x.mean(0)).sum() / N)
    left, sizes, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    chosen = RidgeCV(alphas=PENALTIES).fit(left * sizes / scale, age).alpha_
    expected = Ridge(alpha=chosen * scale**2).fit(x, age)
    new = x[::-1] + 1.0
    np.testing.assert_allclose(reader.read(new), expected.predict(new), rtol=1e-6)


def test_it_reads_new_people_as_it_says(images):
    age, x, sign = images
    reader = Reader.fit(x, age, range(N))
    assert reader.r_low > 0.5
    rng = np.random.default_rng(1)
    asked = 70.0
    new = np.outer(np.full(2000, asked) - 50, sign) / 30 + 2 * rng.standard_normal((2000, V)) + 3
    assert reader.read(new).mean() == pytest.approx(reader.expected(asked), abs=2)
    assert reader.expected(asked) < asked  # what is read is nearer to the mean


def test_it_says_where_there_is_nothing_to_read(images):
    age, x, _ = images
    reader = Reader.fit(np.random.default_rng(3).standard_normal(x.shape), age, range(N))
    assert reader.r_low < 0


def test_visits_of_one_person_stay_together(images):
    """Two images of one person and one age would give the age away."""
    age, x, _ = images
    noise = np.random.default_rng(4).standard_normal(x.shape)
    reader = Reader.fit(np.r_[noise, noise], np.r_[age, age], [*range(N), *range(N)])
    assert reader.people == N
    assert abs(reader.r) < 0.5
