"""The folder of maps: NIfTI with a JSON sidecar, on the grid and in a scan's own space, and what regions hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.maps.regions import REGION_COLUMNS, summarise
from kerasvae.preprocess import Pipeline, write_image, write_volume
from kerasvae.training.run import write_described, write_json
from kerasvae.types import Affine, Mask, Volume

__all__ = ["MapFolder", "Traversal", "read_traversals"]


@dataclass
class MapFolder:
    """Maps of one call; files of the same names are replaced, others left alone.

    Args:
        path: The folder; made when the first file is written.
        pipeline: Of the run: its grid, and the way back to native space.
        inside: (x, y, z): the mask.
        about: What the sidecar of each map says.
        native: A scan in whose own space three-dimensional maps are written too, under ``native/``.
        labels: (x, y, z): regions that three-dimensional maps are summarised in.
        names: Of the regions.
    """

    path: Path
    pipeline: Pipeline
    inside: Mask
    about: Mapping[str, Any]
    native: Volume | None = None
    labels: NDArray[np.int64] | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)
    regions: list[dict[str, Any]] = field(default_factory=list)

    def write(
        self,
        name: str,
        values: NDArray[np.floating],
        description: str,
        unit: str,
        *,
        interval: Callable[[Mask], tuple[float, float, float]] | None = None,
        **about: Any,
    ) -> None:
        """Write a map, its sidecar, and what follows from it.

        Args:
            name: Of the file, without its ending.
            values: (x, y, z), or (x, y, z, n).
            description: What it shows.
            unit: Of its values.
            interval: Of a region's mean, see `summarise`.
            about: What else its sidecar says.
        """
        grid, flat = self.pipeline.grid, values.ndim == 3
        told = {"Description": description, "Unit": unit, **about, **self.about}
        path = write_volume(self.path / f"{name}.nii.gz", values, grid.matrix, space=grid.space)
        write_json(self.path / f"{name}.json", told | {"Space": grid.space})
        self.written.append(path)
        if self.native is not None and flat:
            own = self.path / "native" / f"{name}.nii.gz"
            self.written.append(write_image(own, self.pipeline.invert(values, self.native)))
            write_json(own.with_name(f"{name}.json"), told | {"Space": f"of {Path(self.native.source).name}"})
        if self.labels is not None and flat:
            rows = summarise(values, self.labels, self.inside, grid, names=self.names, interval=interval)
            self.regions += [{"map": name, **asdict(row)} for row in rows]

    def close(self) -> None:
        """Write regions.tsv, where there are labels, and regions.json, which explains it."""
        if self.labels is None:
            return
        path = self.path / "regions.tsv"
        write_described(path, self.regions, REGION_COLUMNS, Settings=dict(self.about))
        self.written.append(path)


@dataclass(frozen=True)
class Traversal:
    """Decoded images along a line, as `MapFolder` holds them.

    Args:
        name: Of the file, without its ending.
        images: (steps, x, y, z), model units, axes RAS+.
        affine: Voxel to mm.
        positions: (steps,): where each is, in steps; the middle one is the mean code's.
        about: Its sidecar: ``Step`` says what a step is, ``Description`` along what.
    """

    name: str
    images: NDArray[np.float32]
    affine: Affine
    positions: list[float]
    about: dict[str, Any]


def read_traversals(folder: Path) -> list[Traversal]:
    """The traversals in a folder of maps, by name; none where there is no folder. Nothing is decoded.

    `kerasvae.analysis.maps.figures.traversal_slices` makes slices of them for a page.
    """
    import nibabel

    found = []
    for path in sorted(folder.glob("*_traversal.nii.gz")):
        image, name = nibabel.load(path), path.name.removesuffix(".nii.gz")
        about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        images = np.ascontiguousarray(np.moveaxis(np.asarray(image.dataobj, np.float32), -1, 0))
        found.append(Traversal(name, images, image.affine, about["Positions"], about))
    return found
