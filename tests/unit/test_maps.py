"""Maps of a decoder beside closed forms: of linear decoders least squares on the images themselves, by statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from kerasvae.analysis.design import term_of
from kerasvae.analysis.maps.decoded import association_map, jacobian, spread_of, traverse
from kerasvae.analysis.maps.slopes import bootstrap_slopes, contrasts_of, slopes_of
from kerasvae.errors import ArgumentError

SHAPE, D, N = (4, 5, 3), 3, 80
INSIDE = np.random.default_rng(9).random(SHAPE) < 0.7


class Linear:
    """A decoder without bends: an image is a mean and a sum of d images."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.weights = rng.normal(size=(D, *SHAPE)) * INSIDE
        self.mean = rng.normal(size=SHAPE) * INSIDE

    def __call__(self, codes):
        return self.mean + np.tensordot(codes, self.weights, 1)


@pytest.fixture(scope="module")
def linear():
    return Linear()


@pytest.fixture(scope="module")
def cohort():
    """Codes that go with age and sex; sex goes with age, and some cells are not known."""
    rng = np.random.default_rng(2)
    age = rng.uniform(20, 80, N)
    male = rng.random(N) < age / 100
    codes = rng.standard_t(5, size=(N, D)) + 0.03 * age[:, None] * [1, 0, -1] + male[:, None] * [0, 1, 0.5]
    ages = [f"{each:.6f}" for each in age]
    ages[3] = "n/a"
    terms = {"age": term_of("age", ages), "sex": term_of("sex", ["FM"[int(each)] for each in male])}
    return codes, terms


def test_traversal_and_jacobian_of_a_line(linear, cohort):
    centre, stddev = spread_of(cohort[0])
    np.testing.assert_allclose(stddev, np.std(cohort[0], axis=0) * np.sqrt(N / (N - 1)))
    images = traverse(linear, centre, [0, stddev[1], 0], [-2, 0, 1])
    np.testing.assert_allclose(images[0], linear(centre[None])[0] - 2 * stddev[1] * linear.weights[1], atol=1e-5)
    np.testing.assert_allclose(images[1], linear(centre[None])[0], atol=1e-5)
    np.testing.assert_allclose(images[2] - images[1], stddev[1] * linear.weights[1], atol=1e-5)
    moved = jacobian(linear, centre, np.diag(stddev))
    np.testing.assert_allclose(moved, stddev[:, None, None, None] * linear.weights, atol=2e-5)


def test_jacobian_of_a_bent_decoder():
    """Beside the derivative on paper; the error of central differences is h²/6 times the third derivative."""
    weights = np.random.default_rng(4).normal(size=(D, *SHAPE))

    def decode(codes):
        return np.sin(np.tensordot(codes, weights, 1))

    centre, directions = np.array([0.3, -0.2, 0.8]), np.array([[1.0, 0, 0], [0.5, -1, 2]])
    steps = np.tensordot(directions, weights, 1)
    expected = np.cos(np.tensordot(centre, weights, 1)) * steps
    bound = 0.01**2 / 6 * np.abs(steps) ** 3 + 2e-5
    assert (np.abs(jacobian(decode, centre, directions) - expected) <= bound).all()
    assert np.abs(jacobian(decode, centre, directions, step=2.0) - expected).max() > 0.1


def oracle(images, contrast):
    """statsmodels, voxel by voxel: slope, t and degrees of freedom."""
    full = sm.add_constant(np.c_[contrast.held, contrast.values])
    fits = [sm.OLS(images[:, voxel], full).fit() for voxel in range(images.shape[1])]
    return np.array([fit.params[-1] for fit in fits]), np.array([fit.tvalues[-1] for fit in fits]), fits[0].df_resid


@pytest.mark.parametrize(("asked", "held"), [("age", ["sex"]), ("sex", ["age"]), ("age", []), ("age", ["age", "sex"])])
def test_the_map_of_an_association_is_least_squares_on_what_is_decoded(linear, cohort, asked, held):
    codes, terms = cohort
    (contrast,) = contrasts_of(terms[asked], [terms[name] for name in held])
    known = codes[contrast.known]
    people = [f"sub-{i}" for i in range(len(known))]
    found = association_map(linear, known, people, contrast, INSIDE, bootstraps=99)
    slopes, t, degrees = oracle(linear(known)[:, INSIDE], contrast)
    np.testing.assert_allclose(found.slope[INSIDE], slopes, atol=1e-5)
    np.testing.assert_allclose(found.r[INSIDE], t / np.sqrt(t**2 + degrees), atol=1e-4)
    assert found.bend < 1e-3
    for image in (found.slope, found.low, found.high, found.z, found.r):
        assert image.dtype == np.float32
        assert not image[~INSIDE].any()
    assert (found.low <= found.slope).mean() > 0.95
    assert (found.slope <= found.high).mean() > 0.95
    assert len(known) == (N if asked == "sex" and not held else N - 1)


