"""Who of a run's people deviates, by how much and where: tables and maps in the run's folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

from kerasvae.analysis.design import columns_of
from kerasvae.analysis.deviation.centiles import CENTILES, LEAST, Chart, centile_figure, fit_chart
from kerasvae.analysis.deviation.files import CENTILE_COLUMNS, COLUMNS, REGIONS, describe_maps, worst, write_maps
from kerasvae.analysis.deviation.norm import Norm
from kerasvae.analysis.deviation.residuals import residuals_of
from kerasvae.analysis.deviation.scores import Deviation, region_means, told
from kerasvae.analysis.latents import Latents, read_latents
from kerasvae.analysis.maps.figures import save_png
from kerasvae.analysis.maps.regions import place_labels, read_label_names
from kerasvae.conformal import fewest
from kerasvae.errors import ArgumentError, RunError
from kerasvae.training.run import Run, write_described

__all__ = ["Deviations", "deviate_run"]

Numbers = NDArray[np.float64]
Progress = Callable[[str, int, int], None]
BEYOND = 1.959963984540054
"""Of a standard normal distribution 5 % lie further from 0."""
LEVEL = 0.05
SCORES = ("extent", "focus", "distance")
WHOM = {"learned": "learned from", "calibration": "that calibrate", "judged": "judged"}
CHARTS = 6
"""Regions whose centiles are drawn: those in which somebody deviates most."""


@dataclass(frozen=True)
class Deviations:
    """What `deviate_run` left.

    Args:
        folder: Where.
        rows: Of deviations.tsv.
        calibration: How many people calibrated.
        lacking: People of whom a covariate is not known, by what they are for: learned, calibration, judged.
    """

    folder: Path
    rows: list[dict[str, Any]]
    calibration: int
    lacking: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> list[str]:
        """What was found, as sentences."""
        people = len({row["participant_id"] for row in self.rows})
        lines = [f"{people} people judged against {self.calibration}; the least p there can be is {self._least:.3f}."]
        if self.calibration < fewest(LEVEL):
            lines.append(f"Nobody can be told at {LEVEL}: that needs {fewest(LEVEL)} calibration people.")
        if any(self.lacking.values()):
            who = ", ".join(f"{people} of the people {WHOM[stage]}" for stage, people in self.lacking.items())
            lines.append(f"A covariate is not known, and taken to be the mean, of {who}.")
        for score in SCORES:
            found = [row for row in self.rows if row[f"q_{score}"] <= 2 * LEVEL]
            names = ", ".join(dict.fromkeys(row["participant_id"] for row in found))
            alone = sum(p <= LEVEL for p in _of_people(self.rows, score))
            lines.append(
                f"{score}: p at most {LEVEL} of {alone}; at a false discovery rate of 0.1: {names or 'nobody'}."
            )
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
    command: str = "",
    progress: Progress = lambda stage, done, total: None,
) -> Deviations:
    """Judge people of a run, and write deviations.tsv, regions.tsv and maps; files of the same names are replaced.

    Args:
        run: Finished, with calibration people.
        covariates: Columns that expectations depend on; unknown ones are taken to be the mean.
        roles: Whom to judge: those who had no part in making the model, its choices and its scales.
        labels: A label image whose regions are judged; see `place_labels`.
        label_names: A table of their names.
        maps: Whether the maps z and focus of each person are written.
        native: Whether they are written in each scan's own space too.
        out: A folder; by default ``deviations`` in the run's.
        command: That is asked for, for the .json beside tables and maps.
        progress: Told what is done: stage, done, total.

    Raises:
        ArgumentError: If a column or role is none or does not fit.
        RunError: If the run is not finished, or has fewer than three calibration people.
        VolumeError: If `labels` cannot be read.
    """
    latents, learned_roles = read_latents(run), run.recipe.training.learned_from
    if wrong := [role for role in roles if role != "test"]:
        rule = "be test: to all others weights, choices or scales were fitted"
        raise ArgumentError("--roles", rule=rule, got=repr(wrong[0])[:60], fix="Use test")
    if label_names is not None and labels is None:
        raise ArgumentError("--label-names", rule="come with --labels", got="none", fix="Add --labels")
    if native and not maps:
        raise ArgumentError("--native", rule="come with maps", got="--no-maps", fix="Leave one of them out")
    latents.of(roles)  # says what is wrong with them
    terms = [latents.term(name) for name in dict.fromkeys(covariates)]
    given = columns_of(terms, len(latents.people))
    rows = {
        "learned": _first(latents, _rows(latents, learned_roles)),
        "calibration": _first(latents, _rows(latents, ("calibration",))),
        "judged": _rows(latents, roles),
    }
    unknown: Any = np.isnan(given).any(axis=1)
    lacking = {stage: len({latents.people[row] for row in own if unknown[row]}) for stage, own in rows.items()}
    known = len(rows["calibration"])
    if known < 3:
        rule, fix = "have three calibration people or more", "Train with a larger split.calibration"
        raise RunError(run.path, rule=rule, got=f"{known} of them", fix=fix)
    pipeline = run.pipeline
    inside = pipeline.inside
    regions = _Regions({}, {})
    if labels is not None:
        placed = place_labels(labels, pipeline)[inside]
        numbers = {int(label): np.flatnonzero(placed == label) for label in np.unique(placed[placed != 0])}
        regions = _Regions(numbers, {} if label_names is None else read_label_names(label_names))
    found = {
        stage: residuals_of(run, latents, own, inside, uncertain=stage != "learned", progress=_told(progress, stage))
        for stage, own in rows.items()
    }
    norm = Norm.fit(
        found["learned"],
        found["calibration"],
        (latents.codes[rows["learned"]], latents.codes[rows["calibration"]]),
        (given[rows["learned"]], given[rows["calibration"]]),
        inside,
        pipeline.grid.spacing,
        list(regions.voxels.values()),
    )
    if regions.voxels and terms and not terms[0].levels:
        values = np.concatenate([found[stage].images for stage in ("learned", "calibration")])
        regions.fit(values, given[[*rows["learned"], *rows["calibration"]], 0])
    folder = Path(out) if out is not None else run.path / "deviations"
    places = np.argwhere(inside)
    table: list[dict[str, Any]] = []
    of_regions: list[dict[str, Any]] = []
    for done, row in enumerate(rows["judged"]):
        open_ = found["judged"].open
        one = norm.of(found["judged"].missed[done], None if open_ is None else open_[done], given[row])
        who = {"participant_id": latents.people[row], "session_id": latents.sessions[row]}
        own = regions.rows(who, one, found["judged"].images[done], given[row])
        distance, p_distance = norm.distance_of(latents.codes[row], given[row])
        where = pipeline.grid.matrix @ [*places[one.place], 1]
        table.append(
            {**who, "role": latents.roles[row], "extent": one.extent, "p_extent": one.p["extent"]}
            | {"focus": one.focus, "p_focus": one.p["focus"]}
            | {f"focus_{axis}": float(at) for axis, at in zip("xyz", where, strict=False)}
            | {"distance": distance, "p_distance": p_distance, **worst(own)}
            | {"beyond": float((np.abs(one.z) > BEYOND).mean()), "told": float(told(one.z, LEVEL).mean())}
        )
        of_regions += own
        if maps:
            name = who["participant_id"] + ("" if who["session_id"] == "n/a" else f"_{who['session_id']}")
            scan = run.named_scans[who["participant_id"], who["session_id"]].path
            write_maps(folder, name, one, pipeline, inside, scan if native else None)
        progress("deviations", done + 1, len(rows["judged"]))
    _add_q(table)
    about: dict[str, Any] = {"covariates": list(covariates), "roles": list(roles), "calibration_people": known}
    about |= {"people_without_a_covariate": lacking, "labels": None if labels is None else Path(labels).name}
    about["command"] = command
    if maps:
        settings = {"Covariates": list(covariates), "CalibrationPeople": known, "Command": command}
        describe_maps(folder, pipeline.grid.space, settings, native)
    write_described(folder / "deviations.tsv", table, COLUMNS, Settings=about)
    if regions.voxels:
        write_described(folder / "regions.tsv", of_regions, REGIONS, Settings=about)
    if regions.charts:
        write_described(folder / "centiles.tsv", regions.centiles(), CENTILE_COLUMNS, Settings=about)
        regions.draw(folder / "centiles.png", of_regions, given[rows["judged"], 0], terms[0].name)
    return Deviations(folder, table, known, lacking)


def _add_q(table: Sequence[dict[str, Any]]) -> None:
    """q of each score, over all people and scores together; of several visits the least p times their number counts."""
    p = np.array([_of_people(table, score) for score in SCORES])
    q = false_discovery_control(p.ravel()).reshape(p.shape)
    place = {person: index for index, person in enumerate(dict.fromkeys(row["participant_id"] for row in table))}
    for row in table:
        own = q[:, place[row["participant_id"]]]
        row |= {f"q_{score}": float(value) for score, value in zip(SCORES, own, strict=True)}


def _of_people(table: Sequence[dict[str, Any]], score: str) -> list[float]:
    """p of each person, in the order of their first scans: of several scans the least, times their number."""
    scans: dict[str, list[float]] = {}
    for row in table:
        scans.setdefault(row["participant_id"], []).append(row[f"p_{score}"])
    return [min(1.0, len(each) * min(each)) for each in scans.values()]


@dataclass
class _Regions:
    """Regions of a mask: the voxels of each, as indices into the mask's, by label."""

    voxels: Mapping[int, NDArray[np.intp]]
    names: Mapping[int, str]
    charts: dict[int, Chart] | None = None

    def name(self, label: int) -> str:
        return self.names.get(label, str(label))

    def fit(self, images: NDArray[Any], covariate: Numbers) -> None:
        """Charts of each region's mean over people, (n, v), where enough have a known covariate."""
        known = np.isfinite(covariate)
        if known.sum() >= LEAST and np.ptp(covariate[known]) > 0:
            means = region_means(images[known], list(self.voxels.values()))
            self.charts = {
                label: fit_chart(column, covariate[known]) for label, column in zip(self.voxels, means.T, strict=True)
            }

    def rows(self, who: dict[str, str], one: Deviation, image: NDArray[Any], given: Numbers) -> list[dict[str, Any]]:
        """One person's."""
        found = []
        values = region_means(image[None], list(self.voxels.values()))[0]
        p_and_z = zip(one.regions, one.p_regions, one.p_regions_family, strict=True)
        for (label, voxels), value, (z, p, family) in zip(self.voxels.items(), values, p_and_z, strict=True):
            chart = (self.charts or {}).get(label)
            centile = float("nan") if chart is None else chart.centile(float(value), float(given[0]))
            found.append(
                {**who, "label": label, "name": self.name(label), "voxels": len(voxels), "value": float(value)}
                | {"centile": centile, "z": float(z), "p": float(p), "p_family": float(family)}
            )
        return found

    def centiles(self) -> list[dict[str, Any]]:
        """Rows of centiles.tsv."""
        return [
            {"label": label, "name": self.name(label), "at": float(at)}
            | {f"centile_{centile:g}": float(value) for centile, value in zip(CENTILES, values, strict=True)}
            for label, chart in (self.charts or {}).items()
            for at, values in zip(chart.at, chart.curves, strict=True)
        ]

    def draw(self, path: Path, rows: Sequence[dict[str, Any]], covariate: Numbers, name: str) -> None:
        """The charts of those regions in which somebody deviates most."""
        most: dict[int, float] = {}
        for row in rows:
            most[row["label"]] = max(most.get(row["label"], 0.0), abs(row["z"]))
        chosen = sorted(most, key=lambda label: -most[label])[:CHARTS]
        charts = {self.name(label): (self.charts or {})[label] for label in chosen}
        points = {
            self.name(label): (covariate, [row["value"] for row in rows if row["label"] == label]) for label in chosen
        }
        save_png(centile_figure(charts, points, name, "mean, model units"), path)


def _rows(latents: Latents, roles: Sequence[str]) -> list[int]:
    return [row for row, role in enumerate(latents.roles) if role in roles]


def _first(latents: Latents, rows: Sequence[int]) -> list[int]:
    """The first scan of each person: people are exchangeable, scans of a person are not."""
    return list({latents.people[row]: row for row in reversed(rows)}.values())[::-1]


def _told(progress: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(stage, done, total)
