"""The image: what it pins, and its build carried out without Docker, up to a server that answers."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.serving.image import Stage, clean, moved, rehearse, stages, words_of
from tests.serving.servers import Running
from tests.serving.test_operations import infer

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STAGES = stages((ROOT / "serving" / "Dockerfile").read_text())
MOST_MB = 350
HEAVY = {"tensorflow", "keras", "tf-keras", "tensorflow-probability"}


def pins(name):
    """Version and number of hashes of each package of a file of pins."""
    text = (ROOT / "serving" / name).read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    found = {}
    for package, *hashes in lines:
        known, _, version = package.partition("==")
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), package
        found[canonicalize_name(known)] = (Version(version), len(hashes))
    return found


def constrained():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_pins_satisfy_what_the_package_and_its_extra_ask_for():
    found = pins("requirements.txt")
    extras = PROJECT["optional-dependencies"]
    asked_for = [line for line in extras["serve"] if line != "kerasvae[web]"] + extras["web"]
    assert len(asked_for) == len(extras["serve"]) - 1 + len(extras["web"])
    for line in PROJECT["dependencies"] + asked_for:
        asked = Requirement(line)
        assert found[canonicalize_name(asked.name)][0] in asked.specifier, line
    assert min(hashes for _, hashes in found.values()) >= 1
    assert not HEAVY & set(found)


def test_pins_are_those_that_the_tests_ran_with():
    known = constrained()
    assert {name: version for name, (version, _) in pins("requirements.txt").items()} == {
        name: known.get(name) for name in pins("requirements.txt")
    }


def test_both_stages_start_from_one_pinned_base_and_the_second_is_not_root():
    build, served = STAGES
    assert build.base == served.base
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", served.base)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", served.last("USER"))
    assert served.last("STOPSIGNAL") == "SIGTERM"
    assert served.last("EXPOSE").split() == ["8000", "8001"]
    copied = {source for kind, words in build.steps if kind == "COPY" for source in words.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)


def test_the_context_of_the_build_holds_what_it_copies():
    """`.dockerignore` leaves everything out but for what it names."""
    first, *others = (ROOT / "serving" / "Dockerfile.dockerignore").read_text().split()
    assert first == "*"
    kept = [line[1:] for line in others if line.startswith("!")]
    copied = {source for kind, words in STAGES[0].steps if kind == "COPY" for source in words.split()[:-1]}
    for source in copied:
        assert any(Path(source).match(each) or Path(source).is_relative_to(each) for each in kept), source


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The root folder of the rehearsed build."""
    folder = tmp_path_factory.mktemp("image")
    rehearse(STAGES[0], ROOT, folder)
    return folder


def distributions(image):
    """Installed in what is served, by importlib.metadata of its own Python."""
    code = (
        "import importlib.metadata as m, json;"
        "print(json.dumps(sorted([d.metadata['Name'], d.version] for d in m.distributions())))"
    )
    call = [image / "opt/kerasvae/bin/python", "-I", "-c", code]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    return {canonicalize_name(name): version for name, version in json.loads(done.stdout)}


@pytest.mark.heavy
def test_the_rehearsed_image_is_small_and_answers(image, bundles, engine, prepared, scan_file, tmp_path):
    """Entry point and health check as they stand in the Dockerfile, but for port and folder."""
    packages = image / "opt/kerasvae/lib/python3.11/site-packages"
    size = int(subprocess.run(["du", "-sb", packages], capture_output=True, text=True, check=True).stdout.split()[0])
    print(f"site-packages: {size / 1e6:.0f} MB")
    assert size < MOST_MB * 1e6
    names = distributions(image)
    assert not HEAVY & set(names)
    assert "pip" not in names
    assert set(names) == set(pins("requirements.txt")) | {"kerasvae"}
    served = STAGES[1]
    entry = [str(bundles) if word == "/models" else word for word in words_of(served.last("ENTRYPOINT"))]
    assert "0.0.0.0" in entry
    call = ["127.0.0.1" if word == "0.0.0.0" else word for word in entry]  # tests listen on loopback alone
    path = image / "opt/kerasvae/bin"
    home = tmp_path / "home"
    home.mkdir()
    environment = clean(path) | served_environment() | {"HOME": str(home)}
    with Running.of([str(path / call[0]), *call[1:], "--port=0", "--grpc-port=0"], environment) as server:
        answer = infer(server, prepared[0])
        assert answer.status_code == 200, answer.text
        found = {each["name"]: np.reshape(each["data"], each["shape"]) for each in answer.json()["outputs"]}
        np.testing.assert_allclose(found["mean"], engine.encode(prepared[:1])["mean"], rtol=1e-5, atol=1e-6)
        headers = {"content-type": "application/octet-stream"}
        scan = server.post("/v1/models/blobs:encode", content=scan_file.read_bytes(), headers=headers)
        assert scan.status_code == 200, scan.text
        np.testing.assert_allclose(scan.json()["outputs"]["mean"], engine.encode(scan_file)["mean"][0], atol=1e-5)
        options, _, check = served.last("HEALTHCHECK").partition("CMD ")
        assert "--start-period" in options
        probe = [word.replace("127.0.0.1:8000", server.url.removeprefix("http://")) for word in words_of(check)]
        assert probe != words_of(check)
        assert subprocess.run(probe, env=clean(path), check=False).returncode == 0
        assert server.stop() == 0
        done = subprocess.run(probe, env=clean(path), capture_output=True, check=False)
        assert done.returncode != 0
    assert not list(home.iterdir())  # where ONNX Runtime keeps what it reports, unless told not to


