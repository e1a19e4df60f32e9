"""Figures of predictions and logistic regression beside scikit-learn, SciPy and statsmodels."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.optimize import minimize
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    log_loss,
    mean_absolute_error,
    roc_auc_score,
)
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kerasvae.metrics.logistic import FREE, STRENGTHS, logistic_of
from kerasvae.metrics.predicted import category_figures, line_calibration, logistic_calibration, number_figures

RNG = np.random.default_rng(3)
PEOPLE = 80
WEIGHTS = np.stack([np.ones(PEOPLE), *RNG.multinomial(PEOPLE, np.full(PEOPLE, 1 / PEOPLE), 3)])
GRID = STRENGTHS[1:6:2]
LEFT, LEARN = np.arange(PEOPLE) % 4 == 0, np.arange(PEOPLE) % 4 != 0
CODES = RNG.standard_normal((PEOPLE, 6)) * np.geomspace(0.1, 10, 6) + 2
HELD = RNG.standard_normal((PEOPLE, 2))


def counted(weights, *values):
    """Each person as often as drawn."""
    return [np.repeat(each, weights.astype(int), axis=0) for each in values]


def test_figures_of_numbers_are_those_of_people_drawn_as_often():
    y, expected = RNG.normal(50, 10, PEOPLE), np.repeat([49.0, 52.0], PEOPLE // 2)
    guess = 0.5 * y + RNG.normal(20, 5, PEOPLE)
    found = number_figures(y, guess, expected, WEIGHTS)
    for index, weights in enumerate(WEIGHTS):
        a, b, mean = counted(weights, y, guess, expected)
        assert found["r"][index] == pytest.approx(np.corrcoef(a, b)[0, 1])
        assert found["mae"][index] == pytest.approx(mean_absolute_error(a, b))
        assert found["r2"][index] == pytest.approx(1 - ((a - b) ** 2).sum() / ((a - mean) ** 2).sum())
    assert number_figures(y, np.full(PEOPLE, 0.1), expected)["r"] == [0]
    line = sm.OLS(y, sm.add_constant(guess)).fit()
    assert line_calibration(y, guess)[:2] == pytest.approx(line.params[::-1])
    assert np.isnan(line_calibration(y, np.ones(PEOPLE)).slope)


@pytest.mark.parametrize("levels", [2, 3])
def test_figures_of_categories_are_scikit_learns(levels):
    y = RNG.integers(0, levels, PEOPLE)
    p = RNG.dirichlet(np.ones(levels), PEOPLE).round(1) + 0.01  # ties, too
    p /= p.sum(axis=1, keepdims=True)
    found = category_figures(y, p, WEIGHTS)
    for index, weights in enumerate(WEIGHTS):
        a, b = counted(weights, y, p)
        assert found["accuracy"][index] == pytest.approx(accuracy_score(a, b.argmax(axis=1)))
        assert found["balanced_accuracy"][index] == pytest.approx(balanced_accuracy_score(a, b.argmax(axis=1)))
        assert found["log_loss"][index] == pytest.approx(log_loss(a, b, labels=range(levels)))
        if levels == 2:
            assert found["auc"][index] == pytest.approx(roc_auc_score(a, b[:, 1]))
            assert found["brier"][index] == pytest.approx(brier_score_loss(a, b[:, 1]))
    assert ("auc" in found) == (levels == 2)
    without = category_figures(y, p, (y > 0)[None].astype(float))
    assert np.isnan(without["balanced_accuracy"][0])
    assert np.isfinite(without["accuracy"][0])


def test_calibration_of_probabilities():
    p = RNG.uniform(0.02, 0.98, 400)
    y = (RNG.random(400) < 1 / (1 + np.exp(0.5 - 0.4 * np.log(p / (1 - p))))).astype(int)  # too sure, and too high
    found = logistic_calibration(y, p)
    intercept, slope = sm.Logit(y, sm.add_constant(np.log(p / (1 - p)))).fit(disp=0).params
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept), rel=1e-5)
    assert 0.2 < found.slope < 0.6
    assert found.intercept < 0
    shares, means = calibration_curve(y, p, n_bins=10)
    assert [row["share"] for row in found.bins] == pytest.approx(shares)
    assert [row["probability"] for row in found.bins] == pytest.approx(means)
    counts = np.histogram(p, np.linspace(0, 1, 11))[0]
    assert [row["people"] for row in found.bins] == counts.tolist()
    assert found.error == pytest.approx((counts * abs(shares - means)).sum() / 400)
    apart = logistic_calibration(np.array([0, 0, 1, 1]), [0.1, 0.2, 0.7, 1.0])
    assert np.isnan(apart.slope)
    assert apart.bins[-1]["high"] == 1


@pytest.mark.parametrize("levels", [2, 3])
def test_logistic_is_a_pipeline_in_a_grid_search(levels):
    y = np.digitize(CODES[:, 0] * 10 + RNG.normal(0, 1, PEOPLE), [20] if levels == 2 else [19.5, 20.5])
    found, penalty = logistic_of(
        CODES, y, CODES[:, :0], np.flatnonzero(LEARN), np.flatnonzero(LEFT), seed=1, penalties=GRID
    )
    # scikit-learn's grid scales within each part of the inner cross-validation, as must we
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000, tol=1e-8)),
        {"logisticregression__C": [1 / each for each in GRID]},
        scoring="neg_log_loss",
        cv=StratifiedKFold(5, shuffle=True, random_state=1),
    )
    search.fit(CODES[LEARN], y[LEARN])
    assert penalty == pytest.approx(1 / search.best_params_["logisticregression__C"])
    np.testing.assert_allclose(found, search.predict_proba(CODES[LEFT]), atol=1e-5)


def test_covariates_are_as_good_as_free():
    """The penalised likelihood written down and minimised, with a millionth of the penalty on the covariates."""
    y = (CODES[:, 0] * 10 - 20 + 2 * HELD[:, 0] + RNG.normal(0, 1, PEOPLE) > 0).astype(int)
    strength = 20.0
    rows = np.flatnonzero(LEARN), np.flatnonzero(LEFT)
    found, _ = logistic_of(CODES, y, HELD, *rows, penalties=[strength])
    scale = [StandardScaler().fit(each[LEARN]) for each in (CODES, HELD)]
    z, held = (each.transform(values) for each, values in zip(scale, (CODES, HELD), strict=True))
    columns, sign = np.c_[np.ones(PEOPLE), held, z], 2 * y - 1

    def loss(weights):
        size = np.square(weights[3:]).sum() + np.square(weights[1:3]).sum() / 1e6
        return np.logaddexp(0, -sign * (columns @ weights))[LEARN].sum() + strength / 2 * size

    fit = minimize(loss, np.zeros(9), method="BFGS", options={"gtol": 1e-6})
    np.testing.assert_allclose(found[:, 1], 1 / (1 + np.exp(-columns[LEFT] @ fit.x)), atol=2e-5)
    shrunk, _ = logistic_of(np.c_[CODES, HELD * FREE], y, HELD[:, :0], *rows, penalties=[strength])
    assert abs(shrunk - found).max() > 0.05  # what a penalty on them would do
