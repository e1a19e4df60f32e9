"""Who is studied, which file holds each scan, and what is known about each person.

From a BIDS derivative (https://bids-specification.readthedocs.io, "Derivatives") read with PyBIDS, or from a table
with a `path` column. No TensorFlow.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kerasvae.data.split import Split, split_people
from kerasvae.errors import CohortError, nearest

__all__ = ["Cohort", "Scan"]

MISSING = frozenset({"", "n/a", "na", "nan", "none"})
"""Cells of a table that mean "not known" (BIDS writes n/a)."""


@dataclass(frozen=True)
class Scan:
    """One image of one person.

    Args:
        person: BIDS label with prefix, e.g. ``sub-012``.
        session: BIDS label with prefix, e.g. ``ses-1``, or an empty string where there is one visit.
        path: The image.
        covariates: Columns of the tables, as text.
    """

    person: str
    session: str
    path: Path
    covariates: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A name for messages and files: person and session."""
        return f"{self.person}_{self.session}" if self.session else self.person


@dataclass(frozen=True)
class Cohort:
    """Scans in a fixed order (by person, then session); the row of a scan is its position.

    Args:
        scans: At least one.
        source: Folder or table it was read from.
        excluded: Scans left out, with the reason.
    """

    scans: tuple[Scan, ...]
    source: Path
    excluded: tuple[tuple[Scan, str], ...] = ()

    def __len__(self) -> int:
        return len(self.scans)

    @property
    def people(self) -> list[str]:
        """Each person once, in order."""
        return list(dict.fromkeys(scan.person for scan in self.scans))

    def column(self, name: str) -> list[str]:
        """One covariate, a cell a scan; an empty string where it is missing."""
        return [scan.covariates.get(name, "") for scan in self.scans]

    def numbers(self, name: str) -> list[float]:
        """One covariate as numbers, a value a scan; two-valued text is coded 0 and 1 in alphabetical order.

        Raises:
            CohortError: If the column is neither numeric nor two-valued.
        """
        cells = self.column(name)
        try:
            return [float(cell) for cell in cells]
        except ValueError:
            levels = sorted(set(cells))
        if len(levels) > 2:
            raise CohortError(
                f"The covariate {name!r}",
                rule="be numeric or have two values",
                got=f"the values {', '.join(map(repr, levels[:5]))}",
                fix="Recode the column",
            )
        return [float(levels.index(cell)) for cell in cells]

    def scans_of(self, split: Split, *roles: str) -> list[Scan]:
        """The scans of the people who have one of these roles, in order."""
        return [scan for scan in self.scans if split.roles[scan.person] in roles]

    def without(self, reasons: Mapping[str, str]) -> Cohort:
        """The cohort less the named scans (`Scan.name`), which are kept in `excluded` with the reason."""
        kept = tuple(scan for scan in self.scans if scan.name not in reasons)
        left_out = tuple((scan, reasons[scan.name]) for scan in self.scans if scan.name in reasons)
        if not kept:
            raise CohortError(self.source, rule="keep at least one scan", got="none", fix="Mend the images first")
        return replace(self, scans=kept, excluded=self.excluded + left_out)

    def split(
        self,
        fractions: Mapping[str, float],
        *,
        seed: int = 0,
        stratify: Sequence[str] = (),
        column: str | None = None,
    ) -> Split:
        """People divided into the four roles; see `kerasvae.data.split`.

        Args:
            fractions: Role to share of the people.
            seed: Seed of the draw.
            stratify: Covariates to balance over the roles.
            column: A column of the table that already holds each scan's role; then the rest is not used.
        """
        if column:
            return Split.from_scans([(scan.person, scan.covariates.get(column, "")) for scan in self.scans])
        first = {scan.person: scan for scan in reversed(self.scans)}
        values = {name: dict(zip([s.person for s in self.scans], self.numbers(name), strict=True)) for name in stratify}
        keys = {person: tuple(values[name][person] for name in stratify) for person in sorted(first)}
        return split_people(keys, fractions, seed=seed)

    @classmethod
    def read(cls, source: str | os.PathLike[str], **options: Any) -> Cohort:
        """`from_bids` for a folder, `from_table` for a file; the same options."""
        path = Path(source)
        if not path.exists():
            raise CohortError(path, rule="be a BIDS derivative folder or a table", got="nothing there", fix="Check it")
        return cls.from_bids(path, **options) if path.is_dir() else cls.from_table(path, **options)

    @classmethod
    def from_bids(
        cls,
        folder: str | os.PathLike[str],
        *,
        select: Mapping[str, str] | None = None,
        covariates: Sequence[str] = (),
        exclude: Mapping[str, Sequence[str]] | None = None,
        incomplete: str = "refuse",
    ) -> Cohort:
        """Read a BIDS derivative: images by their entities, covariates from participants.tsv and sessions tables.

        Args:
            folder: The derivative, with `participants.tsv`.
            select: BIDS entities of the images, e.g. ``{"suffix": "T1w", "desc": "brain"}``.
            covariates: Columns that every scan must have.
            exclude: Column to values whose scans are left out, e.g. ``{"qc": ["fail"]}``.
            incomplete: ``"refuse"``, or ``"leave_out"`` people with an image and no row or the reverse.

        Raises:
            CohortError: If the folder cannot be read, holds no such image, or tables and images disagree.
        """
        from bids import BIDSLayout

        root = Path(folder)
        if not os.access(root, os.R_OK | os.X_OK):
            raise CohortError(root, rule="be readable", got="no permission", fix="Change its permissions")
        table = root / "participants.tsv"
        if not table.is_file():
            raise CohortError(root, rule="contain participants.tsv", got="none", fix="Write participant_id, age, sex …")
        people = {row["participant_id"]: row for row in _read_table(table, ["participant_id"])}
        wanted = dict(select or {"suffix": "T1w"})
        layout = BIDSLayout(root, validate=False, is_derivative=True)
        files = layout.get(extension=[".nii", ".nii.gz", ".mgz"], **wanted)
        if not files:
            raise CohortError(
                root,
                rule=f"contain images with {_words(wanted)}",
                got="none",
                fix="Change [cohort.select] of the recipe to the entities in the file names",
            )
        scans = []
        for file in files:
            entities = file.get_entities()
            session = f"ses-{entities['session']}" if "session" in entities else ""
            person = f"sub-{entities['subject']}"
            cells = {**people.get(person, {}), **_session_cells(root, person, session)}
            scans.append(Scan(person, session, Path(file.path), cells))
        found = {scan.person for scan in scans}
        _match(root, found - set(people), "a row in participants.tsv for every person with an image", incomplete)
        _match(root, set(people) - found, "an image for every person in participants.tsv", incomplete)
        scans = [scan for scan in scans if scan.person in people]
        return _finish(scans, root, covariates, exclude or {}, wanted)

    @classmethod
    def from_table(
        cls,
        table: str | os.PathLike[str],
        *,
        select: Mapping[str, str] | None = None,
        covariates: Sequence[str] = (),
        exclude: Mapping[str, Sequence[str]] | None = None,
        incomplete: str = "refuse",
    ) -> Cohort:
        """Read a table (.tsv, or .csv) with columns `participant_id` and `path`, and perhaps `session_id`.

        Paths are taken relative to the table's folder. `select` is not used: the table says which files.

        Raises:
            CohortError: If a column is missing or a file does not exist.
        """
        source = Path(table)
        scans = []
        for row in _read_table(source, ["participant_id", "path"]):
            path = source.parent / row.pop("path")
            scans.append(Scan(row["participant_id"], row.get("session_id", ""), path, row))
        gone = {scan.name for scan in scans if not scan.path.is_file()}
        _match(source, gone, "an existing file in the column path for every row", incomplete)
        return _finish([scan for scan in scans if scan.name not in gone], source, covariates, exclude or {}, {})


