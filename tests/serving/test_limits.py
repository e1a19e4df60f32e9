"""What clients do to a server: too much at once, too large, too slow, halves of requests, and answers left unread."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import nibabel
import numpy as np
import pytest

from tests.serving.conftest import free_port
from tests.serving.servers import BINARY, WAIT_S, Running, infer, until


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


def test_answers_that_nobody_reads_are_given_up(bundles):
    """One client reads nothing of 8 MB and is let go; another reads them slowly and gets them all."""
    rows = 300
    codes = {"name": "z", "shape": [rows, 3], "datatype": "FP32", "data": [0.0] * 3 * rows}
    body = json.dumps({"inputs": [codes]}).encode()
    request = f"POST /v2/models/blobs-decoder/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with Running([bundles / "blobs-1"], "--patience", "1") as server:
        idle, slow = narrow(server), narrow(server)
        for client in (idle, slow):
            client.sendall(request + body)
        head, _, start = slow.recv(2**12).partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        assert length > 5 * 10**6
        got, begun = len(start), time.monotonic()
        while got < length:
            got += len(block := slow.recv(2**20))
            assert block, f"{got} of {length}"
            if time.monotonic() < begun + 4:
                time.sleep(0.05)
        assert time.monotonic() - begun >= 4  # four times the patience
        received_of_idle = 0
        with idle, contextlib.suppress(ConnectionResetError):
            while block := idle.recv(2**20):
                received_of_idle += len(block)
        assert received_of_idle < length
        slow.close()
        assert server.get("/v2/health/ready").status_code == 200


def narrow(server):
    """A connection with room for little that was not read."""
    host, port = server.url.removeprefix("http://").split(":")
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
    made.settimeout(WAIT_S)
    made.connect((host, int(port)))
    return made


def test_a_full_disk_and_an_unread_log_stop_nobody(bundles, scan_file, tmp_path):
    """No file can grow, the log's device is full, and then a pipe that nobody reads: every answer comes."""

    def no_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    command = [
        sys.executable,
        "-m",
        "kerasvae.cli",
        "serve",
        str(bundles / "blobs-1"),
        "--grpc-port",
        "-1",
        "--verbose",
    ]
    packed = scan_file.read_bytes()
    large = nibabel.Nifti1Image(np.zeros((128, 128, 40), np.float32), nibabel.load(scan_file).affine)
    large.set_sform(large.affine, 4)
    for stderr in ("/dev/full", "pipe"):
        port = free_port()
        log = subprocess.PIPE if stderr == "pipe" else os.open(stderr, os.O_WRONLY)
        server = subprocess.Popen([*command, "--port", str(port)], stderr=log, preexec_fn=no_files)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S) as client:
                until(lambda client=client: answers(client))
                for _ in range(1500 if stderr == "pipe" else 20):  # more lines than a pipe and the queue hold
                    assert client.get("/v1/models/nobody").status_code == 404
                assert client.post("/v1/models/blobs:encode", files={"image": packed}).status_code == 200
                content = large.to_bytes()
                assert len(content) > 2 * 2**20  # more than a form keeps in memory by itself
                found = client.post("/v1/models/blobs:encode", files={"image": content})
                assert found.status_code == 422  # it was read: an empty image is none
                assert "0 in every voxel" in found.text
        finally:
            if stderr != "pipe":
                os.close(log)
            server.send_signal(signal.SIGTERM)
            server.send_signal(signal.SIGTERM)
            assert server.wait(WAIT_S) == 0
            if server.stderr is not None:
                server.stderr.close()


def answers(client):
    try:
        return client.get("/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_heads_have_a_limit(bundles):
    """Many fields, a long field, a long path: refused before they cost memory, and others are answered."""
    with Running([bundles / "blobs-1"]) as server:
        before = server.memory_mb
        for start, piece in ((b"GET / HTTP/1.1\r\n", b"a:\r\n"), (b"GET / HTTP/1.1\r\na: ", b"a"), (b"GET /", b"a")):
            with connect(server) as client, contextlib.suppress(OSError):
                client.sendall(start)
                for _ in range(64):
                    client.sendall(piece * (2**18 // len(piece)))
                raise AssertionError("16 MB of a head were taken")
            with connect(server) as client:
                client.sendall(start + piece * (2**17 // len(piece)))
                assert client.recv(4096).startswith(b"HTTP/1.1 431 ")
        assert server.memory_mb < before + 30
        assert server.get("/v2/health/ready").status_code == 200


def test_a_connection_cannot_ask_for_everything_at_once(bundles):
    """A megabyte of small requests in one packet: as many as may wait are answered, and the memory stays."""
    with Running([bundles / "blobs-1"]) as server:
        before = server.memory_mb
        for _ in range(4):
            with connect(server) as client, contextlib.suppress(OSError):
                client.sendall(b"GET / HTTP/1.1\r\n\r\n" * 58000)
                while client.recv(2**16):
                    pass
        assert server.memory_mb < before + 60
        assert server.get("/v2/health/ready").status_code == 200


def test_bodies_that_are_only_announced_shut_nobody_out(bundles, prepared):
    with Running([bundles / "blobs-1"]) as server:
        made = [connect(server) for _ in range(8)]
        for client in made:
            client.sendall(b"POST /v2/models/blobs/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 67108864\r\n\r\n{")
        time.sleep(0.2)
        assert infer(server, prepared[0]).status_code == 200
        for client in made:
            client.close()


def test_a_client_cannot_stop_the_server_by_filling_its_log(bundles):
    """What libraries say of broken requests goes the same way as the log: no pipe that nobody reads holds it up."""
    command = [sys.executable, "-m", "kerasvae.cli", "serve", str(bundles / "blobs-1"), "--grpc-port", "-1"]
    port = free_port()
    server = subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.PIPE)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S) as client:
            until(lambda: answers(client))
            for _ in range(3000):
                with socket.create_connection(("127.0.0.1", port)) as made:
                    made.sendall(b"BLAH\r\n\r\n")
                    made.recv(4096)
            assert answers(client)
    finally:
        server.send_signal(signal.SIGTERM)
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT_S) == 0
        server.stderr.close()
