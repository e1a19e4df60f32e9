"""`kerasvae deviate` on a run of blobs: what it leaves, whom it finds, what it refuses."""

import json
import shutil

import nibabel
import numpy as np
import pytest
from scipy.stats import false_discovery_control

from kerasvae import load_recipe, load_run
from kerasvae.analysis.deviation.files import CENTILE_COLUMNS, COLUMNS, REGIONS
from kerasvae.analysis.deviation.run import SCORES, Deviations, deviate_run
from kerasvae.cli import main
from kerasvae.errors import ArgumentError, RunError
from kerasvae.training.train import train
from tests.conftest import BLOB_RECIPE, blob, blob_affine, make_blob_cohort, write_image
from tests.tables import read_rows, write_rows

PEOPLE = 30
ODD = 29
PLACE = np.s_[9:12, 9:12, 6:9]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A third of the people calibrate; the last person is tested, and has a spot that nobody else has."""
    folder = tmp_path_factory.mktemp("deviate")
    root = make_blob_cohort(folder / "cohort", PEOPLE)
    image = blob(ODD)
    image[PLACE] -= 60
    write_image(root / f"sub-{ODD}" / "anat" / f"sub-{ODD}_desc-brain_T1w.nii.gz", image, blob_affine())
    rows = (root / "participants.tsv").read_text().splitlines()
    roles = ["train"] * 12 + ["validation"] * 2 + ["calibration"] * 10 + ["test"] * 6
    table = [f"{rows[0]}\trole", *(f"{row}\t{role}" for row, role in zip(rows[1:], roles, strict=True))]
    (root / "participants.tsv").write_text("\n".join(table) + "\n")
    recipe = folder / "recipe.toml"
    recipe.write_text(BLOB_RECIPE)
    settings = ['split.column="role"', "split.stratify=[]", "training.epochs=1"]
    return train(load_recipe(recipe, settings), root, folder / "run").path


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Left and right."""
    image = np.zeros((16, 18, 15), np.float32)
    image[:8], image[8:] = 1, 2
    folder = tmp_path_factory.mktemp("labels")
    (folder / "names.tsv").write_text("index\tname\n1\tleft\n2\tright\n")
    return write_image(folder / "labels.nii.gz", image, blob_affine()), folder / "names.tsv"