def test_intervals_are_those_of_drawing_people_and_fitting_each_voxel(linear, cohort):
    """The same draws, each decoded and fitted by numpy anew: percentiles, and the interval of a region's mean."""
    codes, terms = cohort
    (contrast,) = contrasts_of(terms["age"], [terms["sex"]])
    codes, people = codes[contrast.known], np.array([f"sub-{i:03d}" for i in range(N - 1)])
    found = association_map(linear, codes, people.tolist(), contrast, INSIDE, bootstraps=200, seed=5)
    rng, maps = np.random.default_rng(5), []
    full = np.c_[np.ones(N - 1), contrast.held, contrast.values]
    for _ in range(200):
        rows = rng.integers(N - 1, size=N - 1)
        maps.append(np.linalg.lstsq(full[rows], linear(codes[rows])[:, INSIDE], rcond=None)[0][-1])
    wider = np.sqrt((N - 1) / (N - 4)) * stats.t.ppf(0.975, N - 4) / stats.norm.ppf(0.975)
    slope, ends = found.slope[INSIDE], np.percentile(maps, [2.5, 97.5], axis=0)
    np.testing.assert_allclose([found.low[INSIDE], found.high[INSIDE]], slope + wider * (ends - slope), atol=1e-5)
    np.testing.assert_allclose(found.z[INSIDE], found.slope[INSIDE] / np.std(maps, axis=0, ddof=1), rtol=1e-3)
    region = np.zeros(SHAPE, bool)
    region[1:3] = True
    means = np.mean(maps, axis=1, where=region[INSIDE])
    mean, *ends = found.mean_of(region)
    assert mean == pytest.approx(found.slope[region & INSIDE].mean(), rel=1e-5)
    np.testing.assert_allclose(ends, mean + wider * (np.percentile(means, [2.5, 97.5]) - mean), atol=1e-5)


def test_a_map_does_not_depend_on_the_axes(cohort):
    """The same model with its latent space turned, stretched and moved, and a decoder that undoes it."""
    codes, terms = cohort
    (contrast,) = contrasts_of(terms["sex"], [terms["age"]])
    codes, turn = codes[contrast.known], np.random.default_rng(8).normal(size=(D, D))
    weights = np.random.default_rng(4).normal(size=(D, *SHAPE))

    def decode(each):
        return np.tanh(0.5 * np.tensordot(each, weights, 1))

    people, inside = [str(i) for i in range(len(codes))], np.ones(SHAPE, bool)
    first = association_map(decode, codes, people, contrast, inside, bootstraps=99)
    undo = np.linalg.inv(turn)
    other = association_map(lambda each: decode((each - 3) @ undo), codes @ turn + 3, people, contrast, inside,
                            bootstraps=99)  # fmt: skip
    for name in ("slope", "low", "high", "z", "r"):
        a, b = getattr(first, name), getattr(other, name)
        np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(a).max(), err_msg=name)


def test_a_bend_is_said(cohort):
    codes, terms = cohort
    (contrast,) = contrasts_of(terms["age"], [])
    codes = codes[contrast.known]
    people = [str(i) for i in range(len(codes))]
    weights = np.random.default_rng(4).normal(size=(D, *SHAPE))

    def decode(each):
        return np.tanh(np.tensordot(each, weights, 1))

    found = association_map(decode, codes, people, contrast, np.ones(SHAPE, bool), bootstraps=99)
    centre, slopes = codes.mean(axis=0), slopes_of(codes, contrast, people)
    reach = contrast.values.std(ddof=1)
    ends = [decode((centre + sign * reach * slopes)[None])[0] for sign in (-1, 1)]
    exact = (ends[1] - ends[0]) / (2 * reach)
    np.testing.assert_allclose(found.slope, exact, atol=1e-6)
    linear = (1 - decode(centre[None])[0] ** 2) * np.tensordot(slopes, weights, 1)
    assert found.bend == pytest.approx(np.linalg.norm(exact - linear) / np.linalg.norm(exact), rel=0.05)
    assert found.bend > 0.05


def test_visits_of_one_person_are_drawn_together():
    """Beside the standard error that statsmodels makes robust for people: rows taken for people are far too sure."""
    rng = np.random.default_rng(0)
    people, visits = 60, 4
    whose = np.repeat(np.arange(people), visits)
    x = rng.normal(size=people)[whose]
    codes = (rng.normal(size=(people, D)) * 2)[whose] + rng.normal(size=(people * visits, D))
    (contrast,) = contrasts_of(term_of("x", [f"{each:.9f}" for each in x]), [])
    drawn = bootstrap_slopes(codes, contrast, whose.astype(str).tolist(), number=2000).std(axis=0, ddof=1)
    apart = bootstrap_slopes(codes, contrast, [str(i) for i in range(len(x))], number=2000).std(axis=0, ddof=1)
    for index in range(D):
        fit = sm.OLS(codes[:, index], sm.add_constant(contrast.values))
        robust = fit.fit(cov_type="cluster", cov_kwds={"groups": whose})
        assert drawn[index] == pytest.approx(robust.bse[-1], rel=0.12)
        assert apart[index] < 0.75 * robust.bse[-1]


