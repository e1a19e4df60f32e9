"""Scans as files: what is answered, what is flagged, what is refused."""

from __future__ import annotations

import gzip
import json

import nibabel
import numpy as np
import pytest

from kerasvae_serving import Engine
from tests.conftest import blob, blob_affine, write_image
from tests.serving.servers import Running

BINARY = {"content-type": "application/octet-stream"}


def ask(server, verb, content, model="blobs", headers=BINARY, query=""):
    return server.post(f"/v1/models/{model}:{verb}{query}", content=content, headers=headers)


def test_encode_answers_what_the_engine_does(server, engine, scan_file):
    found = ask(server, "encode", scan_file.read_bytes())
    assert found.status_code == 200
    content = found.json()
    assert (content["model_name"], content["model_version"]) == ("blobs", "1")
    for name, value in engine.encode(scan_file).items():
        np.testing.assert_allclose(content["outputs"][name], value[0], rtol=1e-5)
    scores = engine.score(scan_file)
    for name in ("residual", "distance", "surprise"):
        assert content["scores"][name] == pytest.approx(scores[name][0], rel=1e-6)
        assert content["percentiles"][name] == scores[f"{name}_percentile"][0]
    assert content["in_distribution"] is True
    assert content["reasons"] == []


def test_a_scan_may_come_in_many_ways(server, scan_file):
    content = scan_file.read_bytes()
    expected = ask(server, "encode", content).json()
    plain = gzip.decompress(content)
    assert ask(server, "encode", plain).json() == expected
    assert ask(server, "encode", content, headers={"content-type": "application/gzip"}).json() == expected
    packed = BINARY | {"content-encoding": "gzip"}
    assert ask(server, "encode", gzip.compress(plain), headers=packed).json() == expected
    assert ask(server, "encode", iter([content[:1000], content[1000:]])).json() == expected  # chunked
    form = server.post("/v1/models/blobs:encode", files={"image": ("a name.nii.gz", content)})
    assert form.json() == expected
    versioned = server.post("/v1/models/blobs/versions/1:encode", content=content, headers=BINARY)
    assert versioned.json() == expected


def test_score_answers_without_latents(server, scan_file):
    content = ask(server, "score", scan_file.read_bytes()).json()
    assert "outputs" not in content
    assert content["percentiles"].keys() == content["scores"].keys() == {"residual", "distance", "surprise"}


@pytest.mark.parametrize("verb", ["reconstruct", "deviation"])
def test_maps_come_back_in_the_scans_own_space(server, engine, tmp_path, verb):
    """A scan whose voxels run to the left and back: the map has its shape, order and affine."""
    data, affine = blob(77)[::-1, ::-1], blob_affine()
    affine[:2, :2] *= -1
    affine[0, 3] += 8 * (data.shape[0] - 1)
    affine[1, 3] += 8 * (data.shape[1] - 1)
    path = write_image(tmp_path / "turned.nii.gz", data, affine)
    answer = ask(server, verb, path.read_bytes())
    assert answer.status_code == 200
    assert answer.headers["x-kerasvae-in-distribution"] == "true"
    assert json.loads(answer.headers["x-kerasvae-reasons"]) == []
    assert json.loads(answer.headers["x-kerasvae-percentiles"]).keys() == {"residual", "distance", "surprise"}
    (tmp_path / "map.nii.gz").write_bytes(answer.content)
    found = nibabel.load(tmp_path / "map.nii.gz")
    assert found.shape == data.shape
    np.testing.assert_allclose(found.affine, affine)
    made = engine.reconstruct(path) if verb == "reconstruct" else engine.deviation_map(path)
    expected = engine.pipeline.invert(made[0], path, intensity=verb == "reconstruct")
    np.testing.assert_allclose(found.get_fdata(), expected.get_fdata(), atol=1e-4)
    own = ask(server, verb, path.read_bytes(), query="?space=model")
    (tmp_path / "model.nii.gz").write_bytes(own.content)
    grid = nibabel.load(tmp_path / "model.nii.gz")
    np.testing.assert_allclose(grid.get_fdata(), made[0], atol=1e-4)
    np.testing.assert_allclose(grid.affine, engine.pipeline.grid.matrix)


def test_what_breaks_the_contract_is_flagged_with_a_reason(server, tmp_path):
    upside_down = write_image(tmp_path / "a.nii.gz", np.roll(blob(80), 5, axis=0), blob_affine())
    content = ask(server, "encode", upside_down.read_bytes()).json()
    assert content["in_distribution"] is False
    assert "must lie as the training images do" in content["reasons"][0]
    noise = np.random.default_rng(0).normal(100, 30, blob(80).shape)
    noisy = write_image(tmp_path / "b.nii.gz", np.where(blob(80) > 0, noise, 0), blob_affine())
    content = ask(server, "encode", noisy.read_bytes()).json()
    assert content["in_distribution"] is False
    assert any("residual" in reason for reason in content["reasons"])
    answer = ask(server, "deviation", noisy.read_bytes())
    assert answer.headers["x-kerasvae-in-distribution"] == "false"
    assert json.loads(answer.headers["x-kerasvae-reasons"]) == content["reasons"]


def test_strict_refuses_what_is_flagged(bundles, scan_file, tmp_path):
    moved = write_image(tmp_path / "a.nii.gz", np.roll(blob(80), 5, axis=0), blob_affine())
    noise = np.random.default_rng(0).normal(100, 30, blob(80).shape)
    noisy = write_image(tmp_path / "b.nii.gz", np.where(blob(80) > 0, noise, 0), blob_affine())
    with Running([bundles / "blobs-1"], "--strict") as strict:
        assert ask(strict, "encode", scan_file.read_bytes()).status_code == 200
        for path, words in ((moved, "lie as the training images"), (noisy, "like the reference people's")):
            answer = ask(strict, "encode", path.read_bytes())
            assert answer.status_code == 422
            assert words in answer.json()["error"]


