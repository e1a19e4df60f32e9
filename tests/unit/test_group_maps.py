"""Tests of each voxel: a difference in a known place, beside scipy and nilearn, and p beside all orders there are."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import statsmodels.api as sm
from nilearn.maskers import NiftiMasker
from nilearn.mass_univariate import permuted_ols
from scipy import stats

from kerasvae.analysis.design import term_of
from kerasvae.analysis.maps.groups import voxel_test
from kerasvae.analysis.maps.slopes import contrasts_of
from kerasvae.errors import ArgumentError
from kerasvae.preprocess.nifti import image_of
from kerasvae.types import Grid

SHAPE, N = (9, 10, 8), 36
GRID = Grid.of(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0]), "native")
INSIDE = np.ones(SHAPE, bool)
INSIDE[0] = False
PLACE = np.zeros(SHAPE, bool)
PLACE[3:6, 3:6, 2:5] = True


@pytest.fixture(scope="module")
def people():
    """Noise, less in one place of those of group b, who are older; one voxel of the mask never varies."""
    rng = np.random.default_rng(0)
    group = ["ab"[i % 2] for i in range(N)]
    second = np.array(group) == "b"
    age = rng.uniform(20, 60, N) + 15 * second
    images = rng.normal(size=(N, *SHAPE)) + 0.01 * age[:, None, None, None]
    images -= 1.6 * second[:, None, None, None] * PLACE
    images[:, 1, 0, 0] = 3.0
    terms = {"group": term_of("group", group), "age": term_of("age", [f"{each:.6f}" for each in age])}
    return images[:, INSIDE].astype(np.float32), terms


def names(count, visits=1):
    return [f"sub-{i:02d}" for i in range(count) for _ in range(visits)]


def test_the_difference_is_found_where_it_is(people):
    values, terms = people
    (contrast,) = contrasts_of(terms["group"], [])
    told = []
    options = {"permutations": 200, "cluster_p": 0.01, "tfce": True}
    found = voxel_test(values, contrast, names(N), INSIDE, GRID, progress=lambda *each: told.append(each), **options)
    second = contrast.values == 1
    moving = INSIDE.copy()
    moving[1, 0, 0] = False
    voxels = moving[INSIDE]
    expected = stats.ttest_ind(values[second][:, voxels], values[~second][:, voxels])
    np.testing.assert_allclose(found.t[moving], expected.statistic, rtol=1e-5, atol=1e-5)
    assert found.degrees == N - 2 == expected.df[0]
    assert found.voxels == voxels.sum() == INSIDE.sum() - 1
    assert found.threshold == pytest.approx(stats.t.isf(0.005, N - 2))
    for image in (found.t, found.logp, found.logp_size, found.logp_mass, found.logp_tfce):
        assert not image[~moving].any()
    clear = found.logp > -np.log10(0.05)
    assert clear[PLACE].mean() > 0.4
    assert (found.t[clear & PLACE] < 0).all()
    assert not clear[~PLACE].any()
    for image in (found.logp_size, found.logp_mass):
        clear = image > -np.log10(0.05)
        assert clear[PLACE].mean() > 0.8
        assert clear[~PLACE].sum() < 10  # what touches the place by chance
    assert told[-1] == (200, 200)


@pytest.mark.parametrize("visits", [1, 2])
def test_people_and_their_visits_beside_nilearn_on_people(people, visits):
    """Each person's image once or twice: whole people exchanged are nilearn's people, t grown by the degrees."""
    values, terms = people
    (person,) = contrasts_of(terms["group"], [terms["age"]])
    draws, cluster_p = 2000, 0.01
    masker = NiftiMasker(image_of(INSIDE, GRID.matrix, 1), standardize=None).fit()
    kept = values.copy()
    kept[:, 0] += np.random.default_rng(1).normal(size=N)  # nilearn warns of what does not vary
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        theirs = permuted_ols(
            person.values[:, None], kept.astype(float), confounding_vars=person.held, n_perm=draws, random_state=1,
            masker=masker, threshold=cluster_p, output_type="dict",
        )  # fmt: skip
    cells = {name: [cell for cell in _cells(terms[name]) for _ in range(visits)] for name in terms}
    (scan,) = contrasts_of(term_of("group", cells["group"]), [term_of("age", cells["age"])])
    degrees = visits * N - 3
    grown = np.sqrt(degrees / (N - 3))
    same = 2 * stats.t.sf(stats.t.isf(cluster_p / 2, N - 3) * grown, degrees)
    ours = voxel_test(
        np.repeat(kept, visits, axis=0),
        scan,
        names(N, visits),
        INSIDE,
        GRID,
        permutations=draws,
        cluster_p=same,
        seed=2,
    )
    assert ours.degrees == degrees
    np.testing.assert_allclose(ours.t[INSIDE], theirs["t"][0] * grown, rtol=1e-6, atol=1e-6)
    for image, name in ((ours.logp, "t"), (ours.logp_size, "size"), (ours.logp_mass, "mass")):
        p = 10.0 ** -theirs[f"logp_max_{name}"][0]
        error = np.sqrt(2 * p * (1 - p) / draws)
        assert (np.abs(10.0 ** -image[INSIDE] - p) <= 4.5 * error + 2 / draws).all(), name
        assert p.min() < 0.01


def _cells(term):
    column = term.values[:, 0]
    return [term.levels[int(each)] if term.levels else f"{each:.6f}" for each in column]


def test_p_of_three_and_three_is_that_of_their_twenty_orders():
    """A difference as large as it can be is reached by 2 of 20 orders, those that tie with it by rounding alone."""
    rng, draws = np.random.default_rng(5), 400
    groups = ["a", "b"] * 3
    values = 0.1 * rng.normal(size=(6, INSIDE.sum())) + np.outer(np.arange(6) % 2, PLACE[INSIDE])
    (contrast,) = contrasts_of(term_of("group", groups), [])
    found = voxel_test(values, contrast, names(6), INSIDE, GRID, permutations=draws, cluster_p=0.01, tfce=True)
    low, high = stats.binom(draws, 0.1).interval(0.999)
    for image in (found.logp_size, found.logp_mass, found.logp_tfce, found.logp):
        reached = 10.0 ** -image.max() * (1 + draws) - 1
        assert low <= reached <= high


def test_the_least_p_and_no_cluster():
    """Beyond all 99 draws p is 1/100, outside clusters 1; and all voxels of a grid without background may be one."""
    everywhere, n = np.ones(SHAPE, bool), 24
    x = np.random.default_rng(0).normal(size=n)
    noise = np.random.default_rng(1).normal(size=(n, everywhere.sum()))
    (contrast,) = contrasts_of(term_of("x", [repr(float(each)) for each in x]), [])
    for where in (PLACE, everywhere):
        values = 0.1 * noise + np.outer(x, where[everywhere])
        found = voxel_test(values, contrast, names(n), everywhere, GRID, permutations=99, cluster_p=1e-4)
        cluster = np.abs(found.t) > found.threshold
        assert cluster[where].all()
        for image in (found.logp_size, found.logp_mass):
            np.testing.assert_allclose(image[where], 2, rtol=1e-6)
            assert not image[~cluster].any()


def test_covariates_explain_what_is_theirs():
    """Of images that follow age alone, a group that is older has nothing of its own."""
    rng = np.random.default_rng(4)
    age = rng.uniform(20, 80, 60)
    older = ["ab"[int(each > 50)] for each in age]
    values = (0.05 * age[:, None] + rng.normal(size=(60, INSIDE.sum()))).astype(np.float32)
    terms = term_of("group", older), term_of("age", [repr(float(each)) for each in age])
    for held, number in (((), INSIDE.sum()), (terms[1:], 0)):
        (contrast,) = contrasts_of(terms[0], held)
        found = voxel_test(values, contrast, names(60), INSIDE, GRID, permutations=200)
        clear = (found.logp > -np.log10(0.05)).sum()
        assert clear > 0.5 * number if number else clear == 0


def test_covariates_that_add_nothing(people):
    """A level that nobody of these has, and a column twice, change neither t nor p nor the degrees of freedom."""
    values, terms = people
    kind = term_of("kind", ["c" if i < 2 else "ab"[i // 2 % 2] for i in range(N)])
    gone = term_of("gone", ["n/a" if i < 2 else str(i % 5) for i in range(N)])  # kind c, too, where it is known
    (contrast,) = contrasts_of(terms["group"], [terms["age"], kind, gone, term_of("again", _cells(terms["age"]))])
    assert (np.ptp(contrast.held, axis=0) == 0).sum() == 1
    found = voxel_test(values[2:], contrast, names(N - 2), INSIDE, GRID, permutations=99)
    other = (kind.values[2:, 0], gone.values[2:, 0], terms["age"].values[2:, 0])
    full = sm.add_constant(np.c_[(*other, contrast.values)])
    assert found.degrees == N - 2 - 5
    for voxel in range(1, INSIDE.sum(), 60):
        assert found.t[INSIDE][voxel] == pytest.approx(sm.OLS(values[2:, voxel], full).fit().tvalues[-1], rel=1e-4)


def test_what_cannot_be_tested(people):
    values, terms = people
    (contrast,) = contrasts_of(terms["group"], [])
    with pytest.raises(ArgumentError, match="--tfce must be asked for where each person has one scan"):
        voxel_test(values, contrast, ["sub-00", *names(N - 1)], INSIDE, GRID, tfce=True)
    with pytest.raises(ArgumentError, match="must leave something to test, but received 0 voxels that vary"):
        voxel_test(np.ones_like(values), contrast, names(N), INSIDE, GRID)
