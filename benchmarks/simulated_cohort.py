"""A simulated study in which site, age and disease go together, and what the disease does to a brain.

The simulator draws sites independently of everything else. Here its people are chosen: who is over 50, and so every
patient, is more likely to be in the study at site 3, who is younger at site 1.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from kerasvae.data.anatomy import REGIONS, load_anatomy, output_grid
from kerasvae.data.population import Person, draw_person
from kerasvae.data.scanner import draw_site, site_of
from kerasvae.data.simulate import simulate_scan
from kerasvae.preprocess import Pipeline
from kerasvae.storage import atomic_path

__all__ = ["DRIVERS", "driver_map", "make_cohort", "others"]

PEOPLE = 400
PATIENTS = 0.4
"""Chance of being a patient, before people are chosen."""
SITES = 3
SEED = 11
SPACING_MM = 4.0
TAKEN = ((1.0, 0.3), (0.6, 0.6), (0.3, 1.0))
"""Of each site: chances that somebody of 50 years or less, and somebody older, is in the study."""
ROLES = ("train", "test", "train", "test", "train", "test", "train", "test", "train", "validation")
"""In turn, of people put in order of site, disease and age: two in five are new to the model."""
_CHOICE = 100
DRIVERS: dict[str, tuple[float, float, Callable[[Person, float], Person]]] = {
    "stage": (0.0, 8.0, lambda person, value: replace(person, stage=value)),
    "log_ventricles": (-0.34, 0.34, lambda person, value: replace(person, ventricle=value)),
    "loss_temporal": (-0.05, 0.05, lambda person, value: replace(person, regions=_with(person, "temporal", value))),
}
"""Of each: little and much, about the mean or a standard deviation on either side, and the person who has so much."""


def _chosen() -> Iterator[Person]:
    """Those of the simulator's people who are in the study, one after another."""
    for index in count():
        person = draw_person(SEED, index, patients=PATIENTS)
        chance = TAKEN[site_of(SEED, index, SITES)][person.age > 50]
        if np.random.default_rng((SEED, _CHOICE, index)).random() < chance:
            yield person


def _with(person: Person, region: str, value: float) -> tuple[float, ...]:
    """The person's own losses, that of one region changed."""
    return tuple(value if name == region else own for name, own in zip(REGIONS, person.regions, strict=True))


def others(number: int) -> list[Person]:
    """Patients who are not in the study but would be next."""
    after = islice(_chosen(), PEOPLE, None)
    return list(islice((person for person in after if person.patient), number))


def make_cohort(folder: Path) -> Path:
    """A table of images, roles and everything that is true of each person; what is there already is kept.

    Args:
        folder: Where images and table lie.
    """
    table = folder / "people.tsv"
    if table.is_file():
        return table
    folder.mkdir(parents=True, exist_ok=True)
    load_anatomy()  # once, before two threads ask for it
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(lambda person: _scan(folder, person), islice(_chosen(), PEOPLE)))
    rows.sort(key=lambda row: (row["site"], row["diagnosis"], row["age"]))
    for place, row in enumerate(rows):
        row["role"] = ROLES[place % len(ROLES)]
    with atomic_path(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return table


def _scan(folder: Path, person: Person) -> dict[str, Any]:
    """Image and truth of one person; the truth is written last."""
    name = f"sub-{person.index:04d}"
    image, note = folder / f"{name}_T1w.nii.gz", folder / f"{name}.json"
    if not note.is_file():
        made, truth = _made(person)
        with atomic_path(image) as temporary:
            nibabel.save(made, temporary)
        known = {"path": image.name, "participant_id": name, "role": ""} | truth
        with atomic_path(note) as temporary:
            temporary.write_text(json.dumps(known), encoding="utf-8")
    found: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    return found


def _made(person: Person) -> tuple[nibabel.Nifti1Image, dict[str, Any]]:
    """The T1w scan and what is true of it."""
    grid = output_grid(SPACING_MM)
    site = draw_site(SEED, site_of(SEED, person.index, SITES))
    t1, _, truth = simulate_scan(person, 0, site, grid, seed=SEED)
    image = nibabel.Nifti1Image(t1, grid.matrix)
    image.set_sform(grid.matrix, code=4)
    return image, truth


def driver_map(pipeline: Pipeline, driver: str, people: Sequence[Person]) -> NDArray[np.float64]:
    """How the image changes with one more of a driver while all else stays the same, (x, y, z) in model units.

    Each person is made twice, with little and with much of it, on the same scanner with the same noise.

    Args:
        pipeline: Of the model.
        driver: One of `DRIVERS`.
        people: Over whom it is averaged.
    """
    low, high, changed = DRIVERS[driver]
    total = np.zeros(pipeline.grid.shape)
    for person in people:
        little, much = (pipeline.apply(_made(changed(person, value))[0], check=False) for value in (low, high))
        total += much.astype(np.float64) - little
    return total / (len(people) * (high - low))
