"""Clients of a server: the same answers as in process, retries, deadlines, and the command that uses one."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module

import numpy as np
import pytest

from kerasvae.errors import AnswerError, ArgumentError, DeadlineError, ServingError
from kerasvae_serving import AsyncClient, Client, Engine
from tests.conftest import blob, blob_affine, write_image
from tests.serving.servers import Running, until


class Scripted:
    """A server that answers each request by the next entry: a status, or None to hang up; counts requests."""

    def __init__(self, *statuses, body=b'{"error": "Busy."}', wait=0.0):
        script, outer = iter(statuses), self
        self.asked, self.headers, self.bodies = 0, [], []

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                outer.asked += 1
                outer.headers.append(dict(self.headers))
                outer.bodies.append(self.rfile.read(int(self.headers.get("content-length", 0))))
                status = next(script)
                threading.Event().wait(wait)
                if status is None:
                    self.connection.close()
                    return
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET = answer  # noqa: N815

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


ANSWER = json.dumps({
    "in_distribution": True, "reasons": [], "scores": {}, "percentiles": {}, "outputs": {"mean": [1.0, 2.0]},
}).encode()  # fmt: skip


def test_a_client_gets_what_the_engine_gives(server, engine, scan_file, prepared):
    with Client(server.url, "blobs", version=1) as client:
        assert client.ready()
        assert client.covariates == ()
        for scan in (scan_file, str(scan_file), scan_file.read_bytes()):
            found = client.encode(scan)
            assert found.in_distribution is True
            for name, value in engine.encode(scan_file).items():
                np.testing.assert_allclose(found.outputs[name], value[0], rtol=1e-5)
        score = client.score(scan_file)
        assert score.outputs == {}
        assert score.percentiles == found.percentiles
        assert client.deviation(scan_file)[:2] == client.reconstruct(scan_file, space="model")[:2] == b"\x1f\x8b"
        for name, value in client.infer(image=prepared).items():
            np.testing.assert_allclose(value, engine.encode(prepared)[name], atol=1e-5)
        np.testing.assert_allclose(client.decode(z=np.zeros((1, 3))), engine.decode(np.zeros((1, 3))), atol=1e-5)
        with pytest.raises(AnswerError, match="in one file") as caught:
            client.encode(b"x" * 400)
        assert caught.value.http_status == 422
        with pytest.raises(ArgumentError, match="readable file"):
            client.encode("absent.nii.gz")


def ask(kind, url, method, *arguments, model="blobs", given=None, **options):
    """One call of a client, of either kind."""
    if kind is Client:
        with Client(url, model, **options) as client:
            return getattr(client, method)(*arguments, **(given or {}))

    async def wait():
        async with AsyncClient(url, model, **options) as client:
            return await getattr(client, method)(*arguments, **(given or {}))

    return asyncio.run(wait())


LINES = {
    "kerasvae over HTTP": ("server", "url", "kerasvae"),
    "kerasvae over gRPC": ("server", "grpc", "kerasvae"),
    "kerasvae by TF Serving's REST": ("server", "url", "tf-serving"),
    "kerasvae by TF Serving's gRPC": ("server", "grpc", "tf-serving"),
    "TF Serving over gRPC": ("tf_serving", "grpc", "tf-serving"),
    "Triton over HTTP": ("triton", "url", "triton"),
    "Triton over gRPC": ("triton", "grpc", "triton"),
}


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "line", [pytest.param(name, marks=pytest.mark.heavy if "Triton" in name else ()) for name in LINES]
)
def test_every_way_gives_what_the_engine_gives(request, engine, prepared, line, kind):
    fixture, place, server = LINES[line]
    url = getattr(request.getfixturevalue(fixture), place)
    url = url if place == "url" else f"grpc://{url}"
    for version in (None, 1):
        assert ask(kind, url, "ready", server=server, version=version) is True
        found = ask(kind, url, "infer", given={"image": prepared}, server=server, version=version)
        assert found.keys() == {"mean", "stddev"}
        for name, value in engine.encode(prepared).items():
            np.testing.assert_allclose(found[name], value, atol=1e-5)
            assert found[name].dtype == value.dtype
        z = np.linspace(-1, 1, 6, dtype="f4").reshape(2, 3)
        np.testing.assert_allclose(
            ask(kind, url, "decode", given={"z": z}, server=server, version=version), engine.decode(z), atol=1e-5
        )
    for given in ({"image": prepared[:, :4]}, {"picture": prepared}):
        with pytest.raises(AnswerError) as caught:
            ask(kind, url, "infer", given=given, server=server)
        assert caught.value.http_status == 400
    with pytest.raises(AnswerError) as caught:
        ask(kind, url, "infer", given={"image": prepared}, model="nobody", server=server)
    assert caught.value.http_status in ((400, 404) if server == "triton" else (404,))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_covariates_go_as_an_array(server, tf_serving, bundles, prepared, kind):
    given = {"image": prepared[:2], "covariates": np.array([[63, 0], [41, 1]], "f4")}
    expected = Engine(bundles / "aged-1").encode(*given.values())
    for url, of in (
        (server.url, "kerasvae"),
        (f"grpc://{server.grpc}", "kerasvae"),
        (f"grpc://{tf_serving.grpc}", "tf-serving"),
    ):
        for name, value in ask(kind, url, "infer", given=given, model="aged", server=of).items():
            np.testing.assert_allclose(value, expected[name], atol=1e-5)


def test_tf_servings_rest_takes_a_scan_as_base64(scan_file):
    """As its documentation says, and an output that is alone comes without its name."""
    answers = {
        b'{"predictions": [{"mean": [1.0, 2.0], "codes": [3, 4]}]}': {"mean": [1, 2], "codes": [3, 4]},
        b'{"predictions": [[1.0, 2.0]]}': {"mean": [1, 2]},
    }
    for body, outputs in answers.items():
        with Scripted(200, body=body) as serving:
            found = ask(Client, serving.url, "encode", scan_file, server="tf-serving").outputs
        asked = json.loads(serving.bodies[0])
        assert asked["signature_name"] == "encode_nifti"
        ((name, content),) = asked["instances"][0].items()
        assert name == "nifti"
        assert base64.b64decode(content["b64"]) == scan_file.read_bytes()
        assert {name: value.tolist() for name, value in found.items()} == outputs
        assert {name: value.dtype.kind for name, value in found.items()} == {
            name: "i" if name == "codes" else "f" for name in outputs
        }


def test_many_at_once(server, engine, scan_file, prepared):
    async def ask():
        async with AsyncClient(server.url, "blobs") as client:
            assert await client.ready()
            found = await asyncio.gather(*(client.encode(scan_file) for _ in range(8)), client.infer(image=prepared))
            assert (await client.score(scan_file)).percentiles == found[0].percentiles
            assert (await client.deviation(scan_file))[:2] == (await client.reconstruct(scan_file))[:2]
            assert (await client.decode(z=np.zeros((2, 3)))).shape == (2, *prepared.shape[1:])
            return found

    *encoded, arrays = asyncio.run(ask())
    for each in encoded:
        np.testing.assert_allclose(each.outputs["mean"], engine.encode(scan_file)["mean"][0], rtol=1e-5)
    np.testing.assert_allclose(arrays["mean"], engine.encode(prepared)["mean"], atol=1e-5)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_busy_server_is_asked_again(kind):
    def encode(url, **options):
        return ask(kind, url, "encode", b"scan", **options)

    with Scripted(503, 429, 200, body=ANSWER) as busy:
        np.testing.assert_array_equal(encode(busy.url, key="secret").outputs["mean"], [1, 2])
        assert busy.asked == 3
        assert {headers["Authorization"] for headers in busy.headers} == {"Bearer secret"}
    with Scripted(None, 200, body=ANSWER) as broken:  # it may have been taken up: it is not sent twice
        with pytest.raises(ServingError, match="A server must answer"):
            encode(broken.url)
        assert broken.asked == 1
    with Scripted(*[503] * 50) as busy:
        with pytest.raises(AnswerError, match="Busy") as caught:
            encode(busy.url, deadline=1.0)
        assert caught.value.http_status == 503
        assert 2 <= busy.asked <= 5
    for status in (400, 500, 504):  # asking again would not help, or would make it worse
        with Scripted(status, 200) as wrong:
            with pytest.raises(AnswerError):
                encode(wrong.url)
            assert wrong.asked == 1
    with Scripted(200, body=ANSWER, wait=3.0) as slow:
        with pytest.raises(DeadlineError, match=r"within 0\.5 s"):
            encode(slow.url, deadline=0.5)
        assert slow.asked == 1
    with pytest.raises(ServingError, match=r"answer at http://127\.0\.0\.1:9"):
        encode("http://127.0.0.1:9", deadline=0.3)


class Dripping:
    """A server whose answer comes a byte at a time, each well within any deadline, and never ends by itself."""

    def __init__(self, bytes_=2000, wait=0.05):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url, self.given, self._bytes, self._wait = (
            f"http://127.0.0.1:{self._socket.getsockname()[1]}",
            0,
            bytes_,
            wait,
        )
        self._thread = threading.Thread(target=self._drip)

    def _drip(self):
        connection, _ = self._socket.accept()
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % self._bytes)
        with connection, suppress(OSError):
            while self.given < self._bytes:
                connection.sendall(b" ")
                self.given += 1
                threading.Event().wait(self._wait)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join()
        self._socket.close()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_deadline_is_that_of_the_whole_call(kind):
    with Dripping() as server, pytest.raises(DeadlineError, match=r"within 0\.5 s"):
        ask(kind, server.url, "encode", b"scan", deadline=0.5)
    assert 0 < server.given < 2000  # it was not waited for until the end


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_closed_client_gives_up_what_is_under_way(scheme):
    """Also while it connects: nothing of it stays open, and nobody waits on."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)

        async def closes(pause):
            client = AsyncClient(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}", "m", deadline=60)
            calls = [asyncio.ensure_future(client.infer(image=np.zeros((1, 2), np.float32))) for _ in range(2)]
            await asyncio.sleep(pause)
            await client.close()
            for call in calls:
                with pytest.raises(ServingError, match="The client must be open until its calls end"):
                    await call
            with pytest.raises(ServingError, match="must be open"):
                await client.infer(image=np.zeros((1, 2), np.float32))
            assert await client.ready() is False

        for pause in (0.0, 0.001, 0.3):
            asyncio.run(closes(pause))
        with suppress(TimeoutError):
            while True:  # whatever was opened is closed by now
                connection, _ = silent.accept()
                with connection:
                    connection.settimeout(20)
                    while connection.recv(2**16):
                        pass
                silent.settimeout(0.5)


