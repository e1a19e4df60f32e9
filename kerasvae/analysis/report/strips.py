"""A traversal as a strip that a page scrolls through, without scripts: a picture a step, axial slices in rows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from kerasvae.analysis import figures
from kerasvae.analysis.maps.figures import DIVERGING, Frame, traversal_slices
from kerasvae.analysis.maps.folder import Traversal
from kerasvae.analysis.panel import axial_levels
from kerasvae.analysis.words import number

__all__ = ["Picture", "Strip", "strip_of"]

ROWS = 4
GREYS = 128
"""Of the 256 colours of a picture; 0 is black, the others are of differences."""
LARGEST = 120
"""Voxels along an edge beyond which every second one, or third, is shown."""


@dataclass(frozen=True)
class Picture:
    """A step.

    Args:
        data: A PNG as a data URI.
        alt: What it shows.
    """

    data: str
    alt: str


@dataclass(frozen=True)
class Strip:
    """A traversal on a page.

    Args:
        pictures: A step each: image at the left, difference from the middle step at the right.
        heights: z of the rows in mm, from above.
        ratio: Width of a picture over its height, in mm.
        scale: Colour bar of the differences.
    """

    pictures: list[Picture]
    heights: list[str]
    ratio: float
    scale: Markup

    @property
    def size(self) -> int:
        """Bytes of its pictures."""
        return sum(len(picture.data) for picture in self.pictures)


def strip_of(traversal: Traversal, names: Sequence[str], scale: str) -> Strip:
    """Pictures of a traversal.

    Args:
        traversal: Of an odd number of steps; 0 outside the mask.
        names: (steps,): what each is.
        scale: Name of the colour bar, unique on the page.
    """
    every = -(-max(traversal.images.shape[1:3]) // LARGEST)
    images, affine = traversal.images[:, ::every, ::every], np.asarray(traversal.affine, np.float64).copy()
    affine[:3, :2] *= every
    frame = Frame((images != 0).any(axis=0), affine)
    levels = axial_levels(frame.mask, ROWS)[::-1]
    middle = images[len(images) // 2]
    inside = frame.mask if frame.mask.any() else np.ones_like(frame.mask)
    low, high = (float(each) for each in np.percentile(middle[inside], [1, 99]))
    limit = float(np.percentile(np.abs(images - middle)[:, inside], 99.5)) or 1.0
    grey, change = (_rows_of(each, frame, levels) for each in (images, images - middle))
    shades = _shades(grey, low, high if high > low else low + 1, 1, GREYS)
    colours = _shades(change, -limit, limit, GREYS, 256)
    both = np.concatenate([shades, colours], axis=2)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return Strip(
        [
            Picture(
                _png(each), f"{name}: axial slices of the decoded image, and their difference from the mean code’s."
            )
            for each, name in zip(both, names, strict=True)
        ],
        [f"{number((affine @ [0, 0, level, 1])[2], 0)} mm" for level in levels],
        float(both.shape[2] * spacing[0] / (both.shape[1] * spacing[1])),
        figures.to_svg(lambda: _bar(limit), scale, f"Colour bar: differences from {-limit:.3g} to {limit:.3g}"),
    )


def _rows_of(images: NDArray[np.floating], frame: Frame, levels: Sequence[int]) -> NDArray[np.float32]:
    """Slices one below the other, front up, without what is empty in all of them: (steps, rows, columns)."""
    slices = [traversal_slices(images, frame, [level])[:, ::-1] for level in levels]
    used = np.flatnonzero(np.isfinite(slices).any(axis=(0, 1, 3)))
    first, last = (max(0, used[0] - 1), used[-1] + 2) if len(used) else (0, None)
    return np.concatenate([each[:, first:last] for each in slices], axis=1)


def _shades(values: NDArray[np.floating], low: float, high: float, first: int, end: int) -> NDArray[np.uint8]:
    """Indices into the palette, from `first` to before `end`; 0 where there is no value."""
    place = first + np.round(np.clip((values - low) / (high - low), 0, 1) * (end - 1 - first))
    return np.where(np.isfinite(values), place, 0).astype(np.uint8)


def _palette() -> list[int]:
    grey = np.linspace(0, 1, GREYS - 1)[:, None].repeat(3, axis=1)
    colours = matplotlib.colormaps[DIVERGING](np.linspace(0, 1, 256 - GREYS))[:, :3]
    return [int(each) for each in np.round(255 * np.concatenate([np.zeros((1, 3)), grey, colours])).ravel()]


def _png(indices: NDArray[np.uint8]) -> str:
    image, stream = Image.frombytes("P", indices.shape[::-1], indices.tobytes()), io.BytesIO()
    image.putpalette(_palette())
    image.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _bar(limit: float) -> Figure:
    figure = Figure(figsize=(3.6, 0.62), layout="constrained")
    bar = figure.colorbar(
        ScalarMappable(Normalize(-limit, limit), DIVERGING), cax=figure.subplots(), orientation="horizontal"
    )
    bar.set_label("difference from the mean code, model units", fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    return figure
