"""How would one person look at another age? Images, and whether they still are this person's.

The person's code is moved to what is asked for and keeps what is their own (`ConditionalCodes.shift`); a conditional
model is told the other value instead. What is decoded there, less what is decoded at the person's own values, is added
to the person's image, which keeps what the code does not hold.

Every test person is changed in the same way, so that it can be seen whether people stay themselves: of the changed
image, encoded again, the nearest of all people's codes, each moved to the same values, should be the person's own. With
all at one age, age cannot help. And whether age arrives is judged by a reader of images that never saw the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from kerasvae.analysis.design import column_of
from kerasvae.analysis.generation.derivative import describe_images, image_path, label_of, new_derivative
from kerasvae.analysis.generation.generator import LEARNED, Generator
from kerasvae.analysis.generation.identity import (
    Changed,
    cells_of,
    change,
    identified,
    meanings_of,
    nearest_to,
    read_of,
    readers_of,
)
from kerasvae.covariates import MISSING
from kerasvae.data import Scan
from kerasvae.errors import ArgumentError, nearest
from kerasvae.preprocess.nifti import as_volume, image_of, sform_code_of, write_volume
from kerasvae.preprocess.orient import orientation_of
from kerasvae.storage import atomic_path
from kerasvae.training.run import Run, write_described, write_json

__all__ = ["Aged", "age_run"]

IMAGES = (
    "a scanned person's image, changed by a model to the values in its label, which counterfactuals.tsv explains; "
    "…decoded: what is decoded of the changed code; …difference: that, less what is decoded of the person's own code"
)
MEANINGS = {
    "participant_id": "the person",
    "session_id": "of the scan that was changed; n/a where there is one alone",
    "desc": "label in the names of the images",
    "distance_own": "of the changed image's code to the person's own code, moved to the same values: Mahalanobis, by "
    "the covariance of codes given the values",
    "distance_other": "of the same to the nearest code of a test person, moved to the same values",
    "nearest_other": "that person",
}
"""Columns of counterfactuals.tsv; `reading_…` and `expected_…` are explained where they are written."""


@dataclass(frozen=True)
class Aged:
    """What `age_run` wrote.

    Args:
        path: The folder.
        warnings: Sentences.
        rows: Of counterfactuals.tsv.
        identity: Content of identity.json.
    """

    path: Path
    warnings: list[str]
    rows: list[dict[str, Any]]
    identity: dict[str, Any]

    def describe(self) -> list[str]:
        """Two sentences for each of the values that were asked for."""
        lines = []
        for row, all_ in zip(self.rows, self.identity["values"], strict=True):
            told = ", ".join(f"{name} {value}" for name, value in all_["set"].items())
            read = [
                f"{name} {row[f'reading_{name}']:.1f} is read from the image (of real people with what was asked for "
                f"{row[f'expected_{name}']:.1f})"
                if reader["r_low"] > 0
                else f"{name} cannot be read from the images of {reader['people']} people (r {reader['r']:.2f})"
                for name, reader in self.identity["readers"].items()
            ]
            own = row["distance_own"] <= row.get("distance_other", math.inf)
            whose = "still nearest to the person's own code" if own else "nearer to another person's code"
            lines += [
                f"{told}: {'; '.join([*read, whose])}.",
                f"Of {self.identity['people']} {self.identity['role']} people changed so, what is decoded of "
                f"{all_['identification_image']:.0%} is nearest to their own image (chance "
                f"{self.identity['chance']:.0%}).",
            ]
        return lines


def age_run(
    run: Run,
    person: str,
    values: Mapping[str, Sequence[str]],
    out: Path,
    *,
    covariates: Sequence[str] = (),
    session: str = "",
    knots: int = 2,
    command: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Aged:
    """Write images of a person with other values: counterfactual, decoded and difference, on two grids.

    Of each set of values: ``desc-<values>`` the person's own image and the decoded difference, ``desc-<values>decoded``
    what is decoded, ``desc-<values>difference``; ``space-model`` on the model's grid in model units, ``space-native``
    on the voxels of the person's file in its units. Beside them counterfactuals.tsv, of this person, and
    identity.json, of all test people.

    Args:
        run: Finished.
        person: Of the cohort, e.g. sub-01.
        values: Column of the cohort to values, each with each where there are several columns.
        out: A new folder.
        covariates: Columns that are held the same: what goes with them is not put down to what is changed.
        session: Of a person with several visits; by default the first.
        knots: See `ConditionalCodes.fit`.
        command: That is asked for, for the images' sidecars.
        progress: Told how many sets of values are done.

    Raises:
        ArgumentError: If a person, a column or a value is unknown, people are too few, or the folder holds something.
        ModelError: If codes are not points of Euclidean space.
        RunError: If the run is not finished.
    """
    if not values:
        raise ArgumentError("--set", rule="say what changes", got="nothing", fix="Add one, as in --set age=80")
    scan = _scan_of(run, person, session)
    settings = {"run": run.path.name, "person": scan.name, "set": dict(values), "covariates": list(covariates)}
    with new_derivative(
        out, name="Counterfactual brains: changed by a model", command="age", settings=settings | {"knots": knots}
    ) as folder:
        generator = Generator.of(run, [*values, *covariates], knots=knots)
        values = {column_of(name)[0]: cells for name, cells in values.items()}
        wanted = [dict(zip(values, each, strict=True)) for each in product(*map(dict.fromkeys, values.values()))]
        known = {name: [scan.covariates[name]] for name in generator.latents.columns}
        _refuse_unknown(scan, [*values, *(column_of(name)[0] for name in covariates)])
        warnings: list[str] = []
        for new in wanted:
            generator.numbers({**known, **cells_of(new, 1)})
            warnings += generator.warnings(cells_of(new, 1))
        role = next(role for role in ("test", "calibration", *LEARNED) if generator.known([role]))
        judged, readers = generator.known([role]), readers_of(generator, values)
        images = run.store.load(generator.scans(judged))
        rows: list[dict[str, Any]] = []
        figures: list[dict[str, Any]] = []
        for done, new in enumerate(wanted, 1):
            own = change(generator, run.store.volume(scan)[None], known, new)
            all_ = change(generator, images, generator.table(judged), new)
            _write_images(folder, run, scan, label_of(new), own)
            who = {"participant_id": scan.person, "session_id": scan.session or "n/a", "desc": label_of(new), **new}
            near = nearest_to(generator, own, all_, judged, scan.person)
            rows.append(who | near | read_of(generator, readers, new, own.images))
            read = read_of(generator, readers, new, all_.images)
            figures.append({"set": new, **identified(generator, all_, images), **read})
            progress(done, len(wanted))
        own_space = f"of {scan.path.name}"
        for space, unit, where in (
            ("model", "model units", run.pipeline.grid.space), ("native", "those of the person's image", own_space),
        ):  # fmt: skip
            about = {"Description": IMAGES, "Unit": unit, "Space": where, "Command": command}
            describe_images(folder, run, about, space=space)
        identity = {
            "role": role,
            "people": len(judged),
            "chance": 1 / len(judged),
            "values": figures,
            "readers": {name: each.as_json() for name, each in readers.items()},
        }
        meanings = MEANINGS | dict.fromkeys(values, "as it was asked for") | meanings_of(readers)
        write_described(folder / "counterfactuals.tsv", rows, {name: meanings[name] for name in rows[0]})
        of_person = {"participant_id": scan.person, **{name: cells[0] for name, cells in known.items()}}
        columns = {"participant_id": MEANINGS["participant_id"], **dict.fromkeys(known, "of the person as scanned")}
        write_described(folder / "participants.tsv", [of_person], columns)
        write_json(folder / "identity.json", identity)
    return Aged(out, list(dict.fromkeys(warnings)), rows, identity)


def _scan_of(run: Run, person: str, session: str) -> Scan:
    scans = [scan for scan in run.cohort.scans if scan.person == person]
    if not scans:
        close = nearest(person, run.cohort.people)
        rule = "be a person of the run whose image was used"
        fix = f"Did you mean {close}?" if close else "See scans.tsv in the run's folder"
        raise ArgumentError("--person", rule=rule, got=repr(person)[:60], fix=fix)
    found = [scan for scan in scans if session in ("", scan.session)]
    if not found:
        rule = f"be a visit of {person}: {', '.join(scan.session or 'none has a name' for scan in scans)}"
        raise ArgumentError("--session", rule=rule, got=repr(session)[:60], fix="Correct it")
    return found[0]


def _refuse_unknown(scan: Scan, names: Sequence[str]) -> None:
    """A person is moved from what they are: without a value there is no way from it to another."""
    for name in names:
        if scan.covariates[name].strip().casefold() in MISSING:
            got = f"an empty cell of {scan.name}"
            fix = "Name another person or visit, or a column that is known of this one"
            raise ArgumentError(name, rule="be known of the person who is changed", got=got, fix=fix)


def _write_images(folder: Path, run: Run, scan: Scan, label: str, changed: Changed) -> None:
    """Six images: three on the model's grid, three on the voxels of the person's file."""
    pipeline, grid, volume = run.pipeline, run.pipeline.grid, as_volume(scan.path)
    on_grid = {"": changed.images[0], "decoded": changed.decoded[0], "difference": changed.difference[0]}
    for kind, image in on_grid.items():
        path = image_path(folder, run, scan.name, space="model", desc=label + kind)
        write_volume(path, image, grid.matrix, space=grid.space)
    difference = pipeline.invert(changed.difference[0] * pipeline.scaling(volume).scale, volume)
    own = orientation_of(difference.affine).from_ras(volume.data)  # with all detail that the model's grid has not
    code = volume.sform_code or sform_code_of("native")
    native = {
        "": image_of(own + np.asarray(difference.dataobj), difference.affine, code),
        "decoded": pipeline.invert(changed.decoded[0], volume, intensity=True),
        "difference": difference,
    }
    for kind, image in native.items():
        with atomic_path(image_path(folder, run, scan.name, space="native", desc=label + kind)) as temporary:
            image.to_filename(temporary)
