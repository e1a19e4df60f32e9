"""A cohort whose encoding is killed on the way: how many latents are not what an uninterrupted run gives.

A thousand small images, a linear model fitted to some of them. `kerasvae encode` is killed (SIGKILL) when it has done a
number of images that a seed gives, and called again; in the second row both of two parts are killed at the same time.
"""

from __future__ import annotations

import csv
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
from rows import Row, as_row

from kerasvae import VAE, NormalLikelihood, fit_pipeline
from kerasvae.networks import fit_core, linear_start
from kerasvae_export import export

IMAGES, LEARNERS, LATENTS = 1000, 40, 8
KILLS = 3
SEEDS = (0, 1, 2)
COMMAND = (sys.executable, "-m", "kerasvae.cli")
PEER = "the same command, uninterrupted"


def cohort_rows(work: Path) -> list[Row]:
    """Latents missing, twice or different after kills.

    Args:
        work: Where images, bundle and tables are kept.
    """
    folder = work / "cohort"
    shutil.rmtree(folder, ignore_errors=True)
    scans = folder / "scans"
    scans.mkdir(parents=True)
    files = [_scan(scans / f"sub-{person:04d}_T1w.nii.gz", person) for person in range(IMAGES)]
    call = [*COMMAND, "encode", str(_bundle(files[:LEARNERS], folder / "bundle")), str(scans), "--out"]
    once = folder / "once.tsv"
    _end([*call, str(once)])
    rows = []
    for seed in SEEDS:
        out = folder / f"killed-{seed}.tsv"
        places = _killed_on_the_way([*call, str(out)], out, np.random.default_rng(seed))
        after = ", ".join(map(str, places))
        name = f"latents of {IMAGES} images missing, twice or different; killed after {after} images (seed {seed})"
        rows.append(_row(name, _wrong(once, out)))
    out = folder / "parts.tsv"
    places = _parts_killed([*call, str(out)], out)
    name = f"the same in two parts, both killed at once after {' and '.join(map(str, places))}, and gather"
    rows.append(_row(name, _wrong(once, out)))
    return rows


def _row(name: str, wrong: int) -> Row:
    return as_row(name, wrong, "latents", PEER, 0, 0, wrong == 0)


def _scan(path: Path, person: int) -> Path:
    """A bright ellipsoid, other in each person."""
    rng = np.random.default_rng(person)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (16, 18, 15)), indexing="ij")
    factors = rng.standard_normal(4)
    image = 100 + 15 * factors[0] * x + 15 * factors[1] * y + 10 * factors[2] * z + 12 * factors[3] * x * y
    image += 2 * rng.standard_normal(image.shape)
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    affine[:3, 3] = (-60, -68, -56)
    made = nibabel.Nifti1Image(np.where(x**2 + y**2 + z**2 < 0.8, image, 0).astype(np.float32), affine)
    made.set_sform(affine, 4)
    nibabel.save(made, path)
    return path


def _bundle(learners: list[Path], place: Path) -> Path:
    pipeline = fit_pipeline(learners, grid="native", intensity={"kind": "zscore"})
    learned = np.stack([pipeline.apply(path) for path in learners])
    core = fit_core(learned, LATENTS, pipeline.mask)
    model = VAE(*linear_start(None, None, core, pipeline.mask), likelihood=NormalLikelihood(mask=pipeline.mask))
    return export(model, pipeline, place, name="cohort")


def _killed_on_the_way(call: list[str], out: Path, rng: np.random.Generator) -> list[int]:
    """Kill the command a few times, then let it end; how many images it had done each time."""
    journal = _journal(out, 0, 1)
    places = [0]
    for _ in range(KILLS):
        process = _start(call)
        _wait(process, journal, places[-1] + int(rng.integers(1, (IMAGES - places[-1]) // 4)))
        places.append(_kill(process, journal))
    _end(call)
    return places[1:]


def _parts_killed(call: list[str], out: Path) -> list[int]:
    processes = [_start([*call, "--shard", f"{index}/2"]) for index in range(2)]
    journals = [_journal(out, index, 2) for index in range(2)]
    for process, journal in zip(processes, journals, strict=True):
        _wait(process, journal, 20)
    places = [_kill(process, journal) for process, journal in zip(processes, journals, strict=True)]
    for index in range(2):
        _end([*call, "--shard", f"{index}/2"])
    _end([*COMMAND, "gather", str(out)])
    return places


def _wrong(once: Path, out: Path) -> int:
    """Images whose row is missing, there more than once, or other than in the first table."""
    with once.open() as first, out.open() as second:
        expected, found = (list(csv.reader(stream, delimiter="\t")) for stream in (first, second))
    rows, seen = {row[0]: row for row in found}, Counter(row[0] for row in found)
    unknown = rows.keys() - {row[0] for row in expected}
    return len(unknown) + sum(rows.get(row[0]) != row or seen[row[0]] != 1 for row in expected)


def _journal(out: Path, index: int, count: int) -> Path:
    return Path(f"{out}.parts") / f"{index}-of-{count}.jsonl"


def _done(journal: Path) -> int:
    """Images in the whole lines of a journal."""
    lines = journal.read_bytes().splitlines(keepends=True) if journal.is_file() else []
    return sum(line.endswith(b"\n") and b'"index"' in line for line in lines)


def _start(call: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _end(call: list[str]) -> None:
    subprocess.run(call, check=True, stdout=subprocess.DEVNULL)


def _wait(process: subprocess.Popen[bytes], journal: Path, images: int) -> None:
    while _done(journal) < images:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with status {process.returncode} before it could be killed")
        time.sleep(0.001)


def _kill(process: subprocess.Popen[bytes], journal: Path) -> int:
    process.kill()
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError(f"{process.args} ended before it could be killed")
    return _done(journal)
