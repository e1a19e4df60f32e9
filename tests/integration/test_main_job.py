"""The main job, whole: the demo as a user runs it, and real brains where they are present."""

import csv
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from kerasvae import load_recipe, load_run
from kerasvae.training.train import train
from kerasvae_export import export_run, verify
from kerasvae_serving import Engine

NOT_THERE = ["signature", "fewer bits"]
"""What verify has nothing to say of."""

pytestmark = pytest.mark.heavy


def test_demo(tmp_path):
    call = [sys.executable, "-m", "kerasvae.cli", "demo", "--out", str(tmp_path / "demo")]
    begun = time.perf_counter()
    done = subprocess.run(call, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    print(f"demo: {time.perf_counter() - begun:.0f} s")
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    metrics = json.loads((tmp_path / "demo" / "run" / "metrics.json").read_text())
    assert metrics["explained_variance"] > 0
    assert metrics["identification"] > 0.5
    assert (tmp_path / "demo" / "run" / "report.html").is_file()
    assert [check.name for check in verify(tmp_path / "demo" / "bundle") if check.ok is not True] == NOT_THERE
    with (tmp_path / "demo" / "latents.tsv").open() as stream:
        assert len(list(csv.DictReader(stream, delimiter="\t"))) == 4


@pytest.mark.parametrize("name", ["t1-4mm", "gm-4mm"])
def test_real_brains(name, data_folder, tmp_path):
    """The figures of the README's promise on IXI; a few epochs are enough, since the start is already good."""
    run = train(load_recipe(name, ["training.epochs=4"]), data_folder / "ixi", tmp_path / "run")
    metrics = run.metrics
    print(json.dumps({key: value for key, value in metrics.items() if key != "kl_per_dimension"}, indent=1))
    assert metrics["latent_size"] == 32
    assert metrics["explained_variance"] > 0
    assert metrics["identification"] > 0.5
    assert {"explained_variance_pca", "identification_pca"} <= set(metrics)
    assert sum(metrics[f"n_{role}"] for role in ("train", "validation", "calibration", "test")) == 139

    again = load_run(run.path)
    scans = again.cohort.scans_of(again.split, "test")[:4]
    volumes = np.stack([again.pipeline.apply(scan.path) for scan in scans])
    assert volumes.dtype == np.float32
    assert again.model.reconstruct(volumes).shape == volumes.shape
    export_run(again, tmp_path / "bundle")
    assert [check.name for check in verify(tmp_path / "bundle") if check.ok is not True] == NOT_THERE
    outputs = Engine(tmp_path / "bundle").encode([scan.path for scan in scans])
    expected = again.model.encode(volumes)
    for output in ("mean", "stddev"):
        np.testing.assert_allclose(outputs[output], expected[output], atol=1e-3 * np.abs(expected[output]).max())
