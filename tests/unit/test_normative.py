"""Expectations and calibrations against simulated truth, scipy and plain loops."""

import math

import numpy as np
import pytest
from scipy import special, stats

from kerasvae.analysis.deviation.normative import calibrate, fit_expectation, left_out
from kerasvae.errors import ArgumentError
from kerasvae.scoring import moderated_variance, normal_quantile

VOXELS = 4000


def people(n, seed, slope=0.0, growth=0.0):
    """Residuals whose mean follows the covariate in the first half of the voxels, and whose spread grows with it."""
    rng = np.random.default_rng(seed)
    age = rng.uniform(20, 80, n)
    stddev = np.exp(0.3 * np.random.default_rng(99).standard_normal(VOXELS))
    years = (age - 50) / math.sqrt(300)
    mean = slope * years[:, None] * (np.arange(VOXELS) < VOXELS // 2)
    noise = rng.standard_normal((n, VOXELS)) * np.exp(growth * years / 2)[:, None]
    return (mean + noise) * stddev, age[:, None], stddev


def test_what_is_there_is_found():
    residual, age, stddev = people(200, 1, slope=0.5, growth=0.6)
    found = fit_expectation(residual, age)
    truth = 0.5 * stddev * (np.arange(VOXELS) < VOXELS // 2)
    assert np.corrcoef(found.slopes[0], truth)[0, 1] > 0.9
    assert found.growth[0] == pytest.approx(0.6, abs=0.1)
    assert np.corrcoef(np.log(found.variance), 2 * np.log(stddev))[0, 1] > 0.95


def test_what_is_not_there_is_hardly_found():
    residual, age, _ = people(60, 2)
    found = fit_expectation(residual, age)
    plain = np.linalg.lstsq(np.c_[np.ones(60), age], residual, rcond=None)[0][1] * age.std()
    assert np.square(found.slopes).sum() < 0.05 * np.square(plain).sum()
    assert abs(found.growth[0]) < 0.05


def test_new_people_are_standardised_whatever_their_covariate():
    learned, age, _ = people(150, 3, slope=1.0, growth=0.8)
    new, theirs, _ = people(400, 4, slope=1.0, growth=0.8)
    u = fit_expectation(learned, age).standardise(new, theirs)
    for low, high in ((20, 40), (40, 60), (60, 80)):
        part = u[(theirs[:, 0] >= low) & (theirs[:, 0] < high)]
        assert part.std() == pytest.approx(1, abs=0.07)
        assert np.abs(part.mean(axis=0)).mean() < 0.25  # without the slopes 0.5 and more


def test_an_unknown_covariate_is_taken_to_be_the_mean():
    learned, age, _ = people(100, 5, slope=1.0)
    found = fit_expectation(learned, np.where(age > 75, np.nan, age))
    row = learned[:1]
    np.testing.assert_allclose(found.standardise(row, [[np.nan]]), found.standardise(row, found.center[None]))


def test_what_the_posterior_leaves_open_widens():
    learned, age, _ = people(100, 6)
    found = fit_expectation(learned, age)
    row, extra = learned[:1], 3 * found.variance[None]
    growth = np.exp(((age[:1] - found.center) / found.unit) @ found.growth)
    wide = found.standardise(row, age[:1], extra)
    np.testing.assert_allclose(wide * np.sqrt(1 + 3 / growth), found.standardise(row, age[:1]), rtol=1e-6)


@pytest.mark.parametrize("constant", [0.1, 1e6 / 3, np.nan])
def test_of_a_covariate_that_does_not_vary_nothing_is_learned(constant):
    learned, age, _ = people(60, 7, slope=1.0)
    both = np.c_[age, np.full(60, constant)]
    found, alone = fit_expectation(learned, both), fit_expectation(learned, age)
    np.testing.assert_allclose(found.slopes[0], alone.slopes[0], rtol=1e-9)
    np.testing.assert_array_equal(found.slopes[1], 0)
    assert found.growth[1] == 0
    np.testing.assert_allclose(
        found.standardise(learned, np.c_[age, np.full(60, 7.0)]), alone.standardise(learned, age), rtol=1e-6
    )


def test_without_covariates_it_is_a_standard_deviation():
    rng = np.random.default_rng(0)
    residual = rng.standard_normal((30, 50)) * np.linspace(1, 9, 50)
    found = fit_expectation(residual, np.empty((30, 0)))
    expected = moderated_variance(residual.var(axis=0, ddof=1), 29)[0]
    np.testing.assert_allclose(found.variance, expected)


def test_calibration_is_a_prediction_of_one_new_value():
    """With nothing to borrow from, t and its p are those of scipy's prediction from a normal sample."""
    rng = np.random.default_rng(1)
    sample = rng.normal(3, 2, (12, 1))
    found = calibrate(sample)
    t = (7 - sample.mean()) / (sample.std(ddof=1) * math.sqrt(1 + 1 / 12))
    assert found.degrees == 11
    assert found.t([[7.0]])[0, 0] == pytest.approx(t)
    assert found.z([[7.0]])[0, 0] == pytest.approx(stats.norm.isf(stats.t.sf(t, 11)), rel=1e-6)


def test_left_out_is_calibration_on_the_others():
    rng = np.random.default_rng(2)
    values = rng.standard_normal((9, 300)) * np.exp(0.5 * rng.standard_normal(300))
    t, degrees = left_out(values)
    _, whole = moderated_variance(values.var(axis=0, ddof=1), 8)
    prior = whole - 8
    common = (moderated_variance(values.var(axis=0, ddof=1), 8)[0] * whole - 8 * values.var(axis=0, ddof=1)) / prior
    for index, row in enumerate(values):
        others = np.delete(values, index, axis=0)
        variance = (prior * common + 7 * others.var(axis=0, ddof=1)) / (prior + 7)
        expected = (row - others.mean(axis=0)) / np.sqrt(variance * (1 + 1 / 8))
        np.testing.assert_allclose(t[index], expected, rtol=1e-8)
    assert degrees == pytest.approx(whole - 1)


def test_left_out_of_voxels_alike():
    """Variances that do not differ at all are one: t is then a normal deviate."""
    rng = np.random.default_rng(3)
    values = rng.permuted(np.tile(rng.standard_normal((8, 1)), 500), axis=0)
    t, degrees = left_out(values)
    assert math.isinf(degrees)
    # Smyth's common variance is that of the logarithms: a little above the mean of 7 degrees of freedom
    stddev = values[:, 0].std(ddof=1) * math.exp((math.log(3.5) - special.digamma(3.5)) / 2)
    others = (values.sum(axis=0) - values) / 7
    np.testing.assert_allclose(t, (values - others) / (stddev * math.sqrt(1 + 1 / 7)))


def test_rates_of_z():
    """Of normal residuals with spreads of their own, a share of 0.05 is beyond 1.96."""
    rng = np.random.default_rng(4)
    stddev = np.exp(0.4 * rng.standard_normal(20_000))
    found = calibrate(rng.standard_normal((15, 20_000)) * stddev)
    z = found.z(rng.standard_normal((40, 20_000)) * stddev)
    assert (np.abs(z) > stats.norm.isf(0.025)).mean() == pytest.approx(0.05, abs=0.002)


def test_normal_quantile_far_out():
    assert normal_quantile([60.0], 10.0)[0] == pytest.approx(stats.norm.isf(stats.t.sf(60.0, 10)), rel=1e-6)
    np.testing.assert_allclose(normal_quantile([[-1.0, 2.0]], math.inf), [[-1.0, 2.0]])


@pytest.mark.parametrize(
    ("residual", "covariates"),
    [
        (np.zeros((3, 5)), np.zeros((3, 1))),
        (np.zeros((9, 5)), np.zeros((8, 1))),
        (np.full((9, 5), np.nan), np.zeros((9, 1))),
        (np.zeros((9, 0)), np.zeros((9, 1))),
    ],
)
def test_bad_input_is_refused(residual, covariates):
    with pytest.raises(ArgumentError):
        fit_expectation(residual, covariates)


def test_few_people_are_refused():
    with pytest.raises(ArgumentError, match="3 people"):
        calibrate(np.zeros((2, 4)))
    with pytest.raises(ArgumentError, match="4 people"):
        left_out(np.zeros((3, 4)))
    with pytest.raises(ArgumentError, match="a column for each of 1"):
        fit_expectation(np.ones((9, 5)), np.arange(9.0)[:, None]).standardise(np.ones((1, 5)), np.ones((1, 2)))
