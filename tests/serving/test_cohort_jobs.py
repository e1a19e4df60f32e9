"""The examples for Slurm and Kubernetes: checked by those who know the formats, and each task of them run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from kerasvae_serving import encode_files
from tests.conftest import ROOT, blob, blob_affine, write_image

SLURM, KUBERNETES = ROOT / "serving" / "slurm", ROOT / "serving" / "kubernetes"
JOBS = [KUBERNETES / "encode-job.yaml", KUBERNETES / "gather-job.yaml"]
SCRIPTS = [SLURM / "encode.sbatch", SLURM / "gather.sbatch"]


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "scans"
    for person in range(35):
        write_image(folder / f"sub-{person:02d}_T1w.nii.gz", blob(300 + person), blob_affine())
    return folder


@pytest.fixture
def whole(engine, scans, tmp_path) -> bytes:
    """The table of one run."""
    encode_files(engine, [scans], tmp_path / "whole.tsv")
    return (tmp_path / "whole.tsv").read_bytes()


def run(command: list[str | Path], **more: str) -> subprocess.CompletedProcess:
    """With the command `kerasvae` of this environment."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(command, env=os.environ | {"PATH": path} | more, capture_output=True, text=True, timeout=120)


def tasks(script: Path) -> int:
    """How many tasks a script asks Slurm for, counted from 0."""
    found = re.search(r"^#SBATCH --array=0-(\d+)$", script.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) + 1


@pytest.mark.heavy
def test_every_task_of_the_array_and_gather_make_the_table_of_one_run(bundles, scans, whole, tmp_path):
    out = tmp_path / "latents.tsv"
    call = ["bash", SCRIPTS[0], bundles / "blobs-1", scans, out, "--skip-bad"]
    for index in [*np.random.default_rng(0).permutation(tasks(SCRIPTS[0])), 3]:  # one is requeued after it was done
        done = run(call, SLURM_ARRAY_TASK_ID=str(index))
        assert done.returncode == 0, done.stderr
    done = run(["bash", SCRIPTS[1], out])
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == whole


@pytest.mark.heavy
def test_every_index_of_the_job_and_gather_make_the_table_of_one_run(bundles, scans, whole, tmp_path):
    encode, gather = (yaml.safe_load(path.read_text())["spec"] for path in JOBS)
    places = {"/bundle": str(bundles / "blobs-1"), "/images": str(scans), "/tables": str(tmp_path)}

    def command(job: dict) -> list[str]:
        (container,) = job["template"]["spec"]["containers"]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        words = [*container["command"], *container.get("args", [])]
        for place, here in places.items():
            assert place in mounted or not any(place in word for word in words)
            words = [word.replace(f"{place}", here) for word in words]
        return words

    (container,) = encode["template"]["spec"]["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    assert given == {"PARTS": str(encode["completions"])}
    for index in [*np.random.default_rng(1).permutation(encode["completions"]), 5]:
        done = run(command(encode), **given, JOB_COMPLETION_INDEX=str(index))
        assert done.returncode == 0, done.stderr
    done = run(command(gather))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "latents.tsv").read_bytes() == whole

    # what the policy says of exit status 2 is about calls that are wrong
    done = run(command(encode), PARTS="16", JOB_COMPLETION_INDEX="16")
    (rule,) = (rule for rule in encode["podFailurePolicy"]["rules"] if "onExitCodes" in rule)
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [done.returncode])
    assert rule["onExitCodes"]["containerName"] == container["name"]


@pytest.mark.heavy
@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_jobs_are_valid(tools, tmp_path, path):
    check = [tools.bin / "kubernetes-validate", "--strict"]
    assert run([*check, path]).returncode == 0
    wrong = tmp_path / path.name
    wrong.write_text(path.read_text().replace("podFailurePolicy:", "podFailurePolicies:"))
    done = run([*check, wrong])
    assert done.returncode != 0
    assert "podFailurePolicies" in done.stdout + done.stderr


@pytest.mark.heavy
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(tools, tmp_path, path):
    assert run(["bash", "-n", path]).returncode == 0
    check = [tools.bin / "shellcheck", "--enable=all", "--exclude=SC2250"]  # braces around every variable
    done = run([*check, path])
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / path.name
    wrong.write_text(re.sub(r'^(exec .*?)"(\$\w+)"', r"\1\2", path.read_text(), flags=re.MULTILINE))
    assert "SC2086" in run([*check, wrong]).stdout


def test_as_many_parts_as_tasks():
    found = re.search(r"^parts=(\d+)$", SCRIPTS[0].read_text(), re.MULTILINE)
    assert found is not None
    assert int(found[1]) == tasks(SCRIPTS[0])
