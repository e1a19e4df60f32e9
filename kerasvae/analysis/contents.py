"""What a report says, read from the files of a run folder: tables of plain values. No TensorFlow."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.panel import Examples
from kerasvae.analysis.words import DASH, number
from kerasvae.covariates import MISSING
from kerasvae.data import ROLES

__all__ = [
    "Codes",
    "Figure",
    "Group",
    "Spell",
    "age_of",
    "as_number",
    "figures_of",
    "groups_of",
    "read_codes",
    "read_examples",
    "read_json",
    "read_table",
    "spells_of",
    "without_folders",
]

AGE_COLUMNS = ("age", "age_years", "age_at_scan", "age_at_visit")
SEX_COLUMNS = ("sex", "gender")


class Figure(NamedTuple):
    """A row of the table of figures; texts ready to be shown."""

    name: str
    ours: str
    pca: str
    reference: str
    meaning: str
    better: str = ""


class Codes(NamedTuple):
    """Content of latents.tsv: the code that stands for each scan, (n, d), whose it is, how wide its posterior is.

    Where dimensions go together in the posterior, `root` is A, (n, d, k), with A Aᵀ its covariance.
    """

    scans: list[tuple[str, str]]
    roles: list[str]
    means: NDArray[np.float64]
    stddev: NDArray[np.float64] | None = None
    root: NDArray[np.float64] | None = None


class Group(NamedTuple):
    """The people of a role."""

    role: str
    people: int
    scans: int
    age: str
    sex: str
    use: str


class Spell(NamedTuple):
    """Epochs in a row in which the guard spoke of the same ailment; texts ready to be shown."""

    epochs: str
    name: str
    text: str
    advice: str
    remedy: str


ROLE_USES = {
    "train": "the weights, the mask and the mean brain are fitted to them",
    "validation": "they choose the epoch; unless training.refit is off, the final weights are fitted to them too",
    "calibration": "they set the scale of the likelihood, unless it is fixed",
    "test": "read once, for the figures above",
}


def figures_of(metrics: Mapping[str, Any]) -> list[Figure]:
    """The table of figures, with PCA beside ours where PCA has such a figure.

    Args:
        metrics: Content of metrics.json.
    """

    def pair(name: str, key: str, reference: str, meaning: str) -> Figure:
        ours, peer = metrics.get(key), metrics.get(f"{key}_pca")
        better = "" if ours is None or peer is None or ours == peer else ("ours" if ours > peer else "pca")
        return Figure(name, number(ours), number(peer), reference, meaning, "" if key == "variance_ratio" else better)

    def own(name: str, key: str, digits: int, reference: str, meaning: str) -> Figure:
        return Figure(name, number(metrics.get(key), digits), DASH, reference, meaning)

    role, size = metrics.get("role", "test"), metrics.get("latent_size")
    n = metrics.get("n_scans", metrics.get(f"n_{role}"))
    chance = f"chance {number(metrics.get('identification_chance'))}"
    most = f"at most {math.log(n):.2f}, the logarithm of {n} scans" if n else ""
    return [
        pair("Explained variance between people", "explained_variance", "mean brain 0, perfect 1",
             "1 − (squared error of the reconstructions) / (squared distance from the training mean), in the mask"),
        pair("Identification", "identification", chance,
             "share of reconstructions whose nearest image is one of the same person"),
        pair("Variance ratio", "variance_ratio", "mean brain 0, as people 1",
             "variance between reconstructions / variance between images; right or wrong alike"),
        own("Active units", "active_units", 0, f"of {size}" if size else "",
            "latent dimensions whose posterior mean varies between people (variance above 0.01)"),
        own("Mutual information, nats", "mutual_information", 2, most,
            "what a code tells about which scan it is; the estimate ends at the logarithm of their number"),
        own("KL divergence, nats per subject", "kl_nats", 1, "collapse 0", "posterior from prior, over all dimensions"),
        own("ELBO, nats per subject", "elbo_nats", 1, "higher is better",
            "lower bound of the log-likelihood; compares runs with the same images, grid and mask only"),
        own("ELBO, nats per voxel", "elbo_nats_per_voxel", 4, "higher is better",
            f"the same divided by the {metrics.get('n_voxels', '')} voxels of the mask"),
        own("Scale σ, model's units", "sigma", 4, "",
            "standard deviation of the likelihood, one for all voxels"),
        own("β", "beta", 2, "ELBO 1", "weight of the KL beside the summed log-likelihood"),
        own("Effective β", "effective_beta", 2, "ELBO 1",
            "β as it would have to be, were a fixed scale at its best for these people"),
    ]  # fmt: skip


def groups_of(scans: Sequence[Mapping[str, str]]) -> list[Group]:
    """People, scans, age and sex of each role; a person with several scans counts with the first.

    Args:
        scans: Rows of scans.tsv.
    """
    groups = []
    for role in ROLES:
        rows = [row for row in scans if row["role"] == role]
        first = list({row["participant_id"]: row for row in reversed(rows)}.values())
        groups.append(Group(role, len(first), len(rows), _age_text(first), _sex_text(first), ROLE_USES.get(role, "")))
    return groups


def spells_of(watch: Mapping[str, Any]) -> list[Spell]:
    """What the guard spoke of, in order, with the words of the last epoch, and what it did about it.

    Args:
        watch: Content of guard.json; nothing of an older run.
    """
    open_: dict[str, dict[str, Any]] = {}
    spells: list[dict[str, Any]] = []
    for entry in watch.get("epochs", []):
        named = {each["name"]: each for each in entry["diagnoses"] if each["name"] in entry["lasting"]}
        open_ = {name: spell for name, spell in open_.items() if name in named}
        for name, diagnosis in named.items():
            if name not in open_:
                open_[name] = {"first": entry["epoch"], "remedy": ""}
                spells.append(open_[name])
            open_[name] |= {"last": entry["epoch"], "diagnosis": diagnosis}
        remedy = entry["remedy"]
        if remedy and remedy["against"] in open_:
            open_[remedy["against"]]["remedy"] = remedy["text"]
    return [
        Spell(
            f"{spell['first']}" if spell["first"] == spell["last"] else f"{spell['first']} to {spell['last']}",
            spell["diagnosis"]["name"],
            spell["diagnosis"]["text"],
            spell["diagnosis"]["advice"],
            spell["remedy"],
        )
        for spell in spells
    ]


def age_of(row: Mapping[str, str]) -> float:
    """The age in a row of scans.tsv in years; NaN where there is none."""
    for name in AGE_COLUMNS:
        for column, cell in row.items():
            if column.casefold() == name and (cell or "").strip().casefold() not in MISSING:
                try:
                    return float(cell)
                except ValueError:
                    return math.nan
    return math.nan


def _age_text(rows: Iterable[Mapping[str, str]]) -> str:
    known = np.array([value for value in map(age_of, rows) if math.isfinite(value)])
    if not len(known):
        return DASH
    spread = f" ± {known.std(ddof=1):.1f}" if len(known) > 1 else ""
    return f"{known.mean():.1f}{spread} ({known.min():.0f} to {known.max():.0f})"


def _sex_text(rows: Sequence[Mapping[str, str]]) -> str:
    names = [column for column in (rows[0] if rows else {}) if column.casefold() in SEX_COLUMNS]
    if not names:
        return DASH
    cells = [(row[names[0]] or "").strip() for row in rows]
    counts = Counter("unknown" if cell.casefold() in MISSING else cell for cell in cells)
    return ", ".join(f"{count} {value}" for value, count in sorted(counts.items()))


def read_codes(path: Path, size: int) -> Codes:
    """Scans (person and session), roles, means and, of normal posteriors, standard deviations.

    None where the file or a dimension is missing.

    Args:
        path: Of latents.tsv.
        size: Number of dimensions, d.
    """
    rows = []
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    names = [name for name in (rows[0] if rows else {}) if name not in ("participant_id", "session_id", "role")]
    first = names[0].rpartition("_")[0] if names else ""  # the output that stands for the person comes first
    columns, spread = ([f"{name}_{index}" for index in range(size)] for name in (first, "stddev"))
    if not rows or any(name not in rows[0] for name in columns):
        rows = []

    def numbers(names: list[str]) -> NDArray[np.float64]:
        return np.array([[as_number(row[name]) for name in names] for row in rows]).reshape(len(rows), size)

    known = rows[0].keys() if rows else set()
    return Codes(
        [(row["participant_id"], row["session_id"]) for row in rows],
        [row["role"] for row in rows],
        numbers(columns),
        numbers(spread) if known >= set(spread) else None,
        _root(rows, size),
    )


def _root(rows: Sequence[Mapping[str, str]], size: int) -> NDArray[np.float64] | None:
    """A, (n, d, k), of a full normal posterior: its L; of a low-rank one: its diagonal beside its factor."""
    names = list(rows[0]) if rows else []
    full = [[f"scale_tril_{i}_{j}" for j in range(size)] for i in range(size)]
    rank = sum(name.startswith("factor_0_") for name in names)
    if full and full[0][0] in names:
        return np.array([[[as_number(row[name]) for name in line] for line in full] for row in rows])
    if not rank:
        return None
    own = np.array([[as_number(row[f"diagonal_{i}"]) for i in range(size)] for row in rows])
    shared = [[[as_number(row[f"factor_{i}_{j}"]) for j in range(rank)] for i in range(size)] for row in rows]
    return np.concatenate([own[:, :, None] * np.eye(size), np.array(shared)], axis=2)


def read_table(path: Path) -> list[dict[str, float]]:
    """Numeric rows of a .csv or .tsv, NaN where a cell is empty or text; no rows where there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="," if path.suffix == ".csv" else "\t")
        return [{name: as_number(cell) for name, cell in row.items()} for row in reader]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_examples(path: Path) -> Examples | None:
    """The people whose slices were kept; None where there are none, or their images are not three-dimensional."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as content:
        people = [str(name) for name in content["participant_id"]]
        if not people or content["image"].ndim != 4:
            return None
        names = ("image", "reconstruction", "pca", "mean_image", "mask", "affine")
        image, ours, pca, mean, mask, affine = (content[name] for name in names)
    mask = mask.astype(bool)
    return Examples(people, image, ours, pca, mean, mask if mask.any() else np.ones_like(mask), affine)


def without_folders(text: str, known: Iterable[str] = ()) -> str:
    """The text with absolute paths cut to the name of the file.

    Args:
        text: E.g. the reason for which a scan was left out.
        known: Paths that may stand in it; needed for those with spaces.

    >>> without_folders("/data/a study/sub-1.nii and /home/x/y.nii.gz are bad", ["/data/a study/sub-1.nii"])
    'sub-1.nii and y.nii.gz are bad'
    """
    for path in sorted(filter(None, known), key=len, reverse=True):
        text = text.replace(path, re.split(r"[\\/]", path.rstrip("\\/"))[-1])
    text = re.sub(r"(?<![\w.:/\\])/(?:[^\s/'\"]+/)+", "", text)
    return re.sub(r"(?<!\w)[A-Za-z]:[\\/]+(?:[^\s\\/'\"]+[\\/]+)*", "", text)


def as_number(cell: str | None) -> float:
    """A cell of a table; NaN where it is empty or text."""
    try:
        return float(cell) if cell else math.nan
    except ValueError:
        return math.nan
