"""Who is studied, which file holds each scan, and what is known about each person.

From a BIDS derivative (https://bids-specification.readthedocs.io, "Derivatives") read with PyBIDS, or from a table
with a `path` column. No TensorFlow.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from kerasvae.covariates import MISSING
from kerasvae.data.split import Split, split_people
from kerasvae.errors import CohortError, nearest

__all__ = ["Cohort", "Scan", "table_of"]

INCOMPLETE: Mapping[str, str] = MappingProxyType(
    {
        "no row in participants.tsv": "a row in participants.tsv for every person with an image",
        "no image": "an image for every person in participants.tsv",
        "no such file": "an existing file in the column path for every row",
    }
)
"""Why a scan cannot be used, as `Cohort.excluded` says it, and what the source must have."""
IMAGES = (".nii", ".nii.gz", ".mgz")
"""Endings of images."""


@dataclass(frozen=True)
class Scan:
    """One image of one person.

    Args:
        person: BIDS label with prefix, e.g. ``sub-012``.
        session: BIDS label with prefix, e.g. ``ses-1``, or an empty string where there is one visit.
        path: The image, absolute, links followed; of a person in participants.tsv without one, the folder to look in.
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


def table_of(scans: Iterable[Scan], names: Iterable[str]) -> dict[str, list[str]]:
    """Covariates by name, a cell a scan; an empty string where it is missing."""
    scans = list(scans)
    return {name: [scan.covariates.get(name, "") for scan in scans] for name in names}


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
        return table_of(self.scans, [name])[name]

    def numbers(self, name: str) -> list[float]:
        """One covariate as numbers, a value a scan; two-valued text is coded 0 and 1 in alphabetical order.

        Raises:
            CohortError: If there is no such column, a cell is empty, or it is neither numeric nor two-valued.
        """
        _check_known(self.scans, self.source, [name])
        _check_filled(self.scans, self.source, [name])
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

    def units(self) -> dict[str, str]:
        """Unit of each column for which `participants.json` beside the table states one."""
        columns = self._beside("participants.json").items()
        return {name: str(about["Units"]) for name, about in columns if isinstance(about, dict) and "Units" in about}

    def about(self) -> dict[str, str]:
        """What `dataset_description.json` beside the table says of the data: `Name`, `License` and the like (BIDS)."""
        found = self._beside("dataset_description.json")
        known = ("Name", "License", "HowToAcknowledge", "DatasetDOI")
        return {name: found[name] for name in known if isinstance(found.get(name), str) and found[name].strip()}

    def _beside(self, name: str) -> dict[str, Any]:
        """A JSON object in the cohort's folder; empty where there is none."""
        folder = self.source if self.source.is_dir() else self.source.parent
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

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
        fold: int = 0,
        folds: int = 0,
    ) -> Split:
        """People divided into the four roles; see `kerasvae.data.split`.

        Args:
            fractions: Role to share of the people.
            seed: Seed of the draw.
            stratify: Covariates to balance over the roles.
            column: A column of the table that already holds each scan's role; then the rest is not used.
            fold: Of cross-validation, see `kerasvae.data.split.split_people`.
            folds: Likewise; 0 for none.

        Raises:
            CohortError: If one of these columns is unknown, or one to balance over is incomplete.
            SplitError: If the shares or the roles in the column are not valid.
        """
        if column:
            _check_known(self.scans, self.source, [column])
            return Split.from_scans([(scan.person, scan.covariates.get(column, "")) for scan in self.scans])
        first = {scan.person: scan for scan in reversed(self.scans)}
        values = {name: dict(zip([s.person for s in self.scans], self.numbers(name), strict=True)) for name in stratify}
        keys = {person: tuple(values[name][person] for name in stratify) for person in sorted(first)}
        return split_people(keys, fractions, seed=seed, fold=fold, folds=folds)

    @classmethod
    def read(cls, source: str | os.PathLike[str], **options: Any) -> Cohort:
        """`from_bids` for a folder, `from_table` for a file; the same options.

        Raises:
            CohortError: If nothing is there, or what is there cannot be used.
        """
        path = Path(source)
        if not _exists(path):
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
            exclude: Column to values whose scans are left out, e.g. ``{"qc": ["fail"]}``; capitals matter.
            incomplete: ``"refuse"``, or ``"leave_out"`` people with an image and no row or the reverse.

        Images that belong to no person, such as templates and group averages, are passed over.

        Raises:
            CohortError: If the folder cannot be read, holds no such image, or tables and images disagree.
        """
        root = _resolve(Path(folder))
        _check_folders(root)
        table = root / "participants.tsv"
        if not _exists(table):
            raise CohortError(root, rule="contain participants.tsv", got="none", fix="Write participant_id, age, sex …")
        people = _rows_by("participant_id", table)
        wanted = dict(select or {"suffix": "T1w"})
        found = []
        for path, entities in _images(root, wanted):
            session = f"ses-{entities['session']}" if "session" in entities else ""
            person = f"sub-{entities['subject']}"
            cells = {**people.get(person, {}), **_session_cells(root, person, session)}
            lack = "" if person in people else "no row in participants.tsv"
            found.append((Scan(person, session, _resolve(path), cells), lack))
        seen = {scan.person for scan, _ in found}
        for person, cells in people.items():
            if person not in seen:
                found.append((Scan(person, "", _resolve(root / person), cells), "no image"))
        return _finish(found, root, covariates, exclude or {}, incomplete, wanted)

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
            CohortError: If a column is missing, or a file does not exist or stands in two rows.
        """
        source = Path(table)
        found = []
        for row in _read_table(source, "participant_id", "path"):
            path = _resolve(source.parent / row.pop("path"))
            lack = "" if _exists(path) and path.is_file() else "no such file"
            found.append((Scan(row["participant_id"], row.get("session_id", ""), path, row), lack))
        return _finish(found, _resolve(source), covariates, exclude or {}, incomplete, {})