def test_slopes_of_visits_do_not_depend_on_the_axes_and_are_those_within_people():
    """Older people lie lower and every one of them rises: least squares of scans would say that all fall."""
    rng = np.random.default_rng(2)
    people, visits = 40, 3
    whose = np.repeat(np.arange(people), visits)
    start = rng.uniform(20, 70, people)[whose]
    since = np.tile([0.0, 2.0, 4.0], people)
    codes = (rng.normal(size=(people, D)) * 0.6)[whose] + 0.05 * rng.normal(size=(len(whose), D))
    codes[:, 0] += -0.03 * start + 0.05 * since
    (contrast,) = contrasts_of(term_of("age", [repr(float(each)) for each in start + since]), [])
    names = whose.astype(str).tolist()
    slopes = slopes_of(codes, contrast, names)
    assert np.polyfit(contrast.values, codes[:, 0], 1)[0] < -0.02
    fit = sm.MixedLM(codes[:, 0], sm.add_constant(contrast.values), groups=whose).fit(reml=True)
    assert slopes[0] == pytest.approx(fit.fe_params[1], rel=0.2)  # theirs is of this dimension's own ratio
    mix = rng.normal(size=(D, D))
    np.testing.assert_allclose(slopes_of(codes @ mix, contrast, names), slopes @ mix, atol=1e-6)
    drawn = bootstrap_slopes(codes, contrast, names, number=300)
    assert (drawn[:, 0] > 0).all()
    np.testing.assert_allclose(drawn.mean(axis=0), slopes, atol=3 * drawn.std(axis=0).max() / np.sqrt(300))


@pytest.mark.parametrize(("n", "cohorts"), [(12, 400), (80, 200)])
def test_intervals_hold_the_truth_as_often_as_they_say(n, cohorts):
    """Of few people, too, whom percentiles as they are would serve in 89 % of cohorts."""
    rng, held = np.random.default_rng(7), 0
    for _ in range(cohorts):
        x = rng.normal(size=n)
        codes = (0.3 * x + (0.5 + np.abs(x)) * rng.standard_t(6, size=n))[:, None]  # the spread goes with x, too
        (contrast,) = contrasts_of(term_of("x", [repr(float(each)) for each in x]), [])
        found = association_map(lambda each: each[:, :, None, None], codes, [str(i) for i in range(n)], contrast,
                                np.ones((1, 1, 1), bool), bootstraps=300)  # fmt: skip
        held += found.low.item() <= 0.3 <= found.high.item()
    assert stats.binomtest(held, cohorts, 0.95).pvalue > 0.001


def test_each_level_of_a_category_is_beside_the_first(linear):
    rng = np.random.default_rng(3)
    cells = [("a", "b", "c")[i % 3] for i in range(60)]
    codes = rng.normal(size=(60, D)) + np.array([[0, 1, 3]["abc".index(cell)] for cell in cells])[:, None]
    found = contrasts_of(term_of("site 1", cells), [])
    assert [(each.name, each.meaning, each.reach) for each in found] == [
        ("site 1-b", "b against a", 0.5), ("site 1-c", "c against a", 0.5),
    ]  # fmt: skip
    levels = {cell: codes[np.array(cells) == cell].mean(axis=0) for cell in "abc"}
    for contrast, level in zip(found, "bc", strict=True):
        np.testing.assert_allclose(
            slopes_of(codes, contrast, list(map(str, range(60)))), levels[level] - levels["a"], atol=1e-12
        )


def test_draws_without_a_level_are_left_out():
    cells = ["a"] * 12 + ["b"] * 2
    (contrast,) = contrasts_of(term_of("group", cells), [])
    codes, people = np.random.default_rng(0).normal(size=(14, D)), [str(i) for i in range(14)]
    drawn = bootstrap_slopes(codes, contrast, people, number=500)
    expected = 1 - (12 / 14) ** 14  # that one of two is drawn at all
    assert stats.binomtest(len(drawn), 500, expected).pvalue > 0.001
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["1", "2", "3", "4", "5", "6"], "must be no mix of the covariates"),
        (["1", "n/a", "n/a", "n/a", "n/a", "2"], "must vary between three scans or more"),
    ],
)
def test_what_cannot_be_asked(cells, words):
    with pytest.raises(ArgumentError, match=words):
        contrasts_of(term_of("x", cells), [term_of("z", ["2", "4", "6", "8", "10", "12"])])


def test_a_slope_that_is_seldom_defined():
    (contrast,) = contrasts_of(term_of("group", ["a"] * 12 + ["b"]), [term_of("x", [str(i**2) for i in range(13)])])
    with pytest.raises(ArgumentError, match="must have a slope among people drawn anew"):
        bootstrap_slopes(np.ones((13, 1)), contrast, ["same"] * 12 + ["other"], number=200)
