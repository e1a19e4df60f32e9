"""Two runs on the same people, side by side: what each reconstructs of a person, and what it misses.

A model at the mean brain gives everybody the same reconstruction. One person's slices cannot show that; a column of
several people's can.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from kerasvae.analysis.panel import Examples, axial_levels, label_slices, show_slices
from kerasvae.analysis.words import number
from kerasvae.errors import RunError
from kerasvae.metrics import variance_ratio
from kerasvae.metrics.diagnosis import NEAR_ZERO
from kerasvae.types import Mask

__all__ = ["Pair", "mean_correlation", "pair_of", "people_figure"]

ROW, WIDTH, SCALES = 1.42, 10, 0.75
"""Height of a person, width of the figure, height of the colour bars, inches."""


@dataclass(frozen=True)
class Pair:
    """The same people in two runs.

    Attributes:
        examples: Of this run.
        other: Reconstructions by the other run, as `examples.image`, in the order of `examples.people`.
    """

    examples: Examples
    other: NDArray[np.float32]

    def explained(self) -> list[tuple[float, float]]:
        """Of each person, the share that this run and the other explain; see `Examples.explained`."""
        both = (self.examples.reconstruction, self.other)
        ours, other = ([self.examples.explained(i, a) for i in range(len(a))] for a in both)
        return list(zip(ours, other, strict=True))

    def describe(self) -> str:
        """How alike these people's images are, this run's reconstructions and the other's, as sentences."""
        images, ours, other = (
            a[:, self.examples.mask] for a in (self.examples.image, self.examples.reconstruction, self.other)
        )
        if len(images) < 2:
            return "One person says nothing about differences between reconstructions."
        alike, alike_ours, alike_other = (number(mean_correlation(a), 4) for a in (images, ours, other))
        share, share_other = variance_ratio(images, ours), variance_ratio(images, other)
        same = [name for name, value in (("Our", share), ("The other run's", share_other)) if value < NEAR_ZERO]
        found = "".join(f"{name} reconstructions of different people are all but identical. " for name in same)
        return (
            f"{found}Variance between these people's reconstructions, as a share of the images': ours "
            f"{number(share)}, other {number(share_other, 4)}. Mean correlation between two people: images {alike}, "
            f"ours {alike_ours}, other {alike_other}."
        )


def pair_of(ours: Examples, theirs: Examples, where: Path) -> Pair:
    """Match two runs by their people; several scans of a person by their order.

    Args:
        ours: Examples of this run.
        theirs: Of the other run.
        where: The other run's folder, for the sentence of an error.

    Raises:
        RunError: If grids, masks, people or images differ.
    """

    def refuse(rule: str, got: str) -> RunError:
        return RunError(where, rule=f"have {rule} of the run beside it", got=got, fix="Give a run on the same images")

    if ours.mask.shape != theirs.mask.shape:
        raise refuse(f"the grid, {_by(ours.mask)} voxels,", f"{_by(theirs.mask)} voxels")
    if not np.allclose(ours.affine, theirs.affine, atol=1e-3):
        raise refuse("the grid", "another affine")
    mine, others = _scans(ours.people), _scans(theirs.people)
    if set(mine) != set(others):
        first = min(set(mine) ^ set(others))[0]
        raise refuse("the example people", f"{first} in one of them only")
    if not np.array_equal(ours.mask, theirs.mask):
        raise refuse("the mask", f"{theirs.mask.sum()} voxels in the place of {ours.mask.sum()}")
    rows = [others.index(scan) for scan in mine]
    low, high = ours.grey_limits
    if not np.allclose(ours.image, theirs.image[rows], rtol=0, atol=1e-3 * (high - low)):
        raise refuse("the images", "other intensities of the same people")
    return Pair(ours, theirs.reconstruction[rows])


def people_figure(pair: Pair) -> Figure:
    """A person a row: image, this run's reconstruction, what it misses, the other's, what that misses.

    Grey values have one scale, and so have differences, which is that of people's differences from the mean brain: a
    reconstruction that is the mean brain misses all of it.

    Args:
        pair: Two runs.
    """
    examples, count = pair.examples, len(pair.examples.people)
    levels = axial_levels(examples.mask)[-2:]
    low, high = examples.grey_limits
    grey = {"cmap": "gray", "vmin": low, "vmax": high}
    limit = examples.difference_limit
    diverging = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    figure = Figure(figsize=(WIDTH, ROW * count + SCALES), layout=layout)
    cells = figure.subplots(count + 1, 5, height_ratios=[ROW] * count + [SCALES], squeeze=False)
    titles = ("image", "ours", "image − ours", "other", "image − other")
    for axes, title in zip(cells[0], titles, strict=True):
        axes.set_title(title)
    for person, (row, shares) in enumerate(zip(cells, pair.explained(), strict=False)):
        image, ours, other = (a[person] for a in (examples.image, examples.reconstruction, pair.other))
        for axes, volume in zip(row[[0, 1, 3]], (image, ours, other), strict=True):
            grey_map = show_slices(axes, volume, examples, levels, grey)
        for axes, volume in zip(row[[2, 4]], (ours, other), strict=True):
            difference_map = show_slices(axes, image - volume, examples, levels, diverging)
        for axes, share in zip(row[[1, 3]], shares, strict=True):
            _write(axes, f"explained {number(share, 2)}")
        row[0].set_ylabel(str(person + 1), rotation=0, ha="right", va="center", fontweight="bold")
    label_slices(cells[0, 0], examples.affine, examples.mask.shape, levels)
    for axes in cells[-1]:
        axes.set_axis_off()
    for column, painted, label in ((1, grey_map, "image, model's units"), (2, difference_map, "difference")):
        bar = figure.colorbar(
            painted, cax=cells[-1, column].inset_axes((0.05, 0.6, 0.9, 0.2)), orientation="horizontal"
        )
        bar.set_label(label, fontsize=9)
        bar.ax.tick_params(labelsize=8)
    return figure


def mean_correlation(images: NDArray) -> float:
    """Mean of Pearson's correlation over voxels between any two of n ≥ 2 images, (n, v); NaN with a flat one."""
    centred = np.asarray(images, np.float64)
    centred = centred - centred.mean(axis=1, keepdims=True)
    length = np.sqrt(np.square(centred).sum(axis=1, keepdims=True))
    if not length.all():
        return float("nan")
    between = (centred / length) @ (centred / length).T
    return float(between[np.triu_indices(len(between), 1)].mean())


def _write(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.01, text, transform=axes.transAxes, color="white", fontsize=8, ha="center", va="bottom")


def _scans(people: list[str]) -> list[tuple[str, int]]:
    """Each scan as its person and how many of that person's came before."""
    return [(name, people[:index].count(name)) for index, name in enumerate(people)]


def _by(mask: Mask) -> str:
    return " × ".join(map(str, mask.shape))