def test_covariates_come_as_parameters_or_fields(server, bundles, scan_file):
    content = scan_file.read_bytes()
    expected = Engine(bundles / "aged-1").encode(scan_file, {"age": [63], "sex": ["F"]})["mean"][0]
    asked = ask(server, "encode", content, "aged", query="?age=63&sex=F")
    np.testing.assert_allclose(asked.json()["outputs"]["mean"], expected, rtol=1e-4, atol=1e-6)
    fields = {"age": "63", "sex": "F"}
    form = server.post("/v1/models/aged:encode", files={"image": ("scan", content)}, data=fields)
    assert form.json() == asked.json()
    for query, words in (
        ("", "age"), ("?age=63", "sex"), ("?age=x&sex=F", "age"), ("?age=63&sex=Q", "sex"),
        ("?age=63&sex=F&iq=3", "iq"), ("?age=400&sex=F", "age"),
    ):  # fmt: skip
        answer = ask(server, "encode", content, "aged", query=query)
        assert answer.status_code == 400, query
        assert words in answer.json()["error"]
    answer = ask(server, "encode", content, query="?age=63")
    assert answer.status_code == 400
    assert "none" in answer.json()["error"]


def test_what_a_bundle_cannot_say_is_said(server, scan_file):
    """`aged` has no reference people."""
    for verb in ("score", "deviation"):
        answer = ask(server, verb, scan_file.read_bytes(), "aged", query="?age=63&sex=F")
        assert answer.status_code == 501
        assert "must have" in answer.json()["error"]
    content = ask(server, "encode", scan_file.read_bytes(), "aged", query="?age=63&sex=F").json()
    assert content["scores"] == {}


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"", 422), (b"\xff\xd8\xff\xe0 a photograph", 422), (b"\x1f\x8b damaged", 422), (b"n" * 400, 422)],
)
def test_what_is_no_image_is_refused(server, content, status):
    answer = ask(server, "encode", content)
    assert answer.status_code == status
    assert answer.json()["error"].startswith("image must ")


def test_a_truncated_file_is_refused(server, scan_file):
    content = scan_file.read_bytes()
    for part in (content[: len(content) // 2], content[:-4], gzip.decompress(content)[:-4]):
        assert ask(server, "encode", part).status_code == 422


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json"}, 415),
        (BINARY | {"content-encoding": "br"}, 415),
        (BINARY | {"content-encoding": "gzip"}, 400),
        ({"content-type": "multipart/form-data"}, 400),
        ({"content-type": "multipart/form-data; boundary=x"}, 400),
    ],
)
def test_what_the_headers_say_must_be_so(server, headers, status):
    answer = ask(server, "encode", b"no gzip, no form", headers=headers)
    assert answer.status_code == status
    assert "error" in answer.json()


@pytest.mark.parametrize(
    ("path", "status"),
    [("nobody:encode", 404), ("blobs:dream", 404), ("blobs", 405), (":encode", 404), ("blobs/versions/9:encode", 404),
     ("blobs:reconstruct?space=moon", 400)],
)  # fmt: skip
def test_paths_that_lead_nowhere(server, scan_file, path, status):
    answer = server.post(f"/v1/models/{path}", content=scan_file.read_bytes(), headers=BINARY)
    assert answer.status_code == status
    assert "error" in answer.json()


def test_tf_servings_rest(server, engine, prepared):
    expected = engine.encode(prepared[:2])
    path = "/v1/models/blobs:predict"
    rows = server.post(path, json={"instances": prepared[:2].tolist()}).json()["predictions"]
    for row, (mean, stddev) in zip(rows, zip(expected["mean"], expected["stddev"], strict=True), strict=True):
        np.testing.assert_allclose(row["mean"], mean, atol=1e-5)
        np.testing.assert_allclose(row["stddev"], stddev, atol=1e-5)
    columns = server.post(path, json={"inputs": {"image": prepared[:2].tolist()}}).json()["outputs"]
    np.testing.assert_allclose(columns["mean"], expected["mean"], atol=1e-5)
    asked = {"signature_name": "decode", "instances": [{"z": [0.0, 0.0, 0.0]}]}
    made = server.post("/v1/models/blobs/versions/1:predict", json=asked).json()["predictions"]
    np.testing.assert_allclose(made, engine.decode(np.zeros((1, 3))), atol=1e-5)
    status = server.get("/v1/models/blobs").json()["model_version_status"]
    assert [(entry["version"], entry["state"]) for entry in status] == [("1", "AVAILABLE")]
    signature = server.get("/v1/models/blobs/metadata").json()["metadata"]["signature_def"]["signature_def"]["encode"]
    assert [dim["size"] for dim in signature["inputs"]["image"]["tensor_shape"]["dim"]] == [
        "-1", *map(str, prepared.shape[1:]),
    ]  # fmt: skip
    for wrong in (
        {}, {"instances": []}, {"instances": [], "inputs": []}, {"instances": [[1.0]]}, {"instances": "x"},
        {"instances": [{"picture": []}]}, {"signature_name": "dream", "instances": [1]},
        {"signature_name": 3, "inputs": []},
    ):  # fmt: skip
        answer = server.post(path, json=wrong)
        assert answer.status_code == 400, wrong
        assert list(answer.json()) == ["error"]