def test_the_command_finds_who_is_odd_and_where(run, labels, monkeypatch, capsys):
    words = [
        "deviate",
        str(run),
        "--covariates",
        "age,sex",
        "--labels",
        str(labels[0]),
        "--label-names",
        str(labels[1]),
    ]
    monkeypatch.setattr("sys.argv", ["kerasvae", *words, "--native"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "6 people judged against 10; the least p there can be is 0.091." in said
    assert "Nobody can be told at 0.05: that needs 19 calibration people." in said

    folder = run / "deviations"
    rows = read_rows(folder / "deviations.tsv")
    assert list(rows[0]) == list(COLUMNS)
    assert [row["participant_id"] for row in rows] == [f"sub-{number}" for number in range(24, 30)]
    odd = rows[-1]
    assert float(odd["p_focus"]) == pytest.approx(1 / 11)
    affine = load_run(run).pipeline.grid.matrix
    voxel = np.linalg.inv(affine) @ [*(float(odd[f"focus_{axis}"]) for axis in "xyz"), 1]
    assert all(part.start - 1 <= where <= part.stop for where, part in zip(np.round(voxel[:3]), PLACE, strict=True))
    assert max(float(row["focus"]) for row in rows[:-1]) < float(odd["focus"])
    assert odd["region"] == "right"
    p, q = ([[float(row[f"{k}_{score}"]) for score in ("extent", "focus", "distance")] for row in rows] for k in "pq")
    np.testing.assert_allclose(np.ravel(q), false_discovery_control(np.ravel(p)), rtol=1e-6)

    regions = read_rows(folder / "regions.tsv")
    assert list(regions[0]) == list(REGIONS)
    assert [row["name"] for row in regions] == ["left", "right"] * 6
    assert all(0 <= float(row["centile"]) <= 100 for row in regions if row["centile"] != "n/a")
    centiles = read_rows(folder / "centiles.tsv")
    assert list(centiles[0]) == list(CENTILE_COLUMNS)
    assert {row["name"] for row in centiles} == {"left", "right"}
    assert (folder / "centiles.png").read_bytes().startswith(b"\x89PNG")
    settings = json.loads((folder / "deviations.json").read_text())["Settings"]
    assert settings["covariates"] == ["age", "sex"]
    assert (settings["roles"], settings["calibration_people"]) == (["test"], 10)
    assert settings["people_without_a_covariate"] == {"learned": 0, "calibration": 0, "judged": 0}
    assert "A covariate is not known" not in said

    assert settings["command"] == "kerasvae " + " ".join([*words, "--native"])
    assert settings["labels"] == labels[0].name
    for place, space in ((folder, "native"), (folder / "native", "of the scan of the same name")):
        endings = {path.name.removesuffix(".nii.gz").rpartition("_")[2] for path in place.glob("*.nii.gz")}
        assert endings == {"z", "focus"}
        for ending in endings:
            about = json.loads((place / f"{ending}.json").read_text())
            assert (about["Space"], about["Command"]) == (space, settings["command"])
            assert about["Description"]
            assert about["Unit"]

    image = nibabel.load(folder / f"sub-{ODD}_focus.nii.gz")
    there = np.asarray(image.dataobj)
    assert np.unravel_index(np.abs(there).argmax(), there.shape) == tuple(np.round(voxel[:3]).astype(int))
    assert there.min() < -float(odd["focus"]) * 0.999
    native = nibabel.load(folder / "native" / f"sub-{ODD}_z.nii.gz")
    scan = nibabel.load(load_run(run).cohort.scans[ODD].path)
    assert native.shape == scan.shape
    np.testing.assert_allclose(native.affine, scan.affine)


def test_z_is_that_of_residuals(run, tmp_path):
    """Without covariates z of the odd person is far out in the spot and nowhere else so far."""
    deviate_run(load_run(run), out=tmp_path)
    z = np.asarray(nibabel.load(tmp_path / f"sub-{ODD}_z.nii.gz").dataobj)
    inside = np.zeros(z.shape, bool)
    inside[PLACE] = True
    assert np.median(z[inside]) < -3
    assert abs(np.median(z[~inside & (z != 0)])) < 1
    assert not (tmp_path / "regions.tsv").exists()


def test_without_maps_the_table_alone_is_left_and_comes_out_again(run, tmp_path):
    one = deviate_run(load_run(run), ["age"], out=tmp_path / "a", maps=False).rows
    again = deviate_run(load_run(run), ["age"], out=tmp_path / "b", maps=False).rows
    assert one == again
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["deviations.json", "deviations.tsv"]


@pytest.mark.parametrize("role", ["train", "validation", "calibration", "holdout"])
def test_people_the_model_knows_are_refused_and_not_suggested(run, role):
    with pytest.raises(ArgumentError, match=f"--roles must be test: .* received '{role}'. Use test"):
        deviate_run(load_run(run), roles=[role])


def test_other_wrong_calls(run, labels):
    with pytest.raises(ArgumentError, match="Did you mean age"):
        deviate_run(load_run(run), ["aeg"])
    with pytest.raises(ArgumentError, match="come with --labels"):
        deviate_run(load_run(run), label_names=labels[1])
    with pytest.raises(ArgumentError, match="--native must come with maps, but received --no-maps"):
        deviate_run(load_run(run), native=True, maps=False)


def test_people_without_a_covariate_are_counted(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("deviations"))
    rows = read_rows(copy / "scans.tsv")
    for row in rows:
        if row["participant_id"] in ("sub-00", "sub-13", "sub-20", "sub-29"):  # train, validation, calibration, test
            row["age"] = "n/a"
    write_rows(copy / "scans.tsv", rows)
    found = deviate_run(load_run(copy), ["age", "sex"], maps=False, out=tmp_path / "out")
    assert found.lacking == {"learned": 2, "calibration": 1, "judged": 1}
    told = "of 2 of the people learned from, 1 of the people that calibrate, 1 of the people judged."
    assert any(line.endswith(told) for line in found.describe())


def test_few_calibration_people_are_refused(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("deviations"))
    for name in ("scans.tsv", "latents.tsv"):
        path = copy / name
        path.write_text(path.read_text().replace("\tcalibration\t", "\ttest\t"))
    with pytest.raises(RunError, match="three calibration people"):
        deviate_run(load_run(copy))


def test_several_visits_of_a_person_count_once(tmp_path):
    def row(person, p):
        return {"participant_id": person} | {f"p_{s}": p for s in SCORES} | {f"q_{s}": 0.5 for s in SCORES}

    rows = [row("sub-1", 0.04), row("sub-1", 0.9), row("sub-2", 0.05), row("sub-3", 0.2)]
    said = Deviations(tmp_path, rows, 30).describe()
    assert said[0].startswith("3 people judged against 30")
    assert [line.split(";")[0] for line in said[1:]] == [f"{score}: p at most 0.05 of 1" for score in SCORES]
