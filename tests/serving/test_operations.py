"""What happens to a server: overload, slow and broken clients, new bundles, signals. Every server here is its own."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pytest

from tests.serving.servers import BINARY, WAIT_S, Running, infer, until


def renamed(bundle, folder, **changes):
    """A copy of a bundle with another name or version, put in place by one rename."""
    temporary = folder / f".{folder.name}-{time.monotonic_ns()}"
    shutil.copytree(bundle, temporary)
    manifest = json.loads((temporary / "manifest.json").read_text())
    old = manifest["version"]
    manifest |= changes
    if manifest["version"] != old:
        (temporary / "saved_model" / str(old)).rename(temporary / "saved_model" / str(manifest["version"]))
        manifest["sha256"] = {
            name.replace(f"saved_model/{old}/", f"saved_model/{manifest['version']}/"): digest
            for name, digest in manifest["sha256"].items()
        }
    (temporary / "manifest.json").write_text(json.dumps(manifest))
    place = folder / f"{manifest['name']}-{manifest['version']}"
    temporary.rename(place)
    return place


def test_new_versions_come_go_and_come_back(bundles, prepared, tmp_path):
    """A new version by one rename; a corrupt one, which takes nobody's place; rollback; a version that is gone."""
    first = renamed(bundles / "blobs-1", tmp_path)
    with Running([tmp_path], "--poll", "0.2", "--keep", "2") as server:
        second = renamed(first, tmp_path, version=2)
        server.wait_for("models", news="blobs 2 is in service")
        assert infer(server, prepared[0]).json()["model_version"] == "2"
        (tmp_path / ".staging").mkdir()
        broken = renamed(first, tmp_path / ".staging", version=3)
        (broken / "encoder.onnx").write_bytes(b"nothing")
        broken.rename(tmp_path / "blobs-3")
        server.wait_for("models", news="not loaded")
        index = server.post("/v2/repository/index").json()
        states = {(entry["name"], entry["version"]): entry["state"] for entry in index}
        assert states == {("blobs", "1"): "READY", ("blobs", "2"): "READY", ("blobs-3", ""): "UNAVAILABLE"}
        assert "encoder.onnx was changed" in next(e["reason"] for e in index if e["state"] == "UNAVAILABLE")
        metrics = server.get("/metrics").text
        assert "kerasvae_load_errors_total 1.0" in metrics
        assert "kerasvae_bundles_unavailable 1.0" in metrics
        assert server.get("/v2/health/ready").status_code == 200
        assert infer(server, prepared[0]).json()["model_version"] == "2"
        # it is mended: the same folder is tried again
        shutil.rmtree(tmp_path / "blobs-3")
        until(lambda: len(server.post("/v2/repository/index").json()) == 2)
        assert server.post("/v1/models/blobs:rollback").json() == {"model_name": "blobs", "model_version": "1"}
        assert infer(server, prepared[0]).json()["model_version"] == "1"
        assert server.post("/v1/models/blobs:rollback").status_code == 409  # there is nothing below
        assert server.post("/v1/models/blobs/versions/2:activate").json()["model_version"] == "2"
        assert server.post("/v1/models/blobs:rollback").json()["model_version"] == "1"
        renamed(first, tmp_path, version=3)  # a fresh version answers again; of three, the two that may answer stay
        server.wait_for("models", news="blobs 3 is in service")
        assert infer(server, prepared[0]).json()["model_version"] == "3"
        assert server.get("/v2/models/blobs").json()["versions"] == ["1", "3"]
        lines = len(server.lines)
        time.sleep(1)
        assert len(server.lines) == lines  # what does not stay is not loaded again and again
        shutil.rmtree(first)
        server.wait_for("models", news="blobs 1 is out of service")
        shutil.rmtree(tmp_path / "blobs-3")
        shutil.rmtree(second)
        time.sleep(1)
        assert infer(server, prepared[0]).json()["model_version"] == "3"  # the last one stays


def test_a_bundle_replaced_in_its_place_is_loaded_anew(bundles, prepared, tmp_path):
    bundle = renamed(bundles / "blobs-1", tmp_path)
    with Running([bundle], "--poll", "0.2") as server:
        renamed(bundles / "blobs-1", tmp_path, version=5)
        bundle.rename(tmp_path / ".old")
        (tmp_path / "blobs-5").rename(bundle)
        server.wait_for("models", news="blobs 5 is in service")
        assert infer(server, prepared[0]).json()["model_version"] == "5"
        assert server.get("/v2/models/blobs").json()["versions"] == ["5"]


