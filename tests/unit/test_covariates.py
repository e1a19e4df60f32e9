"""Covariates: tables to numbers, numbers to what a model sees, and the sentence that meets what is not allowed."""

import json

import numpy as np
import pytest

from kerasvae.covariates import Covariate, Covariates
from kerasvae.errors import ArgumentError
from kerasvae.models.coding import Coding

AGES = ["21.5", "40", "58", "79", "33"]
SITES = ["Rome", "Oslo", "Rome", "Lima", "Rome"]


def fitted(**options):
    return Covariates.fit({"age": AGES, "site": SITES}, units={"age": "years"}, **options)


def test_columns_of_numbers_are_continuous_and_others_categories():
    age, site = fitted()
    values = np.array(AGES, float)
    assert (age.kind, age.unit, age.mean, age.stddev) == ("continuous", "years", values.mean(), values.std())
    assert (site.kind, site.levels, site.shares) == ("categorical", ("Lima", "Oslo", "Rome"), (0.2, 0.2, 0.6))
    codes = Covariates.fit({"site": ["1", "2", "2"]}, categorical=["site"])[0]
    assert (codes.kind, codes.levels) == ("categorical", ("1", "2"))


def test_limits_are_rounded_outwards_and_may_be_wider_than_the_training_people():
    assert (fitted()[0].low, fitted()[0].high) == (20, 80)
    wider = fitted(limits={"age": ["19", "91"], "site": SITES})[0]
    assert (wider.low, wider.high) == (10, 100)
    assert wider.mean == fitted()[0].mean


def test_a_table_becomes_numbers_in_their_units():
    found = fitted().matrix({"site": ["Oslo", "Rome"], "age": [30, "64.5"], "sex": ["F", "M"]})
    np.testing.assert_array_equal(found, np.array([[30, 1], [64.5, 2]], "f4"))
    np.testing.assert_array_equal(fitted().matrix(found), found)
    np.testing.assert_array_equal(fitted().matrix({"age": 30, "site": "Lima"}), [[30, 0]])


def test_coding_is_standardised_and_centred():
    covariates = fitted()
    matrix = covariates.matrix({"age": AGES, "site": SITES})
    values = np.array(AGES, float)
    expected = np.stack(
        [
            (values - values.mean()) / values.std(),
            (np.array(SITES) == "Oslo") - 0.2,
            (np.array(SITES) == "Rome") - 0.6,
        ],
        axis=1,
    )
    coded = Coding(covariates)(matrix).numpy()
    np.testing.assert_allclose(coded, expected, atol=1e-6)
    np.testing.assert_allclose(coded.mean(0), 0, atol=1e-6)
    assert covariates.width == 3


def test_what_is_missing_counts_as_the_mean_where_that_is_the_rule():
    covariates = Covariates.fit({"age": [*AGES, "n/a"], "site": [*SITES, ""]}, missing="mean")
    assert covariates[0].mean == np.mean(np.array(AGES, float))
    coded = Coding(covariates)(covariates.matrix({"age": ["", 30], "site": ["Oslo", None]})).numpy()
    assert coded[0, 0] == 0
    assert coded[0, 1] == pytest.approx(0.8)
    np.testing.assert_array_equal(coded[1, 1:], 0)


def test_the_average_person():
    np.testing.assert_allclose(fitted().typical(), [[np.mean(np.array(AGES, float)), 2]], rtol=1e-6)


def test_configuration_survives_json():
    covariates = fitted(missing="mean")
    again = Covariates.from_config(json.loads(json.dumps(covariates.to_config())))
    assert again == covariates
    assert hash(again) == hash(covariates)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"age": [30]}, "columns age, site, but received no site"),
        ({"age": ["n/a"], "site": ["Rome"]}, "'age' must be known"),
        ({"age": ["old"], "site": ["Rome"]}, "a number between 20 and 80 years, but received 'old'"),
        ({"age": [130], "site": ["Rome"]}, "between 20 and 80 years, but received 130"),
        ({"age": ["inf"], "site": ["Rome"]}, "received inf"),
        ({"age": [30], "site": ["rome"]}, "one of Lima, Oslo, Rome.*Did you mean 'Rome'"),
        ({"age": [30, 31], "site": ["Rome"]}, "as many cells in every column"),
        (np.zeros((2, 3)), r"shape \(n, 2\): age, site"),
        (np.array([[30.0, 3.0]]), "whole number from 0 to 2, the place among Lima, Oslo, Rome"),
        (np.array([[30.0, 0.5]]), "whole number"),
    ],
)
def test_what_is_not_allowed_is_refused(values, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        fitted().matrix(values)


def test_the_number_of_rows_is_checked():
    with pytest.raises(ArgumentError, match=r"shape \(3, 2\)"):
        fitted().matrix({"age": [30], "site": ["Rome"]}, rows=3)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"age": ["30", "30"]}, "vary between the training scans, but received only '30'"),
        ({"age": ["", "n/a"]}, "known for every scan, but received 2 missing of 2"),
        ({"age": ["30", "n/a", "40"]}, "1 missing of 3"),
        ({}, "one or more"),
    ],
)
def test_columns_that_cannot_be_used(columns, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        Covariates.fit(columns)


def test_a_covariate_that_is_not_whole_is_refused():
    with pytest.raises(ValueError, match="two or more"):
        Covariate(name="sex", kind="categorical", levels=("F",), shares=(1.0,))
    with pytest.raises(ValueError, match="positive"):
        Covariate(name="age", kind="continuous", stddev=0)
    with pytest.raises(ArgumentError, match="different names"):
        Covariates([fitted()[0], fitted()[0]])