def _read_table(path: Path, required: Sequence[str]) -> list[dict[str, str]]:
    import pandas

    try:
        frame = pandas.read_csv(path, sep="," if path.suffix == ".csv" else "\t", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise CohortError(path, rule="be a readable table", got=str(error), fix="Save it as .tsv or .csv") from error
    for name in required:
        if name not in frame.columns:
            close = nearest(name, frame.columns)
            raise CohortError(
                path,
                rule=f"have a column {name!r}",
                got=f"the columns {', '.join(frame.columns)}",
                fix=f"Rename {close!r}" if close else "Add it",
            )
    records = frame.to_dict(orient="records")
    return [
        {str(name): "" if str(cell).strip().lower() in MISSING else str(cell).strip() for name, cell in row.items()}
        for row in records
    ]


def _session_cells(root: Path, person: str, session: str) -> dict[str, str]:
    table = root / person / f"{person}_sessions.tsv"
    if not session or not table.is_file():
        return {}
    rows = {row["session_id"]: row for row in _read_table(table, ["session_id"])}
    return rows.get(session, {})


def _match(source: Path, odd: Iterable[str], rule: str, incomplete: str) -> None:
    odd = sorted(odd)
    if odd and incomplete == "refuse":
        shown = ", ".join(odd[:5]) + (f" and {len(odd) - 5} more" if len(odd) > 5 else "")
        raise CohortError(
            source,
            rule=f"have {rule}",
            got=f"none for {shown}",
            fix='Complete it, or set cohort.incomplete = "leave_out" in the recipe',
        )


def _finish(
    scans: list[Scan],
    source: Path,
    covariates: Sequence[str],
    exclude: Mapping[str, Sequence[str]],
    select: Mapping[str, str],
) -> Cohort:
    """Order, exclude and check."""
    scans = sorted(scans, key=lambda scan: (scan.person, scan.session, str(scan.path)))
    twice = [name for name, count in Counter(scan.name for scan in scans).items() if count > 1]
    if twice:
        raise CohortError(
            source,
            rule="have one image for each person and session",
            got=f"{sum(s.name == twice[0] for s in scans)} images for {twice[0]}",
            fix=f"Narrow [cohort.select] ({_words(select) or 'no entities'}), or give the rows a session_id",
        )
    reason: Callable[[Scan], str] = lambda scan: ", ".join(  # noqa: E731
        f"{name} = {scan.covariates.get(name, '')}"
        for name, values in exclude.items()
        if scan.covariates.get(name, "") in values
    )
    kept = tuple(scan for scan in scans if not reason(scan))
    left_out = tuple((scan, reason(scan)) for scan in scans if reason(scan))
    if not kept:
        raise CohortError(source, rule="contain at least one scan", got="none after exclusion", fix="Check the recipe")
    known = list(dict.fromkeys(name for scan in kept for name in scan.covariates))
    for name in [*covariates, *exclude]:
        if name not in known:
            close = nearest(name, known)
            raise CohortError(
                source,
                rule=f"have the column {name!r}",
                got=f"the columns {', '.join(known) or 'none'}",
                fix=f"Did you mean {close!r}?" if close else "Add it, or take it out of the recipe",
            )
    for name in covariates:
        lacking = [scan.name for scan in kept if not scan.covariates.get(name)]
        if lacking:
            raise CohortError(
                f"The covariate {name!r} in {source}",
                rule="be known for every scan",
                got=f"nothing for {len(lacking)} of {len(kept)}, the first {lacking[0]}",
                fix="Fill it in, exclude these people, or take it out of [cohort] covariates",
            )
    return Cohort(kept, source, left_out)


def _words(select: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in select.items())