def served_environment():
    """What the image sets, but for its path."""
    pairs = (pair.split("=", 1) for pair in shlex.split(STAGES[1].last("ENV")))
    return {name: value for name, value in pairs if name != "PATH"}


@pytest.mark.heavy
def test_onnx_runtime_would_report_without_the_setting(image, bundles, tmp_path):
    """Planted: the check above sees it."""
    code = f"import onnxruntime; onnxruntime.InferenceSession({str(bundles / 'blobs-1/encoder.onnx')!r})"
    for setting, written in ((served_environment(), False), ({"ORT_DISABLE_TELEMETRY": ""}, True)):
        home = tmp_path / str(written)
        home.mkdir()
        environment = {"PATH": os.environ["PATH"], "HOME": str(home)} | setting
        subprocess.run([image / "opt/kerasvae/bin/python", "-c", code], env=environment, check=True)
        assert bool(list(home.iterdir())) is written


VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1], encoding="utf-8").read())
sys.exit(None if error is None else str(error)[:2000])
"""


@pytest.mark.heavy
def test_the_bill_of_materials_lists_what_is_installed_and_holds_to_its_schema(image, tmp_path):
    place = image / "opt/kerasvae/bom.cdx.json"
    bill = json.loads(place.read_text())

    def check(path):
        call = [image / "opt/build/bin/python", "-I", "-c", VALIDATE, path]
        return subprocess.run(call, capture_output=True, text=True, check=False)

    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    listed = [*bill["components"], bill["metadata"]["component"]]
    found = {canonicalize_name(each["name"]): each.get("version") for each in listed}
    assert found == distributions(image)
    assert check(place).returncode == 0
    bill["components"][0]["type"] = "nonsense"
    (tmp_path / "bom.json").write_text(json.dumps(bill))
    refused = check(tmp_path / "bom.json")
    assert refused.returncode == 1
    assert "nonsense" in refused.stderr


@pytest.mark.heavy
def test_a_pin_that_is_lacking_stops_the_build(image, tmp_path):
    """The step that installs the wheel, in an environment without one package of the extra."""
    call = [image / "opt/build/bin/python", "-m", "venv", "--without-pip", "--system-site-packages", tmp_path / "bare"]
    subprocess.run(call, check=True)
    (step,) = (words for kind, words in STAGES[0].steps if kind == "RUN" and "--no-index" in words)
    install = step.split("&&")[1].replace("/opt/kerasvae/bin/python", str(tmp_path / "bare/bin/python"))
    done = subprocess.run(shlex.split(moved(install, image)), env=clean(), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "No matching distribution found" in done.stderr


@pytest.mark.heavy
def test_a_file_that_is_not_the_pinned_one_stops_the_build(tmp_path):
    """Planted: a hash that is wrong."""
    (tmp_path / "serving").mkdir()
    text = "idna==3.20 --hash=sha256:" + "0" * 64 + "\n"
    (tmp_path / "serving" / "requirements.txt").write_text(text)
    steps = [
        ("WORKDIR", "/src"),
        ("COPY", "serving/requirements.txt serving/"),
        ("RUN", "python -m venv /opt/v && /opt/v/bin/pip install --require-hashes -r serving/requirements.txt"),
    ]
    with pytest.raises(AssertionError, match="DO NOT MATCH THE HASHES"):
        rehearse(Stage("python", "build", steps), tmp_path, tmp_path / "image")
