"""Latent codes of a run beside what is known about the people: latents.tsv and scans.tsv, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.contents import Codes, read_codes
from kerasvae.analysis.design import Term, column_of, term_of
from kerasvae.data import ROLES, Scan
from kerasvae.errors import ArgumentError, RunError, nearest
from kerasvae.training.run import Run

__all__ = ["Latents", "asked_latents", "codes_of", "read_latents", "refuse_told", "scans_of"]


@dataclass(frozen=True)
class Latents:
    """Codes of n scans.

    Args:
        people: (n,): whose.
        roles: (n,): what each was used for.
        codes: (n, d): what stands for each, e.g. the mean of its posterior.
        stddev: (n, d): the posterior's standard deviation; None where it has none.
        columns: What is known about each, by name: n cells each, as in the cohort's table.
        sessions: (n,): of which visit; n/a where there is but one.
        categories: Columns whose numbers are names of groups.
        root: (n, d, k): A with A Aᵀ the posterior's covariance; None where dimensions are independent in it. Those of a
            ladder are taken to be: how a level goes with the one above it has no closed form.
    """

    people: tuple[str, ...]
    roles: tuple[str, ...]
    codes: NDArray[np.float64]
    stddev: NDArray[np.float64] | None
    columns: dict[str, tuple[str, ...]]
    sessions: tuple[str, ...]
    categories: frozenset[str] = frozenset()
    root: NDArray[np.float64] | None = None

    @property
    def scans(self) -> list[tuple[str, str]]:
        """(n): person and session of each, by which `scans_of` finds them."""
        return list(zip(self.people, self.sessions, strict=True))

    def stddev_along(self, directions: NDArray[np.floating]) -> NDArray[np.float64] | None:
        """Standard deviation of each posterior along directions in the latent space, (n, v); None as `stddev` is.

        Args:
            directions: (d, v).
        """
        if self.stddev is None:
            return None
        if self.root is None:
            return np.sqrt(np.square(self.stddev) @ np.square(directions, dtype=np.float64))
        return np.stack([np.linalg.norm(each.T @ directions, axis=0) for each in self.root])

    def drawn(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """A draw of each posterior, (n, d); the codes where it has no standard deviation."""
        if self.stddev is None:
            return self.codes
        if self.root is None:
            return self.codes + self.stddev * rng.standard_normal(self.codes.shape)
        noise = rng.standard_normal((len(self.root), self.root.shape[2]))
        return np.asarray(self.codes + np.einsum("ndk,nk->nd", self.root, noise))

    def term(self, name: str) -> Term:
        """A column as a variable of a linear model; C(site): as a category, though its cells be numbers.

        Raises:
            ArgumentError: If there is no such column, or see `term_of`.
        """
        name, category = column_of(name)
        if name not in self.columns:
            close = nearest(name, self.columns)
            fix = f"Did you mean {close}?" if close else "Correct it, or add it to the cohort's table and train again"
            rule = f"be a column of the cohort: {', '.join(self.columns) or 'it has none'}"
            raise ArgumentError("A variable", rule=rule, got=repr(name)[:60], fix=fix)
        return term_of(name, self.columns[name], category=category or name in self.categories)

    def of(self, roles: Sequence[str]) -> Latents:
        """Those of people with some roles.

        Raises:
            ArgumentError: If a role is none, or nobody has one of them.
        """
        if unknown := [role for role in roles if role not in ROLES]:
            raise ArgumentError("--roles", rule=f"be {', '.join(ROLES)}", got=repr(unknown[0])[:60], fix="Correct it")
        rows = [row for row, role in enumerate(self.roles) if role in roles]
        if not rows:
            got = f"nobody with the role {' or '.join(roles)}"
            raise ArgumentError("--roles", rule="name people whom the run has", got=got, fix="Name others")
        return self.take(rows)

    def take(self, rows: Sequence[int]) -> Latents:
        """Those of some rows."""
        return Latents(
            tuple(self.people[row] for row in rows),
            tuple(self.roles[row] for row in rows),
            self.codes[rows],
            None if self.stddev is None else self.stddev[rows],
            {name: tuple(cells[row] for row in rows) for name, cells in self.columns.items()},
            tuple(self.sessions[row] for row in rows),
            self.categories,
            None if self.root is None else self.root[rows],
        )


def codes_of(run: Run) -> Codes:
    """The content of a finished run's latents.tsv.

    Raises:
        RunError: If it is not finished, or its posterior has no continuous code.
    """
    codes = read_codes(run.path / "latents.tsv", run.metrics.get("latent_size", 0))
    if not codes.means.size or not np.isfinite(codes.means).all():
        raise RunError(run.path, rule="hold a finished run with codes", got="none", fix="Train it to its end")
    return codes


def read_latents(run: Run) -> Latents:
    """The codes of a finished run, and what is known of whom they are.

    Raises:
        RunError: As `codes_of` does, or if latents.tsv has scans that scans.tsv has not.
    """
    codes = codes_of(run)
    scans = scans_of(run, codes.scans)
    return Latents(
        tuple(person for person, _ in codes.scans),
        tuple(codes.roles),
        codes.means,
        codes.stddev,
        {name: tuple(scan.covariates[name] for scan in scans) for name in scans[0].covariates},
        tuple(session for _, session in codes.scans),
        frozenset(run.recipe.model.categorical),
        codes.root,
    )


def asked_latents(run: Run, variables: Sequence[str], roles: Sequence[str] | None) -> Latents:
    """The codes that columns of the cohort may be asked of.

    A code depends on no column that the model was not given, so people of all roles may be asked. Of one that its
    encoder is given nothing can be learned in this way; of one that it learned to read, from other people alone.

    Args:
        run: Finished.
        variables: Names of the columns.
        roles: Whose codes; None: all people's.

    Raises:
        ArgumentError: If the model was given one of them, or as `Latents.of` does.
        RunError: As `read_latents` does.
    """
    latents = read_latents(run)
    latents = latents if roles is None else latents.of(roles)
    refuse_told(run, variables, latents.roles)
    return latents


def refuse_told(
    run: Run, variables: Sequence[str], roles: Sequence[str], *, fix: str = "Add --roles calibration,test"
) -> None:
    """Refuse to ask the codes about what the model was told.

    Args:
        run: Its recipe is read.
        variables: Columns that are asked about.
        roles: Of the people whose codes are used.
        fix: What to do where the model learned it from some of them.

    Raises:
        ArgumentError: If a variable is given to the encoder beside the image, or was learned from these people.
    """
    model, variables = run.recipe.model, [column_of(name)[0] for name in variables]
    if given := [name for name in variables if name in model.condition]:
        rule = "be no column that the model is given beside the image"
        raise ArgumentError("--variables", rule=rule, got=given[0], fix="Train a model without it to ask this")
    if model.target in variables and set(roles) & {"train", "validation"}:
        rule = "be asked of people whom the model did not learn it from"
        raise ArgumentError("--variables", rule=rule, got=f"{model.target} of all", fix=fix)


def scans_of(run: Run, names: Sequence[tuple[str, str]], rows: Iterable[int] | None = None) -> list[Scan]:
    """The scans of a run that go by some names.

    Args:
        run: Theirs.
        names: Person and session of each, as in latents.tsv.
        rows: Which of the names; None: all.

    Raises:
        RunError: If the run has no such scan.
    """
    known, wanted = run.named_scans, names if rows is None else [names[row] for row in rows]
    if missing := [name for name in wanted if name not in known]:
        got = f"{' '.join(missing[0])} in latents.tsv alone"
        rule = "have the same scans in latents.tsv and scans.tsv"
        raise RunError(run.path, rule=rule, got=got, fix="Evaluate it again")
    return [known[name] for name in wanted]
