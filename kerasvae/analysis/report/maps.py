"""What the code means in the image, for a page: maps of associations as slices, traversals as strips that scroll."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kerasvae.analysis import figures
from kerasvae.analysis.maps.figures import Frame
from kerasvae.analysis.maps.folder import Traversal, read_traversals
from kerasvae.analysis.maps.steps import MARK, MEAN, beyond
from kerasvae.analysis.panel import axial_levels, label_slices, montage, show_slices
from kerasvae.analysis.report.files import View, read_map, read_object
from kerasvae.analysis.report.strips import Strip, strip_of
from kerasvae.analysis.words import number, signed, significant
from kerasvae.types import Affine

__all__ = ["Step", "association_figure", "maps_view", "step_of"]

SHOWN = 4
"""Maps of associations at most; all are in the folder."""
BUDGET = 2_200_000
"""Bytes of maps and traversals on the page, about: a traversal begins where fewer are there."""
LEVELS = 6


@dataclass(frozen=True)
class Step:
    """What the steps of a traversal are.

    Args:
        title: Along what.
        labels: Of each step.
        small: Of each step, in the variable's own unit.
        meaning: A sentence.
    """

    title: str
    labels: list[str]
    small: list[str]
    meaning: str


def maps_view(path: Path) -> View:
    """Of a run folder.

    Raises:
        ValueError: If there is no map; or what `kerasvae.analysis.report.files.told_if_damaged` turns into a
            `RunError`.
    """
    folder = path / "maps"
    slopes = sorted(folder.glob("*_slope.nii.gz"))
    traversals = read_traversals(folder)
    if not slopes and not traversals:
        raise ValueError("no maps")
    names = [slope.name.removesuffix("_slope.nii.gz") for slope in slopes]
    along = sorted(traversals, key=lambda each: (_stem(each) not in names, each.name))
    maps = [_association(folder, name, index) for index, name in enumerate(names[:SHOWN])]
    room = BUDGET - sum(len(each["figure"]) for each in maps)
    strips: list[tuple[Step, Strip, bool]] = []
    for traversal in along:
        if sum(strip.size for _, strip, _ in strips) < room:
            step = step_of(traversal, folder)
            named = [f"{step.title}, {label}" for label in step.labels]
            strips.append((step, strip_of(traversal, named, f"scale{len(strips)}"), _stem(traversal) in names))
    return View(
        {
            "maps": maps,
            "strips": [each for each in strips if each[2]],
            "axes": [each for each in strips if not each[2]],
            "left_out": [_contrast(folder, name) for name in names[SHOWN:]]
            + [step_of(each, folder).title for each in along[len(strips) :]],
        }
    )


def step_of(traversal: Traversal, folder: Path) -> Step:
    """What its sidecar, and that of the map of the same variable, say of the steps.

    Args:
        traversal: As `kerasvae.analysis.maps.folder.read_traversals` reads it.
        folder: Where it lies.
    """
    name, positions, reach = _stem(traversal), traversal.positions, traversal.about.get("Reach")
    marks = _marks(traversal.about, len(positions))
    outside = _outside(traversal.about, level=" against " in _meaning(folder, name)) if any(marks) else ""
    marked = list(zip(positions, marks, strict=True))
    deviations = [(f"{signed(each)} SD" if each else MEAN) + mark for each, mark in marked]
    if reach is None:
        spread = float(traversal.about["StandardDeviation"])
        number_of = name.rpartition("-")[2]
        title = f"dimension {int(number_of)}" if number_of.isdigit() else name
        meaning = f"SD: standard deviation of people’s codes in this dimension, {spread:.3g}.{outside}"
        return Step(title, deviations, [""] * len(positions), meaning)
    meaning = _meaning(folder, name)
    if " against " in meaning:
        told = f"{MEAN.capitalize()} is the mean code’s, 1 the whole difference of {meaning}.{outside}"
        levels = [(signed(each * float(reach)) if each else MEAN) + mark for each, mark in marked]
        return Step(meaning, levels, [""] * len(positions), told)
    asked = _contrast(folder, name)
    values = [f"{asked} {signed(each * float(reach))}" if each else "" for each in positions]
    told = f"SD: standard deviation of people’s {asked}, {float(reach):.3g}; beside it the change of {asked}.{outside}"
    return Step(asked, deviations, values, told)


def _marks(about: Mapping[str, Any], steps: int) -> list[str]:
    """A mark for each step that nobody of the cohort has; an earlier sidecar does not tell."""
    if "CohortRange" not in about:
        return [""] * steps
    return [MARK if out else "" for out in beyond([float(each) for each in about["Values"]], *about["CohortRange"])]


def _outside(about: Mapping[str, Any], *, level: bool) -> str:
    if level:
        return f" {MARK} Extrapolated: beyond either of the two, where nobody of the cohort is."
    (low, high), values = about["CohortRange"], about["Values"]
    own = f"{significant(min(values))} to {significant(max(values))}"
    return f" {MARK} Extrapolated: the cohort has {significant(low)} to {significant(high)}, the steps {own}."


def association_figure(maps: Mapping[str, NDArray[np.float32]], affine: Affine, labels: Mapping[str, str]) -> Figure:
    """Axial slices, a map a row, each with its own colour bar: red above 0, blue below.

    Args:
        maps: (x, y, z) each, 0 outside the mask.
        affine: Voxel to mm.
        labels: What the colours of each are.
    """
    inside = np.logical_or.reduce([values != 0 for values in maps.values()])
    frame, levels = Frame(inside, affine), axial_levels(inside, LEVELS)
    rows, columns = montage(inside, inside, levels).shape
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    high = 9.4 * rows * spacing[1] / (columns * spacing[0])  # so that slices fill the width beside the colour bar
    figure = Figure(figsize=(10.5, (high + 0.08) * len(maps)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(maps), 1))
    for axes, (name, values) in zip(panels, maps.items(), strict=True):
        known = np.abs(values[inside]) if inside.any() else np.zeros(1)
        limit = float(np.percentile(known, 99.5)) or float(known.max()) or 1.0
        painted = show_slices(axes, values, frame, levels, {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit})
        bar = figure.colorbar(painted, ax=axes, pad=0.01, aspect=12)
        bar.set_label(labels[name], fontsize=9)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8)
    label_slices(panels[0], affine, inside.shape, levels)
    return figure


def _association(folder: Path, name: str, index: int) -> dict[str, Any]:
    """Slope and z of a variable."""
    about = read_object(folder / f"{name}_slope.json")
    slope, affine = read_map(folder / f"{name}_slope.nii.gz")
    maps, labels = {"slope": slope}, {"slope": "model units"}
    if (folder / f"{name}_z.nii.gz").is_file():
        z, other = read_map(folder / f"{name}_z.nii.gz")
        if z.shape != slope.shape or not np.allclose(affine, other, atol=1e-3):
            raise ValueError(f"{name}_z is on another grid than {name}_slope")
        maps["z"], labels["z"] = z, "z"
    meaning = _meaning(folder, name)
    covariates = [str(each) for each in about.get("Covariates", [])]
    rises, falls = ((_where(slope, affine, sign)) for sign in (1, -1))
    alt = (
        f"Axial slices of the map for {meaning}: {' and '.join(maps)}. It rises most at {rises}, falls most at {falls}."
    )
    figure: Markup = figures.to_svg(lambda: association_figure(maps, affine, labels), f"map{index}", alt, dpi=110)
    bend = about.get("Bend")
    return {
        "meaning": meaning,
        "figure": figure,
        "people": about.get("People", "?"),
        "covariates": covariates,
        "bootstraps": about.get("Bootstraps"),
        "bend": None if bend is None or not math.isfinite(bend) else number(100 * bend, 0),
        "z": "z" in maps,
    }


def _meaning(folder: Path, name: str) -> str:
    """E.g. "a unit more of age", from the sidecar of its map."""
    path = folder / f"{name}_slope.json"
    unit = str(read_object(path)["Unit"]) if path.is_file() else ""
    return unit.partition(" for ")[2] or name


def _contrast(folder: Path, name: str) -> str:
    """What is asked about, of which a file's name holds letters, digits and hyphens alone."""
    path = folder / f"{name}_slope.json"
    return str(read_object(path).get("Contrast", name)) if path.is_file() else name


def _where(values: NDArray[np.float32], affine: Affine, sign: int) -> str:
    place = np.unravel_index(int((sign * values).argmax()), values.shape)
    x, y, z = (affine @ [*place, 1])[:3]
    return f"({number(x, 0)}, {number(y, 0)}, {number(z, 0)}) mm"


def _stem(traversal: Traversal) -> str:
    return traversal.name.removesuffix("_traversal")
