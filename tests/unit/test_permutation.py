"""Permutation tests beside other people's: statistics to rounding, p by enumeration and within Monte-Carlo error."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from nilearn.mass_univariate import permuted_ols
from scipy import stats

from kerasvae.analysis.permutation import orders, permute
from kerasvae.analysis.statistic import RATIOS
from kerasvae.analysis.visits import Visits
from kerasvae.errors import ArgumentError

N, D = 40, 5


@pytest.fixture
def table():
    rng = np.random.default_rng(3)
    covariates = np.c_[rng.normal(60, 10, N), rng.integers(0, 2, N)]
    variable = 0.05 * covariates[:, 0] + rng.normal(size=N)
    outcomes = rng.standard_t(3, size=(N, D)) + 0.1 * covariates[:, :1]
    outcomes[:, 0] += 0.9 * variable
    return outcomes, variable, covariates


def f_of(y, x, z):
    """Of one outcome, from the sums of squares that least squares leaves."""
    full = np.c_[np.ones(len(y)), z, x]
    left, small = (
        np.square(y - a @ np.linalg.lstsq(a, y, rcond=None)[0]).sum() for a in (full, full[:, : -x.shape[1]])
    )
    return (small - left) / x.shape[1] / (left / (len(y) - full.shape[1]))


def test_the_statistic_is_that_of_least_squares(table):
    outcomes, variable, covariates = table
    found = permute(outcomes, variable, covariates, permutations=1)
    full = np.c_[np.ones(N), covariates, variable]
    inverse = np.linalg.inv(full.T @ full)
    slopes = inverse @ full.T @ outcomes
    sigma = np.sqrt(np.square(outcomes - full @ slopes).sum(axis=0) / (N - 4))
    np.testing.assert_allclose(found.statistic, slopes[-1] / (sigma * math.sqrt(inverse[-1, -1])), rtol=1e-9)
    assert found.degrees == N - 4


def test_several_columns_give_f(table):
    outcomes, _, covariates = table
    levels = np.eye(3)[np.arange(N) % 3][:, 1:]
    found = permute(outcomes, levels, covariates, permutations=1)
    expected = [f_of(outcomes[:, i], levels, covariates) for i in range(D)]
    np.testing.assert_allclose(found.statistic, expected, rtol=1e-9)


def test_beside_nilearn(table):
    """t to rounding; p and family-wise p within what two draws of 20,000 differ by."""
    outcomes, variable, covariates = table
    draws = 20_000
    ours = permute(outcomes, variable, covariates, permutations=draws, seed=1)
    theirs = permuted_ols(
        variable[:, None], outcomes, confounding_vars=covariates, n_perm=draws, two_sided_test=True, random_state=2,
        output_type="dict",
    )  # fmt: skip
    np.testing.assert_allclose(ours.statistic, theirs["t"][0], rtol=1e-8)
    expected = 10 ** -theirs["logp_max_t"][0]
    error = np.sqrt(2 * expected * (1 - expected) / draws)
    assert (np.abs(ours.p_family - expected) < 4.5 * error + 1 / draws).all()
    assert ours.p_family[0] < 0.01 < ours.p_family[1:].min()


def test_p_is_the_share_of_all_orders():
    """Six rows can be ordered in 720 ways: what they all give is what draws come near to, joint statistic and all."""
    rng = np.random.default_rng(0)
    n = 6
    y, x, z = rng.normal(size=(n, 2)), rng.normal(size=(n, 1)), rng.normal(size=(n, 1))
    free = np.c_[np.ones(n), z]
    off = np.eye(n) - free @ np.linalg.pinv(free)

    def both(outcomes):
        left, along = off @ outcomes, off @ x
        single = [f_of(outcomes[:, i], x, z) for i in range(2)]
        shared = along.T @ left
        return *single, (shared @ np.linalg.inv(left.T @ left) @ shared.T / (along.T @ along)).item()

    every = np.array([both(free @ np.linalg.pinv(free) @ y + (off @ y)[list(o)])
                      for o in itertools.permutations(range(n))])  # fmt: skip
    here = np.array(both(y))
    exact = (every >= here * (1 - 1e-9)).mean(axis=0)
    family = (every[:, :2].max(axis=1)[:, None] >= here[:2] * (1 - 1e-9)).mean(axis=0)
    draws = 40_000
    found = permute(y, x, z, permutations=draws)
    assert found.joint == pytest.approx(here[2], rel=1e-9)
    for value, known in zip([*found.p, *found.p_family, found.p_joint], [*exact[:2], *family, exact[2]], strict=True):
        assert abs(value - known) < 4.5 * math.sqrt(known * (1 - known) / draws) + 1 / draws


def test_the_joint_statistic_is_r_squared(table):
    """Of the variable on all outcomes, both without the covariates; a mix of outcomes changes nothing."""
    outcomes, variable, covariates = table
    found = permute(outcomes, variable, covariates, permutations=200)
    full = np.c_[np.ones(N), covariates, outcomes]
    left, small = (
        np.square(variable - a @ np.linalg.lstsq(a, variable, rcond=None)[0]).sum() for a in (full, full[:, :3])
    )
    assert found.joint == pytest.approx(1 - left / small, rel=1e-9)
    mixed = permute(np.c_[outcomes, outcomes @ np.ones(D)], variable, covariates, permutations=200)
    assert (mixed.joint, mixed.p_joint) == (pytest.approx(found.joint), found.p_joint)


def test_more_outcomes_than_people_have_no_joint_statistic():
    rng = np.random.default_rng(0)
    found = permute(rng.normal(size=(10, 30)), rng.normal(size=10), permutations=20)
    assert math.isnan(found.joint)
    assert math.isnan(found.p_joint)
    assert found.p.shape == (30,)


def test_an_outcome_that_says_nothing(table):
    outcomes, variable, covariates = table
    odd = np.c_[outcomes, np.full(N, 7.0), 2 * covariates[:, 0]]
    found = permute(odd, variable, covariates, permutations=200)
    known = permute(outcomes, variable, covariates, permutations=200)
    np.testing.assert_array_equal(found.p[-2:], 1.0)
    np.testing.assert_array_equal(found.statistic[-2:], 0.0)
    np.testing.assert_allclose(found.p[:-2], known.p)
    assert found.joint == pytest.approx(known.joint)


def test_the_seed_decides(table):
    same = [permute(*table, permutations=300, seed=s).p.tolist() for s in (0, 0, 1)]
    assert same[0] == same[1] != same[2]


def test_blocks_move_as_a_whole():
    blocks = np.array(["a", "b", "b", "c", "d", "d", "e", "e", "e"])
    rng = np.random.default_rng(0)
    found = np.concatenate(list(orders(9, 400, rng, blocks=blocks, few=7)))
    assert found.shape == (400, 9)
    assert (np.sort(found, axis=1) == np.arange(9)).all()
    assert {tuple(row) for row in found[:, [0, 3]]} == {(0, 3), (3, 0)}
    assert {tuple(row) for row in found[:, [1, 2, 4, 5]]} == {(1, 2, 4, 5), (4, 5, 1, 2)}
    assert (found[:, 6:] == [6, 7, 8]).all()


def reml(y, x, z, same):
    """F of the likeliest ratio of variances for each outcome, and Pillai's trace of that for all; dense matrices."""
    n, full = len(y), np.c_[z, x]
    free = n - full.shape[1]
    singles, joints = [], []
    for ratio in RATIOS:
        v = np.eye(n) + ratio * same
        inverse = np.linalg.inv(v)

        def left(columns, inverse=inverse):
            fit = np.linalg.solve(columns.T @ inverse @ columns, columns.T @ inverse @ y)
            return (y - columns @ fit).T @ inverse @ (y - columns @ fit)

        whole, reduced = left(full), left(z)
        size = np.linalg.slogdet(v)[1] + np.linalg.slogdet(full.T @ inverse @ full)[1]
        f = (np.diag(reduced) / np.diag(whole) - 1) * free / x.shape[1]
        singles.append(np.c_[size + free * np.log(np.diag(whole)), f])
        trace = np.trace(np.linalg.solve(reduced, reduced - whole))
        joints.append((y.shape[1] * size + free * np.linalg.slogdet(whole)[1], trace))
    singles = np.array(singles)
    best = singles[:, :, 0].argmin(axis=0)
    return singles[best, np.arange(y.shape[1]), 1], min(joints)[1]


