"""The mean-brain panel: one person, three reconstructions, and what they add to the mean brain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from kerasvae.analysis.words import number
from kerasvae.metrics import explained_variance
from kerasvae.types import Affine, Mask

__all__ = ["Examples", "Placed", "axial_levels", "label_slices", "montage", "person_panel", "show_slices"]


class Placed(Protocol):
    """Something with a mask, (x, y, z), and an affine, voxel to mm."""

    @property
    def mask(self) -> Mask:
        """Voxels that count."""

    @property
    def affine(self) -> Affine:
        """Voxel to mm."""


@dataclass(frozen=True)
class Examples:
    """Content of examples.npz.

    Attributes:
        people: Names, (n,).
        image: (n, x, y, z), axes RAS+.
        reconstruction: As `image`.
        pca: As `image`.
        mean_image: (x, y, z).
        mask: Voxels that count, (x, y, z).
        affine: Voxel to mm.
    """

    people: list[str]
    image: NDArray[np.float32]
    reconstruction: NDArray[np.float32]
    pca: NDArray[np.float32]
    mean_image: NDArray[np.float32]
    mask: Mask
    affine: Affine

    @property
    def grey_limits(self) -> tuple[float, float]:
        """Common limits of the grey scale: percentiles 1 and 99 of the people's images in the mask."""
        low, high = np.percentile(self.image[:, self.mask], [1, 99])
        return float(low), float(high if high > low else low + 1)

    @property
    def difference_limit(self) -> float:
        """Common limit of the differences: percentile 99 of |image − mean| in the mask."""
        limit = float(np.percentile(np.abs(self.image - self.mean_image)[:, self.mask], 99))
        return limit if limit > 0 else 1.0

    def explained(self, person: int, images: NDArray[np.float32]) -> float:
        """Share of one person's squared difference from the mean that is explained, in the mask; NaN without any.

        Args:
            person: Position of the person.
            images: Reconstructions, as `image`.
        """
        x, r, mean = (a[self.mask] for a in (self.image[person], images[person], self.mean_image))
        return explained_variance(x[None], r[None], mean) if np.any(x != mean) else float("nan")


def axial_levels(mask: Mask, count: int = 3) -> list[int]:
    """Indices along z of axial slices, spread over the middle of the mask; fewer where there are fewer slices.

    >>> axial_levels(np.ones((4, 4, 11), bool))
    [3, 5, 8]
    >>> axial_levels(np.ones((4, 4, 1), bool))
    [0]
    """
    inside = np.flatnonzero(mask.any(axis=(0, 1)))
    if not len(inside):
        inside = np.arange(mask.shape[2])
    fractions = np.linspace(0.3, 0.75, count)
    return sorted({int(np.floor(inside[0] + f * (inside[-1] - inside[0]) + 0.5)) for f in fractions})


def montage(volume: NDArray, mask: Mask, levels: list[int]) -> NDArray[np.float64]:
    """Axial slices side by side, cropped to the mask, NaN outside it: (rows, columns), row 0 posterior.

    Neurological: the person's left is left. Some empty rows below leave room for a label.

    Args:
        volume: (x, y, z), axes RAS+.
        mask: (x, y, z).
        levels: Indices along z.
    """
    columns, rows = (np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    box = (_margin(columns, mask.shape[0]), _margin(rows, mask.shape[1]))
    shown = np.where(mask, volume.astype(np.float64), np.nan)[box]
    slices = np.concatenate([shown[:, :, level].T for level in levels], axis=1)
    return np.pad(slices, ((len(slices) // 8, 0), (0, 0)), constant_values=np.nan)


def person_panel(examples: Examples, person: int) -> Figure:
    """Two rows of axial slices: image, ours, PCA, mean brain; below them their differences from the mean brain.

    Grey values and differences have each one scale for all people, so that panels compare.

    Args:
        examples: All examples.
        person: Which one.
    """
    levels, mean = axial_levels(examples.mask), examples.mean_image
    low, high = examples.grey_limits
    grey = {"cmap": "gray", "vmin": low, "vmax": high}
    limit = examples.difference_limit
    diverging = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    image, ours, pca = (a[person] for a in (examples.image, examples.reconstruction, examples.pca))
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    figure = Figure(figsize=(11, 3.1), layout=layout)
    upper, lower = figure.subplots(2, 4)
    for axes, title, volume in zip(
        upper, ("image", "ours", "PCA", "mean brain"), (image, ours, pca, mean), strict=True
    ):
        grey_map = show_slices(axes, volume, examples, levels, grey)
        axes.set_title(title)
    for axes, title, volume in zip(
        lower, ("image − mean", "ours − mean", "PCA − mean"), (image, ours, pca), strict=False
    ):
        difference_map = show_slices(axes, volume - mean, examples, levels, diverging)
        axes.set_title(title)
    label_slices(upper[0], examples.affine, examples.mask.shape, levels)
    lower[3].set_axis_off()
    for height, painted, label in (
        (0.78, grey_map, "image, model's units"),
        (0.28, difference_map, "difference from mean"),
    ):
        bar = figure.colorbar(painted, cax=lower[3].inset_axes((0.08, height, 0.84, 0.1)), orientation="horizontal")
        bar.set_label(label, fontsize=9)
        bar.ax.tick_params(labelsize=8)
    return figure


def show_slices(axes: Axes, volume: NDArray, placed: Placed, levels: list[int], scale: dict[str, Any]) -> Any:
    """Draw a volume's `montage` in true proportions; returns what a colour bar is made of.

    Args:
        axes: Where.
        volume: (x, y, z).
        placed: Its mask and affine.
        levels: Indices along z.
        scale: `cmap`, `vmin` and `vmax` of `Axes.imshow`.
    """
    spacing = np.linalg.norm(np.asarray(placed.affine, float)[:3, :3], axis=0)
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[], facecolor="black")
    axes.spines[:].set_visible(False)
    return axes.imshow(
        montage(volume, placed.mask, levels), origin="lower", aspect=float(spacing[1] / spacing[0]),
        interpolation="bilinear", interpolation_stage="data", **scale,
    )  # fmt: skip


def label_slices(axes: Axes, affine: Affine, shape: tuple[int, ...], levels: list[int]) -> None:
    """L and R at the edges, and the height of each slice, z in mm at the middle of the slice."""
    style: dict[str, Any] = {"transform": axes.transAxes, "color": "white", "fontsize": 8}
    axes.text(0.01, 0.97, "L", va="top", ha="left", fontweight="bold", **style)
    axes.text(0.99, 0.97, "R", va="top", ha="right", fontweight="bold", **style)
    for index, level in enumerate(levels):
        middle = np.asarray(affine, float) @ [(shape[0] - 1) / 2, (shape[1] - 1) / 2, level, 1]
        text = f"z = {number(middle[2], 0)} mm"
        axes.text((index + 0.5) / len(levels), 0.01, text, va="bottom", ha="center", **style)


def _margin(inside: NDArray[np.intp], size: int) -> slice:
    """From one voxel before to one after; everything where nothing is inside."""
    return slice(max(int(inside[0]) - 1, 0), min(int(inside[-1]) + 2, size)) if len(inside) else slice(0, size)
