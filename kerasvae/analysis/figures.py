"""The charts of a report as matplotlib figures, and figures as SVG that follows the page's colours.

Only the object API of matplotlib is used: no pyplot, no window, nothing left behind. Series are told apart by marker
or dash as well as by colour (Okabe & Ito 2008, Color Universal Design; viridis for what is ordered).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

__all__ = ["ROLE_MARKERS", "ages", "kl_bars", "latent_scatter", "learning_curves", "to_svg"]

INK, LINE, OURS, PEER, IDLE = "#1c2127", "#c9cfd6", "#0072b2", "#d55e00", "#9aa1a9"
VARIABLES = {INK: "var(--ink)", LINE: "var(--line)", OURS: "var(--ours)", PEER: "var(--peer)", IDLE: "var(--idle)"}
"""Colours that the page's style sheet replaces, so that figures follow light, dark and print."""
ROLE_MARKERS = {"train": "o", "validation": "s", "calibration": "^", "test": "D"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kerasvae",
    "font.family": "sans-serif",
    "font.size": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def to_svg(draw: Callable[[], Figure], name: str, alt: str, dpi: int = 144) -> Markup:
    """An inline SVG element, safe to put into a page: text escaped, ids its own, colours the page's.

    Args:
        draw: Makes the figure.
        name: Prefix of the ids within; unique on the page.
        alt: What the figure shows, for those who do not see it.
        dpi: Resolution of images within the figure.
    """
    stream = io.StringIO()
    with matplotlib.rc_context(STYLE):
        draw().savefig(stream, format="svg", dpi=dpi)
    svg = stream.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    opening = Markup('<svg {} role="img" aria-label="{}">').format(Markup(box.group() if box else ""), alt)
    return opening + Markup(body)


def learning_curves(
    history: Sequence[Mapping[str, float]], best: int | None, *, latent_size: int, chance: float, whose: str
) -> Figure:
    """Six panels over epochs: what chooses the weights, the ELBO, the KL, and what the mean brain cannot fake.

    Args:
        history: Rows of history.csv, NaN where a cell is empty.
        best: Position of the epoch whose weights were kept.
        latent_size: Upper bound of the active units.
        chance: Identification by guessing on these people.
        whose: The people of the val_* columns, e.g. ``"validation"``.
    """
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    curves: list[tuple[str, str, list[tuple[str, str]]]] = [
        ("Calibrated ELBO (chooses the epoch)", "nats per subject", [("val_calibrated_elbo", whose)]),
        ("ELBO with the running scale", "nats per subject", [("val_elbo", whose), ("elbo", "train")]),
        ("KL divergence", "nats per subject", [("val_kl", whose), ("kl", "train")]),
        ("Explained variance between people", "share", [("val_explained_variance", whose)]),
        ("Identification", "share", [("val_identification", whose)]),
        ("Active units", "dimensions", [("val_active_units", whose)]),
    ]
    epochs = _column(history, "epoch")
    for axes, (title, unit, series) in zip(panels, curves, strict=True):
        for (column, label), colour, dash, marker in zip(series, (OURS, PEER), ("-", "--"), "os", strict=False):
            values = _column(history, column)
            shown = np.isfinite(values)
            size = 4 if shown.sum() <= 60 else 0
            axes.plot(epochs[shown], values[shown], dash, color=colour, marker=marker, markersize=size, label=label)
        if best is not None:
            axes.axvline(epochs[best], color=INK, linewidth=1, linestyle=":")
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.ticklabel_format(axis="y", useOffset=False)
        if len(series) > 1:
            axes.legend()
    _reference(panels[3], 0, "mean brain")
    _reference(panels[4], chance, "chance")
    panels[3].margins(y=0.15)
    panels[4].set_ylim(-0.03, 1.05)
    panels[5].set_ylim(-0.03 * latent_size, 1.05 * latent_size)
    if best is not None:
        late = epochs[best] > np.nanmean(epochs)
        panels[0].annotate(
            f"best: epoch {epochs[best]:.0f}", (epochs[best], 0), xycoords=("data", "axes fraction"),
            xytext=(-4 if late else 4, 3), textcoords="offset points", va="bottom", ha="right" if late else "left",
            fontsize=9,
        )  # fmt: skip
    return figure


def kl_bars(kl: Sequence[float], active: Sequence[bool] | None) -> Figure:
    """KL of each latent dimension in nats; inactive dimensions are hatched.

    Args:
        kl: Mean over people, (d,).
        active: Whether the posterior mean varies between people, (d,); None where that is not known.
    """
    figure = Figure(figsize=(10.5, 2.8), layout="constrained")
    axes = figure.subplots()
    known = np.ones(len(kl), bool) if active is None else np.asarray(active, bool)
    position, values = np.arange(len(kl)), np.asarray(kl, float)
    if known.any():
        label = "KL" if active is None else f"active ({known.sum()})"
        axes.bar(position[known], values[known], color=OURS, label=label)
    if not known.all():
        axes.bar(
            position[~known],
            values[~known],
            color=IDLE,
            edgecolor=INK,
            hatch="///",
            label=f"inactive ({(~known).sum()})",
        )
    axes.set(xlabel="latent dimension", ylabel="KL, nats per subject", xlim=(-0.7, len(kl) - 0.3))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    axes.grid(axis="x", visible=False)
    if active is not None:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
    return figure


def latent_scatter(
    points: NDArray, roles: Sequence[str], ages: NDArray | None, labels: tuple[str, str], unit: str = "years"
) -> Figure:
    """Two coordinates of every scan, with a marker for the role and, where it is known, a colour for the age.

    Args:
        points: (n, 2).
        roles: (n,).
        ages: (n,), NaN where unknown (drawn hollow); None where there is no such column.
        labels: Names of the axes.
        unit: Unit of the ages.
    """
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    axes = figure.subplots()
    known = np.zeros(len(points), bool) if ages is None else np.isfinite(ages)
    limits: dict[str, Any] = {}
    if ages is not None and known.any():
        limits = {"vmin": ages[known].min(), "vmax": ages[known].max(), "cmap": "viridis"}
    painted, who = None, np.asarray(roles)
    for role, marker in ROLE_MARKERS.items():
        style: dict[str, Any] = {"marker": marker, "s": 42 if role == "test" else 26, "linewidths": 0.8}
        here = who == role
        plain = here & ~known
        if plain.any():
            colour: dict[str, Any] = {"facecolors": OURS if ages is None else "none", "edgecolors": INK}
            axes.scatter(points[plain, 0], points[plain, 1], **style, **colour)
        aged = here & known
        if ages is not None and aged.any():
            x, y = points[aged].T
            painted = axes.scatter(x, y, c=ages[aged], edgecolors=INK, **style, **limits)
        if here.any():
            axes.scatter([], [], facecolors="none", edgecolors=INK, label=f"{role} ({here.sum()})", **style)
    if painted is not None:
        figure.colorbar(painted, ax=axes, label=f"age, {unit}").outline.set_visible(False)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0, handletextpad=0.2)
    return figure