def _resolve(path: Path) -> Path:
    """The absolute path, links followed, so that one image has one name."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise CohortError(path, rule="be a path", got=str(error), fix="Correct the path or the link") from error


def _exists(path: Path) -> bool:
    """Whether something is there; CohortError where that cannot be seen."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        _refuse(error)
    return True


def _refuse(error: OSError) -> NoReturn:
    """What the operating system forbids, as a CohortError."""
    got = str(error.strerror).lower()
    raise CohortError(error.filename, rule="be readable", got=got, fix="Check its permissions") from error


def _check_folders(root: Path) -> None:
    """Enter the folder of every person; PyBIDS passes over locked ones as if they were empty."""
    try:
        people = [entry for entry in root.iterdir() if entry.name.startswith("sub-") and entry.is_dir()]
    except OSError as error:
        _refuse(error)
    for person in people:
        for folder, inner, _ in os.walk(person, onerror=_refuse):
            inner[:] = [name for name in inner if not name.startswith(".")]
            if not os.access(folder, os.X_OK):
                _refuse(PermissionError(0, "permission denied", folder))


def _images(root: Path, wanted: Mapping[str, str]) -> list[tuple[Path, Mapping[str, Any]]]:
    """The images of people, with their BIDS entities.

    Raises:
        CohortError: If PyBIDS cannot read the folder, an entity is unknown, or there is no such image.
    """
    from bids import BIDSLayout

    try:
        layout = BIDSLayout(root, validate=False, is_derivative=True)
    except Exception as error:  # whatever stands in some file of the folder
        raise _unreadable(root, error) from error
    known = layout.get_entities()
    for name in wanted:
        if name not in known:
            close = nearest(name, known)
            raise CohortError(
                f"The selection of images in {root}",
                rule="name BIDS entities",
                got=repr(name),
                fix=f"Did you mean {close!r}?" if close else "Correct [cohort.select] of the recipe",
            )
    files = layout.get(**{"extension": list(IMAGES), **wanted})
    images = [(Path(file.path), file.get_entities()) for file in files]
    images = [(path, entities) for path, entities in images if "subject" in entities]
    if not images:
        raise CohortError(
            root,
            rule=f"contain images with {_words(wanted)}",
            got="none",
            fix="Change [cohort.select] of the recipe to the entities in the file names",
        )
    return images


