"""Covariates from a table to a bundle: the whole way of a conditional model, and of one that regresses."""

import csv
import json
import shutil

import numpy as np
import pytest

from kerasvae import RegressionVAE, load_recipe, load_run
from kerasvae.bundle import read_bundle
from kerasvae.errors import ArgumentError, KerasVAEError, RecipeError
from kerasvae.training.train import train
from kerasvae_export import export_run, verify
from kerasvae_serving import Engine, encode_files
from tests.conftest import BLOB_RECIPE, make_blob_cohort

CONDITIONAL = [
    "training.epochs=2",
    "model.condition=['age', 'sex']",
    "model.prior=conditional_normal",
    "objective.schedules.beta={kind='cyclical', start=0.1, stop=1.0, cycles=1, ramp=1.0}",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("covariates")
    (folder / "blobs.toml").write_text(BLOB_RECIPE)
    cohort = make_blob_cohort(folder / "cohort", 20)
    (cohort / "participants.json").write_text(json.dumps({"age": {"Units": "years"}}))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return train(load_recipe(folder / "blobs.toml", CONDITIONAL), folder / "cohort", folder / "run")


@pytest.fixture(scope="module")
def bundle(run, folder):
    return export_run(run, folder / "bundle")


def test_run(run):
    again = load_run(run.path)
    age, sex = again.model.covariates
    assert (age.unit, age.low, age.high) == ("years", 10, 70)
    assert sex.levels == ("F", "M")
    ages = [float(scan.covariates["age"]) for scan in again.cohort.scans_of(again.split, "train", "validation")]
    assert age.mean == pytest.approx(np.mean(ages), rel=1e-3)
    assert np.isfinite(again.metrics["explained_variance_pca"])
    with (run.path / "history.csv").open() as stream:
        betas = [float(row["beta"]) for row in csv.DictReader(stream) if row["beta"]]
    assert betas == pytest.approx([0.1 + 0.9 * 2 / 6, 0.1 + 0.9 * 5 / 6])  # of the last of three steps of each epoch
    assert float(again.model.scheduled["beta"]) == 1


def test_the_peer_gets_the_covariates_too(run):
    """What a line in the covariates explains is taken out before PCA and put back."""
    from kerasvae.metrics import explained_variance

    fit = run.cohort.scans_of(run.split, "train", "validation")
    scans = run.cohort.scans_of(run.split, "test")
    volumes = {name: run.store.load(of)[:, run.pipeline.mask] for name, of in (("fit", fit), ("test", scans))}

    def design(of):
        return np.array([[1, float(s.covariates["age"]), s.covariates["sex"] == "M"] for s in of])

    slopes, *_ = np.linalg.lstsq(design(fit), volumes["fit"].astype(float), rcond=None)
    left = volumes["fit"] - design(fit) @ slopes
    axes = np.linalg.svd(left - left.mean(0), full_matrices=False)[2][:3]
    rest = volumes["test"] - design(scans) @ slopes
    peer = volumes["test"] - (rest - rest @ axes.T @ axes)
    mean = run.store.load(run.cohort.scans_of(run.split, "train")).mean(0)[run.pipeline.mask]
    expected = explained_variance(volumes["test"], peer, mean)
    assert run.metrics["explained_variance_pca"] == pytest.approx(expected, abs=1e-4)


def test_bundle_states_its_covariates_and_verifies(run, bundle):
    assert [check for check in verify(bundle) if check.ok is False] == []
    manifest = read_bundle(bundle).manifest
    assert [entry.name for entry in manifest.covariates] == ["age", "sex"]
    assert [tensor.name for tensor in manifest.inputs] == ["image", "covariates"]
    assert manifest.inputs[1].meaning == "in this order: age (years), sex (0 = F, 1 = M)"
    assert "age must be a number between 10 and 70 years" in (bundle / "MODEL_CARD.md").read_text()


def test_engine_and_model_agree(run, bundle):
    scan = run.cohort.scans[0]
    engine, known = Engine(bundle), {"age": scan.covariates["age"], "sex": scan.covariates["sex"]}
    volume = run.pipeline.apply(scan.path)[None]
    expected = run.model.encode({"image": volume, "covariates": known})["mean"]
    np.testing.assert_allclose(engine.encode(scan.path, known)["mean"][0], expected[0], rtol=1e-4, atol=1e-5)
    other = engine.encode(scan.path, {**known, "age": 68})["mean"][0]
    assert np.abs(other - expected[0]).max() > 1e-4
    with pytest.raises(ArgumentError, match="be given with every image: age, sex"):
        engine.encode(volume)
    with pytest.raises(ArgumentError, match="between 10 and 70 years, but received 130"):
        engine.encode(volume, {"age": [130], "sex": ["F"]})


def test_files_find_their_row(run, bundle, folder, tmp_path):
    files = [scan.path for scan in run.cohort.scans[:3]]
    table = folder / "cohort" / "participants.tsv"
    assert encode_files(Engine(bundle), files, tmp_path / "z.tsv", covariates=table) == {}
    with (tmp_path / "z.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    with (run.path / "latents.tsv").open() as stream:
        expected = list(csv.DictReader(stream, delimiter="\t"))
    for found, wanted in zip(rows, expected, strict=False):
        assert float(found["mean_0"]) == pytest.approx(float(wanted["mean_0"]), rel=1e-3, abs=1e-4)

    (tmp_path / "some.tsv").write_text("participant_id\tage\tsex\nsub-00\t20\tM\nsub-01\t900\tF\n")
    with pytest.raises(ArgumentError, match="between 10 and 70"):
        encode_files(Engine(bundle), files, tmp_path / "y.tsv", covariates=tmp_path / "some.tsv")
    left_out = encode_files(Engine(bundle), files, tmp_path / "y.tsv", covariates=tmp_path / "some.tsv", skip_bad=True)
    assert [reason.split(" must ")[0] for reason in left_out.values()] == ["The covariate 'age'", "--covariates"]
    with pytest.raises(ArgumentError, match="be given with every image"):
        encode_files(Engine(bundle), files, tmp_path / "y.tsv")
    (tmp_path / "bad.tsv").write_text("age\tsex\n20\tM\n")
    with pytest.raises(ArgumentError, match="a column file or participant_id"):
        encode_files(Engine(bundle), files, tmp_path / "y.tsv", covariates=tmp_path / "bad.tsv")


def test_a_target_is_read_from_the_image(folder, tmp_path):
    recipe = load_recipe(folder / "blobs.toml", ["training.epochs=2", "model.target=age", "model.condition=['sex']"])
    run = train(recipe, folder / "cohort", tmp_path / "run")
    assert isinstance(run.model, RegressionVAE)
    with (run.path / "latents.tsv").open() as stream:
        row = next(csv.DictReader(stream, delimiter="\t"))
    assert 0 < float(row["target_mean_0"]) < 100
    assert json.loads((run.path / "latents.json").read_text())["target_mean_0"]["Description"].startswith("age as read")
    bundle = export_run(run, tmp_path / "bundle")
    assert [check for check in verify(bundle) if check.ok is False] == []
    assert [tensor.name for tensor in read_bundle(bundle).manifest.outputs][-2:] == ["target_mean", "target_stddev"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["model.condition=['agee']"], "agee"),
        (["model.target=aeg"], "Did you mean 'age'"),
        (["model.target=age", "model.condition=['age']"], "what is given need not be regressed"),
        (["training.warm_up=0.5", "objective.schedules.beta={kind='constant', value=1}"], "be 0 where"),
    ],
)
def test_recipes_that_contradict_themselves(folder, tmp_path, settings, sentence):
    with pytest.raises(KerasVAEError, match=sentence):
        train(load_recipe(folder / "blobs.toml", settings), folder / "cohort", tmp_path / "run")


