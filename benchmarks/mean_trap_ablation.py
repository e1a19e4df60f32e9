"""What each part of the T1 recipe is worth: two folds, two seeds, the same people with and without it.

Choices are to be made on people who are not test people: models learn from training people alone here, and validation
people judge.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
from mean_trap import NO_MEAN, PACKAGES, Errors, explained, interval, people_of
from rows import Row, as_row

RECIPE = "t1-4mm"
FOLDS, SEEDS = 2, 2
JUDGED = ["training.refit=false"]
"""Of every training here: validation people stay new."""
FREE = ["model.network=conv", "training.learning_rate=1e-4", "model.dropout=0.3"]
CYCLES = 'objective.schedules.beta={kind="cyclical", start=0.0, stop=1.0, cycles=4, ramp=0.5}'
VARIANTS: dict[str, list[str]] = {
    "trained on people whom the core knows": ["training.cross_fit=false"],
    "free networks decoding the code": FREE,
    "no smooth prior": ["model.core_prior=none"],
    "no mirror images": ["model.core_mirror=false"],
    "constant learning rate": ["training.decay=none", "training.learning_rate=3e-3"],
    "one hidden layer of 8": ["model.refine=[8]"],
    "three hidden layers of 32": ["model.refine=[32, 32, 32]"],
    "flipped people in training": ["augment.flip=true"],
    "affine and elastic changes": ["augment.affine={degrees=3, mm=2, scale=0.03}", "augment.elastic={mm=1}"],
    "free bits of 0.1 nats": ["objective.kind=free_bits", "objective.options={free_bits=0.1}"],
    "cyclical β": [CYCLES],
    "16 latents": ["model.latent_size=16"],
    "64 latents": ["model.latent_size=64"],
}
"""What is changed, in words, to the settings that change it."""


def run(folder: Path, *, work: Path, seeds: int = SEEDS) -> list[Row]:
    """Train what is not there yet; one row for each variant."""
    versions = {package: version(package) for package in PACKAGES}

    def over_seeds(settings: list[str]) -> Errors:
        each = [
            people_of(folder, work, RECIPE, seed, FOLDS, [*JUDGED, *settings], "validation") for seed in range(seeds)
        ]
        return {key: np.mean([e[key] for e in each], axis=0) for key in each[0] if key not in NO_MEAN}

    recipe = over_seeds([])
    rows = [_row("the recipe", explained(recipe, "ours"), f"PCA: {explained(recipe, 'pca'):.4f}", versions)]
    for words, settings in VARIANTS.items():
        people = over_seeds(settings)
        lost = (people["error_ours"] - recipe["error_ours"]) / recipe["error_mean"].mean()
        low, high = interval(lost)
        bound = float((recipe["elbo"] - people["elbo"]).mean())
        peer = f"the recipe: {lost.mean():+.4f} (95 % {low:+.4f} to {high:+.4f}), ELBO {bound:+.0f} nats a person"
        rows.append(_row(words, explained(people, "ours"), peer, versions))
    return rows


def _row(name: str, value: float, peer: str, versions: dict[str, str]) -> Row:
    return as_row(name, value, "explained variance", peer) | {"versions": versions}
