"""`kerasvae harmonize`: from a run folder with two sites to codes without them; what it refuses."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from kerasvae import load_run
from kerasvae.analysis.sites.combat import ComBat
from kerasvae.analysis.sites.run import harmonize_run
from kerasvae.cli import main
from kerasvae.data import Cohort
from kerasvae.preprocess import fit_pipeline
from kerasvae.training.run import write_json
from tests.conftest import BLOB_RECIPE, blob, blob_affine, make_blob_cohort, write_image
from tests.tables import read_rows, write_rows

PEOPLE = 120
ROLES = ["train", "validation", "train", "calibration", "test"] * 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What training leaves: codes with age in the first and a site's shift and scale in all, and images alike."""
    folder = tmp_path_factory.mktemp("harmonize")
    root = make_blob_cohort(folder / "cohort", PEOPLE)
    rng = np.random.default_rng(0)
    run = folder / "run"
    run.mkdir()
    latents, scans = [], []
    for person, role in enumerate(ROLES):
        name, site = f"sub-{person:02d}", "AB"[person // 5 % 2]
        image = root / name / "anat" / f"{name}_desc-brain_T1w.nii.gz"
        bright = 1 + 0.8 * np.linspace(-1, 1, 15) ** 2 if site == "B" else 1.0  # what z-scores leave of a site
        write_image(image, blob(person) * bright, blob_affine())
        age = 20 + 60 * person / PEOPLE
        codes = rng.standard_normal(3) + np.array([(age - 50) / 8, 0, 0])
        codes = codes * (1.5 if site == "B" else 1.0) + (4.0 if site == "B" else 0.0)
        who = {"participant_id": name, "session_id": "n/a", "role": role}
        latents.append(who | {f"mean_{i}": f"{code:.9g}" for i, code in enumerate(codes)}
                       | {f"stddev_{i}": "0.5" for i in range(3)} | {"elbo_nats": f"-{person}"})  # fmt: skip
        known = {"age": f"{age:.1f}", "sex": "MF"[person % 2], "site": site}
        scans.append(who | {"session_id": ""} | known | {"reason": "", "path": str(image)})
    write_rows(run / "latents.tsv", latents)
    write_rows(run / "scans.tsv", scans)
    (run / "latents.json").write_text(json.dumps({name: {"Description": "a code"} for name in ("mean_0", "elbo_nats")}))
    (run / "recipe.toml").write_text(BLOB_RECIPE)
    (run / "metrics.json").write_text(json.dumps({"latent_size": 3}))
    (run / "run.json").write_text(json.dumps({"data": str(root)}))
    cohort = Cohort.read(root, select={"suffix": "T1w"})
    pipeline = fit_pipeline([scan.path for scan in cohort.scans[::5]], grid="native", alignment=False)
    write_json(run / "pipeline.json", pipeline.to_config())
    return run


@pytest.fixture
def folder(made):
    """The folder, as each test finds and leaves it."""
    kept = {name: (made / name).read_text() for name in ("scans.tsv", "latents.tsv", "recipe.toml")}
    yield made
    for name, text in kept.items():
        (made / name).write_text(text)
    for name in ("latents_harmonized.tsv", "latents_harmonized.json", "harmonization.json"):
        (made / name).unlink(missing_ok=True)


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["kerasvae", "harmonize", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_files_and_the_words(folder):
    said = "\n".join(harmonize_run(load_run(folder), "site", ["age", "sex"], permutations=19).describe())
    report = json.loads((folder / "harmonization.json").read_text())
    of_each = {"scans_fitted": 36, "people_judged": 24, "people_scored": 24}
    assert report["sites"] == {"A": of_each, "B": of_each}
    spaces = {(space["name"], space["harmonized"]): space for space in report["spaces"]}
    assert list(spaces) == [
        ("latents", False), ("latents", True), ("PCA of voxels", False), ("PCA of voxels", True), ("kept alone", False),
    ]  # fmt: skip
    for name in ("latents", "PCA of voxels"):
        assert spaces[name, False]["site_accuracy"] > 0.9
        assert spaces[name, False]["site_p"] == 0.05
        assert spaces[name, True]["site_accuracy"] < 0.75
        assert spaces[name, True]["site_p"] > 0.05
        assert spaces[name, True]["dimensions"] == 3
    assert spaces["latents", True]["kept"]["age"] > 0.6
    assert spaces["latents", True]["measures"] == {"age": "r", "sex": "AUC"}
    assert spaces["kept alone", False]["kept"] == {}
    assert "ComBat, fitted to 72 scans of 2 sites. What codes tell of 48 other people" in said
    assert "(site: scored on 48 people, 24 of A, 24 of B):" in said
    assert "latents after ComBat: site 0." in said
    assert "ComBat took site out: the codes told it before and do no longer" in said


def test_codes_and_their_spread(folder, monkeypatch, capsys):
    assert command(monkeypatch, folder, "--keep", "age", "--no-voxels", "--permutations", "99", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "harmonization.json").read_text())
    before, after = read_rows(folder / "latents.tsv"), read_rows(folder / "latents_harmonized.tsv")
    assert list(after[0]) == [name for name in before[0] if name != "elbo_nats"]  # which is that of the code as it was
    same = ("participant_id", "session_id", "role")
    assert [[row[name] for name in same] for row in before] == [[row[name] for name in same] for row in after]
    told = json.loads((folder / "latents_harmonized.json").read_text())
    assert told["mean_0"] == {"Description": "a code"}
    assert "elbo_nats" not in told
    settings = told["Harmonization"]
    assert (settings["site"], settings["keep"], settings["sites"]) == ("site", {"age": "a unit more"}, ["A", "B"])
    # the sidecar harmonises further people, e.g. those that a bundle has encoded
    combat = ComBat.from_config({k: v for k, v in settings.items() if k not in ("site", "keep", "fitted_to")})
    scans = read_rows(folder / "scans.tsv")
    site, age = [row["site"] for row in scans], np.array([[float(row["age"])] for row in scans])
    codes, made = (np.array([[float(row[f"mean_{i}"]) for i in range(3)] for row in rows]) for rows in (before, after))
    np.testing.assert_allclose(made, combat.apply(codes, site, age), rtol=1e-6, atol=1e-7)
    spread = np.array([[float(row[f"stddev_{i}"]) for i in range(3)] for row in after])
    b = np.array(site) == "B"
    np.testing.assert_allclose(spread[b][:, 1:].mean() / spread[~b][:, 1:].mean(), 1 / 1.5, rtol=0.3)
    assert set(np.round(spread[b, 0], 8)) == {np.round(0.5 / combat.factor[1, 0], 8)}
    # fitted to no others: their site means come near, those of the others only as near as estimates are
    gap = made[b].mean(axis=0) - made[~b].mean(axis=0)
    assert np.abs(gap).max() < 1.2 < 3 < np.abs(codes[b].mean(axis=0) - codes[~b].mean(axis=0)).min()


def test_of_several_scans_of_a_person_the_first_at_each_site_is_fitted_to(folder):
    """Somebody with many visits has no more of a say; all visits are harmonised."""
    latents, scans = (read_rows(folder / f"{name}.tsv") for name in ("latents", "scans"))
    again, elsewhere = ({0: "A", 5: "B"}, {2: "B"})  # rows of training people, and where they were scanned once more
    for row, site in [*again.items()] * 20 + [*elsewhere.items()]:
        session = {"session_id": f"{len(latents):03d}"}
        latents.append(latents[row] | session | {f"mean_{i}": f"{5 + i + len(latents) / 9}" for i in range(3)})
        scans.append(scans[row] | session | {"site": site})
    write_rows(folder / "latents.tsv", latents)
    write_rows(folder / "scans.tsv", scans)
    harmonize_run(load_run(folder), "site", voxels=False, permutations=1)
    codes = np.array([[float(row[f"mean_{i}"]) for i in range(3)] for row in latents])
    site = np.array([row["site"] for row in scans])
    fit = [row for row in range(PEOPLE) if ROLES[row] in ("train", "validation")] + [len(latents) - 1]
    expected = ComBat.fit(codes[fit], site[fit]).apply(codes, site)
    made = read_rows(folder / "latents_harmonized.tsv")
    np.testing.assert_allclose([[float(row[f"mean_{i}"]) for i in range(3)] for row in made], expected, rtol=1e-6)


def test_unknown_cells_are_left_out(folder):
    scans = read_rows(folder / "scans.tsv")
    scans[0]["site"], scans[3]["age"], scans[4]["sex"] = "n/a", "", ""
    write_rows(folder / "scans.tsv", scans)
    found = harmonize_run(load_run(folder), "site", ["age"], voxels=False, permutations=1)
    assert "2 scans without a site or without what is kept are left out" in found.describe()[0]
    names = [row["participant_id"] for row in read_rows(folder / "latents_harmonized.tsv")]
    assert names == [f"sub-{person:02d}" for person in range(PEOPLE) if person not in (0, 3)]


@pytest.mark.parametrize("rows", [[0, 1, 3], [3, 4]], ids=["three people, two fitted to", "nobody fitted to"])
def test_a_site_with_few_people_is_left_out_and_the_others_are_as_without_it(folder, rows):
    scans = read_rows(folder / "scans.tsv")
    one_site(scans, "C", rows)
    write_rows(folder / "scans.tsv", scans)
    found = harmonize_run(load_run(folder), "site", ["age"], voxels=False, permutations=1)
    fitted = sum(ROLES[row] in ("train", "validation") for row in rows)
    assert found.few == {"C": fitted} == json.loads((folder / "harmonization.json").read_text())["sites_left_out"]
    assert found.left_out == 0
    assert found.describe()[0].startswith("Left out, with fewer than 5 training and validation people")
    assert found.describe()[0].endswith(f"C ({fitted}).")
    kept = [row for row in range(PEOPLE) if row not in rows]
    made, latents = read_rows(folder / "latents_harmonized.tsv"), read_rows(folder / "latents.tsv")
    assert [row["participant_id"] for row in made] == [f"sub-{row:02d}" for row in kept]
    codes, after = ([[float(row[f"mean_{i}"]) for i in range(3)] for row in table] for table in (latents, made))
    site, age = np.array([row["site"] for row in scans]), np.array([[float(row["age"])] for row in scans])
    fit = [row for row in kept if ROLES[row] in ("train", "validation")]
    combat = ComBat.fit(np.array(codes)[fit], site[fit], age[fit])
    np.testing.assert_allclose(after, combat.apply(np.array(codes)[kept], site[kept], age[kept]), rtol=1e-6)


def one_site(scans, site, rows):
    for row in rows:
        scans[row]["site"] = site


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda scans: None, ("--site", "scanner"), "must be a column of the cohort: age, sex, site"),
        (lambda scans: None, ("--keep", "agee"), "Did you mean age?"),
        (lambda scans: None, ("--keep", "age,site"), "--keep must leave the site out"),
        (
            lambda scans: one_site(scans, "A", range(8, PEOPLE)),
            (),
            "site must have two levels or more with 5 training and validation people each, but received ",
        ),
    ],
)
def test_wrong_calls(folder, monkeypatch, capsys, change, options, words):
    scans = read_rows(folder / "scans.tsv")
    change(scans)
    write_rows(folder / "scans.tsv", scans)
    assert command(monkeypatch, folder, *options) == 2
    assert words in capsys.readouterr().err
    assert not (folder / "latents_harmonized.tsv").exists()


def test_codes_on_a_sphere_stay_there(folder, monkeypatch, capsys):
    recipe = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(
        recipe.replace("latent_size = 3", 'latent_size = 3\nposterior = "von_mises_fisher"')
    )
    assert command(monkeypatch, folder) == 1
    assert "a posterior whose codes may be shifted" in capsys.readouterr().err
