"""What is said of ComBat: before is compared with after, and few people are said to be few."""

from __future__ import annotations

import numpy as np
import pytest

from kerasvae.analysis.sites.outcome import outcome_of, scored_of, who_is_scored
from kerasvae.analysis.sites.readings import SiteReading, read_site

FEW, MANY = {"A": 7, "B": 4, "C": 7}, {"A": 30, "B": 30}


@pytest.mark.parametrize(
    ("before", "after", "alone", "judged", "level", "words"),
    [
        ((0.90, 0.005), (0.52, 0.4), None, MANY, "good", "ComBat took site out"),
        ((0.90, 0.005), (0.52, 0.4), None, FEW, "note", "14 people are too few"),
        ((0.71, 0.135), (0.79, 0.055), None, FEW, "warning", "made it worse: balanced accuracy 0.71 before"),
        ((0.50, 0.5), (0.70, 0.005), 0.5, MANY, "warning", "ComBat made it worse"),
        ((0.50, 0.5), (0.70, 0.005), 0.7, MANY, "note", "no better than what is kept alone does"),
        ((0.90, 0.005), (0.70, 0.01), 0.5, MANY, "warning", "still tell site, less well"),
        ((0.90, 0.005), (0.91, 0.005), 0.5, MANY, "warning", "still tell site, as well as before"),
        ((0.62, 0.05), (0.60, 0.06), None, MANY, "note", "is not clear"),
        ((0.50, 0.5), (0.48, 0.6), None, MANY, "note", "neither before nor after"),
        ((0.50, 0.5), (0.60, 0.06), None, MANY, "warning", "made it worse"),
        (None, None, None, {"A": 4, "B": 9}, "note", "is not known"),
    ],
)
def test_what_is_said(before, after, alone, judged, level, words):
    readings = [each and SiteReading(each[0], 0.5, each[1]) for each in (before, after)]
    found = outcome_of("site", *readings, alone, judged)
    assert found.level == level
    assert words in found.text


def test_the_people_who_are_scored_are_those_that_are_read():
    judged = {"A": 7, "B": 4, "C": 7}
    site = np.repeat(list(judged), list(judged.values()))
    codes = np.random.default_rng(0).standard_normal((18, 3))
    kept = site != "B"
    assert read_site(codes, site, permutations=9) == read_site(codes[kept], site[kept], permutations=9)
    assert scored_of(judged) == {"A": 7, "C": 7}
    assert read_site(codes, site, permutations=9).chance == 1 / len(scored_of(judged))
    assert scored_of({"A": 7, "B": 4}) == {}
    assert "not scored" in who_is_scored("site", {"A": 7, "B": 4})
