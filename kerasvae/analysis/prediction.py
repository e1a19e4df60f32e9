"""Prediction of variables from latent codes in nested cross-validation, beside PCA and beside covariates.

Each run is a fold: its test people are predicted by what was learned from the codes of its other people, among whom the
penalty was chosen, too (Varma & Simon 2006, Bias in error estimation when using cross-validation for model selection,
BMC Bioinformatics 7:91). So neither the model nor what predicts from it has seen those who are predicted. Predictions
of all runs are one sample of people. Runs of several training seeds give everyone as many predictions; figures are
then means over seeds, not those of a mean prediction, which would be of no model that anyone has.

Intervals are of a bootstrap over the people who are predicted (Efron & Tibshirani 1993, An Introduction to the
Bootstrap, section 13.3), the same draws for all predictors, so that differences are paired. What was learned stays as
it is: an interval says how far other people would change a figure, not other trainings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.design import column_of
from kerasvae.analysis.folds import Fold, Sample, read_folds, sample_of
from kerasvae.analysis.latents import refuse_told
from kerasvae.analysis.predictors import ADDED, BOTH, COVARIATES, Predictors, Told
from kerasvae.errors import ArgumentError
from kerasvae.metrics.predicted import line_calibration, logistic_calibration
from kerasvae.training.run import Run, table_path, write_described

__all__ = ["Predictions", "predict_runs"]

Numbers = NDArray[np.float64]
RESAMPLES = 10_000
CHUNK = 500
"""Resamples at once."""
LEVEL = 0.95
WORDS = {"latents": "latents", "pca": "PCA", COVARIATES: "covariates alone", BOTH: "covariates and latents"}
COLUMNS = {
    "variable": "what is predicted, a column of the cohort",
    "participant_id": "a person whom the run tests; scans of one person are averaged",
    "run": "folder of the run",
    "by": "what from: latents; pca, as many components of the same images; covariates; covariates_latents",
    "observed": "the number or level that is the case",
    "predicted": "the number, or the level with the largest probability",
    "probability": "given to the observed level of a category; n/a of numbers",
}
FIGURES = {
    "r": "Pearson's correlation of predicted and observed, over all people",
    "r2": "1 − Σ(y − ŷ)² / Σ(y − ȳ)², ȳ the mean of the people learned from",
    "mae": "mean absolute error, in the variable's unit",
    "balanced_accuracy": "mean over levels of the share of their people who are given them",
    "accuracy": "share of people who are given their level",
    "auc": "area under the receiver operating characteristic, of two levels",
    "brier": "mean squared difference of probability and case, of two levels",
    "log_loss": "−log of the probability of what is the case, nats",
    "low, high": "95 % interval, by a bootstrap over people; of a difference a paired one",
    "calibration": "slope and intercept of observed on predicted; of two levels of the case on the logit of its "
    "probability (1 and 0 as they should be), with the expected calibration error over ten bins",
    "permutation": "p: chance of predictions as good where the variable has nothing to do with the codes; beyond "
    "covariates, where latents add nothing to these (see kerasvae.analysis.predictors.Predictors.chance)",
}


@dataclass(frozen=True)
class Predictions:
    """What `predict_runs` found.

    Args:
        figures: By variable, as the table's .json holds them.
        path: Of the table.
    """

    figures: dict[str, Any]
    path: Path

    def describe(self) -> list[str]:
        """Of each variable a sentence or two."""
        return [line for name, found in self.figures.items() for line in _sentences(name, found)]


def predict_runs(
    runs: Sequence[Run],
    variables: Sequence[str],
    covariates: Sequence[str] = (),
    *,
    pca: bool = True,
    permutations: int = 0,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Predictions:
    """Predict columns of a cohort from codes, and write predictions.tsv, which predictions.json explains.

    Numbers by ridge regression, categories by logistic regression, each scan's codes averaged over those of a person.

    Args:
        runs: Finished: one, or the folds, perhaps of several seeds, of a cross-validation.
        variables: Columns that are predicted.
        covariates: Columns beside whose prediction that from the codes is put, and which codes are added to.
        pca: Whether PCA is put beside, too, in the same folds.
        permutations: Of the target, see `Predictors.chance`; 0: no p.
        seed: Of permutations, resamples and the parts by which penalties are chosen.
        out: The table; by default predictions.tsv in the folder of a single run.
        progress: Told how many permutations of all are done.

    Raises:
        ArgumentError: If a column is missing or unfit, the model was given it, or `out` is missing.
        RunError: If a run is not finished, or does not go with the others.
    """
    if not variables:
        raise ArgumentError("--variables", rule="name a column", got="none", fix="Add one, as in --variables age")
    if not runs or (out is None and len(runs) > 1):
        got = f"none for {len(runs)} runs"
        raise ArgumentError("--out", rule="name a table where there are several runs", got=got, fix="Add --out FILE")
    for run in runs:
        refuse_told(run, variables, ("train",), fix="Train a model without this target to ask this")
    path = table_path(out, runs[0].path / "predictions.tsv")
    folds = read_folds(runs, pca=pca)
    asked = list(dict.fromkeys(variables))
    samples = {column_of(name)[0]: sample_of(folds, name, covariates) for name in asked}
    tests = {name: ["latents", *([ADDED] if sample.covariates.shape[1] else [])] for name, sample in samples.items()}
    total, done = permutations * sum(map(len, tests.values())), 0
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    for name, sample in samples.items():
        predictors = Predictors(folds, sample, seed)
        told = {source: predictors.told(source) for source in predictors.names()}
        rows += _rows(name, sample, folds, predictors, told)
        figures[name] = _figures(sample, told, seed)
        chances: dict[str, Any] = {}
        for test in tests[name]:
            found = predictors.chance(test, permutations, lambda own, before=done: progress(before + own, total))  # type: ignore[misc]
            chances |= {test: found._asdict()} if found else {}
            done += permutations
        figures[name]["permutation"] = chances
    about: dict[str, Any] = {"runs": [fold.name for fold in folds], "covariates": list(covariates), "seed": seed}
    about["permutations"] = permutations
    write_described(path, rows, COLUMNS, Settings=about, FigureMeanings=FIGURES, Figures=figures)
    return Predictions(json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["Figures"], path)


def _rows(
    name: str, sample: Sample, folds: Sequence[Fold], predictors: Predictors, told: dict[str, Told]
) -> list[dict[str, Any]]:
    """A row for each run, its test people and predictors."""
    rows = []
    for fold, (seed, _, _, left, place) in zip(folds, predictors.parts, strict=True):
        for row, index in zip(left, place, strict=True):
            for source, each in told.items():
                cells: dict[str, Any] = {"variable": name, "participant_id": sample.people[row], "run": fold.name}
                guess = each.predicted[seed, index]
                if sample.levels:
                    case = int(sample.target[row])
                    cells |= {"observed": sample.levels[case], "predicted": sample.levels[int(guess.argmax())]}
                    cells |= {"probability": float(guess[case])}
                else:
                    cells |= {"observed": float(sample.target[row]), "predicted": float(guess), "probability": "n/a"}
                rows.append(cells | {"by": source})
    return rows


def _figures(sample: Sample, told: dict[str, Told], seed: int) -> dict[str, Any]:
    """Each predictor's figures and the differences of interest, with intervals."""
    observed = sample.target[sample.tested]
    drawn: dict[str, list[dict[str, Numbers]]] = {source: [] for source in told}
    rng = np.random.default_rng((seed, 1))
    for start in range(0, RESAMPLES, CHUNK):
        count = min(CHUNK, RESAMPLES - start)
        weights = rng.multinomial(len(observed), np.full(len(observed), 1 / len(observed)), count).astype(np.float64)
        for source, each in told.items():
            drawn[source].append(each.figures(observed, weights))
    point = {source: each.figures(observed) for source, each in told.items()}
    many = {
        source: {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for source, parts in drawn.items()
    }
    pairs = [pair for pair in (("latents", "pca"), (BOTH, COVARIATES)) if set(pair) <= set(told)]
    return {
        "kind": "category" if sample.levels else "number",
        "levels": list(sample.levels),
        "people": len(observed),
        "left_out": sample.left_out,
        "by": {
            source: {key: _with_interval(value, many[source][key]) for key, value in point[source].items()}
            | {"calibration": _calibration(sample, observed, each)}
            for source, each in told.items()
        },
        "differences": {
            f"{first} - {second}": {
                key: _with_interval(value - point[second][key], many[first][key] - many[second][key])
                for key, value in point[first].items()
            }
            for first, second in pairs
        },
    }


def _with_interval(value: Numbers, drawn: Numbers) -> dict[str, float]:
    known = drawn[np.isfinite(drawn)]  # a draw may leave a level out
    low, high = np.quantile(known, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]) if len(known) else (np.nan, np.nan)
    return {"value": float(value[0]), "low": float(low), "high": float(high)}


