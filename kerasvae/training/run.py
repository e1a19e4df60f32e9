"""A run folder: what one training leaves behind, and how to read it again."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasvae.data import Cohort, Scan, Split
from kerasvae.data.cohort import table_of
from kerasvae.data.store import VolumeStore
from kerasvae.errors import ArgumentError, RunError
from kerasvae.preprocess import Pipeline
from kerasvae.storage import atomic_path
from kerasvae.training.recipe import Recipe, load_recipe
from kerasvae.types import Array

if TYPE_CHECKING:
    from kerasvae.models import VAE

__all__ = ["Run", "load_run", "model_inputs", "table_path", "write_described", "write_json", "write_table"]


@dataclass(frozen=True)
class Run:
    """A run folder; its parts are read when first asked for.

    Args:
        path: The folder.
    """

    path: Path

    @cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return load_recipe(self._file("recipe.toml"))

    @cached_property
    def pipeline(self) -> Pipeline:
        """The fitted preprocessing."""
        return Pipeline.from_config(self._json("pipeline.json"))

    @cached_property
    def model(self) -> VAE:
        """The trained model, as it was evaluated."""
        import keras

        from kerasvae.models import VAE

        path = self._file("model.keras")
        try:
            model = keras.saving.load_model(path)
        except (ValueError, OSError, KeyError) as error:  # what Keras raises for a damaged file
            # Keras says of a damaged file that it is not there
            got = "a damaged file" if "not found" in str(error) else str(error).strip().splitlines()[0]
            raise RunError(path, rule="be a model that Keras can load", got=got, fix="Train it again") from error
        if not isinstance(model, VAE):
            raise RunError(
                self.path / "model.keras", rule="hold a kerasvae VAE", got=type(model).__name__, fix="Retrain"
            )
        return model

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The figures on the test people."""
        return self._json("metrics.json")

    @cached_property
    def scans(self) -> list[dict[str, str]]:
        """Rows of scans.tsv: every scan with its role and covariates; excluded ones with their reason."""
        with self._file("scans.tsv").open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream, delimiter="\t"))

    @cached_property
    def split(self) -> Split:
        """The role of each person."""
        return Split.from_scans([(r["participant_id"], r["role"]) for r in self.scans if r["role"] != "excluded"])

    @cached_property
    def _used(self) -> tuple[Scan, ...]:
        """The scans that were used, in the order of scans.tsv."""
        return tuple(
            Scan(row["participant_id"], row["session_id"], Path(row["path"]), _covariates(row))
            for row in self.scans
            if row["role"] != "excluded"
        )

    @cached_property
    def cohort(self) -> Cohort:
        """The scans that were used, in the order of their rows."""
        return Cohort(self._used, Path(self.source))

    @cached_property
    def named_scans(self) -> dict[tuple[str, str], Scan]:
        """The scans that were used by person and session as tables name them: n/a where a person has no sessions."""
        return {(scan.person, scan.session or "n/a"): scan for scan in self._used}

    @property
    def source(self) -> str:
        """Where the images were read from, as an absolute path."""
        return str(self._json("run.json")["data"])

    @property
    def store(self) -> VolumeStore:
        """Preprocessed volumes, remade from the images where the cache was deleted."""
        return VolumeStore(self.path / "cache", self.pipeline)

    def _file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise RunError(
                self.path,
                rule=f"be a run folder with {name}",
                got="no such file" if self.path.is_dir() else "no such folder",
                fix="Finish it with `kerasvae train … --resume`, or give another folder"
                if (self.path / "recipe.toml").is_file()
                else "Give the folder that `kerasvae train` wrote",
            )
        return path

    def _json(self, name: str) -> Any:
        path = self._file(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(path, rule="be JSON", got=str(error), fix="Train or evaluate again") from error


def model_inputs(model: VAE, scans: Sequence[Scan], images: Array) -> dict[str, Any]:
    """What a model takes of these scans, by name.

    Args:
        model: Its covariates and target say what is needed.
        scans: n of them.
        images: Their preprocessed volumes, (n, *data_shape).

    Returns:
        ``image``; ``covariates``, (n, k), ``target`` and ``site``, (n, 1), where the model takes them. A site that
        the model did not learn from is not known.

    Raises:
        ArgumentError: If a covariate is missing or outside what the model takes.
    """
    inputs: dict[str, Any] = {"image": images}
    if model.covariates is not None:
        inputs["covariates"] = table_of(scans, model.covariates.names)
    if "target" in model.optional_names:
        inputs["target"] = table_of(scans, [model.target.name])[model.target.name]
    if (site := model.objective.site) is not None:
        cells = table_of(scans, [site.name])[site.name]
        inputs["site"] = [cell if cell.strip() in site.levels else "" for cell in cells]
    return model.checked(inputs)


def load_run(path: str | os.PathLike[str]) -> Run:
    """Open a run folder.

    Args:
        path: The folder that `kerasvae train` wrote.

    Returns:
        An object with `.model`, `.pipeline`, `.recipe`, `.split`, `.metrics`, `.cohort`.

    Raises:
        RunError: If it is not a run folder, now; or if a part is missing, when that part is asked for.
    """
    run = Run(Path(path))
    run._file("recipe.toml")
    return run


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; numbers that are not finite become null."""
    text = json.dumps(_without_nan(content), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a table atomically: tab-separated (.tsv) or comma-separated (.csv); floats with nine digits."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        delimiter = "," if path.suffix == ".csv" else "\t"
        writer = csv.DictWriter(stream, columns, delimiter=delimiter, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.9g}" if isinstance(value, float) else value for key, value in row.items()})


def table_path(out: str | os.PathLike[str] | None, default: Path) -> Path:
    """Where a table goes that people may name.

    Raises:
        ArgumentError: If the name is not that of a table.
    """
    path = default if out is None else Path(out)
    if path.suffix not in (".tsv", ".csv"):
        raise ArgumentError("--out", rule="end in .tsv or .csv", got=path.name, fix="Name a table")
    return path


def write_described(path: Path, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str], **sections: Any) -> None:
    """Write a table, and beside it a .json of its name, as BIDS has them, that says what its columns mean.

    Args:
        path: Of the table.
        rows: Their cells; one that is None or NaN becomes n/a.
        columns: Their names and meanings, in order.
        sections: What else the .json holds, e.g. ``Settings``.
    """
    table = [{key: "n/a" if value is None or value != value else value for key, value in row.items()} for row in rows]
    write_table(path, table, list(columns))
    write_json(path.with_suffix(".json"), {name: {"Description": text} for name, text in columns.items()} | sections)


SCANS = {
    "participant_id": "whose scan it is",
    "session_id": "of which visit; empty where a person has no sessions",
    "role": "train, validation, calibration or test; excluded: the scan was not used",
    "reason": "for which a scan was excluded",
    "path": "of the image",
}
"""Columns of scans.tsv but those of the cohort, which stand behind the role."""
FIXED_COLUMNS = tuple(SCANS)


def write_scans(path: Path, cohort: Cohort, split: Split) -> None:
    """Write scans.tsv, which scans.json explains: the scans in the order of their rows, then the excluded ones."""
    known = list(dict.fromkeys(name for scan in cohort.scans for name in scan.covariates))
    covariates = [name for name in known if name not in FIXED_COLUMNS]
    rows = [_row(scan, split.roles[scan.person], "") for scan in cohort.scans]
    rows += [_row(scan, "excluded", reason) for scan, reason in cohort.excluded]
    of_cohort = dict.fromkeys(covariates, "as in the cohort's table; empty where it is not known")
    first = {name: SCANS[name] for name in FIXED_COLUMNS[:3]}
    write_described(path, rows, first | of_cohort | SCANS)


def _row(scan: Scan, role: str, reason: str) -> dict[str, str]:
    own = {
        "participant_id": scan.person,
        "session_id": scan.session,
        "role": role,
        "reason": reason,
        "path": str(scan.path.resolve()),
    }
    return {**scan.covariates, **own}


def _covariates(row: Mapping[str, str]) -> dict[str, str]:
    return {name: cell for name, cell in row.items() if name not in FIXED_COLUMNS}
