"""What a map says region by region: labels of any image, brought to the model's grid."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError, VolumeError
from kerasvae.preprocess import Pipeline, as_volume
from kerasvae.types import Grid, Mask

__all__ = ["REGION_COLUMNS", "Region", "place_labels", "read_label_names", "summarise"]

NUMBER_COLUMNS = ("index", "label", "value", "id")
"""Columns that a label's number may stand in, in lower case, and in this order (BIDS dseg.tsv: index)."""
NAME_COLUMNS = ("name", "label_name", "region", "structure")
REGION_COLUMNS = {
    "map": "file that is summarised, without its ending",
    "label": "number of the region in the label image",
    "name": "of the region",
    "voxels": "of the region on the model's grid, in the mask: those that count",
    "volume_mm3": "theirs",
    "covered": "share of the region's voxels on the grid that lie in the mask",
    "mean": "over the voxels, in the map's unit; of tissue fractions, times volume_mm3 it is mm³ of tissue",
    "sd": "standard deviation over the voxels",
    "low": "lower end of the mean's 95 % interval (bootstrap over people); of maps of associations only",
    "high": "upper end",
    "peak": "value that is furthest from 0",
    "peak_x": "where, mm",
    "peak_y": "where, mm",
    "peak_z": "where, mm",
}


@dataclass(frozen=True, kw_only=True)
class Region:
    """A region of a map; fields are described by `REGION_COLUMNS`, and what is not known is None."""

    label: int
    name: str
    voxels: int
    volume_mm3: float
    covered: float
    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    peak: float | None = None
    peak_x: float | None = None
    peak_y: float | None = None
    peak_z: float | None = None


def place_labels(image: str | os.PathLike[str] | Any, pipeline: Pipeline) -> NDArray[np.int64]:
    """Labels on the model's grid, (x, y, z), by nearest neighbour, as the pipeline places images; 0 is no label.

    An atlas in the grid's space and a segmentation beside a person's scan are placed alike, each by its own affine.

    Args:
        image: A path, a `Volume` or a nibabel image, of whole numbers.
        pipeline: Of the run.

    Raises:
        VolumeError: If it cannot be read, holds other numbers, or no label comes to lie on the grid.
    """
    volume = as_volume(image, content="labels, and 0 where there is none")
    if not np.array_equal(volume.data, np.rint(volume.data)) or np.abs(volume.data).max() >= 2**24:
        rule = "hold labels, whole numbers below 2²⁴"
        raise VolumeError(volume.source, rule=rule, got="others", fix="Give a segmentation, not an image")
    placed = pipeline.with_interpolation("nearest").place(volume).astype(np.int64)
    if not placed.any():
        got = "one that lies elsewhere"
        raise VolumeError(volume.source, rule="have a label on the model's grid", got=got, fix="Check its affine")
    return placed


def read_label_names(path: str | os.PathLike[str]) -> dict[int, str]:
    """Names of labels from a table with a number and a name in each row (.csv, else tab-separated).

    The number stands in a column index, label, value or id, the name in name, label_name, region or structure. Rows
    whose number is no whole number are passed over.

    Raises:
        ArgumentError: If it cannot be read or has no such columns.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="," if path.suffix.lower() == ".csv" else "\t")
            rows, found = list(reader), {name.strip().lower(): name for name in reader.fieldnames or ()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArgumentError("--label-names", rule="be a readable table", got=str(error), fix="Correct it") from error
    numbers, names = ([found[each] for each in kind if each in found] for kind in (NUMBER_COLUMNS, NAME_COLUMNS))
    if not numbers or not names:
        rule, got = "have the columns index and name", ", ".join(found.values()) or "an empty file"
        raise ArgumentError("--label-names", rule=rule, got=got, fix="Rename its columns")
    cells = [((row[numbers[0]] or "").strip(), (row[names[0]] or "").strip()) for row in rows]
    return {int(number): name for number, name in cells if number.lstrip("-").isdecimal()}


def summarise(
    values: NDArray[np.floating],
    labels: NDArray[np.int64],
    inside: Mask,
    grid: Grid,
    *,
    names: Mapping[int, str] | None = None,
    interval: Callable[[Mask], tuple[float, float, float]] | None = None,
) -> list[Region]:
    """A row for each label, by its number.

    Args:
        values: The map, (x, y, z).
        labels: (x, y, z), 0 for none.
        inside: Voxels that count, (x, y, z).
        grid: Of all three.
        names: Of labels; one without is called by its number.
        interval: Gives a region's mean and the ends of its interval, see `AssociationMap.mean_of`.
    """
    voxel = float(abs(np.linalg.det(grid.matrix[:3, :3])))
    rows = []
    for label in np.unique(labels[labels != 0]).tolist():
        region = labels == label
        counted = region & inside
        own: dict[str, Any] = {}
        if counted.any():
            here = values[counted].astype(np.float64)
            far = int(np.abs(here).argmax())
            place = grid.matrix @ [*np.argwhere(counted)[far], 1]
            own = {"mean": float(here.mean()), "sd": float(here.std()), "peak": float(here[far])}
            own |= dict(zip(("peak_x", "peak_y", "peak_z"), map(float, place[:3]), strict=True))
            if interval is not None:
                _, own["low"], own["high"] = interval(counted)
        count = int(counted.sum())
        row = Region(
            label=label,
            name=(names or {}).get(label, str(label)),
            voxels=count,
            volume_mm3=count * voxel,
            covered=count / int(region.sum()),
            **own,
        )
        rows.append(row)
    return rows
