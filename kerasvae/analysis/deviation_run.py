"""Who of a run's people deviates, by how much and where: tables and maps in the run's folder."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

from kerasvae.analysis.design import columns_of
from kerasvae.analysis.deviation import Deviation, Judge, told
from kerasvae.analysis.focal import Bands
from kerasvae.analysis.latents import Latents, read_latents
from kerasvae.analysis.normative import Expectation, fit_expectation
from kerasvae.analysis.regions import place_labels, read_label_names
from kerasvae.analysis.residuals import Residuals, residuals_of
from kerasvae.analysis.symmetry import fit_symmetry
from kerasvae.conformal import conformal_p, fewest
from kerasvae.errors import ArgumentError, RunError
from kerasvae.preprocess import Pipeline, write_image, write_volume
from kerasvae.scoring import distance, shrunk_precision
from kerasvae.training.run import Run, write_json, write_table
from kerasvae.types import Mask

__all__ = ["COLUMNS", "REGIONS", "Deviations", "Norm", "deviate_run"]

Numbers = NDArray[np.float64]
Progress = Callable[[str, int, int], None]
BEYOND = 1.959963984540054
"""Of a standard normal distribution 5 % lie further from 0."""
LEVEL = 0.05
COLUMNS = {
    "participant_id": "whose",
    "session_id": "of which visit",
    "role": "in the run",
    "extent": "root mean square over voxels of t: how unusual the whole image is, given the reconstruction",
    "p_extent": "conformal p: at most α with a probability of at most α for a healthy person",
    "q_extent": "false discovery rate over the people of this table (Benjamini-Hochberg)",
    "focus": "largest value of any band-passed map, in the person's own spread: how far one place stands out",
    "p_focus": "conformal p",
    "q_focus": "false discovery rate over the people",
    "focus_x": "where, mm",
    "focus_y": "where, mm",
    "focus_z": "where, mm",
    "distance": "of the code from what is expected given the covariates (Mahalanobis)",
    "p_distance": "conformal p",
    "q_distance": "false discovery rate over the people",
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
    "z": "of the mean standardised residual over the region; parametric",
    "p": "conformal p, of this region alone",
    "p_family": "conformal p, family-wise over the regions",
}


@dataclass(frozen=True)
class Norm:
    """What people of some covariates are expected to look like, from those the model learned from and from others.

    Args:
        voxels: Of residual maps.
        codes: Of codes.
        judge: Against whom maps are held.
        distances: Of calibration people's codes, (n,).
        center: Of the learned people's codes, less their trend, (d,).
        precision: Inverse of their covariance, (d, d).
        focal: What bands are made of: residuals less trend and other side.
    """

    voxels: Expectation
    codes: Expectation
    judge: Judge
    distances: Numbers
    center: Numbers
    precision: Numbers
    focal: Callable[[NDArray[Any], Numbers], Numbers]

    @classmethod
    def fit(
        cls,
        learned: Residuals,
        calibration: Residuals,
        codes: tuple[Numbers, Numbers],
        covariates: tuple[Numbers, Numbers],
        mask: Mask,
        spacing: Sequence[float],
        regions: Sequence[NDArray[np.intp]] = (),
    ) -> Norm:
        """Learn it.

        Args:
            learned: Of people the model learned from.
            calibration: Of people it did not, one scan each.
            codes: Of both.
            covariates: Of both, (n, k), NaN where unknown.
            mask: (x, y, z).
            spacing: mm.
            regions: Voxels of each, as indices into those of the mask.
        """
        voxels, of_codes = (fit_expectation(values, covariates[0]) for values in (learned.missed, codes[0]))
        sides = fit_symmetry(voxels.less_trend(learned.missed, covariates[0]), mask)

        def focal(missed: NDArray[Any], given: Numbers) -> Numbers:
            return sides.less_mirror(voxels.less_trend(missed, given))

        standardised = voxels.standardise(calibration.missed, covariates[1], calibration.open)
        judge = Judge(standardised, focal(calibration.missed, covariates[1]), Bands(mask, spacing), regions)
        rest, new = (of_codes.standardise(*each) for each in zip(codes, covariates, strict=True))
        center, precision = shrunk_precision(rest)
        return cls(voxels, of_codes, judge, distance(new, center, precision), center, precision, focal)

    def of(self, missed: NDArray[Any], open_: NDArray[Any] | None, given: Numbers) -> Deviation:
        """The deviation of one scan: its residual, (v,), its variance, and its covariates, (k,)."""
        u = self.voxels.standardise(missed[None], given[None], None if open_ is None else open_[None])
        return self.judge(u[0], self.focal(missed[None], given[None])[0])

    def distance_of(self, code: Numbers, given: Numbers) -> tuple[float, float]:
        """Of a code, (d,), and its conformal p."""
        found = distance(self.codes.standardise(code[None], given[None]), self.center, self.precision)
        return float(found[0]), float(conformal_p(found, self.distances)[0])


@dataclass(frozen=True)
class Deviations:
    """What `deviate_run` left.

    Args:
        folder: Where.
        rows: Of deviations.tsv.
        calibration: How many people calibrated.
    """

    folder: Path
    rows: list[dict[str, Any]]
    calibration: int

    def describe(self) -> list[str]:
        """What was found, as sentences."""
        people = len({row["participant_id"] for row in self.rows})
        lines = [f"{people} people judged against {self.calibration}; the least p there can be is {self._least:.3f}."]
        if self.calibration < fewest(LEVEL):
            lines.append(f"Nobody can be told at {LEVEL}: that needs {fewest(LEVEL)} calibration people.")
        for score in ("extent", "focus", "distance"):
            found = [row for row in self.rows if row[f"q_{score}"] <= 2 * LEVEL]
            names = ", ".join(dict.fromkeys(row["participant_id"] for row in found))
            alone = sum(row[f"p_{score}"] <= LEVEL for row in self.rows)
            lines.append(f"{score}: p at most {LEVEL} of {alone}; false discovery rate 0.1: {names or 'nobody'}.")
        return lines

    @property
    def _least(self) -> float:
        return 1 / (self.calibration + 1)


def deviate_run(
    run: Run,
    covariates: Sequence[str] = (),
    *,
    roles: Sequence[str] = ("test",),
    labels: str | os.PathLike[str] | None = None,
    label_names: str | os.PathLike[str] | None = None,
    maps: bool = True,
    native: bool = False,
    out: str | os.PathLike[str] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Deviations:
    """Judge people of a run, and write deviations.tsv, regions.tsv and maps; files of the same names are replaced.

    Args:
        run: Finished, with calibration people.
        covariates: Columns that expectations depend on; unknown ones are taken to be the mean.
        roles: Whom to judge; not those the model learned from, nor calibration people.
        labels: A label image whose regions are judged; see `place_labels`.
        label_names: A table of their names.
        maps: Whether the maps z and focus of each person are written.
        native: Whether they are written in each scan's own space too.
        out: A folder; by default ``deviations`` in the run's.
        progress: Told what is done: stage, done, total.

    Raises:
        ArgumentError: If a column or role is none or does not fit.
        RunError: If the run is not finished, or has fewer than three calibration people.
        VolumeError: If `labels` cannot be read.
    """
    latents, learned_roles = read_latents(run), run.recipe.training.learned_from
    if wrong := [role for role in roles if role in (*learned_roles, "calibration")]:
        rule = "be people whom neither weights nor scales were fitted to"
        raise ArgumentError("--roles", rule=rule, got=wrong[0], fix="Use test")
    if label_names is not None and labels is None:
        raise ArgumentError("--label-names", rule="come with --labels", got="none", fix="Add --labels")
    latents.of(roles)  # says what is wrong with them
    given = columns_of([latents.term(name) for name in dict.fromkeys(covariates)], len(latents.people))
    learned, calibration = _rows(latents, learned_roles), _first(latents, _rows(latents, ("calibration",)))
    if len(calibration) < 3:
        fix = "Train with a larger split.calibration"
        raise RunError(
            run.path, rule="have three calibration people or more", got=f"{len(calibration)} of them", fix=fix
        )
    pipeline = run.pipeline
    inside = np.ones(pipeline.grid.shape, bool) if pipeline.mask is None else np.asarray(pipeline.mask)
    placed = None if labels is None else place_labels(labels, pipeline)[inside]
    numbers = [] if placed is None else [int(label) for label in np.unique(placed[placed != 0])]
    known = {} if label_names is None else read_label_names(label_names)
    asked = _rows(latents, roles)
    found = {
        stage: residuals_of(run, latents, rows, inside, uncertain=stage != "learned", progress=_told(progress, stage))
        for stage, rows in (("learned", learned), ("calibration", calibration), ("judged", asked))
    }
    norm = Norm.fit(
        found["learned"],
        found["calibration"],
        (latents.codes[learned], latents.codes[calibration]),
        (given[learned], given[calibration]),
        inside,
        pipeline.grid.spacing,
        [np.flatnonzero(placed == label) for label in numbers],
    )
    folder = Path(out) if out is not None else run.path / "deviations"
    rows: list[dict[str, Any]] = []
    regions: list[dict[str, Any]] = []
    paths = {(scan.person, scan.session or "n/a"): scan.path for scan in run.cohort.scans}
    places = np.argwhere(inside)
    for done, row in enumerate(asked):
        open_ = found["judged"].open
        one = norm.of(found["judged"].missed[done], None if open_ is None else open_[done], given[row])
        who = {"participant_id": latents.people[row], "session_id": latents.sessions[row]}
        own = [
            {
                **who,
                "label": label,
                "name": known.get(label, str(label)),
                "voxels": int(np.count_nonzero(placed == label)),
            }
            | {"z": float(z), "p": float(p), "p_family": float(family)}
            for label, z, p, family in zip(numbers, one.regions, one.p_regions, one.p_regions_family, strict=True)
        ]
        regions += own
        away, p_away = norm.distance_of(latents.codes[row], given[row])
        x, y, z = (pipeline.grid.matrix @ [*places[one.place], 1])[:3]
        rows.append(
            {**who, "role": latents.roles[row], "extent": one.extent, "p_extent": one.p["extent"]}
            | {"focus": one.focus, "p_focus": one.p["focus"], "focus_x": x, "focus_y": y, "focus_z": z}
            | {"distance": away, "p_distance": p_away}
            | _worst(own)
            | {"beyond": float((np.abs(one.z) > BEYOND).mean()), "told": float(told(one.z, LEVEL).mean())}
        )
        if maps:
            name = latents.people[row] + ("" if who["session_id"] == "n/a" else f"_{who['session_id']}")
            _write_maps(folder, name, one, pipeline, inside, paths[who["participant_id"], who["session_id"]], native)
        progress("deviations", done + 1, len(asked))
    for score in ("extent", "focus", "distance"):
        q = false_discovery_control([row[f"p_{score}"] for row in rows])
        for one_row, value in zip(rows, q, strict=True):
            one_row[f"q_{score}"] = float(value)
    about = {"covariates": list(covariates), "roles": list(roles), "calibration_people": len(calibration)}
    _write_table(folder / "deviations.tsv", rows, COLUMNS, about)
    if placed is not None:
        _write_table(folder / "regions.tsv", regions, REGIONS, about)
    return Deviations(folder, rows, len(calibration))


def _rows(latents: Latents, roles: Sequence[str]) -> list[int]:
    return [row for row, role in enumerate(latents.roles) if role in roles]


def _first(latents: Latents, rows: Sequence[int]) -> list[int]:
    """The first scan of each person: people are exchangeable, scans of a person are not."""
    return list({latents.people[row]: row for row in reversed(rows)}.values())[::-1]


def _told(progress: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(stage, done, total)


def _worst(regions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not regions:
        return {"region": "n/a", "p_regions": math.nan}
    worst = min(regions, key=lambda row: (row["p_family"], -abs(row["z"])))
    return {"region": worst["name"], "p_regions": worst["p_family"]}


def _write_maps(
    folder: Path, name: str, one: Deviation, pipeline: Pipeline, inside: Mask, scan: Path, native: bool
) -> None:
    for kind, values in (("z", one.z), ("focus", one.focus_map)):
        grid = np.zeros(inside.shape, np.float32)
        grid[inside] = values
        write_volume(folder / f"{name}_{kind}.nii.gz", grid, pipeline.grid.matrix, space=pipeline.grid.space)
        if native:
            write_image(folder / "native" / f"{name}_{kind}.nii.gz", pipeline.invert(grid, scan))


def _write_table(path: Path, rows: Sequence[dict[str, Any]], columns: dict[str, str], about: dict[str, Any]) -> None:
    cells = ({key: "n/a" if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()} for row in rows)
    write_table(path, cells, list(columns))
    described: dict[str, Any] = {name: {"Description": text} for name, text in columns.items()}
    write_json(path.with_suffix(".json"), described | {"Settings": about})
