"""A run whose codes pay for what they tell of the site: from the cohort's table to codes of images alone."""

import csv

import numpy as np
import pytest

from kerasvae import load_recipe, load_run
from kerasvae.analysis.sites.run import harmonize_run
from kerasvae.errors import RecipeError
from kerasvae.training.train import train
from tests.conftest import BLOB_RECIPE, make_blob_cohort

SETTINGS = [
    "training.epochs=2",
    "training.patience=1",
    "objective.independent_of=site",
    "objective.independence_options={ site_weight = 50.0 }",
    "objective.schedules.site_weight={ kind = 'linear', start = 0.0, stop = 50.0, end = 0.5 }",
    "augment.mix={ share = 0.5 }",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Blobs of two sites, one person of a third, and one of whom it is not known."""
    folder = tmp_path_factory.mktemp("sites")
    (folder / "blobs.toml").write_text(BLOB_RECIPE)
    table = make_blob_cohort(folder / "cohort", 40) / "participants.tsv"
    header, *rows = table.read_text().splitlines()
    sites = ["A", "B"] * 19 + ["C", "n/a"]
    table.write_text("\n".join([f"{header}\tsite", *(f"{r}\t{s}" for r, s in zip(rows, sites, strict=True))]) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return train(load_recipe(folder / "blobs.toml", SETTINGS), folder / "cohort", folder / "run")


def test_run(run):
    again = load_run(run.path)
    assert again.model.objective.site.levels == ("A", "B")
    assert float(again.model.scheduled["site_weight"]) == 50
    with (run.path / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3  # to the last epoch, whatever the ELBO said
    assert all(np.isfinite(float(row["val_hsic"])) for row in rows)
    assert all(np.isfinite(float(row["hsic"])) for row in rows[1:])


def test_images_alone_are_encoded(run):
    with (run.path / "latents.tsv").open() as stream:
        row = next(csv.DictReader(stream, delimiter="\t"))
    volume = run.pipeline.apply(run.cohort.scans[0].path)[None]
    codes = [float(row[f"mean_{index}"]) for index in range(3)]
    np.testing.assert_allclose(load_run(run.path).model.encode(volume)["mean"][0], codes, rtol=1e-4, atol=1e-5)


def test_its_codes_are_harmonised_like_any_others(run):
    found = harmonize_run(run, "site", ["age"], voxels=False, permutations=1)
    assert set(found.few) == {"C"}  # one person is no site to be fitted to
    assert len((run.path / "latents_harmonized.tsv").read_text().splitlines()) == 39
    found = harmonize_run(run, "sex", ["age"], permutations=1)
    assert {space.name for space in found.spaces} == {"latents", "PCA of voxels", "kept alone"}
    assert len((run.path / "latents_harmonized.tsv").read_text().splitlines()) == 41


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("objective.independent_of=sight", "Did you mean 'site'"),
        ("objective.independence_options={ site_wait = 1.0 }", "Did you mean 'site_weight'"),
        ("objective.independence=mmd", "objective.independence"),
    ],
)
def test_wrong_recipes(folder, tmp_path, setting, words):
    with pytest.raises(RecipeError, match=words):
        train(load_recipe(folder / "blobs.toml", [*SETTINGS, setting]), folder / "cohort", tmp_path / "run")
