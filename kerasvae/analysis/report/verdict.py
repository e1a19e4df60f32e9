"""What the figures of a run mean, in words: pure functions from metrics and history to sentences.

Ailments are those of `kerasvae.metrics.diagnosis`, which the guard of the training speaks of, too; a healthy run is
told so, and every other finding comes with what to do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kerasvae.analysis.words import count, number
from kerasvae.metrics.diagnosis import LEVEL_MARGIN, NEAR_ZERO, ONE_NAT, Diagnosis, Figures, at_chance, diagnose

__all__ = ["MONITOR", "Finding", "best_epoch", "headline", "verdict", "winner"]

Level = Literal["good", "note", "warning", "problem"]

MONITOR = "val_calibrated_elbo"
"""The column of the history that chooses the weights."""
MEAN_BRAIN = (
    "mean-brain trap",
    "worse than the mean brain",
    "no better than the mean brain",
    "faint reconstructions",
)
"""Diagnoses of what becomes of the differences between people."""
FEW_PEOPLE = 10
"""Fewer held-out people than this make every figure uncertain."""


@dataclass(frozen=True)
class Finding:
    """One thing that the figures say.

    Attributes:
        about: What was looked at: pca, mean_brain, identification, collapse, training, people or objective.
        level: ``good``, ``note`` (know it), ``warning`` (look into it) or ``problem`` (do not use the model as it is).
        text: What is the case.
        advice: What to do, or nothing.
    """

    about: str
    level: Level
    text: str
    advice: str = ""


def winner(metrics: Mapping[str, Any]) -> Literal["ours", "pca", "level", "unknown"]:
    """Who explains more variance between the held-out people.

    >>> winner({"explained_variance": 0.37, "explained_variance_pca": 0.44})
    'pca'
    """
    ours, peer = _number(metrics, "explained_variance"), _number(metrics, "explained_variance_pca")
    if not math.isfinite(ours - peer):
        return "unknown"
    if abs(ours - peer) < LEVEL_MARGIN:
        return "level"
    return "ours" if ours > peer else "pca"


def best_epoch(history: Sequence[Mapping[str, float]], first_candidate: int = 0) -> int | None:
    """Position in `history` of the first epoch with the highest calibrated validation ELBO; None without any.

    Args:
        history: One row an epoch; row 0 is the state before training.
        first_candidate: First epoch that may be chosen (after warm-up).
    """
    best: int | None = None
    for index, row in enumerate(history):
        value = _number(row, MONITOR)
        if math.isfinite(value) and _number(row, "epoch") >= first_candidate:
            best = index if best is None or value > _number(history[best], MONITOR) else best
    return best


def headline(findings: Sequence[Finding]) -> str:
    """One line on top of all: how serious it is.

    >>> headline([Finding("pca", "good", "…")])
    'No problem and no warning.'
    """
    serious = [finding for finding in findings if finding.level == "problem"]
    warnings = [finding for finding in findings if finding.level == "warning"]
    if serious:
        return f"{count(len(serious), 'problem')}: do not use this model as it is."
    if warnings:
        return f"No problem, but {count(len(warnings), 'warning')}."
    return "No problem and no warning."


def verdict(
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    *,
    first_candidate: int = 0,
    linear_start: bool = False,
) -> list[Finding]:
    """All findings: the comparison with PCA first, then the traps, the training and the people.

    Args:
        metrics: Content of metrics.json.
        history: Rows of history.csv; missing cells are NaN.
        first_candidate: First epoch whose weights could be kept.
        linear_start: Whether the model started as probabilistic PCA.
    """
    found: dict[str, Diagnosis] = {diagnosis.name: diagnosis for diagnosis in diagnose(Figures.of_run(metrics))}
    return [
        _against_pca(metrics, linear_start),
        _mean_brain(metrics, found),
        _identification(metrics),
        *_collapse(metrics, found),
        *_training(metrics, history, first_candidate, linear_start),
        *_people(metrics),
        *_objective(metrics, found),
    ]


def _against_pca(metrics: Mapping[str, Any], linear_start: bool) -> Finding:
    ours, peer = _number(metrics, "explained_variance"), _number(metrics, "explained_variance_pca")
    n, size = _held_out(metrics), metrics.get("latent_size", "?")
    both = f"{number(ours)} against {number(peer)} of the variance between {n} people, with {size} dimensions each"
    match winner(metrics):
        case "ours":
            return Finding("pca", "good", f"Ours won: the VAE explains more than PCA, {both}.")
        case "level":
            text = f"Level: the VAE explains as much as PCA, {both}; the difference is too small to name a winner."
            return Finding(
                "pca", "note", text, "PCA is simpler: keep the VAE for what PCA lacks, such as its likelihood."
            )
        case "pca":
            start = "" if linear_start else " set model.start to linear, which begins at probabilistic PCA;"
            return Finding(
                "pca",
                "warning",
                f"PCA won: it explains more than the VAE, {number(peer)} against {number(ours)} of the variance "
                f"between {n} people, with {size} dimensions each.",
                f"To summarise these images PCA is the better choice so far. To do better:{start} train on more "
                "people, or change the network's regularisation (dropout, latent_size, learning_rate).",
            )
        case _:
            return Finding(
                "pca",
                "note",
                "Ours and PCA cannot be compared: the explained variance is not defined on these people.",
                "Evaluate on at least two people whose images differ.",
            )


def _mean_brain(metrics: Mapping[str, Any], found: Mapping[str, Diagnosis]) -> Finding:
    for name in MEAN_BRAIN:
        if name in found:
            return Finding("mean_brain", found[name].level, found[name].text, found[name].advice)
    explained, ratio = _number(metrics, "explained_variance"), _number(metrics, "variance_ratio")
    if not math.isfinite(explained):
        text = "Whether the model fell into the mean-brain trap cannot be said: its figures are not defined."
        return Finding("mean_brain", "note", text, "Evaluate on at least two people whose images differ.")
    figures = f"explained variance {number(explained)}, variance ratio {number(ratio)}"
    return Finding("mean_brain", "good", f"Not in the mean-brain trap: reconstructions follow the person ({figures}).")


def _identification(metrics: Mapping[str, Any]) -> Finding:
    rate, chance = _number(metrics, "identification"), _number(metrics, "identification_chance")
    n = int(_number(metrics, f"n_{metrics.get('role', 'test')}", 0))
    said = f"{number(rate, 2)} of {_scans(metrics, n)}, chance {number(chance, 2)}"
    if n < 1 or not 0 < chance <= 1 or not math.isfinite(rate):
        return Finding("identification", "note", "Identification could not be computed.")
    at_random = at_chance(rate, n, chance)
    if at_random is None:
        text = f"{count(n, 'person', 'people')}: too few to tell identification from chance, even if perfect ({said})."
        return Finding("identification", "note", text, "Give more people to the test role.")
    if at_random:
        return Finding(
            "identification",
            "problem",
            f"Identification is at chance: a reconstruction does not tell whose it is ({said}).",
            "Do not interpret the latents of single people. Look at the mean-brain panel.",
        )
    peer = _number(metrics, "identification_pca")
    beside = f"; PCA {number(peer, 2)}" if math.isfinite(peer) else ""
    if peer - rate > NEAR_ZERO:
        text = f"People are identified above chance, but less often than by PCA ({said}{beside})."
        return Finding(
            "identification", "warning", text, "Details that PCA keeps are lost: more latents or lower beta."
        )
    return Finding("identification", "good", f"Reconstructions tell people apart ({said}{beside}).")


def _collapse(metrics: Mapping[str, Any], found: Mapping[str, Diagnosis]) -> list[Finding]:
    active, size = _number(metrics, "active_units"), _number(metrics, "latent_size")
    if _number(metrics, f"n_{metrics.get('role', 'test')}", 0) < 2 or not math.isfinite(active) or not size >= 1:
        return []
    if "posterior collapse" in found:
        diagnosis = found["posterior collapse"]
        return [Finding("collapse", diagnosis.level, diagnosis.text, diagnosis.advice)]
    return [Finding("collapse", "good", f"No posterior collapse: all {int(size)} dimensions are active.")]


def _training(
    metrics: Mapping[str, Any], history: Sequence[Mapping[str, float]], first_candidate: int, linear_start: bool
) -> list[Finding]:
    best = best_epoch(history, first_candidate)
    if best is None:
        return [Finding("training", "note", "There is no history of the validation ELBO to judge the training by.")]
    values = [(_number(row, "epoch"), _number(row, MONITOR)) for row in history]
    values = [pair for pair in values if math.isfinite(pair[1])]
    epoch, top = int(_number(history[best], "epoch")), _number(history[best], MONITOR)
    (first, start), (last, end) = values[0], values[-1]
    whose = "validation ELBO" if _number(metrics, "n_validation", 1) >= 1 else "ELBO of the training people"
    if last == 0:
        return [Finding("training", "note", "No epoch was trained: the model is its start.", "Raise training.epochs.")]
    fall = f"fell by {top - end:.1f} nats per subject from epoch {epoch} to {int(last)}"
    if first == 0 and top - start < ONE_NAT:
        kept = ", the probabilistic PCA it began with" if linear_start else ""
        text = f"Training gained nothing: the {whose} is best at epoch {epoch}, {top - start:.2f} nats above its start"
        if top - end >= ONE_NAT:
            text = f"Overfitting from the first epochs on: the {whose} gained {top - start:.2f} nats and {fall}"
            advice = "Lower learning_rate, raise dropout, or train on more people."
        else:
            advice = "Try more epochs or a higher learning_rate."
        return [Finding("training", "warning", f"{text}. In effect the model is its start{kept}.", advice)]
    if top - end >= ONE_NAT:
        advice = "The weights of the best epoch were kept, so no figure is harmed. More people or dropout may help."
        return [Finding("training", "note", f"Overfitting after epoch {epoch}: the {whose} {fall}.", advice)]
    if epoch == int(last):
        text = f"The {whose} was still rising when training ended: the last epoch, {epoch}, is the best."
        return [Finding("training", "note", text, "Train for more epochs.")]
    text = f"Training went well: the {whose} rose by {top - start:.1f} nats per subject until epoch {epoch}"
    return [Finding("training", "good", f"{text}, and those weights were kept.")]


def _people(metrics: Mapping[str, Any]) -> list[Finding]:
    findings = []
    role, n = metrics.get("role", "test"), _number(metrics, f"n_{metrics.get('role', 'test')}")
    if role != "test":
        text = f"There are no test people: the figures are of the {role} people, who also chose the weights."
        findings.append(Finding("people", "warning", text, "The figures are too good to quote. Give people to test."))
    if _number(metrics, "n_validation", 1) < 1:
        text = "There are no validation people: the weights were chosen by the people they were fitted to."
        findings.append(Finding("people", "warning", text, "Give people to the validation role."))
    if _number(metrics, "n_calibration", 1) < 1:
        instead = "validation" if _number(metrics, "n_validation", 1) >= 1 else "training"
        text = f"There are no calibration people: an optimal scale is then set on {instead} people."
        findings.append(Finding("people", "note", text, "Percentiles and deviation scores need a calibration role."))
    if n < FEW_PEOPLE:
        text = f"Only {count(int(n), 'person', 'people')} to judge by: every figure here is uncertain."
        findings.append(Finding("people", "warning", text, "Read the figures as a check that the work runs, no more."))
    return findings


def _objective(metrics: Mapping[str, Any], found: Mapping[str, Diagnosis]) -> list[Finding]:
    for name in ("over-regularised", "under-regularised"):
        if name in found:
            return [Finding("objective", found[name].level, found[name].text, found[name].advice)]
    beta = _number(metrics, "beta", 1.0)
    if beta == 1:
        return []
    text = f"Trained with beta = {beta:g}: the objective was not the ELBO. The ELBO reported has weight 1 all the same."
    return [Finding("objective", "note", text, "Compare likelihoods only between runs with beta = 1.")]


def _number(row: Mapping[str, Any], name: str, missing: float = math.nan) -> float:
    value = row.get(name)
    return missing if value is None else float(value)


def _scans(metrics: Mapping[str, Any], people: int) -> str:
    """Whom shares are of: scans, where people have several."""
    scans = int(_number(metrics, "n_scans", people))
    of = count(people, "person", "people")
    return of if scans == people else f"{scans} scans of {of}"


def _held_out(metrics: Mapping[str, Any]) -> str:
    role = metrics.get("role", "test")
    n = metrics.get(f"n_{role}")
    return f"{n} {role}" if n is not None else str(role)
