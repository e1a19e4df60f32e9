"""Did several trainings find the same latent space? Their codes of the same people, two by two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kerasvae.analysis.latents import codes_of
from kerasvae.analysis.rotation import Kind, rotation_of
from kerasvae.errors import ArgumentError, RunError
from kerasvae.metrics import Agreement, AxesAgreement, match_axes, stability
from kerasvae.training.run import Run

__all__ = ["Agreements", "agreement_of"]

FEWEST = 12
"""People below which an alignment fitted to half of them says nothing about the others."""


class Agreements(NamedTuple):
    """How far the latent spaces of several runs agree.

    Attributes:
        pairs: One for each pair of runs.
        people: How many people they were judged on.
        new: Whether these are test people in every run; else some run learned from them.
        dimensions: Of the widest code.
        axes: By kind of axes, how far single ones agree, for each pair of runs.
    """

    pairs: list[Agreement]
    people: int
    new: bool
    dimensions: int
    axes: dict[Kind, list[AxesAgreement]]

    def describe(self) -> str:
        """Whom the figures are of, as a sentence."""
        few = (
            f" They are too few to fit a rotation of {self.dimensions} dimensions to, so that Procrustes R² is too low."
            if self.people < self.dimensions + 4
            else ""
        )
        if self.new:
            return f"On {self.people} people, test people in every run.{few}"
        return (
            f"On {self.people} people, some of whom a run has learned from: agreement on them may be memory. Runs with "
            f"{FEWEST} test people in common say more.{few}"
        )


def agreement_of(runs: Sequence[Path], *, axes: Sequence[Kind] = (), permutations: int = 100) -> Agreements:
    """Compare the codes in the latents.tsv of run folders; of a person with several visits the first.

    Judged on test people that all runs have in common; where they are fewer than twelve, on all people in common.

    Args:
        runs: Run folders, two or more.
        axes: Kinds of axes to compare one by one, too, each run's fitted to its own training people; see
            `kerasvae.analysis.rotation`.
        permutations: See `kerasvae.metrics.stability`.

    Raises:
        ArgumentError: With fewer than two runs, or axes of an unknown kind.
        RunError: If a run is not finished, or has too few people in common with the others.
    """
    if len(runs) < 2:
        raise ArgumentError("RUN", rule="be two run folders or more", got=len(runs), fix="Name the others, too")
    tables, tested, turned = [], [], []
    for run in runs:
        codes = codes_of(Run(run))
        first = {person: row for row, (person, _) in reversed(list(enumerate(codes.scans)))}
        turned.append({kind: rotation_of(Run(run), codes.scans, codes.roles, codes.means, kind) for kind in axes})
        tables.append({person: codes.means[row] for person, row in first.items()})
        tested.append({person for person, row in first.items() if codes.roles[row] == "test"})
    common = sorted(set.intersection(*map(set, tables)))
    new = [person for person in common if all(person in test for test in tested)]
    people = new if len(new) >= FEWEST else common
    if len(people) < FEWEST:
        raise RunError(
            "The runs", rule=f"have {FEWEST} people in common", got=len(people), fix="Compare runs on one cohort"
        )
    spaces = [np.array([table[person] for person in people]) for table in tables]
    pairs = stability(spaces, permutations=permutations)
    matched = {
        kind: [
            match_axes(*(turned[run][kind].of_codes(spaces[run]) for run in two), permutations=permutations)
            for two in combinations(range(len(runs)), 2)
        ]
        for kind in axes
    }
    return Agreements(pairs, len(people), people is new, max(space.shape[1] for space in spaces), matched)