def test_a_client_in_a_thread_is_closed_over_its_calls():
    with Scripted(200, body=ANSWER, wait=30.0) as slow, ThreadPoolExecutor(1) as pool:
        client = Client(slow.url, "m", deadline=60)
        call = pool.submit(client.encode, b"scan")
        until(lambda: slow.asked)
        client.close()
        with pytest.raises(ServingError, match="must be open"):
            call.result(timeout=20)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_is_not_ready(kind, scheme):
    for server in ("kerasvae", "triton", "tf-serving"):
        assert ask(kind, f"{scheme}://127.0.0.1:9", "ready", server=server) is False


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"outputs": {}}'])
def test_an_answer_of_another_kind_is_named(body):
    for server in ("kerasvae", "tf-serving"):
        with Scripted(200, body=body) as other, pytest.raises(ServingError, match="that this kind of server gives"):
            ask(Client, other.url, "encode", b"scan", server=server)


FORKED = """
import multiprocessing, sys
from kerasvae_serving import Client

def asked(found):
    found.put([client.encode(sys.argv[2]).outputs["mean"].tolist() for _ in range(2)])

client = Client(sys.argv[1], "blobs", deadline=60)
here = client.encode(sys.argv[2]).outputs["mean"].tolist()
context = multiprocessing.get_context("fork")
found = context.Queue()
child = context.Process(target=asked, args=(found,))
child.start()
assert found.get(timeout=60) == [here, here]
child.join(60)
assert client.encode(sys.argv[2]).outputs["mean"].tolist() == here
client.close()
"""