def _calibration(sample: Sample, observed: Numbers, told: Told) -> dict[str, Any] | None:
    """Over the predictions of all seeds."""
    cases = np.tile(observed, len(told.predicted))
    if not sample.levels:
        found = line_calibration(cases, told.predicted.ravel())
    elif len(sample.levels) == 2:
        found = logistic_calibration(cases.astype(np.int64), told.predicted[..., 1].ravel())
    else:
        return None
    return {key: value for key, value in found._asdict().items() if value is not None}


def _sentences(name: str, found: dict[str, Any]) -> list[str]:
    main = {"number": "r", "category": "auc" if len(found["levels"]) == 2 else "balanced_accuracy"}[found["kind"]]

    def told(figures: dict[str, Any]) -> str:
        value, low, high = (figures[main][key] for key in ("value", "low", "high"))
        return f"{value:.2f}" if low is None else f"{value:.2f} ({low:.2f} to {high:.2f})"

    each = ", ".join(f"{WORDS[source]} {told(figures)}" for source, figures in found["by"].items())
    lines = [f"{name}, {found['people']} people, {main.replace('_', ' ')}: {each}."]
    for pair, figures in found["differences"].items():
        first, second = (WORDS[source] for source in pair.split(" - "))
        lines.append(f"  {first} less {second}: {told(figures)}")
    for test, chance in found["permutation"].items():
        lines.append(f"  {test}: {chance['statistic']} {chance['value']:.3f}, by chance {chance['mean']:.3f}, "
                     f"p {chance['p']:.4f}")  # fmt: skip
    return lines
