"""The command line as a user meets it: help, exit status, one sentence for a mistake, JSON where a machine reads."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import typer
from typer.testing import CliRunner

from kerasvae.cli import app
from kerasvae_export.verify import CHECKS
from tests.conftest import BLOB_RECIPE, make_blob_cohort


def kerasvae(*arguments, cwd=None):
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    call = [sys.executable, "-m", "kerasvae.cli", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The main job on a small cohort, by commands alone."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "blobs.toml").write_text(BLOB_RECIPE)
    make_blob_cohort(folder / "cohort", 20)
    outcomes = {
        "train": kerasvae(
            "train", "blobs.toml", "--data", "cohort", "--out", "run", "--set", "training.epochs=2", cwd=folder
        ),
        "evaluate": kerasvae("evaluate", "run", "--json", cwd=folder),
        "report": kerasvae("report", "run", cwd=folder),
        "export": kerasvae("export", "run", "bundle", "--name", "blobs", cwd=folder),
        "verify": kerasvae("verify", "bundle", "--json", cwd=folder),
        "encode": kerasvae("encode", "bundle", "cohort/sub-03", "cohort/sub-04", "--out", "latents.tsv", cwd=folder),
    }
    return folder, outcomes


@pytest.mark.parametrize("command", ["train", "evaluate", "report", "export", "verify", "encode"])
def test_each_step_succeeds_and_says_where_its_result_is(job, command):
    folder, outcomes = job
    done = outcomes[command]
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "cudart_stub" not in done.stderr  # TensorFlow's notes are not for users
    expected = {"train": "report.html", "report": "report.html", "export": "bundle", "encode": "latents.tsv"}
    assert expected.get(command, "") in done.stdout
    assert (folder / "run" / "report.html").is_file()


def test_json_is_all_that_is_printed(job):
    folder, outcomes = job
    metrics = json.loads(outcomes["evaluate"].stdout)
    assert metrics == json.loads((folder / "run" / "metrics.json").read_text())
    checks = json.loads(outcomes["verify"].stdout)
    assert checks["ok"] is True
    assert [check["name"] for check in checks["checks"]] == ["signature", *(name for name, *_ in CHECKS)]


def test_latents_of_the_scans_that_were_given(job):
    folder, _ = job
    rows = [line.split("\t") for line in (folder / "latents.tsv").read_text().splitlines()]
    assert rows[0] == [
        "file", "participant_id", "session_id", "mean_0", "mean_1", "mean_2", "stddev_0", "stddev_1", "stddev_2",
    ]  # fmt: skip
    assert [row[1] for row in rows[1:]] == ["sub-03", "sub-04"]


def test_verify_fails_with_status_1_on_a_damaged_bundle(job):
    folder, _ = job
    card = folder / "bundle" / "MODEL_CARD.md"
    content = card.read_text()
    card.write_text("other")
    try:
        done = kerasvae("verify", "bundle", cwd=folder)
    finally:
        card.write_text(content)
    assert done.returncode == 1
    assert "FAILED  files: MODEL_CARD.md was changed" in done.stdout


@pytest.mark.parametrize("command", list(typer.main.get_command(app).commands))
def test_help_has_an_example(command):
    done = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert f"kerasvae {command}" in done.stdout.split("Example:")[1]


def test_help_and_version():
    assert kerasvae("encode", "--help").returncode == 0
    assert kerasvae("--version").stdout == f"kerasvae {importlib.metadata.version('kerasvae')}\n"


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("train", "t1-4m", "--data", "x", "--out", "y"), 2, "Did you mean 't1-4mm'?"),
        (
            ("train", "demo", "--data", "x", "--out", "y", "--set", "model.latent_sise=3"),
            2,
            "Did you mean 'latent_size'?",
        ),
        (("train", "demo", "--data", "absent", "--out", "run"), 1, "absent"),
        (("evaluate", "absent"), 1, "absent must be a run folder"),
        (("verify", "absent"), 1, "absent must be a bundle"),
        (("encode", "absent", "scan.nii"), 1, "absent must be a bundle"),
        (("simulate", "cohort"), 2, "people"),
        (("simulate", "cohort", "--people", "0"), 2, "people"),
        (("demo",), 2, "out"),
        (("nonsense",), 2, "nonsense"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_status(tmp_path, arguments, status, sentence):
    done = kerasvae(*arguments, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_brackets_in_messages_survive(tmp_path):
    done = kerasvae("evaluate", "run[red]x", cwd=tmp_path)
    assert "run[red]x must be a run folder" in done.stderr


def test_ctrl_c_takes_effect_between_two_pieces_of_work_and_says_how_to_go_on(job, tmp_path):
    folder, _ = job
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    call = [sys.executable, "-m", "kerasvae.cli", "train", "blobs.toml", "--data", "cohort", "--out"]
    call += [str(tmp_path / "run"), "--set", "training.epochs=4000", "--set", "training.patience=4000"]
    with subprocess.Popen(call, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoint").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, stderr.decode()
    assert "Add --resume to the same command" in stderr.decode()
    assert "Traceback" not in stderr.decode()


@pytest.mark.parametrize(
    ("module", "command", "extra"), [("tensorflow", "train demo --data x --out y", "train"),
    ("pandas", "simulate x --people 1", "train"), ("onnxruntime", "encode x y", "serve"),
    ("tensorflow", "verify x", "export")],
)  # fmt: skip
def test_a_missing_extra_is_named(tmp_path, module, command, extra):
    hide = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from kerasvae.cli import main\n"
        f"sys.argv = ['kerasvae', *{command.split()!r}]\n"
        "main()\n"
    )
    call = [sys.executable, "-c", hide]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert f"Install kerasvae with the extra '{extra}'" in done.stderr
