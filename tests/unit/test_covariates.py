"""Covariates: tables to numbers, numbers to what a model sees, and the sentence that meets what is not allowed."""

import json

import numpy as np
import pytest

from kerasvae.covariates import Covariate, Covariates
from kerasvae.errors import ArgumentError
from kerasvae.models.coding import Coding

AGES = [str(age) for age in np.linspace(21.5, 79, 25)]
SITES = ["Rome"] * 15 + ["Oslo"] * 5 + ["Lima"] * 5


def fitted(**options):
    return Covariates.fit({"age": AGES, "site": SITES}, units={"age": "years"}, **options)


def test_columns_of_numbers_are_continuous_and_others_categories():
    age, site = fitted()
    values = np.array(AGES, float)
    assert (age.kind, age.unit) == ("continuous", "years")
    assert (age.mean, age.stddev) == pytest.approx((values.mean(), values.std()), rel=1e-3)
    assert (site.kind, site.levels, site.shares) == ("categorical", ("Lima", "Oslo", "Rome"), (0.2, 0.2, 0.6))
    codes = Covariates.fit({"site": ["1"] * 5 + ["2"] * 7}, categorical=["site"])[0]
    assert (codes.kind, codes.levels) == ("categorical", ("1", "2"))


def test_limits_lie_beyond_everybody_and_may_be_wider_than_the_training_people():
    assert (fitted()[0].low, fitted()[0].high) == (10, 90)
    wider = fitted(limits={"age": ["20", "90"], "site": SITES})[0]
    assert (wider.low, wider.high) == (10, 100)
    assert wider.mean == fitted()[0].mean
    few = Covariates.fit({"age": [20, 25, 29]}, limits={"age": [97]})[0]
    assert few.low < 20
    assert few.high > 97


def test_a_data_frame_is_read_by_its_columns():
    import pandas

    frame = pandas.DataFrame({"site": SITES, "age": pandas.array([30, None] + [40] * 22 + [70], dtype="Int64")})
    covariates = Covariates.fit(frame[["age", "site"]], missing="mean")
    assert [entry.kind for entry in covariates] == ["continuous", "categorical"]
    found = covariates.matrix(frame)  # another order of columns
    assert found[0].tolist() == [30, 2]
    assert np.isnan(found[1, 0])


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
            (values - covariates[0].mean) / covariates[0].stddev,
            (np.array(SITES) == "Oslo") - 0.2,
            (np.array(SITES) == "Rome") - 0.6,
        ],
        axis=1,
    )
    coded = Coding(covariates)(matrix).numpy()
    np.testing.assert_allclose(coded, expected, atol=1e-6)
    np.testing.assert_allclose(coded.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(coded[:, 0].std(), 1, rtol=1e-3)
    assert covariates.width == 3


def test_what_is_missing_counts_as_the_mean_where_that_is_the_rule():
    covariates = Covariates.fit({"age": [*AGES, "n/a"], "site": [*SITES, ""]}, missing="mean")
    assert covariates[0].mean == pytest.approx(np.mean(np.array(AGES, float)), rel=1e-3)
    coded = Coding(covariates)(covariates.matrix({"age": ["", 30], "site": ["Oslo", None]})).numpy()
    assert coded[0, 0] == 0
    assert coded[0, 1] == pytest.approx(0.8)
    np.testing.assert_array_equal(coded[1, 1:], 0)


def test_the_average_person():
    np.testing.assert_allclose(fitted().typical(), [[np.mean(np.array(AGES, float)), 2]], rtol=1e-3)


def test_what_a_graph_is_given_wrongly_becomes_nan():
    """TF Serving and `predict` do not pass through tables: a level that does not exist must not look like one."""
    coding = Coding(fitted())
    coded = coding(np.array([[30, 7], [30, 0.5], [30, -1], [np.nan, 1], [30, np.nan], [30, 1]], "f4")).numpy()
    assert np.isnan(coded[:3, 1:]).all()
    assert np.isnan(coded[3, 0])
    assert np.isnan(coded[4, 1:]).all()
    assert np.isfinite(coded[5]).all()


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
        ({"age": ["old"], "site": ["Rome"]}, "a number between 10 and 90 years, but received 'old'"),
        ({"age": [130], "site": ["Rome"]}, "between 10 and 90 years, but received 130"),
        ({"age": ["inf"], "site": ["Rome"]}, "received inf"),
        ({"age": [30], "site": ["rome"]}, "one of Lima, Oslo, Rome.*Did you mean 'Rome'"),
        ({"age": [30, 31], "site": ["Rome"]}, "as many cells in every column"),
        (np.zeros((2, 3)), r"shape \(n, 2\): age, site"),
        (np.array([[30.0, 3.0]]), "whole number from 0 to 2, the place among Lima, Oslo, Rome"),
        (np.array([[30.0, 0.5]]), "whole number"),
        ({"age": [30, 31, 130], "site": ["Rome"] * 3}, "received 130 in row 2"),
        (np.array([["a", "b"]]), "be a table or numbers"),
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
        ({"age": ["30", "30.0"]}, "vary between"),
        ({"age": ["30", "4O", "50", "60"]}, "'4O' among numbers"),
        ({"age": ["30", "inf", "50", "60"]}, "'inf' among numbers"),
        ({"site": ["Rome"] * 6 + ["Lima"]}, "5 or more training scans of every level, but received 1 of 'Lima'"),
    ],
)
def test_columns_that_cannot_be_used(columns, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        Covariates.fit(columns)


def test_a_level_that_only_others_have_is_met_before_training():
    with pytest.raises(ArgumentError, match=r"received 0 of 'Lima'.*split\.stratify"):
        Covariates.fit({"site": ["Rome", "Oslo"] * 6}, limits={"site": ["Lima"]})


def test_a_misspelt_category_is_refused():
    with pytest.raises(ArgumentError, match="name covariates: age, site, but received stie"):
        fitted(categorical=["stie"])


def test_a_covariate_that_is_not_whole_is_refused():
    with pytest.raises(ValueError, match="two or more"):
        Covariate(name="sex", kind="categorical", levels=("F",), shares=(1.0,))
    with pytest.raises(ValueError, match="positive"):
        Covariate(name="age", kind="continuous", stddev=0)
    with pytest.raises(ArgumentError, match="different names"):
        Covariates([fitted()[0], fitted()[0]])
