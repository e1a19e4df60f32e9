"""A cohort by Ray's workers: the table of one run, on from the driver's end, and around a worker's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kerasvae_serving import encode_files
from tests.conftest import blob, blob_affine, write_image

pytestmark = pytest.mark.heavy
PEOPLE = 400
COMMAND = (sys.executable, "-m", "kerasvae.cli", "encode")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "scans"
    for person in range(PEOPLE):
        write_image(folder / f"sub-{person:03d}_T1w.nii.gz", blob(400 + person), blob_affine())
    (folder / "sub-100_T1w.nii.gz").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def whole(engine, scans, tmp_path_factory) -> bytes:
    """The table of one run without Ray."""
    out = tmp_path_factory.mktemp("whole") / "latents.tsv"
    assert list(encode_files(engine, [scans], out, skip_bad=True)) == [str(scans / "sub-100_T1w.nii.gz")]
    return out.read_bytes()


def started(bundle: Path, scans: Path, out: Path, *options: str) -> subprocess.Popen:
    call = [*COMMAND, str(bundle), str(scans), "--out", str(out), "--ray", "local", *options]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def images_in(path: Path) -> list[int]:
    lines = (line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))
    return [line["index"] for _, line in map(json.loads, lines) if "index" in line]


def wait_for_images(process: subprocess.Popen, path: Path, count: int) -> None:
    while not path.is_file() or len(images_in(path)) < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


def test_on_from_a_driver_that_was_killed(bundles, scans, whole, tmp_path):
    out = tmp_path / "latents.tsv"
    journal = Path(f"{out}.parts") / "0-of-1.jsonl"
    process = started(bundles / "blobs-1", scans, out)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 1, said
    assert "sub-100_T1w.nii.gz must be" in said
    done = len(images_in(journal))
    process = started(bundles / "blobs-1", scans, out, "--skip-bad")
    wait_for_images(process, journal, done + 8)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    images = images_in(journal)
    assert len(images) == len(set(images)) < PEOPLE
    process = started(bundles / "blobs-1", scans, out, "--skip-bad")
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert said.count("Left out") == 1
    assert out.read_bytes() == whole


def workers(of: int) -> list[int]:
    """Ray's actors below a process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            parents, pid = [], int(folder.name)
            while pid > 1:
                pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
                parents.append(pid)
        except (OSError, ValueError):
            continue
        if of in parents and b"ray::MapWorker" in title:
            found.append(int(folder.name))
    return found


def test_around_a_worker_that_was_killed(bundles, scans, whole, tmp_path):
    out = tmp_path / "latents.tsv"
    process = started(bundles / "blobs-1", scans, out, "--skip-bad")
    wait_for_images(process, Path(f"{out}.parts") / "0-of-1.jsonl", 1)
    killed = workers(process.pid)
    assert killed
    os.kill(killed[0], signal.SIGKILL)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert out.read_bytes() == whole


def test_no_cluster_is_said_in_one_sentence(bundles, scans, tmp_path):
    call = [*COMMAND, bundles / "blobs-1", scans, "--out", tmp_path / "z.tsv", "--ray"]
    for address in ("127.0.0.1:9", "nonsense"):
        done = subprocess.run([*call, address], capture_output=True, text=True, timeout=200)
        assert done.returncode == 1
        assert "Error: --ray must be local, auto, or the address of a cluster" in done.stderr.replace("\n", " ")
        assert "Traceback" not in done.stderr
    done = subprocess.run(
        [*COMMAND, scans, "--url", "http://x", "--model", "m", "--ray", "local"], capture_output=True, text=True
    )
    assert done.returncode == 2
