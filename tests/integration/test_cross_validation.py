"""Nested cross-validation: everyone is tested once, what is pooled is what the runs say, and it can be interrupted."""

import csv
import json
import sys

import numpy as np
import pytest

from kerasvae import load_recipe, load_run
from kerasvae.analysis.cross_validation import cross_validate, summary
from kerasvae.cli import main
from kerasvae.errors import ArgumentError, RecipeError, RunError
from tests.conftest import BLOB_RECIPE, make_blob_cohort


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with a cohort and a recipe, and what an interrupted and resumed cross-validation says."""
    folder = tmp_path_factory.mktemp("folds")
    recipe = folder / "blobs.toml"
    recipe.write_text(BLOB_RECIPE)
    make_blob_cohort(folder / "cohort", 26)
    chosen = load_recipe(recipe, ["training.epochs=1", "cohort.bad_images=skip"])
    seen = []

    def stop(stage, *_):
        seen.append(stage)
        if stage.startswith("fold1-seed1 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cross_validate(chosen, folder / "cohort", folder / "out", folds=2, seeds=2, progress=stop)
    assert (folder / "out" / "fold0-seed1" / "metrics.json").is_file()
    before = (folder / "out" / "fold0-seed0" / "metrics.json").stat().st_mtime_ns
    found = cross_validate(chosen, folder / "cohort", folder / "out", folds=2, seeds=2, resume=True)
    assert (folder / "out" / "fold0-seed0" / "metrics.json").stat().st_mtime_ns == before
    return folder, found


def test_everyone_is_tested_once_by_who_does_not_know_them(job):
    folder, found = job
    runs = [[load_run(folder / "out" / f"fold{fold}-seed{seed}") for fold in range(2)] for seed in range(2)]
    everyone = {scan.person for scan in runs[0][0].cohort.scans}
    assert found["people"] == len(everyone)
    for of_seed in runs:
        tested = [set(run.split.people("test")) for run in of_seed]
        assert not tested[0] & tested[1]
        assert tested[0] | tested[1] == everyone
    assert runs[0][0].split.people("test") == runs[1][0].split.people("test")
    assert runs[0][0].recipe.training.seed != runs[1][0].recipe.training.seed
    assert json.loads((folder / "out" / "cross_validation.json").read_text()) == found


def test_what_is_pooled_is_what_the_runs_say(job):
    folder, found = job
    missed = {"reconstruction": 0.0, "pca": 0.0, "mean_image": 0.0}
    for row in found["runs"]:
        run = load_run(folder / "out" / row["run"])
        scans = run.cohort.scans_of(run.split, "test")
        mask = run.pipeline.mask
        x, train = (run.store.load(each)[:, mask] for each in (scans, run.cohort.scans_of(run.split, "train")))
        made = run.model.reconstruct(run.store.load(scans))[:, mask]
        own = np.square(x - made).sum(axis=1)
        with (run.path / "errors.tsv").open() as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        assert set(json.loads((run.path / "errors.json").read_text())) == set(rows[0])
        assert [each["participant_id"] for each in rows] == [scan.person for scan in scans]
        np.testing.assert_allclose([float(each["reconstruction"]) for each in rows], own, rtol=1e-4)
        np.testing.assert_allclose(
            [float(each["mean_image"]) for each in rows], np.square(x - train.mean(axis=0)).sum(axis=1), rtol=1e-4
        )
        assert row["explained_variance"] == run.metrics["explained_variance"]
        for key in missed:
            missed[key] += sum(float(each[key]) for each in rows)
    gain = found["explained_variance"]
    assert gain["model"] == pytest.approx(1 - missed["reconstruction"] / missed["mean_image"], abs=1e-6)
    assert gain["pca"] == pytest.approx(1 - missed["pca"] / missed["mean_image"], abs=1e-6)
    assert gain["difference"] == pytest.approx(gain["model"] - gain["pca"])
    assert gain["low"] < gain["difference"] < gain["high"]
    assert set(found["agreement"]) == {"folds", "seeds"}


def test_the_command(job, monkeypatch, capsys):
    folder, found = job
    call = [
        "cross-validate",
        str(folder / "blobs.toml"),
        "--data",
        str(folder / "cohort"),
        "--out",
        str(folder / "out"),
    ]
    call += ["--set", "training.epochs=1", "--set", "cohort.bad_images=skip", "--folds", "2", "--seeds", "2"]
    for options, status, words in (
        (["--resume"], 0, f"{found['people']} people, each tested in one of 2 folds, 2 seeds"),
        (["--resume", "--json"], 0, '"explained_variance"'),
        ([], 1, "new or empty folder"),
        (["--resume", "--folds", "1"], 2, "be 2 and 1 or more"),
    ):
        monkeypatch.setattr(sys, "argv", ["kerasvae", *call, *options])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert (stopped.value.code or 0) == status
        printed = capsys.readouterr()
        assert words in " ".join((printed.out + printed.err).split())


def test_what_cannot_be(job):
    folder, _ = job
    out = folder / "out"
    with pytest.raises(RunError, match="no other fold tests"):
        summary([[out / "fold0-seed0", out / "fold0-seed1"]])
    with pytest.raises(RunError, match="same test people"):
        summary([[out / "fold0-seed0"], [out / "fold1-seed0"]])
    with pytest.raises(ArgumentError, match="be 2 and 1 or more"):
        cross_validate(load_recipe(folder / "blobs.toml"), folder / "cohort", folder / "other", seeds=0)
    for wrong in (["split.folds=1"], ["split.folds=3", "split.fold=3"], ["split.folds=3", 'split.column="role"']):
        with pytest.raises((ArgumentError, RecipeError), match="folds"):
            load_recipe(folder / "blobs.toml", wrong)
