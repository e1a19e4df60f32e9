"""The short way of plain requests: what goes it, that it answers as the long way does, and its manners."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import time

import httpx
import numpy as np
import pytest

from kerasvae_serving.express import plain
from tests.serving.servers import WAIT_S, Running, infer, until

START = b"POST /v2/models/blobs/infer HTTP/1.1\r\n"
SCAN = b"POST /v1/models/blobs:encode HTTP/1.1\r\n"


def head(*fields: bytes, start: bytes = START) -> bytes:
    return start + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


PLAIN = [
    head(b"Host: x", b"Content-Length: 3"),
    head(b"content-length:3"),
    head(b"Content-Length: 3", b"Connection: Keep-Alive", b"Accept: */*"),
    head(b"Content-Length: 3", start=b"POST /v2/models/a.b-c_1/versions/12/infer HTTP/1.1\r\n"),
    head(b"Content-Length: 3", start=SCAN),
    head(b"Content-Length: 3", b"Content-Type: application/octet-stream", start=SCAN),
    head(b"Content-Length: 3", b"Content-Type: Image/X-NIfTI; a=b", start=SCAN.replace(b"encode", b"score")),
    head(b"Content-Length: 3", start=SCAN.replace(b":", b"/versions/12:", 1)),
]
OTHER = {
    "another method": head(b"Content-Length: 3", start=START.replace(b"POST", b"GET")),
    "another version of HTTP": head(b"Content-Length: 3", start=START.replace(b"1.1", b"1.0")),
    "another path": head(b"Content-Length: 3", start=START.replace(b"/infer", b"/inferx")),
    "a query": head(b"Content-Length: 3", start=START.replace(b"/infer", b"/infer?a=1")),
    "an escape": head(b"Content-Length: 3", start=START.replace(b"blobs", b"blob%73")),
    "no length": head(b"Host: x"),
    "two lengths": head(b"Content-Length: 3", b"Content-Length: 4"),
    "two lengths that agree": head(b"Content-Length: 3", b"Content-Length: 3"),
    "a length with a sign": head(b"Content-Length: +3"),
    "a length below 0": head(b"Content-Length: -3"),
    "a length in two parts": head(b"Content-Length: 3, 3"),
    "a length of other figures": head("Content-Length: ٣".encode()),
    "chunks": head(b"Content-Length: 3", b"Transfer-Encoding: chunked"),
    "a packed body": head(b"Content-Length: 3", b"Content-Encoding: gzip"),
    "a question first": head(b"Content-Length: 3", b"Expect: 100-continue"),
    "the last request": head(b"Content-Length: 3", b"Connection: close"),
    "an upgrade": head(b"Content-Length: 3", b"Connection: upgrade", b"Upgrade: h2c"),
    "a blank before the colon": head(b"Content-Length : 3"),
    "a folded line": head(b"Content-Length: 3", b"X: a", b" b"),
    "a lone line feed": START + b"Content-Length: 3\n\r\n",
    "a field without a name": head(b"Content-Length: 3", b": a"),
    "a zero byte": head(b"Content-Length: 3", b"X: a\0b"),
    "a form": head(b"Content-Length: 3", b"Content-Type: multipart/form-data; boundary=x", start=SCAN),
    "a file of words": head(b"Content-Length: 3", b"Content-Type: text/plain", start=SCAN),
    "covariates": head(b"Content-Length: 3", start=SCAN.replace(b"encode", b"encode?age=70")),
    "a map": head(b"Content-Length: 3", start=SCAN.replace(b"encode", b"deviation")),
    "a verb of the other protocol": head(b"Content-Length: 3", start=SCAN.replace(b"encode", b"infer")),
    "half a head": head(b"Content-Length: 3")[:-2],
}


@pytest.mark.parametrize("data", PLAIN)
def test_plain_requests_go_it(data):
    found = plain(data + b"abc")
    assert found is not None
    assert (found.length, found.start) == (3, len(data))


@pytest.mark.parametrize("name", OTHER)
def test_all_others_do_not(name):
    assert plain(OTHER[name]) is None


def test_what_is_read_of_a_head():
    fields = (b"Authorization: Bearer k", b"Inference-Header-Content-Length: 7", b"Content-Length: 9")
    found = plain(head(*fields))
    assert found is not None
    assert (found.name, found.version, found.key, found.json_length) == ("blobs", None, "k", "7")
    found = plain(head(b"X-API-Key: other", b"Content-Length: 9"))
    assert found is not None
    assert found.key == "other"


def request(image, *fields: bytes, length: int | None = None) -> bytes:
    tensor = {"name": "image", "shape": [1, *image.shape], "datatype": "FP32"}
    content = {"inputs": [tensor | {"parameters": {"binary_data_size": image.nbytes}}]}
    words = json.dumps(content).encode()
    body = words + image.tobytes()
    lengths = (b"Content-Length: %d" % (length or len(body)), b"Inference-Header-Content-Length: %d" % len(words))
    return head(b"Host: x", *lengths, *fields) + body


def connect(server) -> socket.socket:
    host, port = server.url.split("//")[1].split(":")
    made = socket.create_connection((host, int(port)), timeout=WAIT_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def answers(client: socket.socket, number: int) -> list[tuple[int, dict[str, str], bytes]]:
    """Status, fields and body of so many answers; the connection may end before."""
    found, data = [], b""
    while len(found) < number:
        block = client.recv(2**16)
        data += block
        while b"\r\n\r\n" in data:
            words, _, rest = data.partition(b"\r\n\r\n")
            first, *lines = words.decode().split("\r\n")
            fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            size = int(fields["content-length"])
            if len(rest) < size:
                break
            found.append((int(first.split()[1]), fields, rest[:size]))
            data = rest[size:]
        if not block:
            break
    return found


def told(body: bytes) -> list[float]:
    return json.loads(body)["outputs"][0]["data"]


def test_both_ways_answer_alike(server, prepared):
    """The same request, plain and in chunks, good and bad: the same status, words and numbers."""
    _, _, good = request(prepared[0]).partition(b"\r\n\r\n")
    size = good.index(b"}]}") + 3
    cases = {
        "good": (good, str(size)), "cut": (good[:-1], str(size)), "words": (b"{}", "2"), "no JSON": (b"{", "1"),
        "longer": (good + b"x", str(size)), "a wrong length": (good, "99999999"), "no length": (good, "x"),
    }  # fmt: skip
    url = f"{server.url}/v2/models/blobs/infer"
    for name, (body, length) in cases.items():
        fields = {"inference-header-content-length": length}
        short = httpx.post(url, content=body, headers=fields, timeout=WAIT_S)
        long = httpx.post(url, content=iter([body]), headers=fields, timeout=WAIT_S)
        assert "transfer-encoding" in long.request.headers
        assert "content-length" in short.request.headers
        assert (short.status_code, short.json()) == (long.status_code, long.json()), name
        assert short.headers["content-type"] == long.headers["content-type"], name
    assert short.status_code == 400


def test_both_ways_answer_alike_about_scans(server, scan_file):
    """The short and the long way: the same status, words and numbers, and each is counted once."""
    whole = scan_file.read_bytes()
    bodies = {"good": whole, "cut": whole[:-100], "empty": b"", "no image": b"x" * 400}
    for model, name in [(m, n) for m in ("blobs", "aged", "nobody") for n in bodies]:
        for verb in ("encode", "score"):
            url = f"{server.url}/v1/models/{model}:{verb}"
            counted = sum_of(server, f'model="{model}"')
            short = httpx.post(url, content=bodies[name], timeout=WAIT_S)
            long = httpx.post(url, content=iter([bodies[name]]), timeout=WAIT_S)
            assert "transfer-encoding" in long.request.headers
            assert (short.status_code, short.json()) == (long.status_code, long.json()), (model, verb, name)
            assert short.headers["content-type"] == long.headers["content-type"]
            grown = sum_of(server, f'model="{model}"') - counted
            assert grown == (2 if short.status_code == 200 else 0)
            assert (short.status_code == 200) == (model == "blobs" and name == "good")


def sum_of(server, words: str) -> float:
    """Of the counter of scans."""
    lines = [line for line in server.get("/metrics").text.splitlines() if words in line]
    return sum(float(line.split()[-1]) for line in lines if line.startswith("kerasvae_scans_total"))


@pytest.mark.parametrize("pieces", [1, 2, 7, 300])
def test_a_body_may_come_in_pieces(server, prepared, engine, pieces):
    whole = request(prepared[1])
    with connect(server) as client:
        for place in range(0, len(whole), len(whole) // pieces + 1):
            client.sendall(whole[place : place + len(whole) // pieces + 1])
            time.sleep(0.001)
        ((status, _, body),) = answers(client, 1)
    assert status == 200
    np.testing.assert_allclose(told(body), engine.encode(prepared[1:2])["mean"][0], atol=1e-5)


def test_requests_may_follow_each_other_unanswered(server, prepared, engine):
    """Pipelines: plain requests and others mixed, in one packet and in several; the answers keep their order."""
    live = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    images = [prepared[0], prepared[1], prepared[2]]
    parts = [request(images[0]), live, request(images[1]), request(images[2]), live]
    for sent in ([b"".join(parts)], parts, [parts[0] + parts[1], b"".join(parts[2:])]):
        with connect(server) as client:
            for part in sent:
                client.sendall(part)
                time.sleep(0.002)
            found = answers(client, 5)
        assert [status for status, *_ in found] == [200] * 5
        assert [json.loads(found[index][2]).get("live") for index in (1, 4)] == [True, True]
        for (_, _, body), image in zip((found[0], found[2], found[3]), images, strict=True):
            np.testing.assert_allclose(told(body), engine.encode(image[None])["mean"][0], atol=1e-5)


def test_a_body_that_stops_is_not_waited_for(bundles, prepared):
    with Running([bundles / "blobs-1"], "--patience", "0.5") as server, connect(server) as client:
        client.sendall(request(prepared[0])[:-100])
        ((status, fields, body),) = answers(client, 1)
        assert status == 408
        assert fields["connection"] == "close"
        assert "come without a pause of 0.5 s" in json.loads(body)["error"]
        assert client.recv(1) == b""
        with connect(server) as slow:  # each byte in time, but not all of them
            whole = request(prepared[0])
            slow.sendall(whole[:-100])
            begun = time.monotonic()
            with pytest.raises(OSError, match=r"."):  # noqa: PT012
                for place in range(100):
                    slow.sendall(whole[len(whole) - 100 + place :][:1])
                    time.sleep(0.1)
                raise AssertionError("a body may take for ever")
            assert time.monotonic() - begun < 8
        assert infer(server, prepared[0]).status_code == 200


def test_who_hangs_up_leaves_nothing(bundles, prepared):
    """Bodies that never end, and answers that nobody takes: the bytes that may be held are all there afterwards."""
    size = len(request(prepared[0]))
    with Running([bundles / "blobs-1"], "--max-body", str(size)) as server:
        for _ in range(30):  # more than four bodies, which are held at most
            with connect(server) as client:
                client.sendall(request(prepared[0])[:-10])
            with connect(server) as client:
                client.sendall(request(prepared[0]))
        until(lambda: "kerasvae_requests_busy 0.0" in server.get("/metrics").text)
        assert infer(server, prepared[0]).status_code == 200
        silent = [connect(server) for _ in range(3)]
        for client in silent:
            client.sendall(request(prepared[0])[:-10])
        assert infer(server, prepared[0]).status_code == 200
        for client in silent:
            client.sendall(request(prepared[0])[-10:])
            assert answers(client, 1)[0][0] == 200
            client.close()


def test_large_and_unknown_are_refused_as_ever(bundles, prepared):
    with Running([bundles / "blobs-1"], "--max-body", "10000") as server, connect(server) as client:
        client.sendall(request(prepared[0]))
        ((status, fields, _),) = answers(client, 1)
        assert (status, fields["connection"]) == (413, "close")
        missing = httpx.post(f"{server.url}/v2/models/nobody/infer", content=b"{}")
        assert (missing.status_code, "nobody" in missing.json()["error"]) == (404, True)


def test_going_waits_for_the_rest_of_a_body(bundles, prepared):
    with Running([bundles / "blobs-1"], "--drain", "0.2") as server, connect(server) as client:
        whole = request(prepared[0])
        client.sendall(whole[:-50])
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.6)  # it has stopped listening
        client.sendall(whole[-50:])
        ((status, fields, _),) = answers(client, 1)
        assert (status, fields["connection"]) == (200, "close")
        assert client.recv(1) == b""
        assert server.process.wait(WAIT_S) == 0


def test_it_goes_over_tls_too(bundles, prepared, certificate, engine):
    chain, key = certificate
    options = ("--tls-certificate", str(chain), "--tls-key", str(key))
    with Running([bundles / "blobs-1"], *options) as server, connect(server) as plain_socket:
        context = ssl.create_default_context(cafile=str(chain))
        with context.wrap_socket(plain_socket, server_hostname="127.0.0.1") as client:
            for image in prepared[:3]:
                client.sendall(request(image))
                ((status, _, body),) = answers(client, 1)
                assert status == 200
                np.testing.assert_allclose(told(body), engine.encode(image[None])["mean"][0], atol=1e-5)
