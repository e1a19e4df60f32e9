"""Encoding a cohort by the command line: its words, and processes that end in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from resource import RLIMIT_FSIZE, setrlimit

import numpy as np
import pytest

from tests.conftest import blob, blob_affine, write_image

PEOPLE = 17
COMMAND = (sys.executable, "-m", "kerasvae.cli")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("cohort") / "scans", PEOPLE)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("thousand") / "scans", 1000)


def written(folder: Path, people: int) -> Path:
    for person in range(people):
        write_image(folder / f"sub-{person:04d}_T1w.nii.gz", blob(200 + person), blob_affine())
    return folder


@pytest.fixture(scope="module")
def whole(bundles, scans, tmp_path_factory) -> bytes:
    """The table of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "latents.tsv"
    assert run("encode", bundles / "blobs-1", scans, "--out", out).returncode == 0
    return out.read_bytes()


def part(out: Path, index: int = 0, count: int = 1) -> Path:
    return Path(f"{out}.parts") / f"{index}-of-{count}.jsonl"


def images_in(path: Path) -> list[int]:
    """Which images a part has in whole lines, read without the code that wrote it."""
    lines = (line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))
    return [line["index"] for _, line in map(json.loads, lines) if "index" in line]


def run(*arguments, **named) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, **named)


def test_the_command_line(bundles, scans, whole, tmp_path):
    out, bundle = tmp_path / "latents.tsv", bundles / "blobs-1"
    for shard, code in (("2/2", 2), ("1", 2), ("-1/2", 2), ("0/2", 0)):
        done = run("encode", bundle, scans, "--out", out, "--shard", shard)
        assert done.returncode == code, done.stderr
    assert f"kerasvae gather {out}" in done.stdout
    done = run("gather", out)
    assert done.returncode == 1
    assert "1 that is missing or not done (1/2)" in done.stderr
    assert run("encode", bundle, scans, "--out", out, "--shard", "1/2").returncode == 0
    done = run("gather", out)
    assert (done.returncode, done.stdout) == (0, f"Latents: {out}\n")
    assert out.read_bytes() == whole
    assert run("gather", out).returncode == 2


def started(*arguments, **named) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **named
    )


def wait_for_images(process: subprocess.Popen, path: Path, count: int) -> None:
    """Until a part has lines of so many images; the process must still be at work then."""
    while not path.is_file() or path.read_bytes().count(b"\n") < count + 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)


def test_ctrl_c_says_how_to_go_on(bundles, scans, tmp_path):
    many = tmp_path / "scans"
    many.mkdir()
    for copy in range(100):
        for path in scans.iterdir():
            (many / f"{copy:02d}_{path.name}").symlink_to(path)
    out = tmp_path / "latents.tsv"
    process = started("encode", bundles / "blobs-1", many, "--out", out)
    wait_for_images(process, part(out), 3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"Give the same command to go on; so far: {part(out)}" in said
    assert 3 <= len(images_in(part(out))) < 1700


def test_a_full_disk_loses_nothing(bundles, scans, whole, tmp_path):
    """The process may write no file of more than 3,000 bytes; the table needs less, the journal more."""
    out = tmp_path / "latents.tsv"
    call = ["encode", bundles / "blobs-1", scans, "--out", out]
    done = run(*call, preexec_fn=lambda: setrlimit(RLIMIT_FSIZE, (3000, -1)))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "File too large. Mend that, and give the same command again" in done.stderr.replace("\n", " ")
    assert part(out).stat().st_size <= 3000
    kept = [line for line in part(out).read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert 2 < len(kept) < PEOPLE
    done = run(*call)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == whole


@pytest.mark.heavy
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_thousand_images_killed_three_times(bundles, thousand, tmp_path, seed):
    rng = np.random.default_rng(seed)
    once, out = tmp_path / "once.tsv", tmp_path / "latents.tsv"
    call = ["encode", bundles / "blobs-1", thousand, "--out"]
    assert run(*call, once).returncode == 0
    done = 0
    for _ in range(3):
        process = started(*call, out)
        wait_for_images(process, part(out), done + int(rng.integers(1, (1000 - done) // 4)))
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        images = images_in(part(out))
        assert images == list(range(len(images)))  # none twice, in order, none between missing
        assert done < len(images) < 1000
        done = len(images)
    assert run(*call, out).returncode == 0
    rows = out.read_bytes().splitlines()
    assert len(rows) == len(set(rows)) == 1001
    assert out.read_bytes() == once.read_bytes()


@pytest.mark.heavy
def test_two_parts_killed_at_once(bundles, thousand, tmp_path):
    once, out = tmp_path / "once.tsv", tmp_path / "latents.tsv"
    call = ["encode", bundles / "blobs-1", thousand, "--out"]
    assert run(*call, once).returncode == 0
    processes = [started(*call, out, "--shard", f"{index}/2") for index in range(2)]
    for index, process in enumerate(processes):
        wait_for_images(process, part(out, index, 2), 30)
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    assert run("gather", out).returncode == 1
    for index in range(2):
        assert 30 <= len(images_in(part(out, index, 2))) < 500
        assert run(*call, out, "--shard", f"{index}/2").returncode == 0
    assert run("gather", out).returncode == 0
    assert out.read_bytes() == once.read_bytes()
