"""Permutation tests beside other people's: statistics to rounding, p by enumeration and within Monte-Carlo error."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from nilearn.mass_univariate import permuted_ols
from scipy import stats

from kerasvae.analysis.permutation import orders, permute
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
    assert found.possible == 720
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


def test_repeated_visits_need_blocks():
    """Three visits of each of 20 people, a variable of the person: rows taken for people find it far too often."""
    rng = np.random.default_rng(5)
    people = np.repeat(np.arange(20), 3)
    naive, blocked = [], []
    for draw in range(150):
        variable = rng.normal(size=20)[people]
        outcome = (rng.normal(size=20)[people] + 0.5 * rng.normal(size=60))[:, None]
        naive.append(permute(outcome, variable, permutations=199, seed=draw).p[0] <= 0.05)
        blocked.append(permute(outcome, variable, blocks=people, permutations=199, seed=draw).p[0] <= 0.05)
    low, high = stats.binom.interval(0.999, 150, 0.05)
    assert low <= sum(blocked) <= high
    assert sum(naive) > 30


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"variable": np.arange(N - 1.0)}, "variable must be a table of 40 rows"),
        ({"outcomes": np.full((N, 2), np.nan)}, "outcomes must hold finite numbers"),
        ({"variable": np.ones(N)}, "The variable must be no mix of the covariates"),
        ({"covariates": np.eye(N)}, "must be no mix"),
        ({"covariates": np.eye(N)[:, : N - 2]}, "must leave residual degrees of freedom"),
        ({"blocks": np.zeros(N)}, "people or more with as many rows"),
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
