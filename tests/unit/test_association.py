"""Associations beside closed forms, simulation and scipy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from kerasvae.analysis.association import associate, fisher_interval, posterior_variance
from kerasvae.analysis.design import column_of, held_same, model_of, term_of
from kerasvae.analysis.latents import Latents
from kerasvae.analysis.maps.slopes import contrasts_of
from kerasvae.analysis.permutation import orthonormal, permute
from kerasvae.errors import ArgumentError

N, D = 60, 4


def cells(values):
    return [f"{value:.17g}" for value in values]


@pytest.fixture
def cohort():
    rng = np.random.default_rng(2)
    age, sex = rng.uniform(20, 80, N), rng.integers(0, 2, N)
    site = rng.integers(0, 3, N)
    codes = rng.normal(size=(N, D)) + 0.3 * site[:, None]
    codes[:, 1] += 0.05 * age + 0.5 * sex
    terms = {
        "age": term_of("age", cells(age)),
        "sex": term_of("sex", ["FM"[each] for each in sex]),
        "site": term_of("site", [f"site{each}" for each in site]),
    }
    return codes, [f"sub-{i}" for i in range(N)], terms


def by_dimension(rows, variable):
    return [row for row in rows if row.variable == variable and row.dimension != "joint"]


def test_slope_interval_and_partial_correlation(cohort):
    codes, people, terms = cohort
    rows = associate(codes, people, [terms["age"], terms["sex"]], [terms["site"], terms["age"]], permutations=50)
    assert len(rows) == 2 * (D + 1)
    z = np.c_[np.ones(N), terms["site"].values]
    for name, others in (("age", z), ("sex", np.c_[z, terms["age"].values])):
        x = terms[name].values
        full = np.c_[others, x]
        inverse = np.linalg.inv(full.T @ full)
        for row in by_dimension(rows, name):
            y = codes[:, row.dimension]
            slopes = inverse @ full.T @ y
            free = N - full.shape[1]
            error = math.sqrt(np.square(y - full @ slopes).sum() / free * inverse[-1, -1])
            reach = stats.t.ppf(0.975, free) * error
            assert (row.slope, row.stderr) == (pytest.approx(slopes[-1]), pytest.approx(error))
            assert (row.low, row.high) == (pytest.approx(slopes[-1] - reach), pytest.approx(slopes[-1] + reach))
            assert row.statistic == pytest.approx(slopes[-1] / error)
            assert row.p_model == pytest.approx(2 * stats.t.sf(abs(row.statistic), free))
            left, along = (each - others @ np.linalg.lstsq(others, each, rcond=None)[0] for each in (y, x[:, 0]))
            assert row.r == pytest.approx(np.corrcoef(left, along)[0, 1])
            assert row.r_low < row.r < row.r_high
            assert (row.people, row.scans) == (N, N)


def test_corrections_for_many_tests(cohort):
    codes, people, terms = cohort
    rows = associate(codes, people, [terms["age"], terms["sex"]], permutations=200, seed=4)
    tests = [row for row in rows if row.dimension != "joint"]
    joint = [row for row in rows if row.dimension == "joint"]
    for asked in (tests, joint):
        np.testing.assert_allclose([r.q for r in asked], stats.false_discovery_control([r.p for r in asked]))
    assert all(row.p <= row.p_family <= 1 and row.p_bonferroni == min(1, D * row.p) for row in tests)
    found = permute(codes, terms["age"].values, permutations=200, seed=4)
    np.testing.assert_array_equal([row.p_family for row in by_dimension(rows, "age")], found.p_family)
    assert (joint[0].p, joint[0].statistic) == (found.p_joint, found.joint)
    assert by_dimension(rows, "age")[1].p_family < 0.03 < by_dimension(rows, "age")[0].p_family


def test_a_category_of_three(cohort):
    codes, people, terms = cohort
    rows = associate(codes, people, [terms["site"]], permutations=50)
    groups = [codes[terms["site"].values[:, 0] == 1], codes[terms["site"].values[:, 1] == 1]]
    groups.append(codes[~terms["site"].values.any(axis=1)])
    for row in by_dimension(rows, "site"):
        f, p = stats.f_oneway(*(group[:, row.dimension] for group in groups))
        assert (row.statistic, row.p_model) == (pytest.approx(f), pytest.approx(p))
        assert math.isnan(row.slope)
        within = sum(np.square(g[:, row.dimension] - g[:, row.dimension].mean()).sum() for g in groups)
        assert row.r == pytest.approx(math.sqrt(1 - within / (N * codes[:, row.dimension].var())))


def test_people_with_two_visits_have_a_mixed_model():
    """Balanced visits and a variable of the person: least squares of the people's means (Laird & Ware's special case).

    Its interval and the correlation's count people, and whole people are exchanged.
    """
    rng = np.random.default_rng(0)
    n = 30
    person = np.repeat(np.arange(n), 2)
    x = rng.normal(size=n)
    codes = (0.8 * x + rng.normal(size=n))[person][:, None] + 0.5 * rng.normal(size=(2 * n, 1))
    people = [f"sub-{i}" for i in person]
    (row, _) = associate(codes, people, [term_of("score", cells(x[person]))], permutations=100)
    line = stats.linregress(x, codes[:, 0].reshape(n, 2).mean(axis=1))
    assert (row.slope, row.stderr) == (pytest.approx(line.slope, rel=1e-5), pytest.approx(line.stderr, rel=1e-3))
    assert (row.people, row.scans) == (n, 2 * n)
    assert row.p == permute(codes, x[person], blocks=person, permutations=100).p[0]
    assert (row.r_low, row.r_high) == fisher_interval(row.r, n - 1)


def test_the_uncertainty_of_codes_is_that_of_draws(cohort):
    """Rubin's rules over many draws, which the closed form spares."""
    codes, people, terms = cohort
    rng = np.random.default_rng(1)
    stddev = rng.uniform(0.3, 1.5, (N, D))
    (row,) = by_dimension(
        associate(codes[:, :1], people, [terms["age"]], [terms["site"]], stddev=stddev[:, :1], permutations=9), "age"
    )
    full = np.c_[np.ones(N), terms["site"].values, terms["age"].values]
    inverse = np.linalg.inv(full.T @ full)
    drawn = codes[:, :1] + stddev[:, :1] * rng.normal(size=(N, 20_000))
    slopes = inverse @ full.T @ drawn
    within = np.square(drawn - full @ slopes).sum(axis=0) / (N - 4) * inverse[-1, -1]
    total = within.mean() + slopes[-1].var(ddof=1)
    assert row.stderr_posterior == pytest.approx(math.sqrt(total), rel=0.01)
    assert row.stderr_posterior > 1.2 * row.stderr
    base = orthonormal(full[:, :-1])
    assert posterior_variance(terms["age"].values, base, stddev[:, 0])[0] == pytest.approx(slopes[-1].var(), rel=0.05)


