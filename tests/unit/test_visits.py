"""The random intercept beside statsmodels' mixed model and beside the covariance written out."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import statsmodels.api as sm

from kerasvae.analysis.visits import Visits


@pytest.fixture(params=[0.0, 0.4, 1.0, 4.0])
def study(request):
    """One to four visits of 40 people, in no order; columns of the visit, of the person, of both."""
    rng = np.random.default_rng(int(10 * request.param))
    people = rng.permutation(np.repeat(np.arange(40), rng.integers(1, 5, 40)))
    n = len(people)
    design = np.c_[np.ones(n), rng.normal(size=n), rng.normal(size=40)[people]]
    design[:, 1] += design[:, 2]
    outcomes = design @ rng.normal(size=(3, 5)) + rng.normal(size=(n, 5))
    return people, design, outcomes + request.param * rng.normal(size=(40, 5))[people]


def test_slopes_are_those_of_statsmodels(study):
    people, design, outcomes = study
    visits = Visits.of([f"sub-{each}" for each in people])
    compared = 0
    for ratio, outcome in zip(visits.ratios(design, outcomes), outcomes.T, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = sm.MixedLM(outcome, design, groups=people).fit(reml=True)
        if not theirs.converged:  # as of people who do not differ
            continue
        compared += 1
        ours = sm.OLS(visits.whiten(outcome[:, None], ratio)[:, 0], visits.whiten(design, ratio)).fit()
        np.testing.assert_allclose(ours.params, theirs.fe_params, atol=1e-4)
        known = theirs.cov_re[0, 0] / theirs.scale
        assert ratio == pytest.approx(known, rel=1e-2, abs=1e-3)
        # MixedLM's own standard errors are of a numeric Hessian
        covariance = np.eye(len(people)) + known * (people[:, None] == people)
        np.testing.assert_allclose(ours.bse, sm.GLS(outcome, design, sigma=covariance).fit().bse, rtol=1e-3)
    assert compared > 3


def test_whitening_is_the_root_of_the_covariance(study):
    people, design, _ = study
    visits = Visits.of(people)
    same = (people[:, None] == people).astype(float)
    white = visits.whiten(np.eye(len(people)), 1.7)
    np.testing.assert_allclose(white @ white.T, np.linalg.inv(np.eye(len(people)) + 1.7 * same), atol=1e-10)
    weights = visits.weights(np.array([1.7]))[:, 0]
    parts = sum(weight * part.T @ part for weight, part in zip(weights, visits.parts(design), strict=True))
    np.testing.assert_allclose(parts, design.T @ white.T @ white @ design, atol=1e-9)
    for rows, places, part in zip(visits.rows, visits.places, visits.parts(design), strict=True):
        np.testing.assert_array_equal(places[rows], np.arange(len(part)))


def test_one_ratio_of_all_outcomes(study):
    """Of one outcome it is that outcome's; of many it is that of any mix of them."""
    people, design, outcomes = study
    visits, rng = Visits.of(people), np.random.default_rng(0)
    one = outcomes[:, :1]
    assert visits.ratio(design, one) == pytest.approx(visits.ratios(design, one)[0], rel=1e-4, abs=1e-6)
    found = visits.ratio(design, outcomes)
    assert visits.ratio(design, outcomes @ rng.normal(size=(5, 5))) == pytest.approx(found, rel=1e-4, abs=1e-6)
    assert visits.ratio(design, rng.normal(size=(len(people), len(people)))) == 0


def test_people_who_do_not_differ_between_visits_have_a_bound():
    visits = Visits.of(np.repeat(np.arange(20), 2))
    outcome = np.random.default_rng(0).normal(size=20).repeat(2)[:, None]
    assert visits.ratios(np.ones((40, 1)), outcome)[0] == pytest.approx(1e4, rel=0.01)
    assert np.isfinite(visits.ratios(np.ones((40, 1)), np.zeros((40, 1)))).all()
