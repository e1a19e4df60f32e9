"""The manifest's JSON Schema: the file in the repository, as another validator than ours reads it."""

import json
from pathlib import Path

import jsonschema
import pytest

from kerasvae.bundle import Manifest
from kerasvae_export.schema import manifest_schema

FILE = Path(__file__).parents[2] / "export" / "manifest.schema.json"


@pytest.fixture
def content():
    made = Manifest(
        name="a", version=1, created="2026-01-01T00:00:00+00:00", data_shape=(4, 5, 6), latent_size=2,
        inputs=({"name": "image", "shape": (4, 5, 6), "meaning": "T1"},),
        outputs=({"name": "mean", "shape": (2,), "meaning": "mean"},),
        covariates=({"name": "age", "kind": "continuous", "unit": "years"},),
        pipeline=None, pipeline_digest=None, weights_digest="0", opset=18, versions={}, parity={"onnx/mean": 1e-7},
        reduced={"int8": {"people": 5, "latent_correlation": (1.0, 0.9), "reconstruction_difference": 0.1,
                          "golden_difference": 0.1}},
    )  # fmt: skip
    return json.loads(made.model_dump_json())


@pytest.fixture
def validator():
    schema = json.loads(FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_file_is_that_of_the_classes():
    made = manifest_schema()
    assert json.loads(FILE.read_text()) == made, "run python -m kerasvae_export.schema > export/manifest.schema.json"
    parts = [made, *made["$defs"].values()]
    assert all(entry["description"] for part in parts for entry in part["properties"].values())


def test_a_manifest_and_one_of_a_later_minor_version_are_valid(content, validator):
    validator.validate(content)
    content |= {"schema_version": "1.7.0", "added_later": {"by": "somebody"}}
    content["inputs"][0]["added_later"] = 1
    validator.validate(content)
    assert Manifest.model_validate(content).inputs[0].name == "image"


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": "2.0.0"}, {"schema_version": None}, {"version": "one"}, {"inputs": [{"name": "image"}]},
        {"covariates": [{"name": "age", "kind": "strange"}]}, {"sha256": [1]},
    ],
)  # fmt: skip
def test_what_is_no_manifest(content, validator, change):
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(content | change)


def test_what_must_not_be_left_out(content, validator):
    for name in ("schema_version", "pipeline", "outputs", "weights_digest"):
        with pytest.raises(jsonschema.ValidationError, match=name):
            validator.validate({key: value for key, value in content.items() if key != name})
