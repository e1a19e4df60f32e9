"""Simulated cohorts with known generative factors, as BIDS derivatives. No TensorFlow.

A simulated person is the MNI template made individual: `population` draws who it is, `brain` the tissue and the
shape, `scanner` the image. `docs/simulator.md` has the formulas, where each constant comes from and how the outcome
compares with real brains.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel
import numpy as np
import pandas
from numpy.typing import NDArray

from kerasvae.data.anatomy import REGIONS, load_anatomy, output_grid
from kerasvae.data.brain import draw_shape, grow
from kerasvae.data.deformation import BANDS_MM, band_rms
from kerasvae.data.population import Person, draw_person, state_at, visit_years
from kerasvae.data.scanner import BIAS_TERMS, Site, acquire, draw_site, site_of
from kerasvae.errors import ArgumentError
from kerasvae.storage import atomic_path, is_vacant
from kerasvae.types import Grid

__all__ = ["simulate", "simulate_scan"]

PATIENTS = 0.3
"""Share of patients by default."""
SPACING_MM = 2.0
"""Of the images by default."""
SPACE = "MNI152NLin2009aSym"
NOTES = ".simulation"
"""Folder with one file a scan while a simulation is under way, so that it can go on after an interruption."""

TRUTH: Mapping[str, str] = MappingProxyType(
    {
        "age": "years at the scan",
        "sex": "F or M",
        "diagnosis": "control or patient",
        "site": "the scanner",
        "years": "since the first visit",
        "stage": "years of disease; 0 for controls",
        "pace": "years of disease that a calendar year adds; 0 for controls",
        "head_size_ratio": "MNI volume over native volume; below 1.28 is a large head",
        "log_ventricles": "log volume of lateral and third ventricles over the template's, before the random shape",
        "log_hippocampi": "the same for both hippocampi",
        **{f"loss_{region}": f"share of the template's grey matter lost, {region}" for region in REGIONS},
        **{
            f"shape_{low:g}mm": f"rms of the random velocity, wavelengths {low:g} to {high:g} mm, in mm"
            for low, high in BANDS_MM
        },
        "ventricles_mm3": "volume of lateral and third ventricles in the image, in MNI space",
        "hippocampi_mm3": "the same for both hippocampi",
        "grey_matter_mm3": "volume of the grey-matter mask, in MNI space",
        "gain": "factor of the intensity, the site's included",
        **{f"bias_{term}": f"coefficient of {term} in the log bias field, unit 75 mm" for term in BIAS_TERMS},
        "contrast": "exponent of the intensity, the site's",
        "noise": "standard deviation of the noise, the site's; 1 is the brightest voxel of the template",
    }
)
"""Columns of ground_truth.tsv after participant_id and session_id, and what they mean."""

PARTICIPANT = ("age", "sex", "diagnosis", "site", "head_size_ratio")
"""Columns of participants.tsv, as of the first visit: what a study would know."""


def simulate(
    directory: str | os.PathLike[str],
    *,
    people: int,
    visits: int = 1,
    sites: int = 1,
    seed: int = 0,
    patients: float = PATIENTS,
    spacing_mm: float = SPACING_MM,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a BIDS derivative of simulated people with `participants.tsv` and `ground_truth.tsv`.

    Images are on the MNI box (x −90…90, y −126…90, z −72…108 mm), RAS+: per scan a skull-stripped T1w (uint8) and a
    grey-matter mask (0/1). Everyone is drawn from the seed and the person's number alone: the first ten of a hundred
    people are the ten of a cohort of ten, the same at every spacing. The same call gives the same arrays with the same
    versions of numpy, scipy and nilearn. An interrupted simulation goes on where it stopped when called again.

    Args:
        directory: A new folder.
        people: Number of people, ≥ 1.
        visits: Visits of each person, two years apart, ≥ 1; with one there are no session folders.
        sites: Number of scanners, ≥ 1; people are at one of them by chance. The first is like IXI's.
        seed: ≥ 0.
        patients: Probability of having the disease, 0 to 1.
        spacing_mm: Distance of voxels, 1 to 8.
        progress: Called with scans done and scans in all.

    Returns:
        The folder.

    Raises:
        ArgumentError: If a number is outside its range, or the folder holds anything else.
        StorageError: If it cannot be written to; what is finished stays.
    """
    for name, value, low, high in (
        ("people", people, 1, np.inf), ("visits", visits, 1, np.inf), ("sites", sites, 1, np.inf),
        ("seed", seed, 0, np.inf), ("patients", patients, 0, 1), ("spacing_mm", spacing_mm, 1, 8),
    ):  # fmt: skip
        if not low <= value <= high:
            rule = f"be {low} or more" if high == np.inf else f"lie within {low} and {high}"
            raise ArgumentError(name, rule=rule, got=value, fix="Correct the number")
    root = Path(directory)
    settings = f"{people=}, {visits=}, {sites=}, {seed=}, {patients=:g}, {spacing_mm=:g}"
    if _begin(root, settings):
        return root
    scans = [(index, visit) for index in range(people) for visit in range(visits)]
    grid = output_grid(spacing_mm)
    scanners = [draw_site(seed, number) for number in range(sites)]
    width = max(3, len(str(people)))

    def make(index: int, visit: int) -> None:
        note = root / NOTES / f"{index}-{visit}.json"
        if note.is_file():
            return
        person = draw_person(seed, index, patients=patients)
        site = scanners[site_of(seed, index, sites)]
        names = _names(index, visit, visits, width)
        t1, grey, truth = simulate_scan(person, visit, site, grid, seed=seed)
        stem = "_".join([*names, f"space-{SPACE}"])
        folder = root.joinpath(*names, "anat")
        _save_image(folder / f"{stem}_desc-brain_T1w.nii.gz", t1, grid)
        _save_image(folder / f"{stem}_label-GM_mask.nii.gz", grey, grid)
        _save_json(folder / f"{stem}_desc-brain_T1w.json", {"SkullStripped": True, "SpatialReference": SPACE})
        _save_json(note, {"participant_id": names[0], "session_id": names[1] if len(names) > 1 else "n/a"} | truth)

    load_anatomy()  # once, before two threads ask for it
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(make, index, visit) for index, visit in scans]
        try:
            for done, future in enumerate(as_completed(waiting), start=1):
                future.result()
                if progress:
                    progress(done, len(scans))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    notes = [root / NOTES / f"{index}-{visit}.json" for index, visit in scans]
    _write_tables(root, [json.loads(note.read_text(encoding="utf-8")) for note in notes], several=visits > 1)
    shutil.rmtree(root / NOTES)
    return root


