"""Centile charts against known quantiles."""

import numpy as np
import pytest
from scipy.stats import norm

from kerasvae.analysis.deviation.centiles import CENTILES, Chart, centile_figure, fit_chart
from kerasvae.errors import ArgumentError


def people(n, seed=0):
    """Volumes that shrink with age, the more spread the older."""
    rng = np.random.default_rng(seed)
    age = rng.uniform(20, 80, n)
    return age, 1000 - 4 * age + (0.5 + age / 40) * 20 * rng.standard_normal(n)


def test_curves_are_the_quantiles():
    age, volume = people(4000)
    chart = fit_chart(volume, age)
    inner = slice(6, -6)
    truth = 1000 - 4 * chart.at[:, None] + (0.5 + chart.at[:, None] / 40) * 20 * norm.ppf(np.array(CENTILES) / 100)
    np.testing.assert_allclose(chart.curves[inner], truth[inner], atol=6)
    assert (np.diff(chart.curves, axis=1) >= 0).all()
    assert chart.people == 4000


def test_shares_of_new_people():
    chart = fit_chart(*people(1500)[::-1])
    age, volume = people(3000, seed=1)
    found = np.array([chart.centile(v, a) for v, a in zip(volume, age, strict=True)])
    found = found[np.isfinite(found)]
    assert len(found) > 2900
    for centile in CENTILES:
        assert (found < centile).mean() == pytest.approx(centile / 100, abs=0.03)


def test_where_a_person_lies():
    chart = Chart(np.array([20.0, 80.0]), np.array([[1.0, 2, 3, 4, 5], [3.0, 4, 5, 6, 7]]), 99)
    assert chart.centile(4.0, 50.0) == pytest.approx(50)
    assert chart.centile(4.5, 50.0) == pytest.approx(62.5)
    assert chart.centile(-9.0, 50.0) == 0
    assert chart.centile(99.0, 50.0) == 100
    assert np.isnan(chart.centile(4.0, 81.0))


def test_a_figure_shows_every_chart():
    age, volume = people(60)
    charts = {name: fit_chart(volume, age) for name in ("left", "right", "both", "neither")}
    figure = centile_figure(charts, dict.fromkeys(charts, (age[:3], volume[:3])), "age", "mm³")
    assert [axes.get_title() for axes in figure.axes if axes.axison] == list(charts)


@pytest.mark.parametrize(
    ("values", "covariate", "said"),
    [
        (np.arange(19.0), np.arange(19.0), "20 people"),
        (np.full(30, np.nan), np.arange(30.0), "finite"),
        (np.arange(30.0), np.ones(30), "1 everywhere"),
    ],
)
def test_bad_input_is_refused(values, covariate, said):
    with pytest.raises(ArgumentError, match=said):
        fit_chart(values, covariate)
