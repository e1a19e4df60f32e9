"""Five folds of the T1 recipe on IXI with calibration people, which several parts of `analysis` look at."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import kerasvae
from kerasvae.analysis.cross_validation import cross_validate
from kerasvae.analysis.maps.regions import place_labels
from kerasvae.training.run import Run, load_run

FOLDS = 5
SETTINGS = ("split.train=0.5", "split.validation=0.1", "split.calibration=0.2", "split.test=0.2")
PLAIN = ("model.core_mirror=false", "model.core_prior=none", "training.epochs=4")
GROUPS = {
    "frontal": r"Frontal|Orbital|Rectus|Precentral|SupplementaryMotor|Subcallosal|CentralOperculum",
    "parietal": r"Parietal|Postcentral|Precuneus|Angular|Supramarginal",
    "temporal": r"Temporal|^Fusiform|Planum",
    "occipital": r"Occipital|Calcarine|Cuneus|Lingual",
    "limbic and insular": r"Cingulate|Entorhinal|hippocampal|Hippocampus|Amygdala|Insula",
    "deep": r"Accumbens|Caudate|Pallidum|Putamen|Thalamus|VentralDC|BasalForebrain|Fornix|Capsule|CorpCall",
    "cerebellum and brain stem": r"Cerebell|BrainStem",
    "ventricles": r"Ventricle",
    "cortical CSF": r"CortCSF",
}
"""Of the DLMUSE labels, by their names; the first that fits."""


def runs_of(folder: Path, work: Path, *, plain: bool = False) -> list[Run]:
    """The five runs, trained where they are not there yet.

    Args:
        folder: The IXI derivative.
        work: Where runs are kept.
        plain: Whether the linear start is that of the sample alone, without mirror images and smooth prior.
    """
    recipe = kerasvae.load_recipe("t1-4mm", (*SETTINGS, *(PLAIN if plain else ())))
    place = work / ("t1-plain" if plain else "t1")
    if not (place / "cross_validation.json").is_file():
        print(f"{place.name}, five folds: training", flush=True)
        cross_validate(recipe, folder, place, folds=FOLDS, resume=place.exists())
    return [load_run(place / f"fold{fold}-seed0") for fold in range(FOLDS)]


def label_names(folder: Path) -> dict[int, str]:
    with (folder / "desc-DLMUSE_labels.csv").open(encoding="utf-8", newline="") as stream:
        return {int(row["Index"]): row["Name"] for row in csv.DictReader(stream)}


def group_of(name: str) -> str:
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, name)), "")


def atlas_of(run: Run, people: Sequence[str], folder: Path, inside: NDArray[np.bool_]) -> NDArray[np.str_]:
    """The group of each voxel of a mask that most of some people have there, (v,); empty where most have none."""
    names = label_names(folder)
    groups = sorted(GROUPS)
    lookup = np.zeros(max(names) + 1, np.int64)
    for number, name in names.items():
        lookup[number] = groups.index(group_of(name)) + 1 if group_of(name) else 0
    counts = np.zeros((len(groups) + 1, int(inside.sum())), np.int64)
    for person in people:
        image = folder / person / "anat" / f"{person}_space-MNIaffine_desc-DLMUSE_dseg.nii.gz"
        found = lookup[place_labels(image, run.pipeline)[inside]]
        counts[found, np.arange(len(found))] += 1
    return np.array(["", *groups])[counts.argmax(axis=0)]


def ventricles(folder: Path) -> dict[str, float]:
    """Volume of the ventricles of each person (DLMUSE 509), as a share of that within the skull (702)."""
    with (folder / "desc-DLMUSE_volumes.tsv").open(encoding="utf-8", newline="") as stream:
        return {
            row["participant_id"]: float(row["509"]) / float(row["702"])
            for row in csv.DictReader(stream, delimiter="\t")
        }
