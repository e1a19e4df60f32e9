"""`kerasvae generate` and `kerasvae age`: on blobs whose factors, and what age and sex do to them, are known."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace

import nibabel
import numpy as np
import pytest
from scipy import stats

from kerasvae import load_recipe
from kerasvae.analysis.generation.conditional_codes import ConditionalCodes
from kerasvae.analysis.generation.generator import LEARNED, Generator
from kerasvae.analysis.generation.identity import change
from kerasvae.analysis.generation.novelty import novelty
from kerasvae.cli import main
from kerasvae.errors import ModelError
from kerasvae.training.train import train
from tests.conftest import BLOB_RECIPE, blob_affine, make_blob_cohort
from tests.tables import read_rows

PEOPLE = 44
RECIPE = BLOB_RECIPE.replace('{ kind = "zscore" }', '{ kind = "range", low = 0, high = 200, clip = false }').replace(
    "latent_size = 3", "latent_size = 4"
)


def factors_of_people():
    return np.array([np.random.default_rng(person).standard_normal(4) for person in range(PEOPLE)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Age goes with the first factor, left to right, and sex with the second, back to front."""
    folder = tmp_path_factory.mktemp("generate")
    cohort = make_blob_cohort(folder / "cohort", PEOPLE)
    rng = np.random.default_rng(0)
    lines = ["participant_id\tage\tsex\tqc\tscore"]
    for person, f in enumerate(factors_of_people()):
        age, sex = 50 + 10 * f[0] + 4 * rng.standard_normal(), "FM"[int(f[1] + 0.5 * rng.standard_normal() > 0)]
        lines.append(f"sub-{person:02d}\t{age:.1f}\t{sex}\tpass\t{'n/a' if person == 1 else person}")
    (cohort / "participants.tsv").write_text("\n".join(lines) + "\n")
    (folder / "blobs.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return train(load_recipe(folder / "blobs.toml", ["training.epochs=1"]), folder / "cohort", folder / "run")


@pytest.fixture(scope="module")
def generator(run):
    return Generator.of(run, ["age", "sex"])


@pytest.fixture(scope="module")
def told(folder):
    changes = ["training.epochs=1", "model.condition=['age', 'sex']"]
    return train(load_recipe(folder / "blobs.toml", changes), folder / "cohort", folder / "told")


def sidecars(root):
    """What PyBIDS finds said of each image of a derivative, by the entities space and desc."""
    from bids import BIDSLayout

    files = BIDSLayout(root, validate=False, is_derivative=True).get(extension=".nii.gz")
    return {(file.entities.get("space"), file.entities["desc"]): file.get_metadata() for file in files}


def in_images(run, images):
    """The four factors of each image, by least squares on the patterns that they were made with, and the mean."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (16, 18, 15)), indexing="ij")
    patterns = np.stack([15 * x, 15 * y, 10 * z, 12 * x * y, np.ones_like(x)], axis=-1)[run.pipeline.mask] / 200
    return np.linalg.lstsq(patterns, images[:, run.pipeline.mask].T, rcond=None)[0].T[:, :4]


def learned_from(generator):
    """Rows of the people, age, whether M, and true factors, of those learned from."""
    rows = generator.known(LEARNED)
    table = generator.table(rows)
    truth = factors_of_people()[[int(generator.latents.people[row][4:]) for row in rows]]
    return np.array(table["age"], float), np.array(table["sex"]) == "M", truth


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["kerasvae", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_generated_people_are_as_regression_of_the_truth_says(run, generator):
    age, male, truth = learned_from(generator)
    x = np.c_[np.ones(len(age)), age, male]
    slopes = np.linalg.lstsq(x, truth, rcond=None)[0]
    left = (truth - x @ slopes).std(axis=0, ddof=3)
    count = 400
    for asked, sex in ((40, "F"), (60, "M")):
        table = {"age": [str(asked)], "sex": [sex]}
        codes = generator.given.sample(generator.numbers(table), count, 1)[:, 0]
        found = in_images(run, generator.decode(codes, table))
        expected = np.array([1, asked, sex == "M"]) @ slopes
        assert (np.abs(found.mean(axis=0) - expected) < 0.1 + 4 * left / np.sqrt(count)).all()
        # shrinking a covariance makes it rounder and leaves its trace
        assert found.var(axis=0).sum() == pytest.approx(np.square(left).sum(), rel=0.2)


def test_what_is_not_named_is_as_among_people(run):
    alone = Generator.of(run, ["age"])
    table = {"age": ["50"]}
    codes = alone.given.sample(alone.numbers(table), 400, 2)[:, 0]
    share = (in_images(run, alone.decode(codes, table))[:, 1] > 0).mean()
    of_people = learned_from(alone)[2][:, 1] > 0
    low, high = stats.binomtest(int(of_people.sum()), len(of_people)).proportion_ci(0.99)
    assert low < share < high


def test_a_changed_person_has_aged_by_what_age_does(run, generator):
    """Of the first factor by the slope of the truth on age; of the others not, beside what they have by chance."""
    age, male, truth = learned_from(generator)
    slopes = np.linalg.lstsq(np.c_[np.ones(len(age)), age, male], truth, rcond=None)[0]
    rows = generator.known(["test"])
    table, images = generator.table(rows), run.store.load(generator.scans(rows))
    found = change(generator, images, table, {"age": "65"})
    moved = in_images(run, found.images) - in_images(run, images)
    expected = np.outer(65 - np.array(table["age"], float), slopes[1])
    np.testing.assert_allclose(moved, expected, atol=0.15)
    assert np.abs(expected[:, 0]).max() > 1
    np.testing.assert_allclose(found.images - images, found.difference, atol=1e-6)
    back = change(generator, images, table, {"age": table["age"][0]})
    assert np.abs(back.difference[0]).max() < 1e-6


def test_copies_are_told_from_new_people(generator):
    class Copier(ConditionalCodes):
        def sample(self, rows, count, seed):
            chosen = np.random.default_rng(seed).integers(0, len(known), (count, len(rows)))
            return known[chosen]

    known = generator.latents.codes[generator.known(LEARNED)]
    copier = Copier(**{field.name: getattr(generator.given, field.name) for field in fields(ConditionalCodes)})
    copying = Generator(generator.run, generator.latents, copier, generator.asked, generator.told)
    made = {}
    for name, each in (("copied", copying), ("new", generator)):
        table = {"age": ["50"], "sex": ["F"]}
        codes = each.given.sample(each.numbers(table), 3, 5)[:, 0]
        made[name] = novelty(each, codes, each.decode(codes, table), seed=7)
    found, rows = made["copied"]
    assert found.codes.p_copied < 0.001
    assert found.codes.ratio == 0
    assert found.images.p_copied < 0.025
    learned = [generator.latents.people[row] for row in generator.known(LEARNED)]
    assert {row["nearest"] for row in rows} == {row["nearest_image"] for row in rows} <= set(learned)
    assert "as copies are" in found.describe()[0]
    found, rows = made["new"]
    assert found.codes.p_copied > 0.025
    assert found.images.p_copied > 0.025
    assert found.own == 1  # the four factors hold all that these people differ by
    assert all(row["distance"] > 0 for row in rows)


def test_generate(run, folder, monkeypatch, capsys):
    out = folder / "generated"
    options = ("--count", 3, "--set", "age=45", "--set", "sex=F", "--seed", 3)
    assert command(monkeypatch, "generate", run.path, *options, "--out", out) == 0
    said = capsys.readouterr()
    assert "Their images are" in said.out
    assert "Warning" not in said.err
    people = read_rows(out / "participants.tsv")
    assert [(row["participant_id"], row["age"], row["sex"]) for row in people] == [
        (f"sub-generated00{number}", "45", "F") for number in (1, 2, 3)
    ]
    rows = read_rows(out / "codes.tsv")
    codes = np.array([[float(row[f"code_{index}"]) for index in range(4)] for row in rows])
    decoded = run.model.decode(codes)
    for row, expected in zip(rows, decoded, strict=True):
        name = row["participant_id"]
        image = nibabel.load(out / name / "anat" / f"{name}_desc-generated_T1w.nii.gz")
        np.testing.assert_allclose(image.get_fdata(), expected * run.pipeline.mask, atol=1e-5)
        np.testing.assert_array_equal(image.affine, blob_affine())
        assert int(image.header["sform_code"]) == 1
        assert row["nearest"].startswith("sub-")
        assert 0 < float(row["p"]) <= 1
    assert set(json.loads((out / "codes.json").read_text())) == set(rows[0])
    assert set(json.loads((out / "memorisation.json").read_text())) == {"codes", "images", "own"}
    described = json.loads((out / "dataset_description.json").read_text())
    assert "Generated" in described["Name"]
    assert described["DatasetType"] == "derivative"
    (about,) = sidecars(out).values()
    assert (about["Unit"], about["Space"]) == ("model units", "native")
    assert about["Command"].startswith("kerasvae generate ")

    assert command(monkeypatch, "generate", run.path, *options, "--noise", "--out", folder / "noise") == 0
    assert [row["code_0"] for row in read_rows(folder / "noise" / "codes.tsv")] == [row["code_0"] for row in rows]
    name = f"{people[0]['participant_id']}/anat/{people[0]['participant_id']}_desc-generated_T1w.nii.gz"
    plain, noisy = (nibabel.load(each / name).get_fdata() for each in (out, folder / "noise"))
    inside = run.pipeline.mask
    assert (noisy - plain)[inside].std() == pytest.approx(run.metrics["sigma"], rel=0.05)
    assert not noisy[~inside].any()


def test_age(run, folder, monkeypatch, capsys):
    out = folder / "aged"
    scan = next(scan for scan in run.cohort.scans if run.split.roles[scan.person] == "test")
    options = ("--person", scan.person, "--set", "age=40,60,90", "--covariates", "sex", "--out", out)
    assert command(monkeypatch, "age", run.path, *options) == 0
    said = capsys.readouterr()
    assert said.err.count("Warning") == 1
    assert "age 90 is outside" in said.err
    assert "what is made of it is extrapolated" in said.err
    assert "age 40: age" in said.out
    rows = read_rows(out / "counterfactuals.tsv")
    assert [(row["desc"], row["age"]) for row in rows] == [(f"age{age}", age) for age in ("40", "60", "90")]
    described = json.loads((out / "counterfactuals.json").read_text())
    assert set(described) == set(rows[0])
    about = sidecars(out)
    assert len(about) == 18
    for (space, _), told in about.items():
        assert told["Command"].startswith("kerasvae age ")
        where = {"model": ("model units", "native"), "native": ("those of the person's image", f"of {scan.path.name}")}
        assert (told["Unit"], told["Space"]) == where[space]

    def image(space, desc):
        name = f"{scan.person}_space-{space}_desc-{desc}_T1w.nii.gz"
        return nibabel.load(out / scan.person / "anat" / name)

    own, original = run.store.volume(scan), nibabel.load(scan.path)
    for row in rows:
        label = row["desc"]
        difference = image("model", f"{label}difference").get_fdata()
        changed = image("model", label).get_fdata()
        np.testing.assert_allclose(changed, own + difference, atol=1e-5)
        native = image("native", label)
        np.testing.assert_array_equal(native.affine, original.affine)
        inverted = [
            run.pipeline.invert(each.astype(np.float32), scan.path, intensity=True).get_fdata()
            for each in (changed, own, image("model", f"{label}decoded").get_fdata())
        ]
        moved = native.get_fdata() - original.get_fdata()
        np.testing.assert_allclose(moved, inverted[0] - inverted[1], atol=1e-3)
        np.testing.assert_allclose(moved, image("native", f"{label}difference").get_fdata(), atol=1e-3)
        np.testing.assert_allclose(image("native", f"{label}decoded").get_fdata(), inverted[2], atol=1e-3)
        assert float(row["distance_own"]) < float(row["distance_other"])
        assert row["nearest_other"] != scan.person
    assert float(rows[1]["reading_age"]) - float(rows[0]["reading_age"]) > 15
    identity = json.loads((out / "identity.json").read_text())
    assert (identity["role"], identity["people"]) == ("test", len(run.split.people("test")))
    assert [each["identification"] for each in identity["values"]] == [1, 1, 1]
    assert identity["readers"]["age"]["r_low"] > 0.5
    share = identity["values"][0]["identification_image"]
    words = f"what is decoded of {share:.0%} is nearest to their own image (chance {1 / identity['people']:.0%})"
    assert words in " ".join(said.out.split())
    for each in identity["values"][:2]:  # the third is beyond what anybody learned
        assert each["reading_age"] == pytest.approx(each["expected_age"], abs=identity["readers"]["age"]["mae"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("generate", "--set", "agee=70"), "Did you mean age?"),
        (("generate", "--set", "age"), "--set must be NAME=VALUE, each name once"),
        (("generate", "--set", "age=70", "--set", "age=60"), "each name once"),
        (("generate", "--set", "age=old"), "age must be a number, but received 'old'"),
        (("generate", "--set", "sex=W"), "sex must be one of F, M, but received 'W'"),
        (("generate", "--set", "qc=pass"), "qc must have two values or more"),
        (("generate", "--set", "age=50", "--knots", "9"), "knots must be 2"),
        (("age", "--person", "sub-99", "--set", "age=50"), "--person must be a person of the run"),
        (("age", "--person", "sub-01", "--session", "ses-2", "--set", "age=50"), "--session must be a visit of sub-01"),
        (("age", "--person", "sub-01"), "--set must say what changes"),
        (("age", "--person", "sub-01", "--set", "age=50,"), None),
        (("age", "--person", "sub-01", "--set", "age=,"), "--set must give values"),
        (("age", "--person", "sub-01", "--set", "sex=W"), "sex must be one of F, M"),
        (("age", "--person", "sub-01", "--set", "score=3"), "score must be known of the person who is changed"),
        (
            ("age", "--person", "sub-01", "--set", "age=50", "--covariates", "score"),
            "received an empty cell of sub-01",
        ),
    ],
)
def test_wrong_calls(run, tmp_path, monkeypatch, capsys, options, words):
    name, *rest = options
    out = tmp_path / "out"
    assert command(monkeypatch, name, run.path, *rest, "--out", out) == (2 if words else 0)
    if words:
        error = capsys.readouterr().err
        assert words in error
        assert error.count("Error") == 1
        assert not out.exists()


def test_nothing_is_overwritten(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "note").write_text("mine")
    assert command(monkeypatch, "generate", run.path, "--out", tmp_path) == 2
    assert "--out must be a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_without_held_out_people_nothing_is_claimed(generator):
    latents = replace(generator.latents, roles=("train",) * len(generator.latents.people))
    found, rows = novelty(
        replace(generator, latents=latents), latents.codes[:2], generator.decode(latents.codes[:2], {})
    )
    assert found is None
    assert [row["p"] for row in rows] == ["n/a", "n/a"]
    assert [row["nearest"] for row in rows] == list(latents.people[:2])
    assert [row["distance"] for row in rows] == [0, 0]


def test_held_out_people_of_an_unknown_group_are_left_out(run, generator):
    known = generator.known(("test",))
    columns = dict(generator.latents.columns)
    columns["sex"] = tuple("X" if row == known[0] else cell for row, cell in enumerate(columns["sex"]))
    other = replace(generator, latents=replace(generator.latents, columns=columns))
    assert other.known(("test",)) == known[1:]
    codes = generator.given.sample(generator.numbers({"age": ["50"], "sex": ["F"]}), 2, 0)[:, 0]
    found, _ = novelty(other, codes, generator.decode(codes, {}))
    assert len(found.codes.held_out) == len(generator.known(("calibration", "test"))) - 1


def test_codes_without_a_mean_are_refused(run, monkeypatch):
    monkeypatch.setattr(type(run.model.posterior), "kind", "power_spherical")
    with pytest.raises(ModelError, match="points of a sphere"):
        Generator.of(run, ["age"])


def test_a_variable_that_codes_do_not_show_is_said(run, generator):
    rng = np.random.default_rng(9)
    latents = generator.latents
    latents.columns["luck"] = tuple(f"{luck:.3f}" for luck in rng.standard_normal(len(latents.people)))
    terms = [latents.of(LEARNED).term("luck")]
    given = ConditionalCodes.fit(latents.of(LEARNED).codes, terms)
    lucky = Generator(run, latents, given, given.variables, ())
    assert "luck does not show in the codes" in lucky.warnings({"luck": ["0"]})[0]
    del latents.columns["luck"]
    assert generator.warnings({"age": ["50"], "sex": ["F"]}) == []


def test_a_conditional_model_is_told(told, folder, monkeypatch, capsys):
    """Its codes stay; age comes from its networks, which begin as least squares of the images on what they are told."""
    generator = Generator.of(told, ["age"])
    assert generator.given.variables == ()
    age, male, truth = learned_from(generator)
    slopes = np.linalg.lstsq(np.c_[np.ones(len(age)), age, male], truth, rcond=None)[0]
    rows = generator.known(["test"])
    table, images = generator.table(rows), told.store.load(generator.scans(rows))
    found = change(generator, images, table, {"age": "60"})
    inputs = {"image": images, "covariates": {name: table[name] for name in ("age", "sex")}}
    np.testing.assert_allclose(found.codes, told.model.encode(inputs)["mean"], atol=1e-6)
    moved = in_images(told, found.images) - in_images(told, images)
    np.testing.assert_allclose(moved, np.outer(60 - np.array(table["age"], float), slopes[1]), atol=0.2)

    monkeypatch.setattr(told.model.prior, "condition_size", 2, raising=False)  # as of a prior that is told, too
    assert [variable.name for variable in Generator.of(told, ["age"]).given.variables] == ["age"]

    assert command(monkeypatch, "generate", told.path, "--set", "age=50", "--out", folder / "half") == 2
    assert "--set must name all that the model is told: age, sex, but received no sex" in capsys.readouterr().err
    options = ("--count", "2", "--set", "age=50", "--set", "sex=F", "--out", folder / "whole")
    assert command(monkeypatch, "generate", told.path, *options) == 0
    assert len(list((folder / "whole").glob("sub-*/anat/*.nii.gz"))) == 2
    assert command(monkeypatch, "age", told.path, "--person", "sub-01", "--set", "age=900", "--out", folder / "x") == 2
    assert "The covariate 'age' must be a number between" in capsys.readouterr().err