@pytest.mark.parametrize("k", [1, 2])
def test_with_visits_each_permutation_has_the_likeliest_mixed_model(k):
    """Beside residuals that are moved and fitted with the covariance written out."""
    rng = np.random.default_rng(k)
    people = rng.permutation(np.repeat(np.arange(18), np.r_[np.full(6, 1), np.full(7, 2), np.full(5, 3)]))
    n = len(people)
    same = (people[:, None] == people).astype(float)
    z = np.c_[np.ones(n), rng.normal(size=n)]
    x = rng.normal(size=(18, k))[people] + 0.5 * rng.normal(size=(n, k))
    y = rng.normal(size=(18, 3))[people] * [0.2, 1, 3] + rng.normal(size=(n, 3)) + 0.3 * x[:, :1]
    seen = []
    found = permute(y, x, z[:, 1:], blocks=people, permutations=12, seed=4, watch=seen.append)
    f, joint = reml(y, x, z, same)
    np.testing.assert_allclose(found.statistic ** (2 if k == 1 else 1), f, rtol=1e-6)
    assert found.joint == pytest.approx(joint, rel=1e-6)

    visits = Visits.of(people)
    ratios = visits.ratios(z, y)  # beside statsmodels in test_visits.py
    inverses = [np.linalg.inv(np.eye(n) + ratio * same) for ratio in ratios]
    left = np.stack([y[:, i] - z @ np.linalg.solve(z.T @ v @ z, z.T @ v @ y[:, i]) for i, v in enumerate(inverses)], 1)
    draws = np.random.default_rng(4)
    (every,) = orders(n, 12, draws, blocks=people)
    signs = draws.choice([-1.0, 1.0], size=(12, 18))[:, people]  # as numbers of people go, names and numbers are one
    average = same / same.sum(axis=1, keepdims=True)
    for row, order, sign in zip(np.concatenate(seen), every, signs, strict=True):
        back = np.argsort(order)
        moved = (average @ left + sign[:, None] * (left - average @ left))[back]
        np.testing.assert_allclose(row ** (2 if k == 1 else 1), reml(moved, x, z, same)[0], rtol=1e-6)


