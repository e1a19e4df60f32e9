"""Disentanglement: values worked by hand, closed forms, perfect, useless and rotated codes."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from kerasvae.errors import ArgumentError
from kerasvae.metrics import (
    dci,
    explicitness,
    factor_vae_score,
    modularity,
    mutual_information_gap,
    sap,
)

RNG = np.random.default_rng(11)
PEOPLE = 1000
UNIFORM = RNG.uniform(-1, 1, (PEOPLE, 2))
LEVELS = np.c_[RNG.integers(0, 2, PEOPLE), RNG.integers(0, 2, PEOPLE)].astype(float)
NOISE = RNG.standard_normal((PEOPLE, 2))
TURNED = UNIFORM @ np.array([[1, -1], [1, 1]]) / np.sqrt(2)

# Eight people, two factors of two levels: every joint count can be read off.
A = np.array([0, 0, 0, 0, 1, 1, 1, 1.0])
B = np.array([0, 0, 1, 1, 0, 0, 1, 1.0])
FACTORS = np.c_[A, B]
KNOWS_A = A
HALF_KNOWS_A = np.array([0, 0, 0, 1, 1, 1, 1, 0.0])  # right for three of four in each level of A; independent of B
KNOWS_BOTH = 2 * A + B
KNOWS_SOME = np.array([0, 0, 1, 1, 2, 2, 2, 2.0])  # all of A, half of B


def h(p):
    """Entropy of a coin, nats."""
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


def test_mig_of_a_table_worked_by_hand():
    # I(z1; A) = log 2, I(z2; A) = log 2 − h(1/4); of B neither knows
    found = mutual_information_gap(np.c_[KNOWS_A, HALF_KNOWS_A], FACTORS)
    assert found == pytest.approx((h(0.25) / np.log(2) + 0) / 2, abs=1e-12)
    # and with one dimension that knows both: gaps 0 for A, 1 for B
    assert mutual_information_gap(np.c_[KNOWS_A, KNOWS_BOTH], FACTORS) == pytest.approx(0.5, abs=1e-12)


def test_modularity_of_a_table_worked_by_hand():
    assert modularity(np.c_[KNOWS_A, HALF_KNOWS_A], FACTORS) == pytest.approx(1, abs=1e-12)
    assert modularity(np.c_[KNOWS_BOTH, KNOWS_BOTH], FACTORS) == pytest.approx(0, abs=1e-12)
    # I(z; A) = log 2, I(z; B) = H(z) − H(z|B) = 3/2 log 2 − log 2: 1 − (1/2)²
    assert modularity(KNOWS_SOME[:, None], FACTORS) == pytest.approx(3 / 4, abs=1e-12)
    # with one that knows A alone, and a constant, which is left out: their mean
    assert modularity(np.c_[KNOWS_SOME, KNOWS_A, np.full(8, 7.0)], FACTORS) == pytest.approx(7 / 8, abs=1e-12)
    assert modularity(np.ones((8, 2)), FACTORS) == 0


def test_sap_of_tables_worked_by_hand():
    # accuracies for A: 1 and 3/4; for B one half each
    assert sap(np.c_[KNOWS_A, HALF_KNOWS_A], FACTORS) == pytest.approx((0.25 + 0) / 2, abs=1e-12)
    # unlike levels: 4 of 6 and 2 of 2 right, 5/6 on average; the constant is chance, 1/2
    rare, code = np.array([0, 0, 0, 0, 0, 0, 1, 1.0]), np.array([0, 0, 0, 0, 1, 1, 1, 1.0])
    assert sap(np.c_[code, np.ones(8)], rare[:, None]) == pytest.approx(5 / 6 - 1 / 2, abs=1e-12)
    # R² of straight lines: 1, and (−1)² / (5 · 1)
    line, zigzag = np.array([0, 1, 2, 3.0]), np.array([1, 0, 1, 0.0])
    assert sap(np.c_[-3 * line, zigzag], line[:, None], discrete=False) == pytest.approx(1 - 1 / 5, abs=1e-12)


def test_mig_of_continuous_factors_is_that_of_counts_in_bins():
    def information(a, b, bins):
        joint = np.histogram2d(a, b, bins)[0] / len(a)
        return stats.entropy(joint.sum(0)) + stats.entropy(joint.sum(1)) - stats.entropy(joint.ravel())

    codes = np.c_[UNIFORM + 0.3 * NOISE, UNIFORM[:, :1] - 0.8 * NOISE[:, 1:]]
    for bins in (5, 20):
        gaps = []
        for factor in UNIFORM.T:
            first, second = sorted((information(code, factor, bins) for code in codes.T), reverse=True)[:2]
            gaps.append((first - second) / stats.entropy(np.histogram(factor, bins)[0]))
        assert mutual_information_gap(codes, UNIFORM, bins=bins) == pytest.approx(np.mean(gaps), rel=1e-9)


def test_perfect_codes():
    for factors in (UNIFORM, LEVELS):
        codes = factors[:, ::-1] * [-3, 0.5] + 2
        # the dimension that knows nothing still gets up to 19² / 2n nats of about log 20 by counting
        assert mutual_information_gap(codes, factors) == pytest.approx(1, abs=0.08)
        assert modularity(codes, factors) == pytest.approx(1, abs=0.02)
        assert explicitness(codes, factors) == pytest.approx(1, abs=1e-3)
        assert factor_vae_score(codes, factors) == 1
        found = dci(codes, factors, trees=50)
        assert min(found[:3]) == pytest.approx(1, abs=0.01)
        np.testing.assert_allclose(found.importance, [[0, 1], [1, 0]], atol=0.01)
    assert sap(UNIFORM, UNIFORM) == pytest.approx(1, abs=0.02)
    assert sap(LEVELS, LEVELS) == pytest.approx(1 / 2, abs=0.04)  # at most 1 − 1/L


def test_random_codes():
    for factors in (UNIFORM, LEVELS):
        found = dci(NOISE, factors, trees=50)
        assert 0 <= found.disentanglement < 0.05
        assert 0 <= found.completeness < 0.05
        assert 0 <= found.informativeness < 0.06
        assert 0 <= mutual_information_gap(NOISE, factors) < 0.03
        assert 0 <= sap(NOISE, factors) < 0.03
        assert abs(explicitness(NOISE, factors)) < 0.1
        assert factor_vae_score(NOISE, factors) == pytest.approx(1 / 2, abs=0.06)


def test_turned_codes_tell_as_much_but_not_each_factor_in_its_place():
    straight, turned = dci(UNIFORM, UNIFORM, trees=50), dci(TURNED, UNIFORM, trees=50)
    assert turned.informativeness == pytest.approx(straight.informativeness, abs=0.02)
    assert explicitness(TURNED, UNIFORM) == pytest.approx(explicitness(UNIFORM, UNIFORM), abs=0.01)
    assert max(turned.disentanglement, turned.completeness) < 0.05 < 0.95 < straight.disentanglement
    assert mutual_information_gap(TURNED, UNIFORM) < 0.1 < 0.9 < mutual_information_gap(UNIFORM, UNIFORM)
    assert sap(TURNED, UNIFORM) < 0.15
    assert modularity(TURNED, UNIFORM) < 0.1


def test_order_and_signs_of_dimensions_change_nothing():
    people = 120
    factors = np.c_[LEVELS[:people, 0], UNIFORM[:people, 1]]
    codes = np.c_[factors + 0.5 * NOISE[:people], RNG.standard_normal((people, 2)).round(1), np.zeros(people)]
    order, signs = [3, 0, 4, 2, 1], np.array([-1, 1, -1, -1, 1])
    moved = codes[:, order] * signs
    for metric in (mutual_information_gap, modularity, sap, explicitness, factor_vae_score):
        assert metric(codes, factors) == metric(moved, factors), metric.__name__
        assert metric(codes, factors) == metric(codes, factors)
    first, second = dci(codes, factors), dci(moved, factors)
    assert first[:3] == second[:3]
    np.testing.assert_array_equal(first.importance[order], second.importance)
    assert dci(codes, factors, seed=1)[:3] != first[:3]


def test_dci_is_made_of_entropies_of_the_importances():
    codes = np.c_[UNIFORM[:, 0], UNIFORM.sum(1), UNIFORM + NOISE]
    found = dci(codes, UNIFORM, trees=50)
    r = found.importance
    assert r.shape == (4, 2)
    np.testing.assert_allclose(r.sum(0), 1)
    rows = [1 - stats.entropy(row, base=2) for row in r]
    assert found.disentanglement == pytest.approx(np.average(rows, weights=r.sum(1)))
    assert found.completeness == pytest.approx(np.mean([1 - stats.entropy(column, base=4) for column in r.T]))


def test_informativeness_is_the_part_of_the_variance_that_can_be_known():
    z = RNG.standard_normal((PEOPLE, 2))
    # half of the variance of each factor is in the code; trees find most of it, and cannot find more
    assert 0.35 < dci(z, z + NOISE).informativeness < 0.52


def test_explicitness_of_two_normal_groups_is_the_closed_form():
    group = np.repeat([0.0, 1.0], 1500)
    code = RNG.standard_normal((3000, 1)) + group[:, None]
    # area under the curve of two unit normals one apart: Φ(1/√2); its standard error here is 0.009
    assert explicitness(code, group[:, None]) == pytest.approx(2 * stats.norm.cdf(1 / np.sqrt(2)) - 1, abs=0.06)


def test_factor_vae_score_with_a_simulator():
    def half_right(factor, rng):
        """Factor 0 holds dimension 0; factor 1 holds dimension 1 in one batch of two, dimension 0 in the other."""
        codes = rng.standard_normal((16, 2))
        held = int(factor == 1 and rng.random() < 0.5)
        codes[:, held] = 0.3
        return codes

    # dimension 0 is seen with factor 0 in two of three: all of factor 0 and half of factor 1 are right
    assert factor_vae_score(NOISE, LEVELS, draw=half_right, votes=2000) == pytest.approx(0.75, abs=0.04)

    def blind(factor, rng):
        return rng.standard_normal((16, 2))

    assert factor_vae_score(NOISE, LEVELS, draw=blind, votes=2000) == pytest.approx(0.5, abs=0.05)
    assert factor_vae_score(np.ones((40, 2)), LEVELS[:40]) == 1 / 2
    with pytest.raises(ArgumentError, match=r"draw must give codes of shape \(L, 2\)"):
        factor_vae_score(NOISE, LEVELS, draw=lambda factor, rng: np.zeros((16, 3)))


def test_what_counts_as_discrete():
    ages = RNG.integers(20, 80, (PEOPLE, 1)).astype(float)  # whole years, but too many for levels
    codes = np.c_[ages, NOISE]
    assert sap(codes, ages) == sap(codes, ages, discrete=False)
    assert sap(codes, ages) == pytest.approx(1, abs=0.02)
    both = np.c_[LEVELS[:, :1], ages]
    assert mutual_information_gap(codes, both) == mutual_information_gap(codes, both, discrete=[True, False])
    assert sap(LEVELS, LEVELS, discrete=False) > 0.9  # R² instead of accuracy
    few = np.array([[0.0], [1], [2], [3], [4], [5]])
    assert sap(np.c_[few, few**2], few) == sap(np.c_[few, few**2], few, discrete=False)  # all differ: no levels


ALL = (mutual_information_gap, modularity, sap, explicitness, factor_vae_score, dci)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.__name__)
def test_bad_tables_are_one_sentence(metric):
    z, v = NOISE[:40], np.c_[LEVELS[:40, 0], UNIFORM[:40, 0]]
    metric(z, v)
    spoilt = z.copy()
    spoilt[3, 1] = np.nan
    for codes, factors, sentence in (
        (z[:, 0], v, "codes must be a table"),
        (z, v[:, 0], "factors must be a table"),
        (z[:2], v[:2], "rows or more"),
        (z, v[:-1], "factors must have a row for each of the 40"),
        (spoilt, v, "codes must be finite"),
        (z, np.c_[v[:, 0], np.ones(40)], "Factor 1 must differ"),
        (z, np.array([["F", "M"]] * 40), "factors must be numbers"),
    ):
        with pytest.raises(ArgumentError, match=sentence):
            metric(codes, factors)
    for discrete, sentence in (
        ([True], "discrete must be a boolean, or 2"),
        ([1, 0], "discrete must be"),
        (True, "1 must have levels"),
    ):
        with pytest.raises(ArgumentError, match=sentence):
            metric(z, v, discrete=discrete)


def test_bad_arguments_are_one_sentence():
    z, v = NOISE[:40], LEVELS[:40]
    for call, sentence in (
        (lambda: mutual_information_gap(z, v, bins=1), "bins must be 2 or more"),
        (lambda: mutual_information_gap(z[:, :1], v), "2 columns or more"),
        (lambda: sap(z[:, :1], v), "2 columns or more"),
        (lambda: modularity(z, v[:, :1]), "2 columns or more"),
        (lambda: dci(z, v, trees=3), "trees must be 50 or more"),
        (lambda: dci(z[:12], v[:12]), "20 rows or more"),
        (lambda: factor_vae_score(z, v, batch=1), "batch must be 2 or more"),
        (lambda: factor_vae_score(z[:6], UNIFORM[:6]), "10 rows or more"),
        (lambda: explicitness(z, np.eye(40)[:, :1]), "Factor 0 must have a level that two people hold and two do not"),
    ):
        with pytest.raises(ArgumentError, match=sentence):
            call()


def test_metrics_import_neither_tensorflow_nor_scikit_learn():
    code = "import sys, kerasvae.metrics; print([n for n in ('tensorflow', 'keras', 'sklearn') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
