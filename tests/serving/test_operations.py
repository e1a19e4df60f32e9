"""What happens to a server: overload, slow and broken clients, new bundles, signals. Every server here is its own."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pytest

from tests.serving.servers import WAIT_S, Running

BINARY = {"content-type": "application/octet-stream"}


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


def infer(server, image, model="blobs", post=httpx.post):
    tensor = {
        "name": "image",
        "shape": [1, *image.shape],
        "datatype": "FP32",
        "parameters": {"binary_data_size": image.nbytes},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    url = f"{server.url}/v2/models/{model}/infer"
    return post(url, content=head + image.tobytes(), headers=headers, timeout=WAIT_S)


def until(condition):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


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


def test_overload_is_refused_and_probes_are_not(bundles, prepared):
    """Ten times as many as there is room for, their last bytes at once: each gets the right answer or 429."""
    with Running([bundles / "blobs-1"], "--workers", "1", "--queue", "1") as server, ThreadPoolExecutor(20) as pool:
        expected = infer(server, prepared[0]).json()["outputs"]
        big = np.repeat(prepared[:1], 400, axis=0)
        tensor = {"name": "image", "shape": list(big.shape), "datatype": "FP32"}
        head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": big.nbytes}}]}).encode()
        body = head + big.tobytes()
        start = (
            f"POST /v2/models/blobs/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            f"Inference-Header-Content-Length: {len(head)}\r\nConnection: close\r\n\r\n"
        ).encode()
        clients = [connect(server) for _ in range(20)]
        for client in clients:
            client.sendall(start + body[:-1])
        for client in clients:
            client.sendall(body[-1:])
        probes = [pool.submit(server.get, "/v2/health/ready") for _ in range(20)]
        answers = [received(client) for client in clients]
        assert {probe.result().status_code for probe in probes} == {200}
        codes = [status for status, _, _ in answers]
        assert set(codes) == {200, 429}
        for status, headers, content in answers:
            if status == 429:
                assert "retry-after: 1" in headers
                assert "Try again" in content["error"]
            else:
                for found, one in zip(content["outputs"], expected, strict=True):
                    np.testing.assert_allclose(np.reshape(found["data"], (400, -1))[399], one["data"], atol=1e-5)
        assert infer(server, prepared[0]).json()["outputs"] == expected
        assert "kerasvae_requests_busy 0.0" in server.get("/metrics").text


def received(client):
    """Status, headers and JSON of an answer after which the server closes."""
    content = b""
    while block := client.recv(2**16):
        content += block
    client.close()
    head, _, rest = content.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode().lower(), json.loads(rest)


def test_deadlines(bundles, scan_file):
    with Running([bundles / "blobs-1"], "--deadline", "0.0001") as server:
        answer = server.post("/v1/models/blobs:encode", content=scan_file.read_bytes(), headers=BINARY)
        assert answer.status_code == 504
        assert "be ready within" in answer.json()["error"]
        until(lambda: "kerasvae_requests_busy 0.0" in server.get("/metrics").text)


def test_large_bodies_are_refused_however_they_come(bundles, scan_file):
    with Running([bundles / "blobs-1"], "--max-body", "20000") as server:
        path = "/v1/models/blobs:encode"
        for content in (b"x" * 20001, (b"x" * 1000 for _ in range(21))):
            answer = server.post(path, content=content, headers=BINARY)
            assert answer.status_code == 413
            assert "20000 bytes" in answer.json()["error"]
        packed = gzip.compress(b"\0" * 10**7)
        assert len(packed) < 20000
        answer = server.post(path, content=packed, headers=BINARY | {"content-encoding": "gzip"})
        assert answer.status_code == 413
        small = gzip.compress(gzip.decompress(scan_file.read_bytes()), 9)
        assert len(small) < 20000
        assert server.post(path, content=small, headers=BINARY).status_code == 200


def bomb(shape, claimed, dtype="<f4"):
    """A gzip file of zeros behind the header of an image of the claimed shape."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(claimed)
    header.set_data_dtype(dtype)
    header["magic"], header["vox_offset"] = b"n+1", 352
    header.set_sform(np.diag([2.0, 2, 2, 1]), 4)
    packer = __import__("zlib").compressobj(9, wbits=31)
    parts = [packer.compress(header.binaryblock + bytes(4))]
    block = bytes(2**20)
    parts += [packer.compress(block) for _ in range(int(np.prod(shape)) * 4 // 2**20)]
    return b"".join([*parts, packer.flush()])


def test_gzip_bombs_take_no_memory(bundles, scan_file):
    """400 MB of zeros in 400 kB, behind a header that owns up to them, and behind one that does not."""
    with Running([bundles / "blobs-1"]) as server:
        good = server.post("/v1/models/blobs:encode", content=scan_file.read_bytes(), headers=BINARY).json()
        before = server.memory_mb
        for claimed in ((500, 500, 420), (16, 18, 15), (30000, 30000, 3)):
            answer = server.post("/v1/models/blobs:encode", content=bomb((500, 500, 420), claimed), headers=BINARY)
            assert answer.status_code == 422, claimed
            assert "must" in answer.json()["error"]
        assert server.memory_mb < before + 100
        assert server.memory_mb < 400
        again = server.post("/v1/models/blobs:encode", content=scan_file.read_bytes(), headers=BINARY).json()
        assert again == good


def connect(server):
    host, port = server.url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)), timeout=WAIT_S)
    made.settimeout(WAIT_S)
    return made