def test_a_client_can_be_forked(server, scan_file):
    """As a pool of processes does; the thread that waits for answers does not go along."""
    call = [sys.executable, "-c", FORKED, server.url, str(scan_file)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_threads_share_a_client(server, engine, prepared):
    expected = engine.encode(prepared)["mean"]
    for url in (server.url, f"grpc://{server.grpc}"):
        with Client(url, "blobs") as client, ThreadPoolExecutor(8) as pool:
            rows = list(pool.map(lambda row: client.infer(image=prepared[row : row + 1]), range(len(prepared))))
        np.testing.assert_allclose(np.concatenate([row["mean"] for row in rows]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "localhost:8000"}, "url must begin with http"),
        ({"url": "http://[::1"}, "url must be a URL"),
        ({"url": "grpc://localhost"}, "url must be a host and a port"),
        ({"url": "grpc://localhost:99999"}, "url must be a host and a port"),
        ({"url": "grpc://localhost:8001/v2"}, "url must be a host and a port"),
        ({"url": "grpcs://localhost:8001", "verify": False}, "verify must be True or a file"),
        ({"url": "grpcs://localhost:8001", "verify": "absent.pem"}, "verify must be a file of certificates"),
        ({"url": "https://localhost", "verify": "absent.pem"}, "verify must be a file of certificates"),
        ({"server": "torchserve"}, "server must be kerasvae, triton, tf-serving"),
        ({"deadline": 0}, "deadline must be above 0"),
    ],
)
def test_wrong_arguments(options, words):
    with pytest.raises(ArgumentError, match=words):
        Client(options.pop("url", "http://localhost"), "m", **options)


def test_what_a_server_of_another_kind_cannot_do():
    with Client("http://localhost", "m", server="triton") as client:
        for way in (client.encode, client.score, client.deviation):
            with pytest.raises(ArgumentError, match="server must be kerasvae"):
                way(b"scan")


