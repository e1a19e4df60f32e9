"""What a deviation leaves: tables with what their columns mean, and maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerasvae.analysis.deviation.centiles import CENTILES
from kerasvae.analysis.deviation.scores import Deviation
from kerasvae.preprocess import Pipeline, write_image, write_volume
from kerasvae.training.run import write_json
from kerasvae.types import Mask

__all__ = ["CENTILE_COLUMNS", "COLUMNS", "REGIONS", "describe_maps", "worst", "write_maps"]

COLUMNS = {
    "participant_id": "whose",
    "session_id": "of which visit",
    "role": "in the run",
    "extent": "root mean square of t over voxels, t being the image less its reconstruction, less what is expected of "
    "it given the covariates, in calibration people's standard deviations: how unusual the whole image is",
    "p_extent": "conformal p: at most α with a probability of at most α for a healthy person",
    "q_extent": "false discovery rate over all people and all three scores of this table (Benjamini-Hochberg)",
    "focus": "largest value of any band-passed map, in the person's own spread: how far one place stands out",
    "p_focus": "conformal p",
    "q_focus": "as q_extent",
    "focus_x": "where, mm",
    "focus_y": "where, mm",
    "focus_z": "where, mm",
    "distance": "of the code from what is expected given the covariates (Mahalanobis)",
    "p_distance": "conformal p",
    "q_distance": "as q_extent",
    "region": "that is the most unusual of all",
    "p_regions": "its conformal p, family-wise over the regions",
    "beyond": "share of voxels whose |z| exceeds 1.96; of healthy people 0.05 on average",
    "told": "share of voxels told at a false discovery rate of 0.05 by parametric z; no finite-sample guarantee",
}
REGIONS = {
    "participant_id": "whose",
    "session_id": "of which visit",
    "label": "number in the label image",
    "name": "of the region",
    "voxels": "on the model's grid, in the mask",
    "value": "mean of the image over the region, model units",
    "centile": "of the value, the image's own, among healthy people of that age (or whatever number the first "
    "covariate is; others are not looked at); 0: below the lowest, 5 %; 100: above the highest, 95 %. May be extreme "
    "where z and p are not: what the model reconstructs of the region is in the value and not in the residual",
    "z": "of the mean standardised residual over the region, what the model misses given all covariates; parametric",
    "p": "conformal p of the same, of this region alone",
    "p_family": "conformal p, family-wise over the regions: for a person in whom nothing is wrong anywhere",
}
CENTILE_COLUMNS = {
    "label": "number of the region",
    "name": "of the region",
    "at": "value of the covariate",
    **{f"centile_{centile:g}": f"{centile:g} % of people have a lower value, model units" for centile in CENTILES},
}
MAPS = {
    "z": ("image less its reconstruction, less what is expected of it given the covariates, in calibration people's "
          "standard deviations, as quantiles of a standard normal distribution (parametric)", "none"),
    "focus": ("of the bands of the residual the value that is furthest from 0: how far a place stands out",
              "the person's own spread: median absolute deviation, scaled to a normal standard deviation"),
}  # fmt: skip
"""What the maps of everybody show, and in what unit."""


def describe_maps(folder: Path, space: str, about: Mapping[str, Any], native: bool) -> None:
    """z.json and focus.json: each holds for all maps of its ending beside it (the inheritance principle of BIDS)."""
    for kind, (description, unit) in MAPS.items():
        told = {"Description": description, "Unit": unit, **about}
        write_json(folder / f"{kind}.json", told | {"Space": space})
        if native:
            write_json(folder / "native" / f"{kind}.json", told | {"Space": "of the scan of the same name"})


def worst(regions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The region of a person that is the most unusual, as cells of deviations.tsv."""
    if not regions:
        return {"region": "n/a", "p_regions": math.nan}
    worst = min(regions, key=lambda row: (row["p_family"], -abs(row["z"])))
    return {"region": worst["name"], "p_regions": worst["p_family"]}


def write_maps(folder: Path, name: str, one: Deviation, pipeline: Pipeline, inside: Mask, scan: Path | None) -> None:
    """The maps of a person on the model's grid, and where its scan is given in the scan's own space."""
    for kind, values in (("z", one.z), ("focus", one.focus_map)):
        grid = np.zeros(inside.shape, np.float32)
        grid[inside] = values
        write_volume(folder / f"{name}_{kind}.nii.gz", grid, pipeline.grid.matrix, space=pipeline.grid.space)
        if scan is not None:
            write_image(folder / "native" / f"{name}_{kind}.nii.gz", pipeline.invert(grid, scan))