def ages(by_role: Mapping[str, Sequence[float]], unit: str = "years") -> Figure:
    """Histograms of age, one a role, on common axes.

    Args:
        by_role: Role to the ages that are known.
        unit: Unit of the ages.
    """
    figure = Figure(figsize=(10.5, 2.4), layout="constrained")
    everyone = np.concatenate([np.asarray(values, float) for values in by_role.values()])
    edges = np.histogram_bin_edges(everyone, bins=min(12, max(3, len(everyone) // 6)))
    for axes, (role, values) in zip(
        np.atleast_1d(figure.subplots(1, len(by_role), sharex=True, sharey=True)), by_role.items(), strict=True
    ):
        axes.hist(values, bins=edges, color=OURS, edgecolor=LINE, linewidth=0.6)
        axes.set_title(f"{role} ({len(values)})")
        axes.set_xlabel(f"age, {unit}")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.axes[0].set_ylabel("people")
    return figure


def _column(history: Sequence[Mapping[str, float]], name: str) -> NDArray[np.float64]:
    return np.array([row.get(name, np.nan) for row in history], dtype=np.float64)


def _reference(axes: Axes, height: float, label: str) -> None:
    if np.isfinite(height):
        axes.axhline(height, color=PEER, linestyle="-.", linewidth=1)
        axes.annotate(
            label, (1, height), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
            ha="right", color=PEER, fontsize=9,
        )  # fmt: skip
