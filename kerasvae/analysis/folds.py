"""Several runs as the folds, or seeds, of one cohort: what each makes of the people, and what is known about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.design import Term, beside, columns_of
from kerasvae.analysis.latents import Latents, read_latents, scans_of
from kerasvae.errors import ArgumentError, RunError
from kerasvae.training.peer import pca_codes_beside
from kerasvae.training.run import Run, model_inputs

__all__ = ["Fold", "Sample", "pca_of", "read_folds", "sample_of"]

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Fold:
    """A run whose test people are predicted.

    Args:
        name: Of its folder.
        seed: Place of its training's seed among those of all runs.
        latents: Of all its scans.
        codes: What people may be predicted from, by name, (scans, d) each: ``latents``, perhaps ``pca``.
    """

    name: str
    seed: int
    latents: Latents
    codes: dict[str, Numbers]


@dataclass(frozen=True)
class Sample:
    """What is known about n people, each once: their scans are averaged.

    Args:
        variable: Column that is predicted.
        people: Their names, sorted, (n,).
        levels: Of a category; none of a number.
        target: The number, or the place of the level, (n,).
        covariates: (n, c).
        tested: Rows of those that some run tests, (m,).
        left_out: People of the cohort who are not here: something is not known, or their category changes.
        scans: Rows of the scans that count, (s,).
        owner: Whose each of them is, a row of `people`, (s,).
        roles: Of each run: each person's role, (n,).
    """

    variable: str
    people: tuple[str, ...]
    levels: tuple[str, ...]
    target: Numbers
    covariates: Numbers
    tested: NDArray[np.intp]
    left_out: int
    scans: NDArray[np.intp]
    owner: NDArray[np.intp]
    roles: tuple[NDArray[np.str_], ...]

    def averaged(self, values: Numbers) -> Numbers:
        """From a row a scan of the cohort to a row a person, (n, k)."""
        return _averaged(values[self.scans], self.owner, len(self.people))


def read_folds(runs: Sequence[Run], *, pca: bool = True) -> list[Fold]:
    """The runs' codes, with those of PCA beside.

    Args:
        runs: Finished, on one cohort. Those of one training seed test different people; those of another the same.
        pca: Whether PCA is wanted: as many components as the codes have dimensions, fitted in each run to its training
            and validation people.

    Raises:
        RunError: If a run is not finished, has no test people, or does not go with the others.
    """
    latents = [read_latents(run) for run in runs]
    seeds = sorted({run.recipe.training.seed for run in runs})
    tested: list[set[str]] = [set() for _ in seeds]
    found = []
    for run, own in zip(runs, latents, strict=True):
        if (own.people, own.columns) != (latents[0].people, latents[0].columns):
            rule = "hold the same scans as the first run, with the same columns"
            raise RunError(run.path, rule=rule, got="others", fix="Name the runs of one `kerasvae cross-validate`")
        seed = seeds.index(run.recipe.training.seed)
        new = {person for person, role in zip(own.people, own.roles, strict=True) if role == "test"}
        if not new:
            raise RunError(run.path, rule="have test people", got="none", fix="Train it with a test role")
        if twice := sorted(new & tested[seed]):
            rule = "test people whom no other run of its seed tests"
            raise RunError(run.path, rule=rule, got=twice[0], fix="Name each fold once")
        tested[seed] |= new
        codes = {"latents": own.codes} | ({"pca": pca_of(run, own)} if pca else {})
        found.append(Fold(run.path.name, seed, own, codes))
    if any(each != tested[0] for each in tested):
        raise RunError("The seeds", rule="have the same test people", got="others", fix="Name all folds of each seed")
    return found


def pca_of(run: Run, latents: Latents) -> Numbers:
    """PCA's scores of all scans, (scans, d), as `kerasvae.training.evaluate` has PCA beside a model.

    Args:
        run: Its volumes, mask and roles are used.
        latents: Of its scans.
    """
    scans = scans_of(run, latents.scans)
    volumes = run.store.load(scans)
    # TensorFlow is needed only where the model takes covariates
    coding, inputs = (None, {"image": volumes})
    if run.recipe.model.condition:
        coding, inputs = run.model.coding, model_inputs(run.model, scans, volumes)
    learned = np.isin(latents.roles, ("train", "validation"))
    fit = {name: values[learned] for name, values in inputs.items()}
    return pca_codes_beside(coding, latents.codes.shape[1], fit, inputs, run.pipeline.inside)


def sample_of(folds: Sequence[Fold], variable: str, covariates: Sequence[str]) -> Sample:
    """The people of whom a variable and covariates are known, in at least one scan.

    Args:
        folds: Of one cohort.
        variable: What is predicted.
        covariates: What it is predicted from beside codes; without the variable itself.

    Raises:
        ArgumentError: If a column is missing or unfit, or nobody who is tested is left.
    """
    latents = folds[0].latents
    asked = latents.term(variable)
    held = beside(asked, list(map(latents.term, covariates)))
    known = np.logical_and.reduce([term.known for term in (asked, *held)])
    everyone = np.array(latents.people)
    target = _whole(asked)[known]
    names, owner = np.unique(everyone[known], return_inverse=True)
    means = _averaged(target, owner, len(names))
    whole = np.isin(means, (0, 1)).all(axis=1)
    kept = np.asarray(whole if asked.levels else np.ones(len(names), bool))
    scans = np.flatnonzero(known)[kept[owner]]
    names, owner = np.unique(everyone[scans], return_inverse=True)
    tests = np.logical_or.reduce([np.array(fold.latents.roles)[scans] == "test" for fold in folds])
    tested = np.unique(owner[tests])
    values = means[kept]
    there = np.flatnonzero(values.any(axis=0))  # of levels, those that somebody has
    levels = tuple(asked.levels[place] for place in there) if asked.levels else ()
    y = np.searchsorted(there, values.argmax(axis=1)).astype(np.float64) if levels else values[:, 0]
    if len(tested) < 3 or not np.ptp(y[tested]) > 0:
        rule = "vary between three test people or more"
        got = f"{len(tested)} with all known" if len(tested) < 3 else "one value among them"
        raise ArgumentError(variable, rule=rule, got=got, fix="Name fewer columns, or runs with more test people")
    first = np.unique(owner, return_index=True)[1]
    return Sample(
        variable=asked.name,
        people=tuple(names.tolist()),
        levels=levels,
        target=y,
        covariates=_averaged(columns_of(held, len(known))[scans], owner, len(names)),
        tested=tested,
        left_out=len(set(latents.people)) - len(names),
        scans=scans,
        owner=owner,
        roles=tuple(np.array(fold.latents.roles)[scans][first] for fold in folds),
    )


def _whole(term: Term) -> Numbers:
    """A number's column, or an indicator of every level of a category."""
    return np.c_[1 - term.values.sum(axis=1), term.values] if term.levels else term.values


def _averaged(values: Numbers, owner: NDArray[np.intp], people: int) -> Numbers:
    sums = np.zeros((people, values.shape[1]))
    np.add.at(sums, owner, values)
    return sums / np.bincount(owner, minlength=people)[:, None]
