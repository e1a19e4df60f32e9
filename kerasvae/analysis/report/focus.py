"""A person's map of deviations in three planes through the place that stands out most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kerasvae.analysis.words import number
from kerasvae.types import Affine

__all__ = ["focus_figure"]

LIMIT = 5.0
"""Of the colours, one for all people."""
SHOWN = 1.96
"""|z| below which nothing is painted."""
PLANES = (("sagittal", 0, "x"), ("coronal", 1, "y"), ("axial", 2, "z"))


def focus_figure(
    z: NDArray[np.float32], affine: Affine, at: Sequence[float], under: NDArray[np.floating] | None = None
) -> Figure:
    """Three planes, the person's left at the left: red above what is expected, blue below, a cross at the place.

    Args:
        z: (x, y, z), 0 outside the mask, axes RAS+.
        affine: Voxel to mm.
        at: Of the place, mm.
        under: (x, y, z): an image beneath, in grey; then |z| of less than 1.96 is not painted.
    """
    place = np.round(np.linalg.solve(affine, [*at, 1.0])[:3]).astype(int)
    place = np.clip(place, 0, np.array(z.shape) - 1)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    inside = z != 0
    box = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    cut = [
        (int(each[0]), int(each[-1]) + 1) if len(each) else (0, size) for each, size in zip(box, z.shape, strict=True)
    ]
    painted = np.where(inside if under is None else inside & (np.abs(z) >= SHOWN), z, np.nan)
    sizes = [(high - low) * step for (low, high), step in zip(cut, spacing, strict=True)]
    figure = Figure(figsize=(10.5, 2.9), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=[sizes[1], sizes[0], sizes[0]])
    style: dict[str, Any] = {"origin": "lower", "interpolation": "nearest"}
    shown: Any = None
    for axes, (plane, axis, letter) in zip(panels, PLANES, strict=True):
        across, up = (each for each in range(3) if each != axis)
        extent = [cut[across][0] - 0.5, cut[across][1] - 0.5, cut[up][0] - 0.5, cut[up][1] - 0.5]
        aspect = spacing[up] / spacing[across]
        axes.set(facecolor="black", xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        if under is not None:
            grey = _plane(np.where(inside, under, np.nan), axis, int(place[axis]), cut)
            low, high = np.percentile(under[inside], [1, 99]) if inside.any() else (0.0, 1.0)
            axes.imshow(grey, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), extent=extent, aspect=aspect, **style)
        slices = _plane(painted, axis, int(place[axis]), cut)
        shown = axes.imshow(slices, cmap="RdBu_r", vmin=-LIMIT, vmax=LIMIT, extent=extent, aspect=aspect, **style)
        axes.axvline(place[across], color="#ffd400", linewidth=0.7, alpha=0.8)
        axes.axhline(place[up], color="#ffd400", linewidth=0.7, alpha=0.8)
        axes.set_title(f"{plane}, {letter} = {number(at[axis], 0)} mm", fontsize=10)
        text: dict[str, Any] = {"transform": axes.transAxes, "color": "white", "fontsize": 8, "va": "top"}
        axes.text(0.02, 0.98, "L" if axis else "back", ha="left", **text)
        axes.text(0.98, 0.98, "R" if axis else "front", ha="right", **text)
    bar = figure.colorbar(shown, ax=list(panels), pad=0.01, aspect=14, extend="both", label="z")
    bar.outline.set_visible(False)
    return figure


def _plane(volume: NDArray[Any], axis: int, index: int, cut: Sequence[tuple[int, int]]) -> NDArray[Any]:
    """A slice, (up, across), cut to the box."""
    across, up = (each for each in range(3) if each != axis)
    flat = np.take(volume, index, axis=axis)
    return flat[slice(*cut[across]), slice(*cut[up])].T
