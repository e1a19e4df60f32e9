"""Maps as pictures: nilearn's slices over the mean image, and traversals as slices side by side.

Only the object API of matplotlib is used, as in `kerasvae.analysis.figures`, and one diverging map that is told apart
by those who confuse red and green: blue below, red above (ColorBrewer RdBu).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kerasvae.analysis.figures import STYLE
from kerasvae.analysis.panel import axial_levels, label_slices, montage, show_slices
from kerasvae.preprocess.nifti import image_of, sform_code_of
from kerasvae.storage import atomic_path
from kerasvae.types import Affine, Grid, Mask

__all__ = ["DIVERGING", "Frame", "map_figure", "save_png", "traversal_figure", "traversal_slices"]

DIVERGING = "RdBu_r"
LEVELS = 7


class Frame(NamedTuple):
    """Where a map lies.

    Attributes:
        mask: (x, y, z): what is shown.
        affine: Voxel to mm.
    """

    mask: Mask
    affine: Affine


def map_figure(
    values: NDArray[np.floating],
    background: NDArray[np.floating],
    inside: Mask,
    grid: Grid,
    *,
    label: str,
    outline: Mask | None = None,
) -> Figure:
    """Axial slices of a map over an image, by nilearn; the person's left is left.

    Args:
        values: (x, y, z); what is 0 is not painted.
        background: (x, y, z), e.g. the image of the mean code.
        inside: (x, y, z): the mask.
        grid: Where they lie.
        label: What the colours are, with the unit.
        outline: (x, y, z): voxels that are outlined, e.g. those of small p.
    """
    from nilearn.plotting import plot_stat_map

    code = sform_code_of(grid.space)
    heights = [float((grid.matrix @ [0, 0, level, 1])[2]) for level in axial_levels(inside, LEVELS)]
    limit = float(np.percentile(np.abs(values[inside]), 99.5)) or float(np.abs(values).max()) or 1.0
    with matplotlib.rc_context({"font.size": STYLE["font.size"]}):
        figure = Figure(figsize=(12, 2.5), facecolor="white")
        shown = plot_stat_map(
            image_of(values, grid.matrix, code),
            bg_img=image_of(background, grid.matrix, code),
            display_mode="z",
            cut_coords=heights,
            figure=figure,
            axes=(0.0, 0.02, 0.93, 0.86),
            colorbar=False,
            black_bg=False,
            cmap=DIVERGING,
            vmax=limit,
            threshold=limit * 1e-6 if values.any() else None,
            draw_cross=False,
            resampling_interpolation="nearest",
        )
        if outline is not None and outline.any():
            edges = image_of(outline, grid.matrix, code)
            shown.add_contours(edges, levels=[0.5], colors="black", linewidths=0.8)
        scale = ScalarMappable(Normalize(-limit, limit), DIVERGING)
        figure.colorbar(scale, cax=figure.add_axes((0.945, 0.08, 0.008, 0.74)))
        figure.text(0.005, 0.98, label, va="top", ha="left", fontsize=11)
    return figure


def traversal_slices(images: NDArray[np.floating], frame: Frame, levels: Sequence[int] = ()) -> NDArray[np.float32]:
    """Slices of each step side by side, for a page that scrolls through them: (steps, rows, columns), row 0 posterior.

    Args:
        images: (steps, x, y, z).
        frame: Where they lie; what is outside its mask becomes NaN.
        levels: Indices along z; by default three through the middle.
    """
    chosen = list(levels) or axial_levels(frame.mask)
    return np.stack([montage(image, frame.mask, chosen) for image in images]).astype(np.float32)


def traversal_figure(images: NDArray[np.floating], frame: Frame, titles: Sequence[str], caption: str = "") -> Figure:
    """Steps side by side: axial slices above, below them their differences from the middle step.

    Args:
        images: (steps, x, y, z), an odd number of them.
        frame: Where they lie.
        titles: (steps,): what stands above each.
        caption: What stands below them all.
    """
    levels = axial_levels(frame.mask, 5)[1::2]
    middle = images[len(images) // 2]
    low, high = np.percentile(middle[frame.mask], [1, 99])
    limit = float(np.percentile(np.abs(images - middle)[:, frame.mask], 99.5)) or 1.0
    figure = Figure(figsize=(2.1 * len(images), 3.4), layout="constrained")
    upper, lower = figure.subplots(2, len(images), squeeze=False)
    scales: tuple[dict[str, Any], dict[str, Any]] = (
        {"cmap": "gray", "vmin": float(low), "vmax": float(high if high > low else low + 1)},
        {"cmap": DIVERGING, "vmin": -limit, "vmax": limit},
    )
    for above, below, image, title in zip(upper, lower, images, titles, strict=True):
        show_slices(above, image, frame, levels, scales[0])
        painted = show_slices(below, image - middle, frame, levels, scales[1])
        above.set_title(title, fontsize=10, parse_math=False)
    label_slices(upper[0], frame.affine, frame.mask.shape, levels)
    bar = figure.colorbar(painted, ax=list(lower), shrink=0.8, pad=0.01)
    bar.set_label("difference,\nmodel units", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if caption:
        figure.supxlabel(caption, x=0.005, ha="left", fontsize=10, parse_math=False)
    return figure


def save_png(figure: Figure, path: Path, dpi: int = 130) -> Path:
    """Write a figure as PNG; the same figure gives the same bytes with the same libraries.

    Raises:
        StorageError: If it cannot be written.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png", metadata={"Software": None})
    return path
