"""Tables: covariates of images in, latents out."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError
from kerasvae.storage import atomic_path

__all__ = ["CovariateTable", "cells_of", "write_latents"]


class CovariateTable:
    """Covariates of images, from a file with tabs, or commas where its name ends in .csv.

    Raises:
        ArgumentError: If it cannot be read, or rows and images cannot be matched.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as stream:
                rows = list(csv.DictReader(stream, delimiter=_delimiter(self.path)))
            self.digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ArgumentError("--covariates", rule="be a readable table", got=str(error), fix="Correct it") from error
        columns = rows[0] if rows else {}
        self.keys = ["file"] if "file" in columns else [k for k in ("participant_id", "session_id") if k in columns]
        if "file" not in columns and "participant_id" not in columns:
            raise ArgumentError(
                "--covariates",
                rule="have rows, and a column file or participant_id",
                got=f"{self.path} with the columns {', '.join(columns) or 'none'}",
                fix="Add one, so that rows and images can be matched",
            )
        self._rows = rows

    @cached_property
    def _by_name(self) -> dict[tuple[str, ...], list[dict[str, str]]]:
        found: dict[tuple[str, ...], list[dict[str, str]]] = {}
        for row in self._rows:
            found.setdefault(tuple((row[key] or "n/a").strip() for key in self.keys), []).append(row)
        return found

    def of(self, path: Path) -> dict[str, str]:
        """The row of an image.

        Raises:
            ArgumentError: If there is none, or more than one.
        """
        names = _names(path)
        wanted = tuple(names[key] for key in self.keys)
        found = self._by_name.get(wanted, [])
        if len(found) != 1:
            raise ArgumentError(
                "--covariates",
                rule=f"have one row for {path.name} ({', '.join(wanted)})",
                got=f"{len(found)} in {self.path}",
                fix="Add what is missing, or remove what is twice",
            )
        return {name: cell or "" for name, cell in found[0].items() if name is not None}


def write_latents(
    out: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]
) -> None:
    """Write the table, whole or not at all.

    Args:
        out: Separated by tabs, or by commas where its name ends in .csv.
        columns: Names of the latents.
        rows: Of each image its file and its latents.

    Raises:
        StorageError: If it cannot be written; what stood there before stays.
    """
    with (
        atomic_path(out) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        writer = csv.writer(stream, delimiter=_delimiter(Path(out)), lineterminator="\n")
        writer.writerow(["file", "participant_id", "session_id", *columns])
        writer.writerows([*_names(Path(file)).values(), *cells] for file, cells in rows)


def cells_of(outputs: dict[str, NDArray[Any]]) -> dict[str, str]:
    """One cell for each number: a column for each index along every axis; the bare name where there is no axis.

    >>> cells_of({"mean": np.array([0.5, -2.0]), "codes": np.array([7])})
    {'mean_0': '0.5', 'mean_1': '-2', 'codes_0': '7'}
    """
    return {
        "_".join([name, *map(str, index)]): _cell(values[index].item())
        for name, values in outputs.items()
        for index in np.ndindex(values.shape)
    }


def _delimiter(path: Path) -> str:
    return "," if path.suffix == ".csv" else "\t"


def _names(path: Path) -> dict[str, str]:
    """File, person and session of an image."""
    found = {key: re.search(rf"(?:^|_)({key}-[A-Za-z0-9]+)(?=_|\.)", path.name) for key in ("sub", "ses")}
    person, session = (match.group(1) if match else "n/a" for match in found.values())
    return {"file": str(path), "participant_id": person, "session_id": session}


def _cell(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"