def _unreadable(root: Path, error: Exception) -> CohortError:
    """The sentence for a failure of PyBIDS, which names the JSON file to blame where there is one."""
    for path in [*sorted(root.glob("*.json")), *sorted(root.glob("sub-*/**/*.json"))]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            problem = "" if isinstance(content, dict) else f"a {type(content).__name__}"
        except (OSError, ValueError) as reason:
            problem = str(reason)
        if problem:
            return CohortError(path, rule="hold a JSON object", got=problem, fix="Correct it, or delete it")
    return CohortError(
        getattr(error, "filename", None) or root,
        rule="be a BIDS derivative that PyBIDS can read",
        got=" ".join(f"{type(error).__name__}: {error}".split()),
        fix="Correct what it names",
    )


def _read_table(path: Path, key: str, *others: str) -> list[dict[str, str]]:
    """Rows as text, empty where a cell is not known; columns `key` and `others` must be there, `key` in every row."""
    import pandas

    try:
        frame = pandas.read_csv(path, sep="," if path.suffix == ".csv" else "\t", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        got = " ".join(str(error).split())
        raise CohortError(path, rule="be a readable table", got=got, fix="Save it as .tsv or .csv") from error
    for name in (key, *others):
        if name not in frame.columns:
            close = nearest(name, frame.columns)
            raise CohortError(
                path,
                rule=f"have a column {name!r}",
                got=f"the columns {', '.join(frame.columns)}",
                fix=f"Rename {close!r}" if close else "Add it",
            )
    rows = [{str(name): _cell(cell) for name, cell in row.items()} for row in frame.to_dict(orient="records")]
    for number, row in enumerate(rows, start=1):
        if not row[key]:
            raise CohortError(
                path,
                rule=f"have a {key} in every row",
                got=f"none in row {number} below the header",
                fix="Fill it in or delete the row",
            )
    return rows


def _cell(value: object) -> str:
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in MISSING else text


def _rows_by(key: str, path: Path) -> dict[str, dict[str, str]]:
    """Rows of a table by a column whose values must differ."""
    rows = _read_table(path, key)
    counts = Counter(row[key] for row in rows)
    for value, count in counts.items():
        if count > 1:
            raise CohortError(
                path, rule=f"have one row for each {key}", got=f"{count} rows for {value}", fix="Delete all but one"
            )
    return {row[key]: row for row in rows}


def _session_cells(root: Path, person: str, session: str) -> dict[str, str]:
    table = root / person / f"{person}_sessions.tsv"
    if not session or not table.is_file():
        return {}
    return _rows_by("session_id", table).get(session, {})


def _finish(
    found: Iterable[tuple[Scan, str]],
    source: Path,
    covariates: Sequence[str],
    exclude: Mapping[str, Sequence[str]],
    incomplete: str,
    select: Mapping[str, str],
) -> Cohort:
    """Order, exclude, and check what is left; each scan comes with what it lacks (a key of INCOMPLETE), or nothing."""
    found = sorted(found, key=lambda pair: (pair[0].person, pair[0].session, str(pair[0].path)))
    scans = [scan for scan, _ in found]
    unwanted = {name: [_cell(value) for value in values] for name, values in exclude.items()}
    _check_known(scans, source, [*covariates, *unwanted])
    _check_exclude(scans, source, unwanted)
    judged = [(scan, _reason(scan, unwanted) or lack) for scan, lack in found]
    if incomplete == "refuse":
        _check_complete(judged, source)
    kept = tuple(scan for scan, reason in judged if not reason)
    if not kept:
        raise CohortError(source, rule="contain at least one scan", got="none after exclusion", fix="Check the recipe")
    _check_distinct(kept, source, select)
    _check_filled(kept, source, covariates)
    return Cohort(kept, source, tuple((scan, reason) for scan, reason in judged if reason))


def _reason(scan: Scan, exclude: Mapping[str, Sequence[str]]) -> str:
    cells = {name: scan.covariates.get(name, "") for name in exclude}
    return ", ".join(f"{name} = {cell or 'n/a'}" for name, cell in cells.items() if cell in exclude[name])


def _check_exclude(scans: Iterable[Scan], source: Path, exclude: Mapping[str, Sequence[str]]) -> None:
    """Refuse a value that occurs in other capitals only; a value that does not occur at all excludes nobody."""
    for name, values in exclude.items():
        cells = [cell or "n/a" for cell, _ in Counter(scan.covariates.get(name, "") for scan in scans).most_common()]
        for value in values:
            alike = [cell for cell in cells if cell.casefold() == (value or "n/a").casefold()]
            if alike and (value or "n/a") not in alike:
                more = f" and {len(cells) - 5} more" if len(cells) > 5 else ""
                raise CohortError(
                    f"The value {value!r} to exclude by",
                    rule=f"occur in the column {name!r} of {source}",
                    got=f"the values {', '.join(map(repr, cells[:5]))}{more}",
                    fix=f"Did you mean {alike[0]!r}?",
                )


def _check_complete(judged: Sequence[tuple[Scan, str]], source: Path) -> None:
    for lack, rule in INCOMPLETE.items():
        names = [scan.name for scan, reason in judged if reason == lack]
        if names:
            raise CohortError(
                source,
                rule=f"have {rule}",
                got=f"none for {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else ""),
                fix='Complete it, or set cohort.incomplete = "leave_out" in the recipe',
            )


def _check_distinct(scans: Sequence[Scan], source: Path, select: Mapping[str, str]) -> None:
    """Refuse two images for one visit, and one image for two scans."""
    name, count = Counter(scan.name for scan in scans).most_common(1)[0]
    if count > 1:
        raise CohortError(
            source,
            rule="have one image for each person and session",
            got=f"{count} images for {name}",
            fix=f"Narrow [cohort.select] ({_words(select) or 'no entities'}), or give the rows a session_id",
        )
    owners: dict[Path, Scan] = {}
    for scan in scans:
        owner = owners.setdefault(scan.path, scan)
        if owner is not scan:
            raise CohortError(
                source,
                rule="have an image of its own for each scan",
                got=f"{scan.path} for both {owner.name} and {scan.name}",
                fix="Correct the path of one of them",
            )


def _check_known(scans: Iterable[Scan], source: Path, names: Iterable[str]) -> None:
    known = list(dict.fromkeys(name for scan in scans for name in scan.covariates))
    for name in names:
        if name not in known:
            close = nearest(name, known)
            raise CohortError(
                source,
                rule=f"have the column {name!r}",
                got=f"the columns {', '.join(known) or 'none'}",
                fix=f"Did you mean {close!r}?" if close else "Add it, or take it out of the recipe",
            )


def _check_filled(scans: Sequence[Scan], source: Path, names: Iterable[str]) -> None:
    for name in names:
        lacking = [scan.name for scan in scans if not scan.covariates.get(name)]
        if lacking:
            raise CohortError(
                f"The covariate {name!r} in {source}",
                rule="be known for every scan",
                got=f"nothing for {len(lacking)} of {len(scans)}, the first {lacking[0]}",
                fix="Fill it in, exclude these people, or take it out of the recipe",
            )


def _words(select: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in select.items())