def simulate_scan(
    person: Person, visit: int, site: Site, grid: Grid, *, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict[str, Any]]:
    """One scan in memory.

    Args:
        person: From `population.draw_person` with the same seed.
        visit: Number of the visit, from 0.
        site: The scanner.
        grid: Axis-parallel, in MNI millimetres; see `anatomy.output_grid`.
        seed: Of the cohort.

    Returns:
        T1w, uint8 (x, y, z); grey matter, uint8 0/1 (x, y, z); and the generative factors, described in
        `ground_truth.json`.
    """
    years = visit_years(seed, person.index, visit)
    state, shape = state_at(person, years), draw_shape(seed, person.index)
    brain = grow(shape, person, state, grid)
    t1, drawn = acquire(brain.t1, brain.inside, grid, site, seed=seed, index=person.index, visit=visit)
    grey = (brain.gm > 0.5) & brain.inside
    truth: dict[str, Any] = {
        "age": state.age,
        "sex": person.sex,
        "diagnosis": "patient" if person.patient else "control",
        "site": site.name,
        "years": years,
        "stage": state.stage,
        "pace": person.pace,
        "head_size_ratio": person.head_size_ratio,
        "log_ventricles": state.ventricle,
        "log_hippocampi": state.hippocampus,
        **{f"loss_{region}": loss for region, loss in zip(REGIONS, state.loss, strict=True)},
        **{f"shape_{low:g}mm": rms for (low, _), rms in zip(BANDS_MM, band_rms(shape.velocity), strict=True)},
        "ventricles_mm3": brain.ventricle_mm3,
        "hippocampi_mm3": brain.hippocampus_mm3,
        "grey_matter_mm3": float(grey.sum()) * float(np.prod(grid.spacing)),
        **drawn,
        "contrast": site.contrast,
        "noise": site.noise,
    }
    return t1, grey.astype(np.uint8), truth


def _names(index: int, visit: int, visits: int, width: int) -> list[str]:
    """BIDS labels of a scan: person, and session where there are several."""
    return [f"sub-{index + 1:0{width}d}"] + ([f"ses-{visit + 1}"] if visits > 1 else [])


def _begin(root: Path, settings: str) -> bool:
    """Make the folder or check that it is the one to go on with; whether it is finished already.

    Raises:
        ArgumentError: If it holds anything else.
    """
    version = importlib.metadata.version("kerasvae")
    description = root / "dataset_description.json"
    content = {
        "Name": "Simulated brains",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "License": "CC0-1.0",
        "GeneratedBy": [{"Name": "kerasvae simulate", "Version": version, "Description": settings}],
    }
    try:
        found = json.loads(description.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or not JSON
        found = None
    if found == content:
        return (root / "ground_truth.tsv").is_file() and not (root / NOTES).exists()
    if not is_vacant(root):
        raise ArgumentError(
            root,
            rule=f"be a new or empty folder, or hold a simulation with {settings} by version {version}",
            got="one that holds something else",
            fix="Choose another folder",
        )
    _save_json(description, content)
    return False


def _save_image(path: Path, data: NDArray[np.uint8], grid: Grid) -> None:
    image = nibabel.Nifti1Image(data, grid.matrix)
    image.set_sform(grid.matrix, code=4)
    image.set_qform(None, code=0)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)


def _save_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tables(root: Path, rows: list[dict[str, Any]], *, several: bool) -> None:
    """The truth of every scan, what a study would know of every person, and what the columns mean."""
    truth = pandas.DataFrame(rows)
    first = truth.drop_duplicates("participant_id")
    _save_table(root / "participants.tsv", first[["participant_id", *PARTICIPANT]])
    _save_json(root / "participants.json", {name: {"Description": TRUTH[name]} for name in PARTICIPANT})
    if several:
        for person, visits in truth.groupby("participant_id"):
            _save_table(root / str(person) / f"{person}_sessions.tsv", visits[["session_id", "age"]])
    _save_json(root / "ground_truth.json", {name: {"Description": text} for name, text in TRUTH.items()})
    _save_table(root / "ground_truth.tsv", truth[["participant_id", "session_id", *TRUTH]])


def _save_table(path: Path, table: pandas.DataFrame) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format="%.6g", na_rep="n/a", lineterminator="\n")