def test_a_slope_within_people_is_found_beside_its_opposite_between_them():
    """Older people lie lower, and each of them rises, at visits that lie as far apart of all."""
    rng = np.random.default_rng(1)
    people = np.repeat(np.arange(40), 3)
    start, since = rng.uniform(20, 70, 40)[people], np.tile([0.0, 2.0, 4.0], 40)
    outcome = -0.03 * start + 0.05 * since + 0.6 * rng.normal(size=40)[people] + 0.02 * rng.normal(size=120)
    found = permute(outcome[:, None], start + since, blocks=people, permutations=999)
    assert found.statistic[0] > 10
    assert (found.p[0], found.p_joint) == (0.001, 0.001)
    assert permute(outcome[:, None], start + since, permutations=999).statistic[0] < -3


def test_power_within_people():
    rng = np.random.default_rng(3)
    people, found = np.repeat(np.arange(30), 3), []
    for draw in range(20):
        age = (rng.uniform(50, 60, 30)[:, None] + [0, 2, 4]).ravel()
        outcome = 0.05 * age + rng.normal(size=30)[people] + 0.1 * rng.normal(size=90)
        found.append(permute(outcome[:, None], age, blocks=people, permutations=99, seed=draw).p[0] <= 0.05)
    assert all(found)


def _of_people(rng, people):
    return rng.normal(size=people.max() + 1)[people]


def _of_visits(rng, people):
    return rng.normal(size=len(people))


def _age(rng, people):
    """Visits as far apart of all, and slopes of people's own, which no covariance of the model has."""
    return rng.uniform(20, 70, people.max() + 1)[people] + 2.0 * (np.arange(len(people)) % 3)


def _few(rng, people):
    return (people < 5).astype(float)


