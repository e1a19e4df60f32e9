"""What goes with the latent code, for a page: associations.tsv as a heat map, in words, and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kerasvae.analysis import figures
from kerasvae.analysis.association import Association, Associations
from kerasvae.analysis.contents import as_number
from kerasvae.analysis.design import column_of
from kerasvae.analysis.report.files import View, read_object, read_rows
from kerasvae.analysis.report.verdict import Finding
from kerasvae.analysis.words import DASH, count, number, significant
from kerasvae.data import ROLES

__all__ = ["associations_view", "heat_map", "read_associations"]

LEVEL = 0.05
FEW = 30
"""People below whom the 95 % interval of a partial correlation of 0 reaches beyond ±0.36 (Fisher's z)."""
ROWS = 400
"""Rows of the table at most; all are in associations.tsv."""
WHOLE = ("people", "scans")


def associations_view(path: Path) -> View:
    """Of a run folder.

    Raises:
        RunError: If a file is damaged; or what `kerasvae.analysis.report.files.told_if_damaged` turns into one.
    """
    described = read_object(path / "associations.json")
    settings = described["Settings"]
    rows = read_associations(path / "associations.tsv")
    single = [row for row in rows if row.dimension != "joint"]
    names = list(dict.fromkeys(row.variable for row in rows))
    held = _held(settings, names)
    found = [row for row in single if row.p_family <= LEVEL]
    strongest = sorted(found, key=lambda row: -abs(row.r))[:5]
    size = len(single) // len(names)
    told = Associations(rows, held, path / "associations.tsv")
    said = "; ".join(f"{r.variable} with dimension {r.dimension}, r {number(r.r, 2)}" for r in strongest)
    alt = (
        f"Heat map of the partial correlations of {', '.join(names)} with {size} latent dimensions. "
        f"{count(len(found), 'cell')} at a family-wise p of at most {LEVEL}{': ' if said else ''}{said}."
    )
    order = sorted(rows, key=lambda row: (names.index(row.variable), row.dimension != "joint"))
    repeated = any(row.people < row.scans for row in rows)
    content = {
        "figure": figures.to_svg(lambda: heat_map(rows), "associations", alt),
        "sentences": [sentence.replace("(r -", "(r −") for sentence in told.describe()],
        "held": _held_words(held),
        "permutations": int(settings["permutations"]),
        "roles": [role for role in ROLES if role in settings["roles"]],
        "size": size,
        "repeated": repeated,
        "axes": described.get("Rotation", {}).get("Kind", ""),
        "unsigned": [name for name in names if not any(_signed(row) for row in single if row.variable == name)],
        "rows": [_cells(row) for row in order[:ROWS]],
        "left_out": max(0, len(order) - ROWS),
    }
    return View(content, _findings(rows))


def _held(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[str]]:
    """Of each variable what was held the same; a table of before this was written lists covariates alone."""
    covariates = [column_of(str(each))[0] for each in settings["covariates"]]
    told = settings.get("held_same", {})
    return {name: [str(each) for each in told.get(name, [c for c in covariates if c != name])] for name in names}


def _held_words(held: Mapping[str, Sequence[str]]) -> str:
    """For a caption: once where it is the same of all variables."""
    of: dict[str, list[str]] = {}
    for name, same in held.items():
        of.setdefault(", ".join(same), []).append(name)
    if len(of) == 1:
        same_of_all = next(iter(of))
        return f"{same_of_all} held the same" if same_of_all else "no covariates"
    return "held the same: " + "; ".join(f"for {', '.join(names)} {same or 'nothing'}" for same, names in of.items())


def read_associations(path: Path) -> list[Association]:
    """Rows of associations.tsv.

    Raises:
        RunError: If it lacks rows, columns or cells.
        ValueError: If a count is no number.
    """
    names = [field.name for field in fields(Association)]
    found = []
    for row in read_rows(path, names):
        values: dict[str, Any] = {name: as_number(row[name]) for name in names}
        values |= {name: int(row[name]) for name in WHOLE} | {"variable": row["variable"]}
        values["dimension"] = int(row["dimension"]) if row["dimension"].isdigit() else row["dimension"]
        found.append(Association(**values))
    if not any(row.dimension != "joint" for row in found):
        raise ValueError("no dimension")
    return found


def heat_map(rows: Sequence[Association]) -> Figure:
    """Partial correlation, variables × dimensions, red above 0 and blue below; a dot where family-wise p ≤ 0.05.

    Grey: a category of three levels or more, whose correlation has no sign.

    Args:
        rows: Of all variables and dimensions.
    """
    single = [row for row in rows if row.dimension != "joint"]
    names = list(dict.fromkeys(row.variable for row in single))
    dimensions = list(dict.fromkeys(row.dimension for row in single))
    r, signed, found = (np.full((len(names), len(dimensions)), math.nan) for _ in range(3))
    for row in single:
        at = names.index(row.variable), dimensions.index(row.dimension)
        r[at], signed[at], found[at] = row.r, _signed(row), row.p_family <= LEVEL
    known = np.abs(r[np.isfinite(r)])
    limit = max(0.2, math.ceil(10 * float(known.max(initial=0))) / 10)
    figure = Figure(figsize=(10.5, 1.35 + 0.36 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    scale: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
    painted = axes.imshow(np.where(signed == 1, r, math.nan), cmap="RdBu_r", vmin=-limit, vmax=limit, **scale)
    axes.imshow(np.where(signed == 0, r, math.nan), cmap="Greys", vmin=0, vmax=limit, **scale)
    y, x = np.nonzero(found == 1)
    axes.scatter(x, y, s=26, color="black", edgecolors="white", linewidths=0.9, zorder=3)
    for line in np.arange(len(names) - 1) + 0.5:
        axes.axhline(line, color=figures.LINE, linewidth=0.6)
    axes.set_yticks(range(len(names)), [_short(name) for name in names], parse_math=False)
    axes.set(xlabel="latent dimension", xlim=(-0.5, len(dimensions) - 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(painted, ax=axes, pad=0.01, aspect=10, label="partial r")
    bar.outline.set_visible(False)
    return figure


def _findings(rows: Sequence[Association]) -> list[Finding]:
    findings = []
    joint = {row.variable: row for row in rows if row.dimension == "joint"}
    if few := {row.variable: row.people for row in rows if row.people < FEW}:
        who = ", ".join(f"{name} on {count(n, 'person', 'people')}" for name, n in few.items())
        text = f"Associations were computed on few people: {who}. Partial correlations are known roughly."
        advice = "Read the intervals, not the correlations; nothing found does not mean that nothing is there."
        findings.append(Finding("associations", "warning", text, advice))
    if untested := [name for name, row in joint.items() if math.isnan(row.p)]:
        text = f"All dimensions together were not tested against {', '.join(untested)}: too few people for so many."
        findings.append(
            Finding("associations", "note", text, "Ask it of more people, or of a model with fewer latents.")
        )
    return findings


def _cells(row: Association) -> dict[str, str]:
    """Texts of a row of the table."""

    def between(low: float, high: float, digits: int) -> str:
        return f" ({number(low, digits)} to {number(high, digits)})" if math.isfinite(low) else ""

    slope, low, high = map(significant, (row.slope, row.low, row.high))
    return {
        "variable": row.variable,
        "dimension": str(row.dimension),
        "slope": DASH if math.isnan(row.slope) else f"{slope} ({low} to {high})",
        "r": number(row.r, 2) + between(row.r_low, row.r_high, 2),
        "p": number(row.p, 4),
        "p_family": number(row.p_family, 4),
        "q": number(row.q, 4),
        "found": "yes" if row.p_family <= LEVEL else "",
    }


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def _signed(row: Association) -> bool:
    return math.isfinite(row.slope)
