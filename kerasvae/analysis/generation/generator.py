"""A run's decoder and what its people's codes say about values: images of people of a given age and sex.

A value can reach an image in two ways. What the model is not told it must hold in the code, and the code is drawn or
moved by what codes of real people do (`kerasvae.analysis.generation.conditional_codes`). What a conditional model is
told is given to its networks, and the code stays: it says what the value does not. Where its prior is told too, p(z|c),
codes are meant to follow the value, and do both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.design import Term
from kerasvae.analysis.generation.conditional_codes import ConditionalCodes, Variable
from kerasvae.analysis.latents import Latents, read_latents, scans_of
from kerasvae.analysis.permutation import permute
from kerasvae.covariates import MISSING
from kerasvae.data import Scan
from kerasvae.errors import ArgumentError, ModelError
from kerasvae.training.run import Run

__all__ = ["HELD_OUT", "LEARNED", "Generator", "Table"]

Table = Mapping[str, Sequence[str]]
"""Column to cells, as in the cohort's table."""
LEARNED, HELD_OUT = ("train", "validation"), ("calibration", "test")
"""Roles of people whom weights, or which weights, come from; and of the others."""

LEVEL, PERMUTATIONS = 0.05, 999
"""Of the test whether a variable shows in codes."""


@dataclass(frozen=True)
class Generator:
    """Images of people with given values.

    Args:
        run: Finished.
        latents: Codes of all its people.
        given: How codes go with what moves them, learned from training and validation people.
        asked: All variables, with their ranges among these people.
        told: Names of what the model's networks are given.
    """

    run: Run
    latents: Latents
    given: ConditionalCodes
    asked: tuple[Variable, ...]
    told: tuple[str, ...]

    @classmethod
    def of(cls, run: Run, names: Sequence[str], *, knots: int = 2) -> Generator:
        """Learn how codes go with columns of the cohort.

        Args:
            run: Finished.
            names: Of the columns.
            knots: See `ConditionalCodes.fit`.

        Raises:
            ArgumentError: If a column is missing or unfit, or people are too few.
            ModelError: If codes are not points of Euclidean space.
            RunError: If the run is not finished.
        """
        from kerasvae.models.samplers.base import NOT_EUCLIDEAN

        latents = read_latents(run)
        learned = latents.of(LEARNED)
        terms = {term.name: term for term in map(learned.term, names)}
        model = run.model
        if model.posterior.kind in NOT_EUCLIDEAN:
            raise ModelError(
                "The posterior of a model that people are drawn from",
                rule="have codes that are points of Euclidean space",
                got=f"{model.posterior.kind!r}: {NOT_EUCLIDEAN[model.posterior.kind]}",
                fix="Use PriorSampler",
            )
        told = () if model.covariates is None else tuple(model.covariates.names)
        follows = getattr(model.prior, "condition_size", 0) > 0 and not model.gives_condition
        moved = [term for name, term in terms.items() if follows or name not in told]
        spread = learned.stddev if learned.root is None else learned.root
        given = ConditionalCodes.fit(learned.codes, moved, stddev=spread, people=learned.people, knots=knots)
        known = [Term(term.name, term.levels, term.values[term.known]) for term in terms.values()]
        return cls(run, latents, given, tuple(Variable.of(term, 2) for term in known), told)

    def numbers(self, table: Table) -> NDArray[np.float64]:
        """What moves codes, (n, v), of cells; all that is asked and told is checked.

        Raises:
            ArgumentError: If a cell is no value, or one that the model was not made for; if one is missing.
        """
        for variable in self.asked:
            for cell in table.get(variable.name, ()):
                variable.number(cell)
        if absent := [name for name in self.told if name not in table]:
            rule = f"name all that the model is told: {', '.join(self.told)}"
            raise ArgumentError("--set", rule=rule, got=f"no {absent[0]}", fix=f"Add --set {absent[0]}=…")
        self._covariates(table, None)
        return self.given.numbers(table)

    def warnings(self, table: Table) -> list[str]:
        """A sentence for each value outside the range of the people learned from, and each that codes do not show."""
        said = [each.beyond(each.number(cell)) for each in self.asked for cell in table.get(each.name, ())]
        said += [self._unseen(name) for name in table]
        return [sentence for sentence in dict.fromkeys(said) if sentence]

    def _unseen(self, name: str) -> str:
        """A sentence where codes that shall go with a variable cannot be seen to, all dimensions together."""
        if name not in [variable.name for variable in self.given.variables]:
            return ""
        rows = self.known(LEARNED)
        numbers = self.given.numbers(self.table(rows))
        columns = {each.name: each.columns(numbers[:, index]) for index, each in enumerate(self.given.variables)}
        asked = columns.pop(name)
        others = np.concatenate([np.empty((len(rows), 0)), *columns.values()], axis=1)
        found = permute(self.latents.codes[rows], asked, others, permutations=PERMUTATIONS)
        p = float(found.p_family.min()) if math.isnan(found.p_joint) else found.p_joint
        told = f"{name} does not show in the codes of the {len(rows)} people learned from (p {p:.2f})"
        return "" if p <= LEVEL else f"{told}: what it changes may be chance."

    def decode(self, codes: NDArray[Any], table: Table, noise_seed: int | None = None) -> NDArray[np.float32]:
        """Images, (n, x, y, z), in model units, 0 outside the mask.

        Args:
            codes: (n, d).
            table: A cell each, or one for all, of what the model is told.
            noise_seed: Of the likelihood's noise; None for none.
        """
        covariates = self._covariates(table, len(codes))
        return self.run.model.decode(codes, covariates=covariates, noise_seed=noise_seed) * self.run.pipeline.inside

    def encode(self, images: NDArray[Any], table: Table) -> NDArray[np.float64]:
        """The code that stands for each image, (n, d)."""
        covariates = self._covariates(table, len(images))
        inputs = images if covariates is None else {"image": images, "covariates": covariates}
        model = self.run.model
        return np.asarray(model.posterior.center(model.encode(inputs)), np.float64)

    def known(self, roles: Sequence[str]) -> list[int]:
        """Rows of `latents`: of each person with one of the roles the first scan all whose values are some we know."""
        first: dict[str, int] = {}
        for row, (person, role) in enumerate(zip(self.latents.people, self.latents.roles, strict=True)):
            if role in roles and person not in first and self._knows(row):
                first[person] = row
        return list(first.values())

    def _knows(self, row: int) -> bool:
        """Whether all is known that is asked and told, and nothing is a level that nobody learned from has."""
        if any(self.latents.columns[name][row].strip().casefold() in MISSING for name in self.told):
            return False
        try:
            self.numbers(self.table([row]))
        except ArgumentError:
            return False
        return True

    def table(self, rows: Sequence[int]) -> dict[str, list[str]]:
        """What is known of rows of `latents`."""
        return {name: [cells[row] for row in rows] for name, cells in self.latents.columns.items()}

    def scans(self, rows: Sequence[int]) -> list[Scan]:
        """The scans of rows of `latents`."""
        return scans_of(self.run, self.latents.scans, rows)

    def _covariates(self, table: Table, count: int | None) -> NDArray[np.float32] | None:
        covariates = self.run.model.covariates
        if covariates is None:
            return None
        rows = covariates.matrix({name: table[name] for name in self.told})
        return np.repeat(rows, count, axis=0) if count is not None and len(rows) == 1 else rows
