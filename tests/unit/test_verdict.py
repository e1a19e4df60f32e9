"""Each diagnosis is provoked by figures that show it and nothing else; a healthy run is not accused of anything."""

import math

import pytest

from kerasvae.analysis.report.verdict import best_epoch, headline, verdict, winner

HEALTHY = {
    "role": "test", "explained_variance": 0.45, "explained_variance_pca": 0.40, "identification": 1.0,
    "identification_pca": 1.0, "identification_chance": 1 / 40, "variance_ratio": 0.6, "variance_ratio_pca": 0.5,
    "active_units": 8, "mutual_information": 3.0, "kl_nats": 40.0, "kl_per_dimension": [5.0] * 8, "beta": 1.0,
    "n_train": 120, "n_validation": 20, "n_calibration": 20, "n_test": 40, "latent_size": 8,
}  # fmt: skip


def history(*values, monitor="val_calibrated_elbo"):
    return [{"epoch": float(epoch), monitor: value} for epoch, value in enumerate(values)]


RISING = history(-900.0, -700.0, -650.0, -650.4)


def of(about, metrics=HEALTHY, curve=RISING, **options):
    findings = [finding for finding in verdict(metrics, curve, **options) if finding.about == about]
    assert findings, about
    return findings[0]


def changed(**values):
    return {**HEALTHY, **values}


def test_healthy_run_is_told_so():
    findings = verdict(HEALTHY, RISING)
    assert {finding.level for finding in findings} == {"good"}
    assert {"pca", "mean_brain", "identification", "collapse", "training"} == {finding.about for finding in findings}
    assert headline(findings) == "No problem and no warning."


def test_healthy_run_is_judged_by_its_comparison_first():
    first = verdict(HEALTHY, RISING)[0]
    assert first.text.startswith("Ours won")
    assert "0.450 against 0.400" in first.text
    assert "40 test" in first.text


@pytest.mark.parametrize(
    ("ours", "peer", "expected", "words"),
    [(0.45, 0.40, "ours", "Ours won"), (0.37, 0.44, "pca", "PCA won"), (0.401, 0.4, "level", "Level"),
     (math.nan, 0.4, "unknown", "cannot be compared"), (None, 0.4, "unknown", "cannot be compared")],
)  # fmt: skip
def test_who_won(ours, peer, expected, words):
    metrics = changed(explained_variance=ours, explained_variance_pca=peer)
    assert winner(metrics) == expected
    assert words in of("pca", metrics).text
    assert (of("pca", metrics).level == "good") == (expected == "ours")


def test_advice_where_pca_won_depends_on_the_start():
    metrics = changed(explained_variance=0.3)
    assert "model.start" in of("pca", metrics).advice
    assert "model.start" not in of("pca", metrics, linear_start=True).advice


def test_mean_brain_trap():
    trapped = changed(explained_variance=-0.01, variance_ratio=0.001, identification=1 / 40, active_units=0)
    finding = of("mean_brain", trapped)
    assert finding.level == "problem"
    assert "Mean-brain trap" in finding.text
    assert "−0.01" in finding.text
    assert "PCA does better" in finding.advice
    assert headline(verdict(trapped, RISING)) == "3 problems: do not use this model as it is."


def test_mean_brain_trap_in_which_pca_sits_too_points_at_the_images():
    trapped = changed(explained_variance=0.01, variance_ratio=0.001, explained_variance_pca=0.01)
    assert "look at the images first" in of("mean_brain", trapped).advice


def test_wrong_variation_is_not_called_the_trap():
    finding = of("mean_brain", changed(explained_variance=-0.4, variance_ratio=0.9))
    assert finding.level == "problem"
    assert "no better than the mean brain" in finding.text
    assert "trap" not in finding.text


def test_one_image_far_from_the_mean_brain_is_not_called_the_trap():
    finding = of("mean_brain", changed(explained_variance=-5.6, variance_ratio=0.004))
    assert finding.level == "problem"
    assert "worse than the mean brain" in finding.text
    assert "trap" not in finding.text


def test_small_variation_alone_is_a_warning():
    assert of("mean_brain", changed(variance_ratio=0.02)).level == "warning"


@pytest.mark.parametrize(
    ("rate", "level"), [(1 / 40, "problem"), (2 / 40, "problem"), (0.5, "warning"), (0.98, "good")]
)
def test_identification_against_chance_and_pca(rate, level):
    assert of("identification", changed(identification=rate)).level == level


