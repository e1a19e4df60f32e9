"""ComBat: the closed form, Fortin's own implementation, and what happens to age where sites differ in it."""

import json
import warnings

import numpy as np
import pytest
from scipy import stats

from kerasvae.analysis.sites.combat import ComBat
from kerasvae.errors import ArgumentError

SHIFT, FACTOR = np.array([[2.0, -1.0, 0.5], [-4.0, 3.0, 0.0]]), np.array([[0.5, 2.0, 1.0], [3.0, 0.25, 1.5]])


def exact(n, columns, seed):
    """Columns of mean 0 and variance 1 (n − 1 in the denominator), uncorrelated with each other."""
    noise = np.random.default_rng(seed).standard_normal((n, columns))
    q, _ = np.linalg.qr(np.concatenate([np.ones((n, 1)), noise], axis=1))
    return q[:, 1:] * np.sqrt(n - 1)


def two_sites(n=40, seed=0):
    """Features whose site effects are known, an age of the same mean at both sites, what is left without them."""
    rows = [exact(n, 4, [seed, index]) for index in range(2)]
    age, noise = np.concatenate([r[:, 3] for r in rows]), np.concatenate([r[:, :3] for r in rows])
    place = np.repeat([0, 1], n)
    slope = np.array([[1.0, -2.0, 0.0]])
    data = 10 + age[:, None] * slope + SHIFT[place] + FACTOR[place] * noise
    return data, np.array(["a", "b"])[place], age[:, None], 10 + age[:, None] * slope, noise, place


def test_the_closed_form():
    """Without shrinking: σ² is the mean variance of the sites, γ their shift from the middle, δ their own scale."""
    data, site, age, expected, noise, _ = two_sites()
    found = ComBat.fit(data, site, age, shrink=False)
    sigma = np.sqrt(np.mean(FACTOR**2, axis=0) * 39 / 40)
    np.testing.assert_allclose(found.scale, sigma, rtol=1e-10)
    np.testing.assert_allclose(found.shift, (SHIFT - SHIFT.mean(axis=0)) / sigma, atol=1e-10)
    np.testing.assert_allclose(found.factor, FACTOR / sigma, rtol=1e-10)
    np.testing.assert_allclose(found.slopes, [[1, -2, 0]], atol=1e-10)
    middle = SHIFT.mean(axis=0)
    np.testing.assert_allclose(found.apply(data, site, age), expected + middle + sigma * noise, atol=1e-9)


def test_standard_deviations_are_those_of_draws():
    """A code's posterior goes through the same line: what draws of it come to, by Monte Carlo."""
    data, site, age, *_ = two_sites()
    found = ComBat.fit(data, site, age)
    stddev = np.abs(data) / 10 + 0.1
    draws = data[:, None] + stddev[:, None] * np.random.default_rng(1).standard_normal((len(data), 4000, 3))
    spread = [found.apply(d, [s] * 4000, np.repeat(a[None], 4000, 0)).std(axis=0)
              for d, s, a in zip(draws, site, age, strict=True)]  # fmt: skip
    np.testing.assert_allclose(stddev / found.factors(site), spread, rtol=0.07)


@pytest.mark.parametrize("shrink", [True, False])
def test_fortins_implementation(shrink):
    """neuroCombat 0.2.12: it takes ages in float32, and stops iterating at a change of one part in ten thousand."""
    peer = pytest.importorskip("neuroCombat").neuroCombat
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(3)
    site = rng.choice(["a", "b", "c"], 90, p=[0.5, 0.3, 0.2])
    age, sex = rng.uniform(20, 80, 90), rng.choice(["F", "M"], 90)
    place = np.unique(site, return_inverse=True)[1]
    effect = rng.normal(size=(2, 3, 12))
    data = rng.normal(size=(90, 12)) * np.exp(effect[0] / 3)[place] + effect[1][place] + 0.03 * age[:, None]
    table = pandas.DataFrame({"site": site, "age": age, "sex": sex})
    expected = peer(data.T, table, "site", categorical_cols=["sex"], continuous_cols=["age"], eb=shrink)["data"].T
    kept = np.stack([age, sex == "M"], axis=1).astype(float)
    found = ComBat.fit(data, site, kept, shrink=shrink).apply(data, site, kept)
    np.testing.assert_allclose(found, expected, atol=1e-3 if shrink else 1e-6)
    assert np.abs(found - data).max() > 1