def test_the_interval_of_a_correlation_covers_it():
    """In 95 of 100 samples, whatever it is."""
    rng = np.random.default_rng(0)
    for rho in (0.0, 0.6):
        pairs = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=(2000, 25))
        ends = [fisher_interval(np.corrcoef(each.T)[0, 1], 24) for each in pairs]
        low, high = stats.binom.interval(0.999, 2000, 0.95)
        assert low - 20 <= sum(a <= rho <= b for a, b in ends) <= high + 20  # Fisher's z is an approximation
    assert fisher_interval(0.5, 2) == (-1, 1)
    assert fisher_interval(1.0, 30) == (1, 1)


def test_what_is_not_known_is_left_out(cohort):
    codes, people, terms = cohort
    half = term_of("score", ["n/a", "1.5", "2", ""] * (N // 4))
    rows = associate(codes, people, [half], [terms["site"]], permutations=20)
    assert {row.scans for row in rows} == {N // 2}
    none = term_of("other", ["1", "n/a", "n/a", "2"] * (N // 4))
    with pytest.raises(ArgumentError, match="score must vary between three scans or more, but received 0 with score"):
        associate(codes, people, [half], [none], permutations=20)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["1", "1"], "score must have two values or more, but received 1 everywhere"),
        (["n/a", ""], "but received no value"),
        (list("abcdefgh"), "score must be numbers, or categories .*8 different texts, 'a' first"),
        (["1", "2", "x1"], "score must be numbers, or categories"),
    ],
)
def test_columns_that_are_no_variable(given, words):
    with pytest.raises(ArgumentError, match=words):
        term_of("score", given)


def test_columns():
    number = term_of("age", ["61", "NaN", " 58.5"])
    np.testing.assert_array_equal(number.values, [[61], [np.nan], [58.5]])
    assert number.known.tolist() == [True, False, True]
    category = term_of("site", ["HH", "Guys", "IOP", "HH", "Guys", "n/a", "IOP", "IOP", "HH", "HH"])
    assert category.levels == ("Guys", "HH", "IOP")
    assert category.values[:6].tolist()[:5] == [[1, 0], [0, 0], [0, 1], [1, 0], [0, 0]]
    assert not category.known[5]
    assert category.meaning == "HH against Guys or IOP against Guys"


def test_numbers_that_are_names_of_groups():
    """Codes and age are higher at site 2 of three, as no line through 1, 2, 3 can say."""
    assert column_of("C( site )") == ("site", True)
    assert column_of("site") == ("site", False)
    rng = np.random.default_rng(3)
    site = rng.integers(3, size=150)
    shift = 2.0 * (site == 1)
    codes, age = rng.normal(size=(150, 1)) + shift[:, None], 50 + shift + rng.normal(size=150)
    cells = {"age": tuple(map(str, age)), "site": tuple(str(each + 9) for each in site)}
    names = tuple(map(str, range(150)))
    latents = Latents(names, ("test",) * 150, codes, None, cells, ("n/a",) * 150)
    asked = latents.term("age")
    category = latents.term("C(site)")
    assert category.levels == ("9", "10", "11")
    for given, low, high in ((latents.term("site"), 0, 0.01), (category, 0.05, 1)):
        (row, _) = associate(codes, names, [asked], [given], permutations=199)
        assert low <= row.p <= high
    known = replace(latents, categories=frozenset({"site"})).of(["test"])
    assert known.term("site").levels == category.levels
    with pytest.raises(ArgumentError, match="must be a column of the cohort: age, site, but received 'sight'"):
        latents.term("C(sight)")


def test_levels_are_those_of_the_people_who_are_known():
    """Of the first level, A, the covariate is not known: B is what C is compared with."""
    rng = np.random.default_rng(4)
    group, y = np.array(list("ABC") * 20), rng.normal(size=(60, 2))
    y[group == "C"] += 1.5
    age = np.where(group == "A", "n/a", [f"{each:.6f}" for each in rng.normal(50, 9, 60)])
    terms = [term_of("group", group.tolist()), term_of("age", age.tolist())]
    model = model_of(terms[0], terms[1:])
    assert (model.levels, model.reference) == (("C",), "B")
    assert model.meaning == "C against B"
    row, *_ = associate(y, [str(i) for i in range(60)], terms[:1], terms[1:], permutations=199)
    two = group != "A"
    fit = sm.OLS(y[two, 0], np.c_[np.ones(40), age[two].astype(float), group[two] == "C"]).fit()
    assert row.slope == pytest.approx(fit.params[-1])
    assert row.statistic == pytest.approx(fit.tvalues[-1])
    assert contrasts_of(terms[0], terms[1:])[0].meaning == "C against B"


def test_none_is_a_level():
    assert term_of("drug", ["none", "ssri", "n/a", "ssri"] * 3).levels == ("none", "ssri")


def test_what_is_held_the_same_counts_the_groups_that_are_there():
    age, site, sex = (
        term_of("age", ["1", "2", "n/a", "4", "5", "6", "7", "8", "9"]),
        term_of("site", ["a", "b", "c", "a", "b", "a", "b", "a", "b"], category=True),
        term_of("sex", list("MFMFMFMFM")),
    )
    assert held_same(age, [site, sex]) == ["site (2 groups)", "sex (2 groups)"]  # nobody of c has an age
    assert held_same(sex, [site]) == ["site (3 groups)"]
    assert held_same(sex, [age]) == ["age"]
    assert held_same(age, []) == []