def test_shares_are_of_scans_where_people_have_several():
    assert "1.00 of 40 people, chance" in of("identification", changed(n_scans=40)).text
    several = changed(n_scans=60, identification=0.75)
    assert "0.75 of 60 scans of 40 people, chance" in of("identification", several).text


def test_identification_that_nobody_could_pass_is_not_held_against_the_model():
    pair = changed(n_test=2, identification_chance=0.5, identification=1.0)
    assert of("identification", pair).level == "note"
    assert "too few" in of("identification", pair).text
    assert of("people", pair).level == "warning"


@pytest.mark.parametrize(
    ("active", "level", "words"),
    [(0, "problem", "all 8 dimensions are inactive"), (2, "warning", "6 of 8 dimensions"),
     (6, "note", "2 of 8 dimensions"), (8, "good", "No posterior collapse")],
)  # fmt: skip
def test_collapse(active, level, words):
    finding = of("collapse", changed(active_units=active, explained_variance=0.3))
    assert finding.level == level
    assert words in finding.text


def test_few_dimensions_that_do_better_than_pca_are_no_warning():
    assert of("collapse", changed(active_units=2)).level == "note"


def test_collapse_is_not_diagnosed_from_one_person():
    one = changed(n_test=1, active_units=0, identification_chance=1.0)
    assert "collapse" not in {finding.about for finding in verdict(one, RISING)}


def test_overfitting():
    finding = of("training", curve=history(-900.0, -700.0, -710.0, -760.0))
    assert "Overfitting after epoch 1" in finding.text
    assert "60.0 nats per subject from epoch 1 to 3" in finding.text


def test_overfitting_from_the_start():
    finding = of("training", curve=history(-700.0, -710.0, -760.0), linear_start=True)
    assert finding.level == "warning"
    assert "Overfitting" in finding.text
    assert "epoch 0" in finding.text
    assert "probabilistic PCA" in finding.text


def test_nothing_gained_is_not_called_overfitting():
    finding = of("training", curve=history(-700.0, -699.9, -700.1))
    assert finding.level == "warning"
    assert "gained nothing" in finding.text
    assert "Overfitting" not in finding.text


def test_still_rising():
    finding = of("training", curve=history(-900.0, -700.0, -650.0))
    assert finding.level == "note"
    assert "more epochs" in finding.advice


def test_no_history():
    assert of("training", curve=[]).level == "note"
    assert of("training", curve=history(-1.0, monitor="loss")).level == "note"


def test_best_epoch_is_the_first_of_the_highest_after_warm_up():
    curve = history(-1.0, -5.0, -3.0, -3.0, math.nan)
    assert best_epoch(curve) == 0
    assert best_epoch(curve, first_candidate=1) == 2
    assert best_epoch([]) is None


def test_missing_roles_are_spoken_of():
    texts = [f.text for f in verdict(changed(n_calibration=0, n_validation=0), RISING)]
    assert any("no calibration people" in text for text in texts)
    assert any("no validation people" in text for text in texts)
    assert any("training people rose" in text for text in texts)
    substitute = of("people", changed(role="validation", n_test=0))
    assert substitute.level == "warning"
    assert "no test people" in substitute.text


def test_other_objective_is_spoken_of():
    assert "beta = 4" in of("objective", changed(beta=4.0)).text


def test_undefined_figures_are_not_called_good():
    undefined = dict.fromkeys(("explained_variance", "variance_ratio", "identification"), math.nan)
    for about in ("pca", "mean_brain", "identification"):
        assert of(about, changed(**undefined)).level == "note"


def test_every_warning_says_what_to_do():
    runs = [
        changed(explained_variance=-0.01, variance_ratio=0.0, identification=0.0, active_units=0, n_calibration=0),
        changed(explained_variance=-0.4, n_validation=0, n_test=3, role="test", active_units=2, beta=0.5),
        changed(variance_ratio=0.02, identification=0.5, role="validation"),
    ]
    for metrics in runs:
        for curve in (RISING, history(-1.0, -9.0), history(-1.0, -1.0)):
            serious = [f for f in verdict(metrics, curve) if f.level in ("warning", "problem")]
            assert serious
            assert all(finding.advice for finding in serious)
