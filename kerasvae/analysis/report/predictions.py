"""What codes say about people, for a page: predictions.json as a table, beside PCA and beside covariates alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kerasvae.analysis.report.files import View, read_object
from kerasvae.analysis.report.verdict import Finding
from kerasvae.analysis.words import DASH, count, number

__all__ = ["predictions_view"]

SOURCES = {
    "latents": "Ours",
    "pca": "PCA",
    "covariates": "Covariates alone",
    "covariates_latents": "Covariates and ours",
}
MEASURES = {
    "r": "correlation of predicted and observed",
    "r2": "share of the variance that is predicted",
    "mae": "mean absolute error, in the variable’s unit",
    "auc": "area under the ROC curve, chance 0.5",
    "balanced_accuracy": "mean over levels of the share that is told",
}
RISING = ("r", "auc", "balanced_accuracy")
"""Of these higher is better; the first that there is tells who wins."""
FEW = 30
"""People below whom an interval says little."""


def predictions_view(path: Path) -> View:
    """Of a run folder.

    Raises:
        ValueError: If there are no figures; or what `kerasvae.analysis.report.files.told_if_damaged` turns into a
            `RunError`.
    """
    content = read_object(path / "predictions.json")
    predicted = content["Figures"]
    if not isinstance(predicted, dict) or not predicted:
        raise ValueError("no figures")
    settings = content.get("Settings", {})
    sources = [source for source in SOURCES if any(source in each["by"] for each in predicted.values())]
    beside_pca = "pca" in sources
    told = {
        "columns": [SOURCES[source] for source in sources] + (["Ours less PCA"] if beside_pca else []),
        "rows": [row for name, each in predicted.items() for row in _rows(name, each, sources)],
        "beside_pca": beside_pca,
        "chances": [line for name, each in predicted.items() for line in _chances(name, each)],
        "covariates": [str(name) for name in settings.get("covariates", [])],
        "runs": len(settings.get("runs", [])) or 1,
    }
    findings = _few({name: int(each["people"]) for name, each in predicted.items()})
    return View(told, findings + [finding for name, each in predicted.items() for finding in _findings(name, each)])


def _rows(name: str, found: Mapping[str, Any], sources: list[str]) -> list[dict[str, Any]]:
    """A row for each measure of a variable."""
    rows = []
    for measure, meaning in MEASURES.items():
        cells = [found["by"].get(source, {}).get(measure) for source in sources]
        if not any(cells):
            continue
        if "pca" in sources:
            cells.append(found.get("differences", {}).get("latents - pca", {}).get(measure))
        told = {"measure": measure.replace("_", " "), "meaning": meaning, "cells": [_parts(cell) for cell in cells]}
        rows.append(told | {"variable": name, "people": int(found["people"])})
    return rows


def _chances(name: str, found: Mapping[str, Any]) -> list[str]:
    lines = []
    for test, chance in found.get("permutation", {}).items():
        what = "latents" if test == "latents" else "latents beyond covariates"
        lines.append(
            f"{name}, {what}: {str(chance['statistic']).replace('_', ' ')} {number(chance['value'], 2)}, by chance "
            f"{number(chance['mean'], 2)}, p {number(chance['p'], 4)} by permutation"
        )
    return lines


def _few(people: Mapping[str, int]) -> list[Finding]:
    few = [f"{name} of {count(n, 'person', 'people')}" for name, n in people.items() if n < FEW]
    if not few:
        return []
    advice = "Predict over the folds of kerasvae cross-validate, in which everyone is a test person once."
    text = f"Few people were predicted: {', '.join(few)}. The figures are uncertain."
    return [Finding("predictions", "warning", text, advice)]


def _findings(name: str, found: Mapping[str, Any]) -> list[Finding]:
    findings = []
    for measure in RISING:
        less = found.get("differences", {}).get("latents - pca", {}).get(measure)
        if less and less.get("high") is not None and float(less["high"]) < 0:
            text = f"PCA tells {name} better than the latents do: {measure.replace('_', ' ')} of ours less PCA’s "
            text += f"{_told(less)}."
            findings.append(Finding("predictions", "warning", text, "To predict it, use PCA, or train another model."))
            break
    chance = found.get("permutation", {}).get("latents")
    if chance and chance.get("p") is not None and float(chance["p"]) > 0.05:
        text = f"The latents do not tell {name} better than chance does (p {number(chance['p'], 3)})."
        findings.append(Finding("predictions", "note", text))
    return findings


def _told(figure: Mapping[str, Any] | None) -> str:
    return " ".join(_parts(figure)).rstrip()


def _parts(figure: Mapping[str, Any] | None) -> tuple[str, str]:
    """A figure and its interval."""
    if not figure or figure.get("value") is None:
        return DASH, ""
    value, low, high = (math.nan if figure.get(k) is None else float(figure[k]) for k in ("value", "low", "high"))
    return number(value, 2), f"({number(low, 2)} to {number(high, 2)})" if math.isfinite(low) else ""
