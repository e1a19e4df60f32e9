"""Who is unlike what is expected of such a person, for a page: scores with conformal p, and the most unusual people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kerasvae.analysis import figures
from kerasvae.analysis.contents import as_number, read_examples
from kerasvae.analysis.panel import Examples
from kerasvae.analysis.report.files import View, read_map, read_object, read_rows
from kerasvae.analysis.report.focus import focus_figure
from kerasvae.analysis.report.verdict import Finding
from kerasvae.analysis.words import DASH, count, number
from kerasvae.conformal import fewest
from kerasvae.types import Affine

__all__ = ["Judged", "deviations_view", "order_of", "read_judged", "strip_chart"]

SCORES = {
    "extent": "how unusual the whole image is: root mean square over voxels of what its reconstruction misses",
    "focus": "how far one place stands out from all others of the same image",
    "distance": "how far the code is from what is expected of such a person",
}
REQUIRED = ("participant_id", "session_id", "role", *(f"{p}{s}" for s in ("extent", "focus") for p in ("", "p_", "q_")))
RATE = 0.1
"""False discovery rate at which a person is told."""
LEVEL = 0.05
SHOWN = 10
DRAWN = 3
"""People whose maps are drawn."""


@dataclass(frozen=True)
class Judged:
    """A row of deviations.tsv.

    Args:
        person: Name.
        session: Or nothing.
        role: Of the person.
        numbers: All other columns; NaN where a cell is no number.
        region: The most unusual one, or nothing.
    """

    person: str
    session: str
    role: str
    numbers: Mapping[str, float]
    region: str

    @property
    def name(self) -> str:
        """Person and session."""
        return f"{self.person} {self.session}".strip()

    def least(self, prefix: str) -> float:
        """The smallest p (``"p_"``) or q (``"q_"``) of any score; 1 where none is known."""
        known = [self.numbers.get(f"{prefix}{score}", math.nan) for score in SCORES]
        return min([value for value in known if math.isfinite(value)], default=1.0)


def deviations_view(path: Path) -> View:
    """Of a run folder.

    Raises:
        RunError: If a file is damaged; or what `kerasvae.analysis.report.files.told_if_damaged` turns into one.
    """
    folder = path / "deviations"
    settings = read_object(folder / "deviations.json")["Settings"]
    calibration = int(settings["calibration_people"])
    judged = order_of(read_judged(folder / "deviations.tsv"))
    people, scores = len({each.person for each in judged}), [s for s in SCORES if s in judged[0].numbers]
    told = [each for each in judged if each.least("q_") <= RATE]
    needed = math.ceil(people * len(scores) / (RATE * (calibration + 1)) - 1e-9)
    chart = "; ".join(
        f"{score} from {number(min(v), 2)} to {number(max(v), 2)}, p at most {LEVEL} in {below} of {len(v)}"
        for score in scores
        for v, below in [_of(judged, score)]
    )
    examples = read_examples(path / "examples.npz")
    content = {
        "people": people,
        "scans": len(judged),
        "told": len({each.person for each in told}),
        "rate": RATE,
        "calibration": calibration,
        "least": number(1 / (calibration + 1), 3),
        "needed": needed,
        "covariates": [str(name) for name in settings.get("covariates", [])],
        "roles": [str(role) for role in settings.get("roles", [])],
        "scores": [(score, SCORES[score]) for score in scores],
        "chart": figures.to_svg(
            lambda: strip_chart(judged, scores), "deviations", f"Scores of {count(len(judged), 'scan')}: {chart}."
        ),
        "counts": [(score, _of(judged, score)[1], len(_of(judged, score)[0])) for score in scores],
        "regions": any(each.region for each in judged),
        "rows": [_cells(each, scores) for each in judged[:SHOWN]],
        "maps": [drawn for rank, each in enumerate(judged[:DRAWN]) if (drawn := _drawn(folder, each, rank, examples))],
    }
    return View(content, _findings(calibration, len(judged), told, needed))


def read_judged(path: Path) -> list[Judged]:
    """Rows of deviations.tsv.

    Raises:
        RunError: If it lacks rows, columns or cells.
        ValueError: If a score is no number.
    """
    found = []
    for row in read_rows(path, REQUIRED):
        numbers = {name: as_number(cell) for name, cell in row.items()}
        if not math.isfinite(numbers["p_extent"]):
            raise ValueError("p_extent is no number")
        session, region = ("" if row.get(name, "") in ("", "n/a") else row[name] for name in ("session_id", "region"))
        found.append(Judged(row["participant_id"], session, row["role"], numbers, region))
    return found


def order_of(judged: Sequence[Judged]) -> list[Judged]:
    """Those whose q is at most 0.1 first, then by the smallest p; where that is the same, by the sum of all p."""

    def key(each: Judged) -> tuple[bool, float, float]:
        every = [each.numbers.get(f"p_{score}", math.nan) for score in SCORES]
        return each.least("q_") > RATE, each.least("p_"), sum(p for p in every if math.isfinite(p))

    return sorted(judged, key=key)


def strip_chart(judged: Sequence[Judged], scores: Sequence[str]) -> Figure:
    """A dot a scan, a chart a score, rows by role; those of p ≤ 0.05 are filled and have the peer's colour.

    Args:
        judged: In the order of the table, whose first three are numbered.
        scores: Which.
    """
    roles = list(dict.fromkeys(each.role for each in judged))
    figure = Figure(figsize=(10.5, 1.5 + 0.55 * len(roles)), layout="constrained")
    rng = np.random.default_rng(0)
    for axes, score in zip(np.atleast_1d(figure.subplots(1, len(scores), sharey=True)), scores, strict=True):
        x = np.array([each.numbers[score] for each in judged])
        y = np.array([roles.index(each.role) for each in judged]) + rng.uniform(-0.25, 0.25, len(x))
        small = np.array([each.numbers.get(f"p_{score}", math.nan) <= LEVEL for each in judged])
        for role in roles:
            here, marker = np.array([each.role == role for each in judged]), figures.ROLE_MARKERS.get(role, "o")
            axes.scatter(
                x[here & ~small], y[here & ~small], s=24, marker=marker, facecolors="none", edgecolors=figures.OURS
            )
            axes.scatter(x[here & small], y[here & small], s=34, marker=marker, color=figures.PEER)
        for rank in range(min(DRAWN, len(judged))):
            if math.isfinite(x[rank]):
                axes.annotate(str(rank + 1), (x[rank], y[rank]), (5, 3), textcoords="offset points", fontsize=9)
        axes.set_yticks(range(len(roles)), roles, parse_math=False)
        axes.set(ylim=(-0.6, len(roles) - 0.4), title=score)
        axes.grid(axis="y", visible=False)
    return figure


def _of(judged: Sequence[Judged], score: str) -> tuple[list[float], int]:
    """A score where it is known, and in how many its p is small."""
    values = [each.numbers[score] for each in judged if math.isfinite(each.numbers[score])]
    return values or [math.nan], sum(each.numbers.get(f"p_{score}", math.nan) <= LEVEL for each in judged)


def _cells(each: Judged, scores: Sequence[str]) -> dict[str, Any]:
    at = [each.numbers.get(f"focus_{axis}", math.nan) for axis in "xyz"]
    beyond, told = (100 * each.numbers.get(name, math.nan) for name in ("beyond", "told"))
    return {
        "name": each.name,
        "role": each.role,
        "scores": [
            (number(each.numbers[s], 2), number(each.numbers.get(f"p_{s}"), 3), number(each.numbers.get(f"q_{s}"), 3))
            for s in scores
        ],
        "found": each.least("q_") <= RATE,
        "focus": f"({', '.join(number(value, 0) for value in at)})" if all(map(math.isfinite, at)) else DASH,
        "region": each.region,
        "p_regions": number(each.numbers.get("p_regions"), 3),
        "beyond": number(beyond, 1),
        "told": number(told, 1),
    }


def _drawn(folder: Path, each: Judged, rank: int, examples: Examples | None) -> dict[str, Any] | None:
    """The map of a person at the focus; None where there is none."""
    names = [each.person, f"{each.person}_{each.session}", f"{each.person}_ses-{each.session}"]
    files = [f"{name}_z.nii.gz" for name in (names[1:] if each.session else names[:1])]
    known = {found.name: found for found in folder.glob("*_z.nii.gz")}  # a name from a table is no path
    at = [each.numbers.get(f"focus_{axis}", math.nan) for axis in "xyz"]
    file = next((known[name] for name in files if name in known), None)
    if file is None or not all(map(math.isfinite, at)):
        return None
    z, affine = read_map(file)
    under = None if examples is None or not _same(examples, z.shape, affine) else examples.mean_image
    mm = f"({', '.join(number(value, 0) for value in at)}) mm"
    alt = f"Sagittal, coronal and axial slice of the z-map of {each.name} through {mm}, where it stands out most."
    figure = figures.to_svg(lambda: focus_figure(z, affine, at, under), f"focus{rank}", alt, dpi=110)
    focus = number(each.numbers["focus"], 1)
    told = f"focus {focus} at {mm}, p {number(each.numbers['p_focus'], 3)}"
    return {"name": each.name, "figure": figure, "told": told, "rank": rank + 1}


def _same(examples: Examples, shape: tuple[int, ...], affine: Affine) -> bool:
    return examples.mask.shape == shape and bool(np.allclose(examples.affine, affine, atol=1e-3))


def _findings(calibration: int, scans: int, told: Sequence[Judged], needed: int) -> list[Finding]:
    least = number(1 / (calibration + 1), 3)
    if calibration < fewest(LEVEL):
        text = f"Only {count(calibration, 'calibration person', 'calibration people')}: the least p that a deviation "
        text += f"can have is {least}, so that nobody can be told at {LEVEL}."
        advice = f"Give {fewest(LEVEL)} people or more to the calibration role."
        return [Finding("deviations", "warning", text, advice)]
    who = sorted({each.name for each in told})
    if who:
        names = ", ".join(who[:5]) + (f" and {len(who) - 5} more" if len(who) > 5 else "")
        text = f"{len(who)} of {count(scans, 'scan')} stand out at a false discovery rate of {RATE}: {names}."
        return [Finding("deviations", "note", text, "Look at their images: a bad scan stands out, too.")]
    if needed > 1:
        text = f"Nobody stands out at a false discovery rate of {RATE}; with {calibration} calibration people it takes "
        text += f"{needed} scores at the least p, {least}, for one to be told."
        return [Finding("deviations", "note", text, "Judge fewer people at once, or calibrate with more.")]
    return []