def test_files_go_over_http_to_kerasvae():
    with Client("grpc://localhost:8001", "m") as client:
        for way in (client.encode, client.score, client.deviation, client.reconstruct, lambda _: client.covariates):
            with pytest.raises(ArgumentError, match=r"url must begin with http.*files over HTTP"):
                way(b"scan")
    for server, words in (("triton", "server must be kerasvae"), ("tf-serving", "server must be kerasvae for score")):
        with Client("grpc://localhost:8001", "m", server=server) as client, pytest.raises(ArgumentError, match=words):
            client.score(b"scan")


def encode(*arguments, cwd):
    call = [sys.executable, "-m", "kerasvae.cli", "encode", *map(str, arguments)]
    return subprocess.run(call, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_writes_the_same_table_from_a_server(server, bundles, tmp_path):
    for person in range(5):
        write_image(tmp_path / "scans" / f"sub-{person}_T1w.nii.gz", blob(100 + person), blob_affine())
    done = encode("--url", server.url, "--model", "blobs", "scans", "--out", "there.tsv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert encode(bundles / "blobs-1", "scans", "--out", "here.tsv", cwd=tmp_path).returncode == 0
    here, there = ((tmp_path / name).read_text().splitlines() for name in ("here.tsv", "there.tsv"))
    assert here[0] == there[0]
    for one, other in zip(here[1:], there[1:], strict=True):
        assert one.split("\t")[:3] == other.split("\t")[:3]
        np.testing.assert_allclose(
            [float(cell) for cell in one.split("\t")[3:]], [float(cell) for cell in other.split("\t")[3:]], rtol=1e-4
        )
    table = "\n".join(["participant_id\tage\tsex\thandedness", *(f"sub-{p}\t{40 + p}\tF\tright" for p in range(5))])
    (tmp_path / "people.tsv").write_text(table)
    options = ("--covariates", "people.tsv", "--out", "aged.tsv")
    done = encode("--url", server.url, "--model", "aged", "scans", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        encode(bundles / "aged-1", "scans", "--covariates", "people.tsv", "--out", "local.tsv", cwd=tmp_path).returncode
        == 0
    )
    aged, local = ((tmp_path / name).read_text().splitlines()[1].split("\t") for name in ("aged.tsv", "local.tsv"))
    np.testing.assert_allclose(float(aged[3]), float(local[3]), rtol=1e-4)


def test_the_command_leaves_out_what_the_server_refuses(server, tmp_path):
    write_image(tmp_path / "good.nii.gz", blob(100), blob_affine())
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing")
    where = ("--url", server.url, "--model", "blobs")
    done = encode(*where, "good.nii.gz", "bad.nii.gz", cwd=tmp_path)
    assert done.returncode == 1
    assert "in one file" in done.stderr
    assert not (tmp_path / "latents.tsv").exists()
    done = encode(*where, "good.nii.gz", "bad.nii.gz", "--skip-bad", cwd=tmp_path)
    assert done.returncode == 0
    assert "Left out bad.nii.gz" in done.stderr
    assert len((tmp_path / "latents.tsv").read_text().splitlines()) == 2
    for arguments, words, code in (
        (("--url", server.url, "good.nii.gz"), "--model must", 2),
        (("--url", server.url, "--model", "nobody", "good.nii.gz"), "nobody", 1),
        (("--url", "localhost", "--model", "blobs", "good.nii.gz"), "url must begin", 2),
        (("bundle",), "INPUT must be an image", 2),
    ):
        done = encode(*arguments, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_keys_of_the_command_come_from_a_file(bundles, tmp_path):
    (tmp_path / "key").write_text("open-sesame\n")
    write_image(tmp_path / "good.nii.gz", blob(100), blob_affine())
    with Running([bundles / "blobs-1"], "--api-keys", str(tmp_path / "key")) as server:
        where = ("--url", server.url, "--model", "blobs", "good.nii.gz")
        assert "Authorization must be" in encode(*where, cwd=tmp_path).stderr
        assert encode(*where, "--api-key", "key", cwd=tmp_path).returncode == 0
        with Client(server.url, "blobs", key="open-sesame") as client:
            assert client.encode(tmp_path / "good.nii.gz").outputs["mean"].shape == (3,)


def test_names_are_imported_when_asked_for():
    code = (
        "import sys, kerasvae_serving; assert 'httpx' not in sys.modules; assert 'onnxruntime' not in sys.modules\n"
        "assert set(kerasvae_serving.__all__) <= set(dir(kerasvae_serving))\n"
        "from kerasvae_serving import deploy, encode_files, Client\n"
        "assert callable(kerasvae_serving.deploy) and callable(deploy)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with pytest.raises(AttributeError):
        getattr(import_module("kerasvae_serving"), "nothing")  # noqa: B009
    assert Engine.__module__ == "kerasvae_serving.engine"
