"""Codes given values, beside closed forms, scikit-learn, statsmodels and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.interpolate import make_interp_spline
from scipy.spatial.distance import cdist

from kerasvae.analysis.design import term_of
from kerasvae.analysis.generation.conditional_codes import KNOTS, ConditionalCodes
from kerasvae.errors import ArgumentError

N, D = 80, 3


def cells(values):
    return [f"{value:.17g}" for value in values]


@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(5)
    age, sex = rng.uniform(20, 80, N), rng.choice(["F", "M", "X"], N)
    noise = rng.multivariate_normal(np.zeros(D), [[1, 0.6, 0], [0.6, 2, 0], [0, 0, 0.3]], N)
    codes = 1 + np.outer(age, [0.05, 0, -0.02]) + np.outer(sex == "M", [0, 2, 0]) + noise
    return codes, age, sex, [term_of("age", cells(age)), term_of("sex", sex.tolist())]


@pytest.fixture(scope="module")
def fitted(people):
    return ConditionalCodes.fit(people[0], people[3])


def test_the_mean_is_that_of_least_squares(people, fitted):
    import statsmodels.api as sm

    codes, age, sex, _ = people
    x = np.c_[np.ones(N), age, sex == "M", sex == "X"]
    new = np.array([[1, 33.5, 0, 1], [1, 90, 0, 0], [1, 5, 1, 0]])  # beyond the people's ages the line goes on
    rows = fitted.numbers({"age": ["33.5", "90", "5"], "sex": ["X", "F", "M"], "other": ["?"] * 3})
    for column in range(D):
        expected = sm.OLS(codes[:, column], x).fit().predict(new)
        np.testing.assert_allclose(fitted.mean(rows)[:, column], expected, rtol=1e-10)


def test_the_spread_is_that_of_residuals_and_posteriors(people, fitted):
    from sklearn.covariance import LedoitWolf
    from sklearn.linear_model import LinearRegression

    codes, age, sex, terms = people
    x = np.c_[age, sex == "M", sex == "X"]
    residual = codes - LinearRegression().fit(x, codes).predict(x)
    expected = LedoitWolf(assume_centered=True).fit(residual).covariance_ * N / (N - 4)
    np.testing.assert_allclose(fitted.covariance, expected, rtol=1e-8)
    stddev = np.random.default_rng(0).uniform(0.1, 1, (N, D))
    wider = ConditionalCodes.fit(codes, terms, stddev=stddev)
    np.testing.assert_allclose(wider.covariance - expected, np.diag((stddev**2).mean(0)), atol=1e-8)
    np.testing.assert_array_equal(wider.slopes, fitted.slopes)


def test_law_of_total_variance():
    """Draws are spread as draws of the posteriors are, where a mean says half of what there is to say."""
    rng = np.random.default_rng(1)
    truth = rng.standard_normal((4000, 2))  # z ~ N(0, 1) seen with noise of 1: posterior N(x / 2, 1 / 2)
    means = (truth + rng.standard_normal(truth.shape)) / 2
    codes = ConditionalCodes.fit(means, stddev=np.full(means.shape, np.sqrt(0.5)))
    np.testing.assert_allclose(codes.covariance, np.eye(2), atol=0.05)
    assert np.trace(ConditionalCodes.fit(means).covariance) < 1.1


def test_one_dimension_and_no_variable():
    z = np.random.default_rng(2).standard_normal((30, 1))
    codes = ConditionalCodes.fit(z)
    assert codes.covariance == pytest.approx(z.var(ddof=1))
    rows = codes.numbers({})
    assert codes.mean(rows) == pytest.approx(z.mean())
    assert codes.sample(rows, 5, 0).shape == (5, 1, 1)


def test_draws_have_the_moments_asked_for(fitted):
    rows = fitted.numbers({"age": ["30", "70"], "sex": ["F", "M"]})
    count = 20_000
    drawn = fitted.sample(rows, count, seed=3)
    error = np.sqrt(np.diag(fitted.covariance) / count)
    assert (np.abs(drawn.mean(axis=0) - fitted.mean(rows)) < 4.5 * error).all()
    for row in range(2):
        found = np.cov(drawn[:, row].T)
        spread = np.outer(np.diag(fitted.covariance), np.diag(fitted.covariance))
        assert (np.abs(found - fitted.covariance) < 4.5 * np.sqrt((spread + fitted.covariance**2) / count)).all()
    distance = np.square(fitted.whitened(drawn[:, 0] - fitted.mean(rows)[0])).sum(axis=1)
    assert stats.kstest(distance, stats.chi2(D).cdf).pvalue > 1e-4
    np.testing.assert_array_equal(drawn, fitted.sample(rows, count, seed=3))
    assert (drawn != fitted.sample(rows, count, seed=4)).all()


def test_a_shift_keeps_who_somebody_is(people, fitted):
    codes, age, sex, _ = people
    before = fitted.numbers({"age": cells(age), "sex": sex.tolist()})
    after = fitted.numbers({"age": ["75"] * N, "sex": ["M"] * N})
    moved = fitted.shift(codes, before, after)
    np.testing.assert_allclose(moved - fitted.mean(after), codes - fitted.mean(before), atol=1e-12)
    np.testing.assert_allclose(fitted.shift(moved, after, before), codes, atol=1e-12)
    np.testing.assert_array_equal(fitted.shift(codes, before, before), codes)


def test_distances_are_mahalanobis(people, fitted):
    codes = people[0]
    expected = cdist(codes, codes, "mahalanobis", VI=np.linalg.inv(fitted.covariance))
    np.testing.assert_allclose(cdist(fitted.whitened(codes), fitted.whitened(codes)), expected, atol=1e-8)


@pytest.mark.parametrize("knots", [3, 4, 5])
def test_a_curve_is_a_natural_spline(people, knots):
    """One that goes through any values at the knots is fitted exactly; beyond them it is straight."""
    age = people[1]
    places = np.quantile(age, KNOTS[knots])
    heights = np.random.default_rng(knots).normal(size=(knots, D))
    spline = make_interp_spline(places, heights, bc_type="natural")
    ends = [
        spline(places[[end]]) + spline.derivative()(places[[end]]) * (age - places[end])[:, None] for end in (0, -1)
    ]
    codes = np.where((age < places[0])[:, None], ends[0], np.where((age > places[-1])[:, None], ends[1], spline(age)))
    fitted = ConditionalCodes.fit(codes, people[3], knots=knots)
    rows = fitted.numbers({"age": cells(age), "sex": people[2].tolist()})
    np.testing.assert_allclose(fitted.mean(rows), codes, atol=1e-8)
    assert np.abs(ConditionalCodes.fit(codes, people[3]).mean(rows) - codes).max() > 0.1


def test_a_curve_is_found_where_a_line_is_not_enough():
    rng = np.random.default_rng(7)
    age = rng.uniform(20, 80, 300)
    truth = ((age - 50) / 30) ** 2
    codes = truth[:, None] + 0.3 * rng.standard_normal((300, 1))
    term = term_of("age", cells(age))
    errors = []
    for knots in (2, 4):
        fitted = ConditionalCodes.fit(codes, [term], knots=knots)
        errors.append(np.abs(fitted.mean(fitted.numbers({"age": cells(age)}))[:, 0] - truth).mean())
    assert errors[1] < 0.08 < 0.2 < errors[0]


def test_a_person_counts_once_and_only_if_known(people):
    codes, age, sex, _ = people
    who = [f"sub-{row}" for row in range(N)]
    known = [*cells(age[:-5]), *["n/a"] * 5, *cells(age[:20] + 10)]
    terms = [term_of("age", known), term_of("sex", [*sex.tolist(), *sex[:20].tolist()])]
    twice = ConditionalCodes.fit(np.r_[codes, codes[:20] + 9], terms, people=[*who, *who[:20]])
    once = ConditionalCodes.fit(codes[:-5], [term_of("age", cells(age[:-5])), term_of("sex", sex[:-5].tolist())])
    assert twice.people == once.people == N - 5
    np.testing.assert_allclose(twice.slopes, once.slopes, atol=1e-10)
    np.testing.assert_allclose(twice.covariance, once.covariance, atol=1e-10)


def test_out_of_range_is_said(people, fitted):
    age, sex = fitted.variables
    assert (age.low, age.high) == (people[1].min(), people[1].max())
    assert age.beyond(50) == sex.beyond(2) == ""
    assert age.beyond(95).startswith(f"age 95 is outside {people[1].min():g} to {people[1].max():g}")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"age": ["seventy"], "sex": ["F"]}, "age must be a number, but received 'seventy'"),
        ({"age": ["n/a"], "sex": ["F"]}, "age must be a number, but received 'n/a'"),
        ({"age": ["inf"], "sex": ["F"]}, "age must be a number"),
        ({"age": ["70"], "sex": ["f"]}, "sex must be one of F, M, X, but received 'f'"),
        ({"age": ["70"]}, "sex must be given"),
    ],
)
def test_bad_values(fitted, table, words):
    with pytest.raises(ArgumentError, match=words):
        fitted.numbers(table)


def test_too_few_people_or_one_variable_twice(people):
    codes, age, _, terms = people
    few = [term_of("age", cells(age[:15])), term_of("sex", ["F", "M", "X"] * 5)]
    with pytest.raises(ArgumentError, match="have 16 people to learn from, with age, sex known, but received 15"):
        ConditionalCodes.fit(codes[:15], few)
    with pytest.raises(ArgumentError, match="have 10 people to learn from, but received 9"):
        ConditionalCodes.fit(codes[:9])
    with pytest.raises(ArgumentError, match="one that follows from the others"):
        ConditionalCodes.fit(codes, [*terms, term_of("months", cells(age * 12))])
    with pytest.raises(ArgumentError, match="knots must be 2"):
        ConditionalCodes.fit(codes, terms, knots=1)