def test_a_schedule_is_checked_when_the_recipe_is_read(folder):
    with pytest.raises(RecipeError, match="Did you mean 'linear'"):
        load_recipe(folder / "blobs.toml", ["objective.schedules.beta={kind='linaer', start=0, stop=1}"])


def test_a_missing_value_may_count_as_the_mean(folder, tmp_path):
    cohort = shutil.copytree(folder / "cohort", tmp_path / "cohort")
    table = cohort / "participants.tsv"
    lines = table.read_text().splitlines()
    lines[3] = "\t".join(["sub-02", "n/a", *lines[3].split("\t")[2:]])
    table.write_text("\n".join(lines) + "\n")
    settings = ["training.epochs=1", "model.condition=['age']", "cohort.covariates=['sex']"]
    with pytest.raises(KerasVAEError, match="age"):
        train(load_recipe(folder / "blobs.toml", settings), cohort, tmp_path / "refused")
    run = train(load_recipe(folder / "blobs.toml", [*settings, "model.missing=mean"]), cohort, tmp_path / "run")
    volume = run.store.volume(run.cohort.scans[0])[None]
    unknown, mean = (
        run.model.encode({"image": volume, "covariates": {"age": [age]}})["mean"]
        for age in ("n/a", run.model.covariates[0].mean)
    )
    np.testing.assert_allclose(unknown, mean, atol=1e-6)
