"""Clients over gRPC: scans for TF Serving, refusals and when they are asked again, deadlines, keys and certificates."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from kerasvae.errors import AnswerError, ArgumentError, DeadlineError, ServingError
from kerasvae_serving import AsyncClient, Client, Engine
from kerasvae_serving.messages import service
from tests.serving.servers import Running
from tests.serving.test_client import ask

Code = grpc.StatusCode
MEAN = np.array([[1.0, 2.0]], "<f4")


class Scripted:
    """Answers each request by the next entry, a code with words and trailing metadata, or None: an answer."""

    def __init__(self, *script, wait=0.0):
        self.asked, self.metadata = 0, []
        entries = iter(script)
        asked, answered = service("inference.GRPCInferenceService")["ModelInfer"]

        def answer(request, context):
            self.asked += 1
            self.metadata.append(dict(context.invocation_metadata()))
            entry = next(entries)
            threading.Event().wait(wait)
            if entry is not None:
                code, words, *pushback = entry
                context.set_trailing_metadata(tuple(("grpc-retry-pushback-ms", each) for each in pushback))
                context.abort(code, words)
            found = answered(raw_output_contents=[MEAN.tobytes()])
            found.outputs.add(name="mean", datatype="FP32", shape=MEAN.shape)
            return found

        method = grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=asked.FromString,
            response_serializer=answered.SerializeToString,
        )
        self._server = grpc.server(ThreadPoolExecutor(2))
        handler = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": method})
        self._server.add_generic_rpc_handlers((handler,))
        self.url = f"grpc://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()


def infer(kind, url, **options):
    return ask(kind, url, "infer", given={"image": np.zeros((1, 2))}, **options)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_busy_server_is_asked_again(kind):
    with Scripted((Code.RESOURCE_EXHAUSTED, "Full."), (Code.UNAVAILABLE, "Going."), None) as busy:
        np.testing.assert_array_equal(infer(kind, busy.url, key="secret")["mean"], MEAN)
        assert busy.asked == 3
        assert {given["authorization"] for given in busy.metadata} == {"Bearer secret"}
    with Scripted(*[(Code.RESOURCE_EXHAUSTED, "Full.")] * 50) as busy:
        with pytest.raises(AnswerError, match="Full") as caught:
            infer(kind, busy.url, deadline=1.0)
        assert caught.value.http_status == 429
        assert 2 <= busy.asked <= 5
    with Scripted((Code.RESOURCE_EXHAUSTED, "Full.", "60000"), None) as busy:  # it asks for more time than there is
        with pytest.raises(AnswerError, match="Full"):
            infer(kind, busy.url, deadline=5.0)
        assert busy.asked == 1


@pytest.mark.parametrize(
    ("entry", "status"),
    [
        ((Code.INVALID_ARGUMENT, "Wrong."), 400),
        ((Code.UNAUTHENTICATED, "Who?"), 401),
        ((Code.NOT_FOUND, "Nobody."), 404),
        ((Code.FAILED_PRECONDITION, "No such signature."), 409),
        ((Code.RESOURCE_EXHAUSTED, "Too large.", "-1"), 413),
        ((Code.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 4)"), 413),
        ((Code.INTERNAL, "Broken."), 500),
        ((Code.UNIMPLEMENTED, "Not here."), 501),
        ((Code.DEADLINE_EXCEEDED, "Too slow, the server says."), 504),
    ],
)
def test_what_asking_again_would_not_help_is_said_at_once(entry, status):
    for kind in (Client, AsyncClient):
        with Scripted(entry, None) as wrong:
            with pytest.raises(AnswerError) as caught:
                infer(kind, wrong.url)
            assert (caught.value.http_status, str(caught.value), wrong.asked) == (status, entry[1], 1)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_slow_server_and_none_at_all(kind):
    with Scripted(None, wait=3.0) as slow:
        with pytest.raises(DeadlineError, match=r"within 0\.5 s"):
            infer(kind, slow.url, deadline=0.5)
        assert slow.asked == 1
    with pytest.raises(ServingError, match=r"answer at grpc://127\.0\.0\.1:9"):
        infer(kind, "grpc://127.0.0.1:9", deadline=0.5)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_tf_serving_takes_scans(tf_serving, engine, scan_file, kind):
    url = f"grpc://{tf_serving.grpc}"
    for scan in (scan_file, scan_file.read_bytes()):
        found = ask(kind, url, "encode", scan, server="tf-serving")
        assert found.in_distribution is None
        for name, value in engine.encode(scan_file).items():
            np.testing.assert_allclose(found.outputs[name], value[0], atol=1e-5)
    with pytest.raises(AnswerError, match=r"^The file must be a NIfTI file: it is too short for one\.$") as caught:
        ask(kind, url, "encode", b"nothing", server="tf-serving")
    assert caught.value.http_status == 400
    with pytest.raises(ArgumentError, match="covariates must be left out"):
        ask(kind, url, "encode", scan_file, {"age": 63}, server="tf-serving", model="aged")
    assert ask(kind, url, "ready", server="tf-serving", model="nobody") is False
    assert ask(kind, url, "ready", server="tf-serving", version=9) is False
    with pytest.raises(AnswerError) as caught:  # no TF Serving's service but Triton's: it is another server
        ask(kind, url, "infer", given={"image": np.zeros((1, 2))}, server="triton")
    assert caught.value.http_status == 501


def test_too_much_at_once_is_not_sent_again(bundles):
    z = np.zeros((2, 3))
    with Running([bundles / "blobs-1"], "--max-body", "20000", "--poll", "0.1") as server:
        with pytest.raises(AnswerError, match="The answer must have at most 20000 bytes") as caught:
            ask(Client, f"grpc://{server.grpc}", "decode", given={"z": z}, deadline=60)
        assert caught.value.http_status == 413
        with pytest.raises(AnswerError, match="larger than max") as caught:
            ask(Client, f"grpc://{server.grpc}", "infer", given={"image": np.zeros((40, 16, 18, 15))}, deadline=60)
        assert caught.value.http_status == 413


def test_keys_and_certificates(bundles, prepared, certificate, tmp_path):
    chain, private = certificate
    (tmp_path / "keys").write_text("open-sesame\n")
    options = ("--tls-certificate", str(chain), "--tls-key", str(private), "--api-keys", str(tmp_path / "keys"))
    expected = Engine(bundles / "blobs-1").encode(prepared[:1])["mean"]
    given = {"image": prepared[:1]}
    with Running([bundles / "blobs-1"], *options) as server:
        for url in (server.url, f"grpcs://{server.grpc}"):
            found = ask(Client, url, "infer", given=given, key="open-sesame", verify=chain)
            np.testing.assert_allclose(found["mean"], expected, atol=1e-5)
            with pytest.raises(AnswerError) as caught:
                ask(Client, url, "infer", given=given, verify=str(chain))
            assert caught.value.http_status == 401
            with pytest.raises(ServingError, match="answer at"):  # nobody it trusts vouches for the server
                ask(Client, url, "infer", given=given, key="open-sesame", deadline=60)
