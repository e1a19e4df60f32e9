"""Nested cross-validation: every person is a test person once, and decides nothing about the model that is tested.

The people are divided into folds. For each fold a run is trained whose test people are the fold's; all that is chosen
(mask, prior, mirror images, the epoch, remedies) is chosen within the others, by cross-validation among the training
people and by validation people (Varma & Simon 2006, Bias in error estimation when using cross-validation for model
selection, BMC Bioinformatics 7:91). Errors of the test people of all folds are then one sample.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.agreement import agreement_of
from kerasvae.errors import ArgumentError, RunError
from kerasvae.storage import is_vacant
from kerasvae.training.recipe import Recipe
from kerasvae.training.run import Run, write_json
from kerasvae.training.train import Progress, train

__all__ = ["cross_validate", "summary"]

RESULT = "cross_validation.json"
RESAMPLES = 10_000
FIGURES = ("explained_variance", "explained_variance_pca", "identification", "identification_pca", "active_units")
COLUMNS = ("reconstruction", "pca", "mean_image")
"""Of errors.tsv."""
Errors = dict[str, NDArray[np.float64]]


def cross_validate(
    recipe: Recipe,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    folds: int = 5,
    seeds: int = 1,
    resume: bool = False,
    progress: Progress = lambda stage, done, total, text: None,
) -> dict[str, Any]:
    """Train a run for each fold and seed, and write what they say together.

    Args:
        recipe: What to do; its `split` gives the shares of the other roles among those who are not tested.
        data: As for `kerasvae.train`.
        out: A new or empty folder, unless `resume`; runs are `fold0-seed0` and so on.
        folds: Parts of the people, 2 or more.
        seeds: Trainings of each fold, from the recipe's seed upwards.
        resume: Go on where an interrupted call stopped; finished runs are kept.
        progress: Told about each stage of each run.

    Returns:
        What `cross_validation.json` holds, see `summary`.

    Raises:
        ArgumentError: With fewer than two folds or no seed.
        RunError: If `out` is in use.
    """
    if folds < 2 or seeds < 1:
        raise ArgumentError(
            "--folds and --seeds", rule="be 2 and 1 or more", got=f"{folds} and {seeds}", fix="Leave them out: 5 and 1"
        )
    place = Path(out)
    if not resume and not is_vacant(place):
        raise RunError(
            place, rule="be a new or empty folder", got="one that holds files", fix="Choose another, or add --resume"
        )
    runs: list[list[Run]] = []
    for seed in range(seeds):
        runs.append([])
        for fold in range(folds):
            name = f"fold{fold}-seed{seed}"
            chosen = _with(recipe, fold, folds, seed)

            def tell(stage: str, done: int, total: int, text: str, name: str = name) -> None:
                progress(f"{name} {stage}", done, total, text)

            runs[-1].append(train(chosen, data, place / name, resume=(place / name).exists(), progress=tell))
    found = summary([[run.path for run in of_seed] for of_seed in runs])
    write_json(place / RESULT, found)
    return found


def _with(recipe: Recipe, fold: int, folds: int, seed: int) -> Recipe:
    split = recipe.split.model_copy(update={"folds": folds, "fold": fold})
    training = recipe.training.model_copy(update={"seed": recipe.training.seed + seed})
    return Recipe.model_validate(recipe.model_copy(update={"split": split, "training": training}).model_dump())


def summary(runs: Sequence[Sequence[Path]]) -> dict[str, Any]:
    """What runs say together.

    Args:
        runs: Run folders by seed, then fold; finished.

    Returns:
        `people`; `explained_variance` over all of them, the model's and PCA's, with the difference and its 95 %
        interval by a bootstrap over people (errors of a person are means over seeds); `runs`, figures of each;
        `agreement` of the codes between folds (on people whom most runs have learned from) and between seeds (on test
        people, where they suffice): mean Procrustes R² and what chance gives.
    """
    errors = [_pooled(of_seed) for of_seed in runs]
    people = sorted(errors[0])
    if any(sorted(each) != people for each in errors[1:]):
        raise RunError("The seeds", rule="have the same test people", got="others", fix="Train all of them again")
    each = {key: np.array([np.mean([found[p][key] for found in errors]) for p in people]) for key in COLUMNS}
    model, pca = (1 - each[key].sum() / each["mean_image"].sum() for key in ("reconstruction", "pca"))
    low, high = _interval(each)
    rows = [
        {"run": run.path.name, **{name: run.metrics[name] for name in FIGURES}}
        for of_seed in runs
        for run in map(Run, of_seed)
    ]
    between = {"folds": [_agreement(runs[0])]}
    if len(runs) > 1:
        between["seeds"] = [_agreement(list(same)) for same in zip(*runs, strict=True)]
    return {
        "folds": len(runs[0]),
        "seeds": len(runs),
        "people": len(people),
        "explained_variance": {
            "model": float(model),
            "pca": float(pca),
            "difference": float(model - pca),
            "low": low,
            "high": high,
        },
        "identification": {
            name: float(np.mean([row[key] for row in rows]))
            for name, key in (("model", "identification"), ("pca", "identification_pca"))
        },
        "runs": rows,
        "agreement": {
            name: {key: float(np.mean([one[key] for one in known])) for key in ("procrustes", "chance")}
            for name, found in between.items()
            if (known := [one for one in found if one is not None])
        },
    }


def _pooled(runs: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Errors of the test people of all folds, over the scans of each: by person, then by what was made of them."""
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        own: dict[str, dict[str, float]] = {}
        with (run / "errors.tsv").open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream, delimiter="\t"):
                sums = own.setdefault(row["participant_id"], dict.fromkeys(COLUMNS, 0.0))
                for key in COLUMNS:
                    sums[key] += float(row[key])
        if twice := sorted(found.keys() & own.keys()):
            raise RunError(run, rule="test people whom no other fold tests", got=twice[0], fix="Train it again")
        found |= own
    return found


def _interval(each: Errors) -> tuple[float, float]:
    """95 % of the bootstrap over people of the difference of explained variances."""
    rng, count = np.random.default_rng(1), len(each["pca"])
    gain = each["pca"] - each["reconstruction"]
    drawn = (rng.integers(0, count, count) for _ in range(RESAMPLES))
    values = [gain[rows].sum() / each["mean_image"][rows].sum() for rows in drawn]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _agreement(runs: Sequence[Path]) -> dict[str, float] | None:
    """None where codes cannot be laid over one another: discrete ones, or those of very few people."""
    try:
        pairs = agreement_of(runs).pairs
    except RunError:
        return None
    return {
        "procrustes": float(np.mean([pair.procrustes for pair in pairs])),
        "chance": float(np.mean([pair.procrustes_null for pair in pairs])),
    }
