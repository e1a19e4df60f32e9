"""The folders `serving/tfserving` and `serving/triton`: their commands lay out what they name, their clients run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, blob, blob_affine, write_image

FOLDERS = {"tfserving": ROOT / "serving" / "tfserving", "triton": ROOT / "serving" / "triton"}


def python(*arguments, cwd, code=0):
    call = [sys.executable, "-W", "ignore", *map(str, arguments)]
    done = subprocess.run(call, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done


def lines(text):
    return {name: json.loads(outputs) for name, outputs in (line.split("\t") for line in text.splitlines())}


@pytest.fixture
def scans(tmp_path):
    """Two scans, and a file that is none."""
    for person in (100, 101):
        write_image(tmp_path / f"sub-{person}_T1w.nii.gz", blob(person), blob_affine())
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    return ["sub-100_T1w.nii.gz", "broken.nii.gz", "sub-101_T1w.nii.gz"]


def check_scans(done, engine, folder, scans):
    (refused,) = (line for line in done.stderr.splitlines() if line.startswith("broken.nii.gz"))
    assert "in one file" in refused or "NIfTI" in refused
    found = lines(done.stdout)
    assert list(found) == [scans[0], scans[2]]
    for scan, outputs in found.items():
        for name, value in engine.encode(folder / scan).items():
            np.testing.assert_allclose(outputs[name], value[0], atol=1e-5)


@pytest.mark.parametrize("way", ["gRPC", "REST"])
def test_prepared_arrays_for_tf_serving(tf_serving, server, engine, prepared, tmp_path, way):
    """REST is asked of `kerasvae serve`, which speaks it too."""
    np.save(tmp_path / "image.npy", prepared)
    place = tf_serving.grpc if way == "gRPC" else server.url
    done = python(FOLDERS["tfserving"] / "encode.py", place, "blobs", "image.npy", cwd=tmp_path)
    found = json.loads(done.stdout)
    expected = engine.encode(prepared)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)


def test_scans_for_tf_serving(tf_serving, engine, tmp_path, scans):
    script = FOLDERS["tfserving"] / "encode_nifti.py"
    check_scans(python(script, tf_serving.grpc, "blobs", *scans, cwd=tmp_path, code=1), engine, tmp_path, scans)
    python(script, tf_serving.grpc, "blobs", scans[0], cwd=tmp_path)


@pytest.mark.parametrize("which", ["server", pytest.param("triton", marks=pytest.mark.heavy)])
def test_scans_for_triton(request, bundles, engine, tmp_path, scans, which):
    """kerasvae's own server speaks the same protocol."""
    script, address = FOLDERS["triton"] / "encode.py", request.getfixturevalue(which).grpc
    done = python(script, address, "blobs", bundles / "blobs-1", *scans, cwd=tmp_path, code=1)
    check_scans(done, engine, tmp_path, scans)
    python(script, address, "blobs", bundles / "blobs-1", scans[0], cwd=tmp_path)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_readme_lays_out_what_its_server_is_told_to_read(bundles, tmp_path, name):
    text = (FOLDERS[name] / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL).group(1).replace("\\\n", "")
    deploy, docker = (shlex.split(line, comments=True) for line in block.splitlines())
    assert deploy[:2] == ["kerasvae", "deploy"]
    (tmp_path / "bundle").symlink_to(bundles / "blobs-1")
    python("-m", "kerasvae.cli", *deploy[1:], cwd=tmp_path)
    mounted, inside, _ = next(word for word in docker if ":ro" in word).split(":")
    told = [word.partition("=")[2] for word in docker if f"={inside}" in word]
    assert told
    for path in told:
        assert (tmp_path / mounted.replace("$PWD/", "") / path.removeprefix(inside).lstrip("/")).exists()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (FOLDERS[name] / target).exists(), target
