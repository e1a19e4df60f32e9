"""The gRPC column of serving/README.md's table: one condition after another, each by a raw call."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from kerasvae_serving.messages import message
from tests.serving.servers import WAIT_S, Running, until
from tests.serving.test_grpc import call, infer

Code = grpc.StatusCode
MODEL = "inference.GRPCInferenceService"


def opened(server):
    return grpc.insecure_channel(server.grpc, options=[("grpc.max_receive_message_length", -1)])


def code_of(channel, method, request, kind=MODEL, metadata=()):
    try:
        call(channel, method, request, kind, metadata)
    except grpc.RpcError as error:
        return error.code() if error.details().endswith(".") else error.details()  # a sentence
    return Code.OK


def test_a_key_is_asked_for(bundles, prepared, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    with Running([bundles / "blobs-1"], "--api-keys", str(keys)) as server, opened(server) as channel:
        request = infer(prepared[:1])
        for given in ((), (("authorization", "Bearer three"),), (("authorization", "one"),)):
            assert code_of(channel, "ModelInfer", request, metadata=given) == Code.UNAUTHENTICATED
        for given in (("authorization", "Bearer two"), ("x-api-key", "one")):
            assert code_of(channel, "ModelInfer", request, metadata=(given,)) == Code.OK
        assert code_of(channel, "ServerReady", message("inference.ServerReadyRequest")()) == Code.OK


def test_overload(bundles):
    """Twenty at once where there is room for two: OK or RESOURCE_EXHAUSTED, and probes in between.

    Codes are decoded, as they arrive in no time and take long: all are there before the first is done.
    """
    request = infer(np.zeros((1000, 3), np.float32), model="blobs-decoder", name="z")
    options = ("--workers", "1", "--queue", "1")
    with Running([bundles / "blobs-1"], *options) as server, opened(server) as channel, ThreadPoolExecutor(24) as pool:
        asked = [pool.submit(code_of, channel, "ModelInfer", request) for _ in range(20)]
        probe = message("inference.ServerReadyRequest")()
        assert {code_of(channel, "ServerReady", probe) for _ in range(10)} == {Code.OK}
        assert {each.result() for each in asked} == {Code.OK, Code.RESOURCE_EXHAUSTED}
        assert code_of(channel, "ModelInfer", request) == Code.OK
        until(lambda: "kerasvae_requests_busy 0.0" in server.get("/metrics").text)


def test_deadlines_of_server_and_client(bundles, prepared):
    big = infer(np.repeat(prepared[:1], 1000, axis=0))
    with Running([bundles / "blobs-1"], "--deadline", "0.0001") as server, opened(server) as channel:
        assert code_of(channel, "ModelInfer", big) == Code.DEADLINE_EXCEEDED
        until(lambda: "kerasvae_requests_busy 0.0" in server.get("/metrics").text)


def test_messages_too_large_either_way(bundles, prepared):
    with Running([bundles / "blobs-1"], "--max-body", "100000") as server, opened(server) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, "ModelInfer", infer(np.repeat(prepared[:1], 20, axis=0)))
        assert caught.value.code() == Code.RESOURCE_EXHAUSTED
        codes = np.zeros((6, 3), np.float32)
        request = infer(codes, model="blobs-decoder", name="z")
        assert code_of(channel, "ModelInfer", request) == Code.RESOURCE_EXHAUSTED
        assert code_of(channel, "ModelInfer", infer(prepared[:1])) == Code.OK


def test_what_a_bundle_cannot(server, prepared):
    """Without reference people there is no such signature; and a method that no service has."""
    request = message("tensorflow.serving.PredictRequest")()
    request.model_spec.name, request.model_spec.signature_name = "aged", "score"
    with opened(server) as channel:
        found = code_of(channel, "Predict", request, "tensorflow.serving.PredictionService")
        assert found == Code.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{MODEL}/Dream")(b"", timeout=WAIT_S)
        assert caught.value.code() == Code.UNIMPLEMENTED


def test_going(bundles, prepared):
    """After SIGTERM it is not ready, and still answers."""
    with Running([bundles / "blobs-1"], "--drain", "3") as server, opened(server) as channel:
        server.process.send_signal(signal.SIGTERM)
        probe = message("inference.ServerReadyRequest")()
        until(lambda: not call(channel, "ServerReady", probe).ready)
        assert code_of(channel, "ModelInfer", infer(prepared[:1])) == Code.OK
        assert server.process.wait(WAIT_S) == 0
