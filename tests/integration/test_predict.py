"""`kerasvae predict` and the axes of codes on trained runs, whose people's factors are known; and latents.tsv."""

import json
import sys

import numpy as np
import pytest
from scipy import stats
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from kerasvae import load_recipe, load_run
from kerasvae.analysis.cross_validation import cross_validate
from kerasvae.analysis.folds import pca_of
from kerasvae.analysis.latents import read_latents
from kerasvae.cli import main
from tests.conftest import BLOB_RECIPE, make_blob_cohort
from tests.tables import read_rows

PEOPLE = 40
FACTORS = np.array([np.random.default_rng(person).standard_normal(4) for person in range(PEOPLE)])
"""What `blob` draws first."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two folds."""
    folder = tmp_path_factory.mktemp("predict")
    make_blob_cohort(folder / "cohort", PEOPLE)
    lines = ["\t".join(["participant_id", "age", "sex", "qc", "left", "front", "noise"])]
    rng = np.random.default_rng(0)
    for person, (left, front, *_) in enumerate(FACTORS):
        cells = [f"sub-{person:02d}", 20 + person, "MF"[person % 2], "pass", left, "yes" if front > 0 else "no"]
        lines.append("\t".join(map(str, [*cells, rng.normal()])))
    (folder / "cohort" / "participants.tsv").write_text("\n".join(lines) + "\n")
    (folder / "blobs.toml").write_text(BLOB_RECIPE.replace('kind = "zscore"', 'kind = "range", low = 0, high = 200'))
    changed = ["training.epochs=1", "model.latent_size=4", "cohort.bad_images=skip", "training.cross_fit=false"]
    cross_validate(load_recipe(folder / "blobs.toml", changed), folder / "cohort", folder / "out", folds=2)
    return [folder / "out" / f"fold{fold}-seed0" for fold in range(2)]


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["kerasvae", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_what_is_in_the_image_is_predicted_and_what_is_not_is_not(runs, monkeypatch, capsys, tmp_path):
    options = ("--variables", "left,front,noise", "--permutations", 19, "--out", tmp_path / "p.tsv", "--json")
    assert command(monkeypatch, "predict", *runs, *options) == 0
    found = json.loads(capsys.readouterr().out)
    known = len(load_run(runs[0]).cohort.scans)
    assert {figures["people"] for figures in found.values()} == {known}
    for source in ("latents", "pca"):
        assert found["left"]["by"][source]["r"]["low"] > 0.9
        assert found["front"]["by"][source]["auc"]["value"] > 0.9
        assert found["noise"]["by"][source]["r"]["value"] < 0.4
    assert abs(found["left"]["differences"]["latents - pca"]["r"]["value"]) < 0.05
    assert found["left"]["permutation"]["latents"]["p"] == 0.05 == found["front"]["permutation"]["latents"]["p"]
    assert found["noise"]["permutation"]["latents"]["p"] > 0.05
    rows = read_rows(tmp_path / "p.tsv")
    assert len(rows) == 3 * 2 * known
    assert {row["run"] for row in rows} == {"fold0-seed0", "fold1-seed0"}
    assert json.loads((tmp_path / "p.json").read_text())["Figures"] == found


def test_one_run_in_words(runs, monkeypatch, capsys):
    options = ("--variables", "left", "--covariates", "sex", "--beside", "none", "--permutations", 0)
    assert command(monkeypatch, "predict", runs[0], *options) == 0
    said = capsys.readouterr().out
    assert "20 people, r: latents 1.00 (1.00 to 1.00), covariates alone" in said
    assert "covariates and latents less covariates alone: " in said
    assert {row["by"] for row in read_rows(runs[0] / "predictions.tsv")} == {
        "latents",
        "covariates",
        "covariates_latents",
    }
    assert command(monkeypatch, "predict", *runs, "--variables", "left") == 2
    assert "--out must name a table" in " ".join(capsys.readouterr().err.split())


def test_pca_beside_is_scikit_learns(runs):
    run = load_run(runs[0])
    roles = [run.split.roles[scan.person] for scan in run.cohort.scans]
    x = np.stack([run.pipeline.apply(scan.path)[run.pipeline.mask] for scan in run.cohort.scans])
    expected = PCA(4).fit(x[np.isin(roles, ["train", "validation"])]).transform(x)
    found = pca_of(run, read_latents(run))
    np.testing.assert_allclose(abs(found), abs(expected), rtol=1e-3, atol=1e-3 * abs(expected).max())


def test_axes(runs, monkeypatch, capsys):
    options = ("--variables", "left", "--permutations", 99, "--rotation", "varimax")
    assert command(monkeypatch, "associate", runs[0], *options) == 0
    assert "one by one on varimax axes" in " ".join(capsys.readouterr().out.split())
    described = json.loads((runs[0] / "associations.json").read_text())["Rotation"]
    matrix = np.array(described["Matrix"])
    assert described["Kind"] == "varimax"
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(4), atol=1e-9)
    row = read_rows(runs[0] / "associations.tsv")[0]
    latents = read_latents(load_run(runs[0]))
    slope = stats.linregress(FACTORS[[int(name[4:]) for name in latents.people], 0], latents.codes @ matrix[:, 0]).slope
    assert float(row["slope"]) == pytest.approx(slope, rel=1e-6)
    assert command(monkeypatch, "stability", *runs, "--axes", "principal,varimax", "--json") == 0
    axes = json.loads(capsys.readouterr().out)["pairs"][0]["axes"]
    assert set(axes) == {"principal", "varimax"}
    for told in axes.values():
        assert told["mean"] > told["chance"]
        assert told["p"] < 0.05


def test_what_the_model_makes_of_each_scan(runs):
    run = load_run(runs[0])
    rows = read_rows(run.path / "latents.tsv")
    images = run.store.load(run.cohort.scans)
    codes, made, mask = run.model.encode(images), run.model.reconstruct(images), run.pipeline.mask
    column = {name: np.array([float(row[name]) for row in rows]) for name in list(rows[0])[3:]}
    residual = np.sqrt(np.square((images - made)[:, mask], dtype=np.float64).mean(axis=1))
    np.testing.assert_allclose(column["residual"], residual, rtol=1e-4)
    kl = 0.5 * (codes["mean"] ** 2 + codes["stddev"] ** 2 - 1 - 2 * np.log(codes["stddev"])).sum(axis=1)
    np.testing.assert_allclose(column["kl_nats"], kl, rtol=1e-4)
    noise = stats.norm(made[:, mask], run.model.likelihood.numbers()["sigma"])
    np.testing.assert_allclose(column["surprise"], kl - noise.logpdf(images[:, mask]).sum(axis=1), rtol=1e-4)
    learned = np.isin([row["role"] for row in rows], ["train", "validation"])
    fit = LedoitWolf().fit(codes["mean"][learned].astype(np.float64))
    np.testing.assert_allclose(column["distance"], np.sqrt(fit.mahalanobis(codes["mean"])), rtol=1e-3)
    described = json.loads((run.path / "latents.json").read_text())
    assert set(column) <= set(described)
