"""Nested ridge regression beside scikit-learn's parts put together by hand, and what a leak would look like."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import mean_absolute_error
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kerasvae.errors import ArgumentError
from kerasvae.metrics import nested_ridge
from kerasvae.metrics.prediction import PENALTIES

RNG = np.random.default_rng(0)
PERSON = np.repeat(np.arange(45), 2)[RNG.permutation(90)]
CODES = RNG.standard_normal((90, 12)) * np.geomspace(0.1, 10, 12) + 3
AGE = 50 + CODES[:, :3] @ [60, 30, 10] + 4 * RNG.standard_normal(90)


def by_hand(codes, target, groups, folds, seed):
    predicted, penalties = np.empty(len(target)), []
    for learn, left in GroupKFold(folds, shuffle=True, random_state=seed).split(codes, groups=groups):
        inner = list(GroupKFold(folds, shuffle=True, random_state=seed).split(codes[learn], groups=groups[learn]))
        search = GridSearchCV(
            make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": PENALTIES}, cv=inner,
            scoring="neg_mean_squared_error",
        )  # fmt: skip
        search.fit(codes[learn], target[learn])
        predicted[left] = search.predict(codes[left])
        penalties.append(search.best_params_["ridge__alpha"])
    return predicted, tuple(penalties)


@pytest.mark.parametrize("groups", [PERSON, None], ids=["two scans of each", "one scan of each"])
def test_as_a_pipeline_in_a_grid_search(groups):
    found = nested_ridge(CODES, AGE, folds=4, seed=2, groups=groups)
    predicted, penalties = by_hand(CODES, AGE, np.arange(90) if groups is None else groups, 4, 2)
    np.testing.assert_allclose(found.predicted, predicted, rtol=1e-8)
    assert found.penalties == pytest.approx(penalties)
    assert found.r == pytest.approx(np.corrcoef(predicted, AGE)[0, 1])
    assert found.mae == pytest.approx(mean_absolute_error(AGE, predicted))
    means = np.array([AGE[found.fold != k].mean() for k in found.fold])
    assert found.r2 == pytest.approx(1 - ((AGE - predicted) ** 2).sum() / ((AGE - means) ** 2).sum())
    assert found.r2_covariates == pytest.approx(0, abs=1e-12)
    assert found.r2 > 0.5


def test_covariates_are_not_penalised():
    """Ridge with a part of its columns free: those are made so large that their penalty is nothing."""
    covariates = np.random.default_rng(1).standard_normal((90, 2))
    target = AGE + covariates @ [10, -5]
    found = nested_ridge(CODES, target, folds=3, seed=1, groups=PERSON, covariates=covariates, penalties=[5.0])
    predicted, plain, mean = np.empty((3, 90))
    for learn, left in GroupKFold(3, shuffle=True, random_state=1).split(CODES, groups=PERSON):
        scaler = StandardScaler().fit(CODES[learn])
        both = [np.c_[1e6 * covariates[rows], scaler.transform(CODES[rows])] for rows in (learn, left)]
        predicted[left] = Ridge(5.0, solver="svd").fit(both[0], target[learn]).predict(both[1])
        plain[left] = LinearRegression().fit(covariates[learn], target[learn]).predict(covariates[left])
        mean[left] = target[learn].mean()
    np.testing.assert_allclose(found.predicted, predicted, rtol=1e-5)
    total = ((target - mean) ** 2).sum()
    assert found.r2_covariates == pytest.approx(1 - ((target - plain) ** 2).sum() / total)
    assert found.r2 > found.r2_covariates > 0.1


def test_a_person_is_in_one_part():
    fold = nested_ridge(CODES, AGE, groups=[f"sub-{p}" for p in PERSON]).fold
    assert all(len(set(fold[PERSON == p])) == 1 for p in range(45))
    assert set(fold) == set(range(5))


def test_random_targets_are_not_predicted():
    """Given the codes, predictions of a part do not depend on its targets: r has a mean of 0 or below."""
    rng = np.random.default_rng(3)
    found = [nested_ridge(rng.standard_normal((60, 30)), rng.standard_normal(60)) for _ in range(40)]
    r = np.array([each.r for each in found])
    assert r.mean() < 4 * r.std() / np.sqrt(40)
    assert np.mean([each.r2 for each in found]) < 0.02


def test_scans_of_one_person_would_leak_if_they_were_divided():
    rng = np.random.default_rng(4)
    person = np.repeat(np.arange(40), 3)
    codes = rng.standard_normal((40, 60))[person] + 0.1 * rng.standard_normal((120, 60))
    target = rng.standard_normal(40)[person]
    assert nested_ridge(codes, target, groups=person).r < 4 / np.sqrt(40)
    assert nested_ridge(codes, target).r > 0.8


def test_dimensions_without_variance_are_of_no_use():
    dead = np.c_[CODES, np.zeros(90), np.full(90, 2.0)]
    np.testing.assert_allclose(
        nested_ridge(dead, AGE, groups=PERSON).predicted, nested_ridge(CODES, AGE, groups=PERSON).predicted, rtol=1e-9
    )
    nothing = nested_ridge(np.zeros((90, 2)), AGE, groups=np.arange(90) // 2)
    assert nothing.r2 == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"codes": CODES[:80]}, "codes must be finite numbers with a row for each value of the target"),
        ({"target": np.where(np.arange(90) == 5, np.nan, AGE)}, "target must be finite numbers"),
        ({"target": np.ones(90)}, "target must be finite numbers"),
        ({"groups": PERSON[:5]}, "groups must name the person of each of 90 rows"),
        ({"folds": 1}, "folds must be 2 or more"),
        ({"groups": PERSON % 6}, "folds must be 2 or more, and leave twice as many people to learn from"),
        ({"covariates": np.full((90, 1), np.inf)}, "covariates must be finite numbers"),
        ({"penalties": [0.0]}, "penalties must be positive"),
    ],
)
def test_one_sentence_for_each_mistake(change, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        nested_ridge(**({"codes": CODES, "target": AGE} | change))
