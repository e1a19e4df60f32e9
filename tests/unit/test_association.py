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
from kerasvae.analysis.visits import Visits
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


def test_slope_sign_and_p_of_visits_agree():
    """Between people the variable falls and within them it rises: slope, interval and r are those of the mixed model,
    and p is of the same statistic."""
    rng = np.random.default_rng(3)
    person = np.repeat(np.arange(40), 3)
    start, since = rng.uniform(20, 70, 40)[person], np.tile([0.0, 2.0, 4.0], 40)
    trait = 0.6 * rng.normal(size=(40, 2))[person]
    codes = trait + 0.02 * rng.normal(size=(120, 2)) + (0.05 * since - 0.03 * start)[:, None] * [1, -1]
    age = term_of("age", cells(start + since))
    rows = associate(codes, [f"sub-{i}" for i in person], [age], permutations=999)
    for row, sign in zip(rows, (1, -1), strict=False):
        fit = sm.MixedLM(codes[:, row.dimension], sm.add_constant(age.values), groups=person).fit(reml=True)
        assert row.slope == pytest.approx(fit.fe_params[1], rel=1e-4)
        assert row.stderr == pytest.approx(fit.bse_fe[1], rel=0.02)
        assert row.low == pytest.approx(row.slope - stats.t.ppf(0.975, 38) * row.stderr)
        assert (np.sign(row.slope), np.sign(row.r), np.sign(row.statistic)) == (sign, sign, sign)
        assert row.low * row.high > 0 < row.r_low * row.r_high
        assert row.statistic == pytest.approx(row.slope / row.stderr, rel=0.1)  # of one variance ratio in 32
        assert (row.p, row.p_family) == (0.001, 0.001)
    assert rows[-1].p == 0.001


def test_normal_p_of_a_category_of_three_with_visits():
    """It finds what is not there as often as it says: scans that count for people find it in half of all."""
    rng = np.random.default_rng(1)
    person = np.repeat(np.arange(45), 4)
    group = term_of("group", ["abc"[i % 3] for i in person])
    codes = rng.normal(size=(45, 300))[person] + 0.3 * rng.normal(size=(180, 300))
    rows = associate(codes, [f"sub-{i}" for i in person], [group], permutations=19)
    low, high = stats.binom.interval(0.999, 300, 0.05)
    assert low <= sum(row.p_model <= 0.05 for row in rows) <= high
    scans = [stats.f_oneway(*(column[np.array([i % 3 for i in person]) == g] for g in range(3))).pvalue
             for column in codes.T]  # fmt: skip
    assert sum(p <= 0.05 for p in scans) > 100


def test_a_variable_that_visits_decide_is_named():
    group = term_of("group", ["control"] * 15 + ["patient"] * 30)
    people = [f"sub-{i}" for i in [*range(15), *np.repeat(np.arange(15, 30), 2)]]
    with pytest.raises(ArgumentError, match=r"group must vary among people .* Keep one scan of each person"):
        associate(np.random.default_rng(0).normal(size=(45, 2)), people, [group], permutations=9)


def test_the_uncertainty_of_codes_with_visits_is_that_of_draws():
    """Draws fitted with the covariance written out, its ratio known."""
    rng = np.random.default_rng(6)
    person = np.repeat(np.arange(20), np.r_[np.full(10, 1), np.full(10, 3)])
    n, ratio = len(person), 1.5
    x, base = rng.normal(size=(n, 1)), orthonormal(np.c_[np.ones(n), rng.normal(size=n)])
    stddev = rng.uniform(0.3, 1.5, (n, 1))
    inverse = np.linalg.inv(np.eye(n) + ratio * (person[:, None] == person))
    full = np.c_[base, x]
    solve = np.linalg.inv(full.T @ inverse @ full)
    noise = stddev * rng.normal(size=(n, 20_000))
    slopes = solve @ full.T @ inverse @ noise
    left = noise - full @ slopes
    within = np.einsum("ij,ik,kj->j", left, inverse, left) / (n - 3) * solve[-1, -1]
    between, inside = posterior_variance(x, base, stddev, Visits.of(person), ratio)
    assert between[0] == pytest.approx(slopes[-1].var(), rel=0.05)
    assert inside[0] == pytest.approx(within.mean(), rel=0.02)


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
