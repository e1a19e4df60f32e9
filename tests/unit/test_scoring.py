"""Scores against scipy and scikit-learn, and the model's against the closed form of its parts."""

import numpy as np
import pytest
from scipy import stats
from sklearn.covariance import LedoitWolf

from kerasvae import VAE, NormalLikelihood, dense_decoder, dense_encoder
from kerasvae.distributions import BernoulliLikelihood
from kerasvae.errors import ArgumentError
from kerasvae.scoring import (
    deviation,
    distance,
    moderated_variance,
    normal_surprise,
    percentiles,
    predictive_p,
    residual,
    shrunk_precision,
)

RNG = np.random.default_rng(6)


@pytest.mark.parametrize("people", [4, 20, 400])
def test_the_covariance_is_shrunk_as_scikit_learn_shrinks_it(people):
    codes = RNG.standard_normal((people, 7)) @ RNG.standard_normal((7, 7))
    peer = LedoitWolf().fit(codes)
    center, precision = shrunk_precision(codes)
    np.testing.assert_allclose(center, peer.location_)
    np.testing.assert_allclose(precision, peer.precision_, rtol=1e-8)
    np.testing.assert_allclose(distance(codes, center, precision) ** 2, peer.mahalanobis(codes), rtol=1e-8)


def test_codes_that_do_not_vary_or_are_nobodys():
    center, precision = shrunk_precision(np.ones((5, 3)))
    np.testing.assert_array_equal(precision, np.eye(3))
    np.testing.assert_array_equal(center, 1)
    for codes in (np.ones((1, 3)), np.full((4, 2), np.nan), np.ones(4)):
        with pytest.raises(ArgumentError, match="two people"):
            shrunk_precision(codes)


def test_percentiles_are_scipys():
    ranked = np.sort(RNG.integers(0, 9, 30)).astype(float)
    values = np.arange(-1, 11, 0.5)
    expected = [stats.percentileofscore(ranked, value, kind="mean") for value in values]
    np.testing.assert_allclose(percentiles(values, ranked), expected)


MASK = RNG.random((3, 4)) < 0.7


@pytest.mark.parametrize("mask", [None, MASK])
def test_a_models_scores_are_those_of_its_normal_parts(mask):
    likelihood = NormalLikelihood(scale="fixed", stddev=0.6, floor=0.1, mask=mask)
    model = VAE(dense_encoder((3, 4), 4), dense_decoder((3, 4), 2), likelihood=likelihood)
    x = RNG.standard_normal((5, 3, 4)).astype("f4")
    found, codes, made = model.score(x), model.encode(x), model.reconstruct(x)
    inside = np.ones((3, 4), bool) if mask is None else mask
    kl = 0.5 * (codes["mean"] ** 2 + codes["stddev"] ** 2 - 1 - 2 * np.log(codes["stddev"])).sum(1)
    surprise = kl - stats.norm(made[:, inside], 0.6).logpdf(x[:, inside]).sum(1)
    np.testing.assert_allclose(found["surprise"], surprise, rtol=1e-5)
    np.testing.assert_allclose(normal_surprise(x, made, codes["mean"], codes["stddev"], 0.6, mask), surprise, rtol=1e-5)
    np.testing.assert_allclose(found["residual"], residual(x, made, mask), rtol=1e-5)
    np.testing.assert_array_equal(found["center"], codes["mean"])
    np.testing.assert_array_equal(model.score(x)["surprise"], found["surprise"])
    if mask is not None:  # what lies outside counts for nothing, whatever it is
        beyond = np.where(mask, x, np.nan).astype("f4")
        assert np.isfinite(model.likelihood.log_prob(beyond, made)).all()


def test_other_likelihoods_are_scored_too():
    model = VAE(dense_encoder((6,), 4), dense_decoder((6,), 2), likelihood=BernoulliLikelihood())
    x = (RNG.random((4, 6)) < 0.5).astype("f4")
    found, codes, made = model.score(x), model.encode(x), model.reconstruct(x)
    kl = 0.5 * (codes["mean"] ** 2 + codes["stddev"] ** 2 - 1 - 2 * np.log(codes["stddev"])).sum(1)
    np.testing.assert_allclose(found["surprise"], kl - stats.bernoulli(made).logpmf(x).sum(1), rtol=1e-4)


