"""Latent spaces beside one another: closed forms, formulas written out, and what independence gives."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from kerasvae.errors import ArgumentError
from kerasvae.metrics import debiased_cka, procrustes_r2, stability, subspace_similarity

RNG = np.random.default_rng(0)
CODES = RNG.standard_normal((60, 5)) * [3, 2, 1, 1, 0.5]
TURNED = 2.5 * CODES @ ortho_group.rvs(5, random_state=1) + 7


@pytest.mark.parametrize("measure", [debiased_cka, procrustes_r2])
def test_rotated_shifted_and_scaled_codes_agree_fully(measure):
    assert measure(CODES, TURNED) == pytest.approx(1, abs=1e-9)
    assert measure(CODES, np.c_[TURNED, np.zeros((60, 2))]) == pytest.approx(1, abs=1e-9)
    assert measure(CODES, TURNED[::-1]) < 0.3
    noisy = CODES + RNG.standard_normal(CODES.shape)
    assert measure(CODES, noisy) == pytest.approx(measure(noisy, CODES), abs=1e-12)
    assert 0.3 < measure(CODES, noisy) < 0.95


def test_few_people_are_fitted_to_as_many_as_it_takes():
    codes, turned = CODES[:9], TURNED[:9]
    assert procrustes_r2(codes, turned) == pytest.approx(1, abs=1e-9)
    assert procrustes_r2(codes, turned, folds=2) < 0.9
    assert procrustes_r2(codes[:6], turned[:6]) < 0.9  # nothing determines the rotation


def test_independent_codes_agree_by_chance_alone_however_many_dimensions():
    drawn = np.random.default_rng(4).standard_normal((200, 2, 20, 60))  # 60 dimensions, 20 people
    cka = np.array([debiased_cka(a, b) for a, b in drawn])
    assert abs(cka.mean()) < 4 * cka.std() / np.sqrt(200)
    fitted = np.array([procrustes_r2(a, b) for a, b in drawn[:40]])
    assert fitted.mean() < 0.02
    # the same without leaving anyone out would say nearly full agreement
    assert min(in_sample_r2(a, b) for a, b in drawn[:5]) > 0.6


def in_sample_r2(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    return np.linalg.svd(a.T @ b, compute_uv=False).sum() ** 2 / (np.square(a).sum() * np.square(b).sum())


def test_debiased_hsic_is_the_mean_over_quadruples():
    """Song et al.: an average over different people i, j, q, r of k_ij l_ij + k_ij l_qr − 2 k_ij l_iq."""
    from itertools import permutations

    a, b = np.random.default_rng(2).standard_normal((2, 7, 3))
    b = b + a

    def hsic(x, y):
        k, m = x @ x.T, y @ y.T
        terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(7), 4)]
        return np.mean(terms)

    expected = hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b))
    assert debiased_cka(a, b) == pytest.approx(expected, abs=1e-12)


def test_procrustes_of_known_noise():
    """y = Q x + e: of left-out people the alignment explains var x / (var x + var e), of both directions."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((20000, 3))
    y = x @ ortho_group.rvs(3, random_state=2) + 0.5 * rng.standard_normal(x.shape)
    # one scale for all: R² is the squared correlation, 1 / (1 + 0.25), in both directions
    assert procrustes_r2(x, y, folds=5) == pytest.approx(0.8, abs=0.01)


def test_subspaces_with_known_angles():
    scores, others = RNG.standard_normal((2, 30, 2))
    axes = np.eye(6)
    a = scores @ axes[:2]
    turned = np.stack([axes[0], np.cos(0.7) * axes[1] + np.sin(0.7) * axes[4]])
    assert subspace_similarity(a, others @ turned + 3, 2) == pytest.approx((1 + np.cos(0.7) ** 2) / 2, abs=1e-9)
    assert subspace_similarity(a, others @ axes[:2], 2) == pytest.approx(1, abs=1e-9)
    assert subspace_similarity(a, others @ axes[3:5], 2) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ArgumentError, match="dimensions must be from 1 to 2"):
        subspace_similarity(a, a, 3)
    random = [subspace_similarity(*np.random.default_rng(s).standard_normal((2, 10, 40)), 4) for s in range(200)]
    assert np.mean(random) == pytest.approx(4 / 40, abs=4 * np.std(random) / np.sqrt(200))


def test_table_of_pairs():
    other = np.random.default_rng(9).standard_normal((60, 4))
    rows = stability([CODES, TURNED, other], permutations=49, seed=3)
    assert [(row.first, row.second) for row in rows] == [(0, 1), (0, 2), (1, 2)]
    assert rows[0].procrustes == pytest.approx(1)
    assert rows[0].cka_p == rows[0].procrustes_p == pytest.approx(1 / 50)
    for row in rows:
        assert row.procrustes_null < 0.1
        assert abs(row.cka_null) < 0.1
    assert rows[1].cka_p > 0.02
    assert rows[1].cka == pytest.approx(debiased_cka(CODES, other))
    assert rows[1].procrustes == pytest.approx(procrustes_r2(CODES, other, seed=3))
    assert stability([CODES, TURNED, other], permutations=49, seed=3) == rows


def test_p_values_are_even_where_there_is_nothing():
    drawn = np.random.default_rng(6).standard_normal((40, 2, 12, 3))
    p = np.array([stability(list(pair), permutations=19)[0][-2:] for pair in drawn])
    assert (np.abs(p.mean(axis=0) - 0.525) < 4 * np.sqrt(1 / 12 / 40)).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: debiased_cka(CODES, CODES[:50]), "b must have the 60 people of a, but received 50"),
        (lambda: debiased_cka(CODES[:3], CODES[:3]), "a must be finite numbers"),
        (lambda: debiased_cka(CODES, np.full((60, 2), 3.0)), "b must vary between people"),
        (lambda: procrustes_r2(CODES, np.full((60, 5), np.nan)), "b must be finite numbers"),
        (lambda: procrustes_r2(CODES, CODES, folds=1), "folds must be from 2 to 30"),
        (lambda: stability([CODES]), "codes must be of two trainings or more"),
        (lambda: stability([CODES, CODES], permutations=0), "permutations must be 1 or more"),
        (lambda: subspace_similarity(CODES, CODES[:, :3], 2), "b must have 5 voxels"),
    ],
)
def test_one_sentence_for_each_mistake(call, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        call()