def test_requests_are_answered_while_versions_change(bundles, prepared, tmp_path):
    first = renamed(bundles / "blobs-1", tmp_path)
    with Running([tmp_path], "--poll", "0.1") as server, ThreadPoolExecutor(4) as pool:
        stop = threading.Event()

        def ask():
            codes = []
            with httpx.Client(timeout=WAIT_S) as client:
                while not stop.is_set() or len(codes) < 10:
                    codes.append(infer(server, prepared[0], post=client.post).status_code)
            return codes

        asked = [pool.submit(ask) for _ in range(4)]
        for version in range(2, 6):
            renamed(first, tmp_path, version=version)
            server.wait_for("models", news=f"blobs {version} is in service")
        stop.set()
        codes = [code for each in asked for code in each.result()]
        assert set(codes) == {200}


def test_sigterm_first_says_not_ready_then_finishes(bundles, prepared):
    with Running([bundles / "blobs-1"], "--drain", "1.5") as server, ThreadPoolExecutor(2) as pool:
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("leaving")
        ready = server.get("/v2/health/ready")
        assert ready.status_code == 503
        assert server.get("/v2/health/live").status_code == 200
        answer = infer(server, prepared[0])
        assert answer.status_code == 200  # who comes in between is answered
        assert answer.headers["connection"] == "close"
        assert server.get("/v2/models/blobs/ready").status_code == 503
        asked = pool.submit(infer, server, prepared[0])
        assert asked.result().status_code == 200
        assert server.process.wait(WAIT_S) == 0
        assert time.monotonic() - begun > 1.4
        assert server.log[-1]["message"] == "gone"
        with pytest.raises(httpx.ConnectError):
            server.get("/v2/health/live")


def test_a_second_signal_does_not_wait(bundles):
    with Running([bundles / "blobs-1"], "--drain", "60") as server:
        server.process.send_signal(signal.SIGINT)
        server.wait_for("leaving")
        begun = time.monotonic()
        assert server.stop(signal.SIGINT) == 0
        assert time.monotonic() - begun < 30


def test_kill_9_leaves_nothing_to_clean(bundles, prepared):
    with Running([bundles / "blobs-1"]) as server:
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    with Running([bundles / "blobs-1"]) as server:
        assert infer(server, prepared[0]).status_code == 200


def test_keys(bundles, prepared, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# clinic\nfirst-key\n\nsecond-key\n")
    with Running([bundles / "blobs-1"], "--api-keys", str(keys)) as server:
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/blobs/ready", "/openapi.json", "/docs"):
            assert server.get(path).status_code == 200
        assert server.get("/metrics").status_code == 401
        for headers in ({}, {"authorization": "Bearer third-key"}, {"authorization": "first-key"}, {"x-api-key": ""}):
            answer = server.get("/v2/models/blobs", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        for headers in ({"authorization": "Bearer first-key"}, {"x-api-key": "second-key"}):
            assert server.get("/v2/models/blobs", headers=headers).status_code == 200
        import grpc

        from kerasvae_serving.messages import message, service

        asked, answered = service("inference.GRPCInferenceService")["ModelMetadata"]
        with grpc.insecure_channel(server.grpc) as channel:
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelMetadata", asked.SerializeToString, answered.FromString
            )
            request = message("inference.ModelMetadataRequest")(name="blobs")
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=60)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert call(request, timeout=60, metadata=[("authorization", "Bearer first-key")]).name == "blobs"
        assert "first-key" not in " ".join(server.lines)


def test_tls(bundles, certificate):
    chain, key = certificate
    with Running([bundles / "blobs-1"], "--tls-certificate", str(chain), "--tls-key", str(key)) as server:
        import ssl

        context = ssl.create_default_context(cafile=chain)
        assert httpx.get(f"{server.url}/v2/models/blobs", verify=context, timeout=60).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url.replace("https", "http") + "/v2", timeout=60)


