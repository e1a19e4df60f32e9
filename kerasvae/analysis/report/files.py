"""What a study leaves in a run folder, read for a page: of a damaged file one sentence is told, and no more."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from kerasvae.analysis.report.verdict import Finding
from kerasvae.errors import KerasVAEError, RunError
from kerasvae.types import Affine

__all__ = ["View", "read_map", "read_object", "read_rows", "told_if_damaged"]


@dataclass(frozen=True)
class View:
    """What a section of the page shows.

    Args:
        content: For its template.
        findings: What follows from it, for the top of the page.
    """

    content: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)


@contextmanager
def told_if_damaged(name: str, fix: str) -> Iterator[None]:
    """Turn whatever a damaged file causes into a `RunError`.

    Args:
        name: Of the file or folder, as the reader of the page knows it.
        fix: How to make it again.

    Raises:
        RunError: In the place of what reading raised.
    """
    try:
        yield
    except KerasVAEError:
        raise
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, csv.Error,
            zlib.error, ImageFileError) as error:  # fmt: skip
        said = f"one that cannot be read ({type(error).__name__})"
        raise RunError(name, rule="be as kerasvae wrote it", got=said, fix=fix) from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is none.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is no object")
    return content


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a .tsv, cells as text.

    Args:
        path: Of the table.
        columns: Names that it must have; it may have others.

    Raises:
        RunError: If it has no rows, or lacks a column or a cell.
        OSError: If there is no such file.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t")
        rows, names = list(reader), reader.fieldnames or []
    if missing := [name for name in columns if name not in names]:
        rule = "have the columns that it was written with"
        raise RunError(path.name, rule=rule, got=f"a table without {missing[0]}", fix="Make it again")
    if not rows or any(None in row or None in row.values() for row in rows):
        got = "a row that is cut off" if rows else "none"
        raise RunError(path.name, rule="have rows with a cell in each column", got=got, fix="Make it again")
    return rows


def read_map(path: Path) -> tuple[NDArray[np.float32], Affine]:
    """A map as (x, y, z), axes RAS+ as far as turning and mirroring go, and its affine, voxel to mm.

    Raises:
        ValueError: If it has no three axes.
        OSError: If there is no such file, or as nibabel does.
    """
    image = nibabel.as_closest_canonical(nibabel.load(path))
    values = np.asarray(image.dataobj, np.float32)
    if values.ndim != 3:
        raise ValueError(f"{path.name} has {values.ndim} axes")
    return np.nan_to_num(values), np.asarray(image.affine, np.float64)