def test_slow_clients_are_let_go(bundles, scan_file):
    """Headers that never end, and a body that stops: both connections are closed, and meanwhile others are answered."""
    with Running([bundles / "blobs-1"], "--patience", "1") as server:
        silent, headers, body = connect(server), connect(server), connect(server)
        headers.sendall(b"POST /v1/models/blobs:encode HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        body.sendall(
            b"POST /v1/models/blobs:encode HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
            b"Content-Length: 100000\r\n\r\nabc"
        )
        assert server.post("/v1/models/blobs:encode", content=scan_file.read_bytes(), headers=BINARY).status_code == 200
        answer = body.recv(4096)
        assert b" 408 " in answer.split(b"\r\n")[0]
        assert silent.recv(10) == b""
        for _ in range(40):  # a letter now and then does not help
            try:
                headers.sendall(b"a")
            except OSError:
                break
            time.sleep(0.1)
        else:
            raise AssertionError("headers may take for ever")
        for each in (silent, headers, body):
            each.close()
        assert server.get("/v2/health/live").status_code == 200


def test_who_hangs_up_harms_nobody(bundles, scan_file):
    with Running([bundles / "blobs-1"]) as server:
        for _ in range(20):
            with connect(server) as client:
                client.sendall(b"POST /v1/models/blobs:encode HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc")
        answer = server.post("/v1/models/blobs:encode", content=scan_file.read_bytes(), headers=BINARY)
        assert answer.status_code == 200
        until(lambda: "kerasvae_requests_busy 0.0" in server.get("/metrics").text)


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


def test_tls(bundles, tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    with Running([bundles / "blobs-1"], "--tls-certificate", str(certificate), "--tls-key", str(key)) as server:
        import ssl

        context = ssl.create_default_context(cafile=certificate)
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
        ([".", "--deadline", "0"], "--deadline must be above 0", 2),
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


HUGE = {
    "a shape beyond all memory": {"shape": [10**9, 10**9], "data": []},
    "a shape beyond all numbers": {"shape": [0, 2**63], "data": []},
    "a shape of many axes": {"shape": [1] * 65, "data": [1.0]},
    "a datatype that is a list": {"datatype": ["FP32"]},
    "one long word among numbers": {"data": ["a" * 10000, *[0.0] * 100000]},
    "numbers and lists mixed": {"data": [[1.0], 2.0]},
    "an empty list in an empty list": {"data": [[[]]]},
}


@pytest.mark.parametrize("name", HUGE)
def test_what_would_take_all_memory_is_refused(server, prepared, name):
    tensor = {"name": "image", "shape": list(prepared.shape), "datatype": "FP32", "data": [0.0]} | HUGE[name]
    before = server.memory_mb
    answer = server.post("/v2/models/blobs/infer", json={"inputs": [tensor]})
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert server.memory_mb < before + 50


def test_answers_have_a_limit_too(bundles):
    with Running([bundles / "blobs-1"], "--max-body", "100000") as server:
        codes = {"name": "z", "shape": [6, 3], "datatype": "FP32", "data": [0.0] * 18}
        answer = server.post("/v2/models/blobs-decoder/infer", json={"inputs": [codes]})
        assert answer.status_code == 413
        assert "fewer at a time" in answer.json()["error"]
        codes |= {"shape": [5, 3], "data": [0.0] * 15}
        assert server.post("/v2/models/blobs-decoder/infer", json={"inputs": [codes]}).status_code == 200


def header_bomb(extension_size=None, offset=352.0, spacing=2.0, shape=(16, 18, 15)):
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype("<f4")
    header["magic"], header["vox_offset"] = b"n+1", offset
    header.set_sform(np.diag([spacing, spacing, spacing, 1.0]), 4)
    rest = bytes(4) if extension_size is None else b"\1\0\0\0" + np.array([extension_size, 0], "<i4").tobytes()
    data = np.random.default_rng(0).random(shape).astype("<f4").tobytes()
    return gzip.compress(header.binaryblock + rest + data + bytes(2**27))


@pytest.mark.parametrize(
    "options",
    [{"extension_size": 7}, {"extension_size": 2**27, "offset": float(2**27)}, {"offset": float(2**26)},
     {"spacing": 0.001}, {"spacing": 1e6}],
)  # fmt: skip
def test_headers_that_claim_too_much_are_refused_at_once(server, options):
    before, begun = server.memory_mb, time.monotonic()
    answer = server.post("/v1/models/blobs:encode", content=header_bomb(**options), headers=BINARY)
    assert answer.status_code == 422
    assert server.memory_mb < before + 60
    assert time.monotonic() - begun < 20


def test_an_answered_connection_does_not_stay_open_for_ever(bundles):
    with Running([bundles / "blobs-1"], "--patience", "1") as server, connect(server) as client:
        client.sendall(b"POST /v1/models/nobody:encode HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert b" 404 " in client.recv(4096)
        client.sendall(b"x")
        begun = time.monotonic()
        while client.recv(4096):
            pass
        assert time.monotonic() - begun < 30


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
