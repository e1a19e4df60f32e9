"""`kerasvae associate`: from a run folder to a table that says what it holds; what it refuses."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from kerasvae import load_run
from kerasvae.analysis.association import Association, associate_run
from kerasvae.analysis.latents import read_latents
from kerasvae.cli import main
from kerasvae.errors import RunError
from tests.conftest import BLOB_RECIPE
from tests.tables import read_rows, write_rows

PEOPLE = 40
ROLES = ["train"] * 20 + ["validation"] * 6 + ["calibration"] * 6 + ["test"] * 8


@pytest.fixture
def folder(tmp_path):
    """What training leaves that associations need: dimension 1 follows age, dimension 0 sex; a visit each."""
    rng = np.random.default_rng(0)
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(BLOB_RECIPE)
    (run / "metrics.json").write_text(json.dumps({"latent_size": 3}))
    latents, scans = [], []
    for person, role in enumerate(ROLES):
        who = {"participant_id": f"sub-{person:02d}", "session_id": "", "role": role}
        age, sex = rng.uniform(20, 80), "MF"[person % 2]
        codes = rng.normal(size=3) + np.array([1.5 * (sex == "M"), 0.08 * age, 0])
        latents.append(
            who
            | {"session_id": "n/a"}
            | {f"mean_{i}": f"{code:.9g}" for i, code in enumerate(codes)}
            | {f"stddev_{i}": "0.5" for i in range(3)}
            | {"elbo_nats": "-1"}
        )
        score = "n/a" if person % 4 == 0 else f"{rng.normal():.3f}"
        scans.append(who | {"age": f"{age:.2f}", "sex": sex, "score": score, "reason": "", "path": "x.nii.gz"})
    scans.append(scans[0] | {"participant_id": "sub-99", "role": "excluded", "reason": "qc"})
    write_rows(run / "latents.tsv", latents)
    write_rows(run / "scans.tsv", scans)
    return run


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["kerasvae", "associate", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_table_and_its_words(folder, monkeypatch, capsys):
    options = ("--variables", "age,sex,score", "--covariates", "sex", "--permutations", "999")
    assert command(monkeypatch, folder, *options) == 0
    said = capsys.readouterr().out
    rows = read_rows(folder / "associations.tsv")
    assert [(row["variable"], row["dimension"]) for row in rows] == [
        (name, dimension) for name in ("age", "sex", "score") for dimension in ("0", "1", "2", "joint")
    ]
    known = {(row["variable"], row["dimension"]): row for row in rows}
    assert float(known["age", "1"]["p_family"]) == 0.001 == float(known["age", "joint"]["p"])
    assert 0.05 < float(known["age", "1"]["low"]) < 0.08 < float(known["age", "1"]["high"]) < 0.11
    assert float(known["age", "1"]["stderr_posterior"]) > float(known["age", "1"]["stderr"])
    assert float(known["sex", "0"]["p_family"]) < 0.01  # against F, which comes first: men's are higher
    assert float(known["sex", "0"]["slope"]) > 0
    assert float(known["score", "joint"]["p"]) > 0.05
    assert known["score", "0"]["people"] == "30"
    assert known["score", "joint"]["slope"] == "n/a"
    assert "age, 40 people, sex (2 groups) held the same: all 3 dimensions together R 0." in said
    assert "1 (r +0." in said
    assert "score, 30 people, sex (2 groups) held the same" in said
    assert "sex, 40 people: all 3 dimensions together" in said  # it is not held the same for itself
    assert "0.05: none." in said
    described = json.loads((folder / "associations.json").read_text())
    assert set(described) == {*rows[0], "Settings"} == {*Association.__dataclass_fields__, "Settings"}
    assert described["Settings"] == {
        "covariates": ["sex"], "roles": ["calibration", "test", "train", "validation"], "permutations": 999, "seed": 0,
        "variables": {"age": "a unit more", "sex": "M against F", "score": "a unit more"},
        "held_same": {"age": ["sex (2 groups)"], "sex": [], "score": ["sex (2 groups)"]},
    }  # fmt: skip


def test_json(folder, monkeypatch, capsys):
    assert command(monkeypatch, folder, "--variables", "age", "--permutations", "99", "--roles", "test", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["dimension"] for row in rows] == [0, 1, 2, "joint"]
    assert {row["people"] for row in rows} == {8}
    assert rows[-1]["slope"] is None


def test_visits_are_those_of_their_people(folder):
    rows, codes = (read_rows(folder / name) for name in ("scans.tsv", "latents.tsv"))
    rows += [row | {"session_id": "2"} for row in rows[:8]]
    codes += [row | {"session_id": "2", "mean_0": "0.3"} for row in codes[:8]]
    write_rows(folder / "scans.tsv", rows)
    write_rows(folder / "latents.tsv", codes)
    found = associate_run(load_run(folder), ["age"], permutations=99)
    assert {(row.people, row.scans) for row in found.rows} == {(PEOPLE, PEOPLE + 8)}
    assert read_latents(load_run(folder)).codes[-1][0] == 0.3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--variables", "agee"), "Did you mean age?"),
        (("--variables", ""), "--variables must name a column"),
        (("--variables", "age", "--covariates", "height"), "must be a column of the cohort: age, sex, score"),
        (("--variables", "age", "--roles", "tset"), "--roles must be train, validation"),
        (("--variables", "age", "--covariates", "age,sex", "--permutations", "5"), "99"),
    ],
)
def test_wrong_calls(folder, monkeypatch, capsys, options, words):
    assert command(monkeypatch, folder, *options) == 2
    assert words in capsys.readouterr().err
    assert not (folder / "associations.tsv").exists()


def test_what_the_model_was_told(folder, monkeypatch, capsys):
    """What its encoder takes tells nothing of the image, and what it learned to read is memory."""
    recipe = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(recipe.replace("latent_size = 3", 'latent_size = 3\ncondition = ["age"]'))
    assert command(monkeypatch, folder, "--variables", "age") == 2
    assert "no column that the model is given beside the image" in capsys.readouterr().err
    (folder / "recipe.toml").write_text(recipe.replace("latent_size = 3", 'latent_size = 3\ntarget = "age"'))
    assert command(monkeypatch, folder, "--variables", "age") == 2
    assert "the model did not learn it from" in capsys.readouterr().err
    assert command(monkeypatch, folder, "--variables", "age", "--roles", "test", "--permutations", "99") == 0


def test_a_run_that_is_not_finished(folder):
    (folder / "latents.tsv").unlink()
    with pytest.raises(RunError, match="finished run with codes"):
        read_latents(load_run(folder))


def test_another_table_leaves_the_first_as_it_was(folder, monkeypatch, capsys, tmp_path):
    options = (folder, "--permutations", 99)
    assert command(monkeypatch, *options, "--variables", "age") == 0
    first = (folder / "associations.tsv").read_bytes()
    out = tmp_path / "sex.tsv"
    assert command(monkeypatch, *options, "--variables", "age", "--out", out.with_suffix(".json")) == 2
    assert not out.with_suffix(".json").exists()
    assert command(monkeypatch, *options, "--variables", "sex", "--out", out) == 0
    assert f"Associations: {out}" in capsys.readouterr().out.replace("\n", "")
    assert (folder / "associations.tsv").read_bytes() == first
    rows = read_rows(out)
    assert {row["variable"] for row in rows} == {"sex"}
    assert set(json.loads(out.with_suffix(".json").read_text())) == {*rows[0], "Settings"}