def test_logs_hold_nothing_of_a_patient(bundles, scan_file):
    image = nibabel.load(scan_file)
    image.header["descrip"] = b"DOE^JANE 1950-01-01"
    nibabel.save(image, scan_file)
    with Running([bundles / "blobs-1"], "--verbose") as server:
        files = {"image": ("DOE_JANE.nii.gz", scan_file.read_bytes())}
        assert server.post("/v1/models/blobs:encode", files=files).status_code == 200
        assert server.post("/v1/models/blobs:encode?name=DOE", files=files).status_code == 400
        assert server.post("/v1/models/DOE:encode", files=files).status_code == 404
        assert server.get("/DOE").status_code == 404
        server.stop()
        answered = [line for line in server.log if line["message"] == "answered"]
        assert [line["status"] for line in answered] == [200, 400, 404, 404]
        assert all({"endpoint", "model", "status", "ms"} <= line.keys() for line in answered)
        assert "DOE" not in " ".join(server.lines)


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        (["nowhere"], "BUNDLE must be a folder", 2),
        (["."], "BUNDLE must hold one bundle that can be served", 1),
        ([".", "--deadline", "0"], "--deadline must be a number above 0", 2),
        ([".", "--workers", "-1"], "--workers must be", 2),
        ([".", "--queue", "-1"], "--queue must be", 2),
        ([".", "--tls-key", "k.pem"], "come together", 2),
        ([".", "--api-keys", "no"], "--api-keys must be a readable file", 2),
        ([".", "--host", "203.0.113.1"], "--port must be free on --host", 1),
    ],
)
def test_wrong_calls_are_one_sentence(tmp_path, options, words, code):
    import sys

    call = [sys.executable, "-m", "kerasvae.cli", "serve", *options]
    if "--port" not in options:
        call += ["--port", "0", "--grpc-port", "-1"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(bundles, server):
    import sys

    for option, place in (("--port", server.url), ("--grpc-port", server.grpc)):
        other = "--grpc-port" if option == "--port" else "--port"
        call = [
            sys.executable,
            "-m",
            "kerasvae.cli",
            "serve",
            str(bundles),
            option,
            place.rsplit(":", 1)[1],
            other,
            "0",
        ]
        done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 1
        assert f"{option} must be free on --host" in done.stderr
        assert "Traceback" not in done.stderr


def test_metrics_say_how_the_model_fares(bundles, scan_file):
    with Running([bundles / "blobs-1"]) as server:
        for _ in range(3):
            server.post("/v1/models/blobs:encode", content=scan_file.read_bytes(), headers=BINARY)
        server.post("/v1/models/blobs:encode", content=b"nothing", headers=BINARY)
        text = server.get("/metrics").text
        found = {
            line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if not line.startswith("#")
        }
        at = 'endpoint="encode",model="blobs",protocol="http"'
        assert found[f'kerasvae_requests_total{{{at},status="200"}}'] == 3
        assert found[f'kerasvae_requests_total{{{at},status="422"}}'] == 1
        assert found['kerasvae_scans_total{in_distribution="true",model="blobs"}'] == 3
        assert found['kerasvae_score_percentile_count{model="blobs",score="distance"}'] == 3
        assert not any(name.startswith("kerasvae_latent_drift{") for name in found)  # of three it would tell of each
        for _ in range(30):
            server.post("/v1/models/blobs:encode", content=scan_file.read_bytes(), headers=BINARY)
        assert 'kerasvae_latent_drift{model="blobs"}' in server.get("/metrics").text
        assert found['kerasvae_model_ready{default="true",model="blobs",version="1"}'] == 1
        assert found['kerasvae_model_memory_bytes{model="blobs",version="1"}'] > 0


def test_the_description_of_itself(server):
    description = server.get("/openapi.json").json()
    assert description["openapi"].startswith("3.1")
    assert "/v1/models/{model}:encode" in description["paths"]
    names = [entry["name"] for entry in description["paths"]["/v1/models/{model}:encode"]["post"]["parameters"]]
    assert names == ["model", "age", "sex"]
    page = server.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text.replace("<!doctype html>", "")  # it needs nothing from elsewhere


def test_a_bundle_that_fails_in_an_odd_way_stops_nobody(bundles, prepared, tmp_path):
    odd = Path(shutil.copytree(bundles / "blobs-1", tmp_path / "a-odd"))
    manifest = json.loads((odd / "manifest.json").read_text())
    golden = dict(np.load(odd / "golden.npz"))
    del golden["mean"]
    np.savez(odd / "golden.npz", **golden)
    manifest["name"], manifest["sha256"]["golden.npz"] = (
        "odd",
        hashlib.sha256((odd / "golden.npz").read_bytes()).hexdigest(),
    )
    (odd / "manifest.json").write_text(json.dumps(manifest))
    renamed(bundles / "blobs-1", tmp_path)
    with Running([tmp_path]) as server:
        assert infer(server, prepared[0]).status_code == 200
        index = server.post("/v2/repository/index").json()
        reason = next(entry["reason"] for entry in index if entry["name"] == "a-odd")
        assert "could not be loaded: KeyError" in reason
        assert str(tmp_path) not in reason
        ready = server.post("/v2/repository/index", json={"ready": True}).json()
        assert [entry["name"] for entry in ready] == ["blobs"]


def test_a_certificate_that_cannot_be_used_is_named(bundles, tmp_path):
    import sys

    (tmp_path / "cert.pem").write_text("nothing")
    (tmp_path / "key.pem").write_text("nothing")
    call = [sys.executable, "-m", "kerasvae.cli", "serve", str(bundles), "--port", "0", "--grpc-port", "-1"]
    call += ["--tls-certificate", "cert.pem", "--tls-key", "key.pem"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "--tls-certificate and --tls-key must be a PEM pair" in done.stderr
    assert "Traceback" not in done.stderr
