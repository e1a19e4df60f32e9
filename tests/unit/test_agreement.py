"""Runs compared by their codes: whom they are compared on, and what is said where that is no evidence."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from kerasvae.analysis.agreement import agreement_of
from kerasvae.cli import app
from kerasvae.errors import ArgumentError, RunError

RNG = np.random.default_rng(5)
PEOPLE = [f"sub-{i:02d}" for i in range(40)]
CODES = RNG.standard_normal((40, 3))
TURN = np.linalg.qr(RNG.standard_normal((3, 3)))[0]


def run_of(folder, codes, roles, people=PEOPLE, visits=("n/a",)):
    """What `evaluate` leaves behind; later visits of a person have other codes."""
    folder.mkdir()
    names = [f"mean_{k}" for k in range(codes.shape[1])]
    lines = ["\t".join(["participant_id", "session_id", "role", *names, "elbo_nats"])]
    for person, code, role in zip(people, codes, roles, strict=True):
        for number, visit in enumerate(visits):
            lines.append("\t".join([person, visit, role, *map(repr, (code + 9 * number).tolist()), "-1.0"]))
    (folder / "latents.tsv").write_text("\n".join(lines) + "\n")
    (folder / "metrics.json").write_text(json.dumps({"latent_size": codes.shape[1]}))
    return folder


HALF = ["train"] * 20 + ["test"] * 20


def test_the_same_codes_turned_agree_and_others_do_not(tmp_path):
    runs = [
        run_of(tmp_path / "a", CODES, HALF),
        run_of(tmp_path / "b", 2 * CODES @ TURN + 1, HALF, visits=("1", "2")),
        run_of(tmp_path / "c", RNG.standard_normal((40, 3)), HALF),
    ]
    found = agreement_of(runs, permutations=50)
    assert [(pair.first, pair.second) for pair in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    assert found.pairs[0].procrustes == pytest.approx(1)
    assert found.pairs[0].cka == pytest.approx(1)
    assert max(pair.procrustes for pair in found.pairs[1:]) < 0.3
    assert found.describe() == "On 20 people, test people in every run."


def test_people_are_matched_by_name_and_only_those_in_common_count(tmp_path):
    order = RNG.permutation(40)[:30]
    others = run_of(tmp_path / "b", CODES[order] @ TURN, ["test"] * 30, [PEOPLE[i] for i in order])
    found = agreement_of([run_of(tmp_path / "a", CODES, ["test"] * 40), others], permutations=5)
    assert (found.people, found.new) == (30, True)
    assert found.pairs[0].procrustes == pytest.approx(1)


def test_agreement_on_people_learned_from_is_called_memory(tmp_path):
    others = ["test"] * 20 + ["train"] * 20
    found = agreement_of([run_of(tmp_path / "a", CODES, HALF), run_of(tmp_path / "b", CODES, others)], permutations=5)
    assert (found.people, found.new) == (40, False)
    assert "may be memory" in found.describe()


def test_what_cannot_be_compared_is_refused(tmp_path):
    whole = run_of(tmp_path / "a", CODES, HALF)
    with pytest.raises(ArgumentError, match="two run folders"):
        agreement_of([whole])
    with pytest.raises(RunError, match=r"with metrics\.json"):
        agreement_of([whole, tmp_path])
    sizeless = run_of(tmp_path / "sizeless", CODES, HALF)
    (sizeless / "metrics.json").write_text("{}")
    with pytest.raises(RunError, match="finished run with codes"):
        agreement_of([whole, sizeless])
    strangers = run_of(tmp_path / "b", CODES, HALF, [f"other-{i}" for i in range(40)])
    with pytest.raises(RunError, match="12 people in common"):
        agreement_of([whole, strangers])


def test_the_command_prints_a_pair_and_its_chance_or_json(tmp_path):
    runs = [str(run_of(tmp_path / "a", CODES, HALF)), str(run_of(tmp_path / "b", CODES @ TURN, HALF))]
    said = CliRunner().invoke(app, ["stability", *runs])
    assert said.exit_code == 0
    assert "Procrustes R² of people not aligned on   1.000  (-" in said.output
    said = CliRunner().invoke(app, ["stability", *runs, "--json"])
    content = json.loads(said.output)
    assert (content["people"], content["test_people_only"]) == (20, True)
    assert content["pairs"][0]["second"] == runs[1]
    assert content["pairs"][0]["cka"] == pytest.approx(1)
