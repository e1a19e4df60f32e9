"""Names of the steps of a traversal, and which of them are extrapolated."""

from __future__ import annotations

import numpy as np
import pytest

from kerasvae.analysis.design import term_of
from kerasvae.analysis.maps.slopes import contrasts_of
from kerasvae.analysis.maps.steps import steps_of_contrast, steps_of_dimension

POSITIONS = (-3.0, -1.0, 0.0, 1.0, 3.0)
AGES = [20.0, 40.0, 60.0, 60.0, 70.0]  # mean 50, standard deviation 20


def test_a_number():
    term = term_of("age", [str(age) for age in AGES])
    steps = steps_of_contrast(contrasts_of(term, [])[0], POSITIONS)
    assert steps.values == pytest.approx([-10, 30, 50, 70, 110])
    assert steps.extrapolated == [True, False, False, False, True]
    assert steps.titles == ["−3 SD*\n(age −60)", "−1 SD\n(age −20)", "mean", "+1 SD\n(age +20)", "+3 SD*\n(age +60)"]
    assert steps.caption.endswith("* extrapolated: beyond the cohort’s age of 20 to 70.")
    about = steps.as_sidecar()
    assert about["CohortRange"] == [20, 70]
    assert "20 to 70" in about["Warning"]
    assert "Warning" not in steps_of_contrast(contrasts_of(term, [])[0], [-1, 0, 1]).as_sidecar()


def test_a_level():
    term = term_of("group", list("aabbb"))
    steps = steps_of_contrast(contrasts_of(term, [])[0], POSITIONS)
    assert steps.values == pytest.approx([-0.9, 0.1, 0.6, 1.1, 2.1])
    assert steps.extrapolated == [True, False, False, True, True]
    assert steps.titles[1:3] == ["−0.5\n(b against a)", "mean"]


def test_a_dimension():
    codes = np.c_[np.zeros(5), AGES]
    steps = steps_of_dimension(1, codes, POSITIONS)
    assert steps.values == pytest.approx([-10, 30, 50, 70, 110])
    assert steps.titles == ["−3 SD*", "−1 SD", "mean", "+1 SD", "+3 SD*"]
    assert "dimension 1 = 50" in steps.caption
