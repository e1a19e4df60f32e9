"""Each ailment from figures that show it and nothing else, on both sides of every threshold."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from kerasvae.metrics.diagnosis import Figures, at_chance, diagnose

HEALTHY = Figures(
    people=20, latent_size=8, explained_variance=0.40, identification=1.0, variance_ratio=0.5, active_units=8.0,
    explained_variance_pca=0.42, effective_beta=1.0, aggregate_mean=(0.0,) * 8, aggregate_variance=(1.1,) * 8,
)  # fmt: skip
TRAPPED = {"explained_variance": 0.0, "identification": 1 / 20, "variance_ratio": 0.001}


def names(history=(), **changes):
    return [(each.name, each.level) for each in diagnose(dataclasses.replace(HEALTHY, **changes), history)]


def test_healthy_figures_are_left_alone():
    assert names() == []
    assert diagnose(Figures(people=0, latent_size=0)) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (TRAPPED, "mean-brain trap"),
        ({**TRAPPED, "explained_variance": 0.049, "variance_ratio": 0.049}, "mean-brain trap"),
        ({**TRAPPED, "explained_variance": -0.049}, "mean-brain trap"),
        ({**TRAPPED, "explained_variance": -0.051}, "worse than the mean brain"),
        ({**TRAPPED, "identification": 0.5}, "no better than the mean brain"),
        ({**TRAPPED, "variance_ratio": 0.06}, "no better than the mean brain"),
        ({**TRAPPED, "explained_variance": 0.06}, "faint reconstructions"),
        ({**TRAPPED, "people": 2, "identification": 1.0}, "mean-brain trap"),  # two could be told apart by luck
    ],
)
def test_mean_brain(changes, expected):
    assert [name for name, _ in names(**changes)] == [expected]


def test_a_dead_encoder_is_in_the_trap_before_the_mean_brain_is_reached():
    found = names(**{**TRAPPED, "explained_variance": -3.0, "active_units": 0.0})
    assert found == [("mean-brain trap", "problem"), ("posterior collapse", "problem")]


def test_words_have_the_numbers():
    (trap,) = diagnose(dataclasses.replace(HEALTHY, **TRAPPED))
    assert "variance ratio 0.001, identification 0.05 among 20 people" in trap.text
    assert trap.advice.startswith("PCA does better")


@pytest.mark.parametrize(("n", "hits"), [(14, 2), (14, 3), (14, 4), (40, 3), (40, 4), (3, 3), (2, 2), (1, 1)])
def test_chance_is_the_exact_binomial(n, hits):
    exact = stats.binomtest(hits, n, 1 / n, alternative="greater").pvalue
    perfect = stats.binomtest(n, n, 1 / n, alternative="greater").pvalue
    assert at_chance(hits / n, n) == (None if perfect >= 0.05 else exact >= 0.05)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"active_units": 0.0}, [("posterior collapse", "problem")]),
        ({"active_units": 3.0}, [("posterior collapse", "warning")]),
        ({"active_units": 4.0}, [("posterior collapse", "note")]),
        ({"active_units": 3.0, "spared": 5}, [("posterior collapse", "note")]),
        ({"active_units": 1.0, "spared": 5}, [("posterior collapse", "warning")]),
        ({"active_units": 3.0, "explained_variance": 0.416}, [("posterior collapse", "note")]),
        ({"active_units": 3.0, "explained_variance": 0.414}, [("posterior collapse", "warning")]),
        ({"active_units": 0.0, "people": 1, "identification": float("nan")}, []),
    ],
)
def test_collapse(changes, expected):
    assert names(**changes) == expected


def test_collapse_says_how_many():
    text = diagnose(dataclasses.replace(HEALTHY, active_units=1.0, spared=5))[0].text
    assert "7 of 8 dimensions are inactive, 5 of which the start left out" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"effective_beta": 2.1}, [("over-regularised", "warning")]),
        ({"effective_beta": 1.9}, []),
        ({"effective_beta": 9.0, "explained_variance": 0.42}, []),
        ({"effective_beta": 0.4}, []),
    ],
)
def test_over_regularised(changes, expected):
    assert names(**changes) == expected


@pytest.mark.parametrize("beta", [0.0, 0.49, float("nan"), 0.51])
@pytest.mark.parametrize(("spread", "shift"), [(0.34, 0.0), (0.36, 0.0), (1.85, 0.0), (1.97, 0.0), (1.0, 1.1)])
def test_under_regularised(beta, spread, shift):
    # KL(N(m, s²) ‖ N(0, 1)) by quadrature
    z = np.linspace(-15, 15, 60001)
    q = stats.norm(shift, spread)
    nats = np.trapezoid(q.pdf(z) * (q.logpdf(z) - stats.norm.logpdf(z)), z)
    found = names(effective_beta=beta, aggregate_mean=(shift,) * 8, aggregate_variance=(spread**2,) * 8)
    assert found == ([("under-regularised", "warning")] if nats > 0.5 and not beta > 0.5 else [])


def test_a_beta_that_fits_pcas_residual_is_not_too_light():
    far = {"effective_beta": 0.1, "aggregate_variance": (0.01,) * 8}
    assert names(**far, effective_beta_pca=0.49) == [("under-regularised", "warning")]
    assert names(**far, effective_beta_pca=0.51) == []


def rows(*values):
    """Epochs of (validation ELBO, training ELBO, explained variance)."""
    return [
        dataclasses.replace(HEALTHY, epoch=i, elbo=v, train_elbo=t, explained_variance=e)
        for i, (v, t, e) in enumerate(values)
    ]


FALLS = [(-900.0, float("nan"), 0.3), (-700.0, -650.0, 0.41), (-702.0, -640.0, 0.40), (-705.0, -630.0, 0.395)]


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ((-720.0, -600.0, 0.38), [("overfitted", "warning")]),
        ((-720.0, -600.0, 0.40), [("overfitted", "note")]),
        ((-720.0, -650.5, 0.38), []),  # the training people gain nothing either
        ((-700.5, -600.0, 0.38), []),  # less than a nat
        ((-690.0, -600.0, 0.45), []),
    ],
)
def test_overfitted(last, expected):
    *history, now = rows(*FALLS, last)
    assert [(each.name, each.level) for each in diagnose(now, history)] == expected


def test_two_epochs_of_falling_are_not_enough():
    *history, now = rows(*FALLS[:3], (-720.0, -600.0, 0.3))
    assert diagnose(now, history[:2]) == []