def test_small_sites_are_shrunk_towards_what_their_features_share():
    """All features of a site shifted alike: the prior is right, so estimates are nearer to the truth with it."""
    rng = np.random.default_rng(4)
    place = np.array([0] * 60 + [1] * 6)
    data = rng.standard_normal((66, 30)) + 2.0 * place[:, None]
    errors = []
    for shrink in (True, False):
        found = ComBat.fit(data, np.array(["a", "b"])[place], shrink=shrink)
        gap = (found.shift[1] - found.shift[0]) * found.scale
        errors.append((np.abs(gap - 2).mean(), np.abs(np.log(found.factor[1] * found.scale)).mean()))
    assert errors[0][0] < 0.7 * errors[1][0]
    assert errors[0][1] < 0.7 * errors[1][1]


def confounded(seed, n=300):
    """Codes whose first column follows age; site b scans the old, and shifts and stretches all columns."""
    rng = np.random.default_rng(seed)
    place = np.repeat([0, 1], n // 2)
    age = rng.normal(45, 8, n) + 25 * place
    codes = rng.standard_normal((n, 4)) + np.outer((age - 57) / 10, [1, 0, 0, 0])
    return codes * np.where(place, 1.5, 1.0)[:, None] + 2.0 * place[:, None], np.array(["a", "b"])[place], age


def test_age_survives_only_where_it_is_kept():
    codes, site, age = confounded(0)
    others, where, old = confounded(1)
    kept = ComBat.fit(codes, site, age[:, None]).apply(others, where, old[:, None])
    ignored = ComBat.fit(codes, site).apply(others, where)
    truth = stats.pearsonr(confounded_without_site(1), old).statistic
    assert abs(stats.pearsonr(kept[:, 0], old).statistic - truth) < 0.05
    assert stats.pearsonr(ignored[:, 0], old).statistic < truth - 0.3
    # the other columns have nothing but the site, which goes either way
    for result in (kept, ignored):
        gaps = [stats.ttest_ind(result[where == "a", c], result[where == "b", c]).statistic for c in (1, 2, 3)]
        assert np.abs(gaps).max() < 4
    assert stats.ttest_ind(others[where == "a", 1], others[where == "b", 1]).statistic < -10


def confounded_without_site(seed):
    """The first column as it is without sites."""
    codes, site, _ = confounded(seed)
    return np.where(site == "b", (codes[:, 0] - 2) / 1.5, codes[:, 0])


def test_people_are_harmonised_one_by_one_and_without_what_is_not_told():
    data, site, age, *_ = two_sites()
    found = ComBat.fit(data, site, age)
    alone = np.concatenate([found.apply(data[i : i + 1], site[i : i + 1], age[i : i + 1]) for i in range(len(data))])
    np.testing.assert_array_equal(alone, found.apply(data, site, age))
    np.testing.assert_allclose(found.apply(data, site), found.apply(data, site, np.zeros_like(age)), atol=1e-12)
    again = ComBat.from_config(json.loads(json.dumps(found.to_config())))
    np.testing.assert_array_equal(again.apply(data, site, age), found.apply(data, site, age))
    plain = ComBat.from_config(ComBat.fit(data, site).to_config())
    np.testing.assert_array_equal(plain.apply(data, site), ComBat.fit(data, site).apply(data, site))


def test_a_feature_that_does_not_vary_stays():
    data, site, *_ = two_sites()
    data = np.concatenate([data, np.full((len(data), 1), 7.0), np.where(site == "a", 1.0, 2.0)[:, None]], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ComBat.fit(data, site).apply(data, site)
    np.testing.assert_allclose(found[:, 3:], data[:, 3:], atol=1e-12)


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("level", [0.3, 0.5, 1e6])
def test_a_site_whose_codes_do_not_vary_is_shifted_and_not_stretched(level, columns):
    """Whatever rounding leaves of its variance; a new person of that site stays as far from its level as they are."""
    data, site, *_ = two_sites()
    data = data[:, :columns]
    data[site == "b"] = level + np.arange(columns) / 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ComBat.fit(data, site)
    np.testing.assert_array_equal(found.factor[1], 1)
    there = data[site == "b"][:1]
    np.testing.assert_allclose(found.apply(there + 0.1, ["b"]) - found.apply(there, ["b"]), 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data, site, age: (data, ["a"] * 80, age), "two levels"),
        (lambda data, site, age: (data[:44], site[:44], age[:44]), "5 scans or more of every level.*4 of 'b'"),
        (lambda data, site, age: (data, site, (site == "a")[:, None]), "vary within sites"),
        (lambda data, site, age: (data, site, np.c_[age, 365.25 * age]), "vary within sites"),
    ],
)
def test_what_is_refused(change, words):
    data, site, age, *_ = two_sites()
    with pytest.raises(ArgumentError, match=words):
        ComBat.fit(*change(data, site, age))


def test_a_site_unseen_is_refused():
    data, site, age, *_ = two_sites()
    with pytest.raises(ArgumentError, match="be one of those that it was fitted to: a, b, but received 'c'"):
        ComBat.fit(data, site, age).apply(data[:1], ["c"], age[:1])