@pytest.mark.parametrize(("prior", "level", "people"), [(8.0, 0.3, 6), (40.0, 2.0, 20)])
def test_variances_borrow_as_much_as_they_are_alike(prior, level, people):
    true = level * prior / RNG.chisquare(prior, 200_000)
    seen = true * RNG.chisquare(people - 1, len(true)) / (people - 1)
    moderated, degrees = moderated_variance(seen, people - 1)
    assert degrees - people + 1 == pytest.approx(prior, rel=0.05)
    expected = (prior * level + (people - 1) * seen) / (prior + people - 1)
    np.testing.assert_allclose(moderated, expected, rtol=0.02)
    # and a new value is then distributed as Student says
    t = RNG.standard_normal(len(true)) * np.sqrt(true) / np.sqrt(moderated)
    assert stats.kstest(t, stats.t(degrees).cdf).pvalue > 1e-3
    plain = RNG.standard_normal(len(true)) * np.sqrt(true) / np.sqrt(seen)
    assert stats.kstest(plain, stats.t(degrees).cdf).pvalue < 1e-6


def test_equal_variances_become_one():
    seen = 2.0 * RNG.chisquare(7, 500) / 7
    seen = seen if np.log(seen).var() < stats.loggamma(3.5).var() else np.sort(seen)[25:-25]
    moderated, degrees = moderated_variance(seen, 7)
    assert degrees == np.inf
    assert np.ptp(moderated) == 0
    assert moderated[0] == pytest.approx(2.0, rel=0.15)
    found, degrees = moderated_variance([0.0, 0.0], 7)
    assert (found.tolist(), degrees) == ([0.0, 0.0], 7)
    found, _ = moderated_variance([0.0, 1.0, 5.0, 0.2, 9.0, 0.05], 3)
    assert (found > 0).all()


@pytest.mark.parametrize("degrees", [4.0, 30.0, np.inf])
def test_deviations_are_normal_quantiles(degrees):
    x, made, mean = (RNG.standard_normal((5, 3, 4)) for _ in range(3))
    stddev = RNG.uniform(0.5, 2, (3, 4))
    stddev[1, 2] = 0
    found = deviation(x, made, mean[0], stddev, degrees)
    with np.errstate(divide="ignore"):
        t = (x - made - mean[0]) / stddev
    expected = np.where(
        stddev > 0, stats.norm.ppf(stats.t(degrees).cdf(t) if np.isfinite(degrees) else stats.norm.cdf(t)), 0
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    far = deviation([[1e9, -1e9]], [[0, 0]], [0, 0], [1, 1], degrees)
    assert np.isfinite(far).all()
    assert far[0, 0] == -far[0, 1] > 8


@pytest.mark.parametrize("people", [3, 12, 60])
def test_a_predictive_p_is_uniform_over_people_like_the_references(people):
    rng = np.random.default_rng(people)
    p = np.array([
        predictive_p([value], others)[0]
        for value, *others in np.exp(rng.normal(3.0, 0.4, (4000, people + 1)))
    ])  # fmt: skip
    for level in (0.01, 0.05, 0.5):
        low, high = stats.binom.interval(0.9999, len(p), level)
        assert low <= (p < level).sum() <= high
    assert stats.kstest(p, "uniform").pvalue > 1e-4


def test_a_predictive_p_says_how_far_out():
    known = np.exp([1.0, 1.1, 0.9, 1.05, 0.95])
    p = predictive_p(np.exp([1.0, 1.2, 2.0]), known)
    assert p[0] == pytest.approx(0.5)
    assert p[0] > p[1] > p[2] > 0
    assert predictive_p([1.0, 5.0], [2.0, 2.0]).tolist() == [1.0, 1.0]