@pytest.mark.parametrize("variable", [_of_people, _of_visits, _age, _few])
def test_rates_with_visits_are_those_promised(variable):
    """Three visits of 20 people, four outcomes whose people differ from not at all to much; skewed where few differ."""
    rng = np.random.default_rng(8)
    people = np.repeat(np.arange(20), 3)
    alone, family, joint = [], [], []
    for draw in range(200):
        x = variable(rng, people)
        noise = rng.exponential if variable is _few else rng.normal
        outcomes = (noise(size=(20, 4)) * [0, 0.5, 1, 3])[people] + noise(size=(60, 4))
        if variable is _age:
            outcomes += (0.3 * rng.normal(size=(20, 4)))[people] * (np.arange(60) % 3)[:, None]
        found = permute(outcomes, x, blocks=people, permutations=199, seed=draw)
        alone.append(found.p[0] <= 0.05)
        family.append(found.p_family.min() <= 0.05)
        joint.append(found.p_joint <= 0.05)
    low, high = stats.binom.interval(0.999, 200, 0.05)
    for values in (alone, family, joint):
        assert low <= sum(values) <= high


def test_what_the_number_of_visits_decides_is_refused():
    """No exchange of people with as many visits changes it."""
    people = np.r_[np.arange(15), np.repeat(np.arange(15, 30), 2)]
    patient = (people >= 15).astype(float)
    outcomes = np.random.default_rng(0).normal(size=(45, 2)) + 4 * patient[:, None]
    words = "group must vary among people .* received what their number of scans decides. Keep one scan of each person"
    with pytest.raises(ArgumentError, match=words):
        permute(outcomes, patient, blocks=people, name="group")
    levels = np.c_[patient, np.arange(45) % 2 * (people < 15)]
    with pytest.raises(ArgumentError, match="what their number of scans decides"):
        permute(outcomes, levels, blocks=people)
    one = patient.copy()
    one[0] = 1
    with pytest.raises(ArgumentError, match="received 15 different arrangements"):
        permute(outcomes, one, blocks=people)


def test_repeated_visits_need_blocks():
    """Rows taken for people find a variable of the person far too often; what blocks do is above."""
    rng = np.random.default_rng(5)
    people, found = np.repeat(np.arange(20), 3), []
    for draw in range(150):
        variable = rng.normal(size=20)[people]
        outcome = (rng.normal(size=20)[people] + 0.5 * rng.normal(size=60))[:, None]
        found.append(permute(outcome, variable, permutations=199, seed=draw).p[0] <= 0.05)
    assert sum(found) > 30


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"variable": np.arange(N - 1.0)}, "variable must be a table of 40 rows"),
        ({"outcomes": np.full((N, 2), np.nan)}, "outcomes must hold finite numbers"),
        ({"variable": np.ones(N)}, "The variable must be no mix of the covariates"),
        ({"covariates": np.eye(N)}, "must be no mix"),
        ({"covariates": np.eye(N)[:, : N - 2]}, "must leave residual degrees of freedom"),
        (
            {"blocks": np.zeros(N)},
            "must vary among people .* received 2 different arrangements. Keep one scan of each person",
        ),
        ({"blocks": np.zeros(3)}, "blocks must have 40 entries"),
    ],
)
def test_wrong_arguments(table, change, words):
    given = dict(zip(("outcomes", "variable", "covariates"), table, strict=True)) | change
    with pytest.raises(ArgumentError, match=words):
        permute(given["outcomes"], given["variable"], given["covariates"], blocks=given.get("blocks"), permutations=9)


def test_who_watches_sees_the_statistic_of_each_permutation(table):
    """Signed t beside least squares on permuted columns; family-wise p is that of the largest of them."""
    outcomes, variable, covariates = table
    seen = []
    found = permute(outcomes, variable, covariates, permutations=200, seed=6, watch=seen.append)
    seen = np.concatenate(seen)
    assert seen.shape == (200, D)
    base = np.c_[np.ones(N), covariates]
    left = outcomes - base @ np.linalg.lstsq(base, outcomes, rcond=None)[0]
    for row, order in zip(seen, np.concatenate(list(orders(N, 200, np.random.default_rng(6)))), strict=True):
        full = np.c_[base, variable][order]
        inverse = np.linalg.inv(full.T @ full)
        slopes = inverse @ full.T @ left
        sigma = np.sqrt(np.square(left - full @ slopes).sum(axis=0) / (N - 4))
        np.testing.assert_allclose(row, slopes[-1] / (sigma * math.sqrt(inverse[-1, -1])), rtol=1e-8)
    reached = (np.abs(seen).max(axis=1)[:, None] >= np.abs(found.statistic)).sum(axis=0)
    np.testing.assert_array_equal(found.p_family, (1 + reached) / 201)
