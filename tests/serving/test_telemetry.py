"""Spans through OpenTelemetry's own collector of spans: there, joined to the caller's trace, and silent on patients."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kerasvae_serving.app import App
from kerasvae_serving.repository import Repository
from kerasvae_serving.settings import Settings
from kerasvae_serving.telemetry import traced

TRACE = "0af7651916cd43dd8448eb211c80319c"
SECRET = "sub-BOND007"


@pytest.fixture(scope="module")
def spans(bundles, tmp_path_factory):
    """What was exported after a few requests, and their statuses."""
    from tests.conftest import blob, blob_affine, write_image

    scan = write_image(tmp_path_factory.mktemp("scan") / "scan.nii.gz", blob(90), blob_affine()).read_bytes()
    repository = Repository([bundles])
    repository.scan()
    app = App(repository, Settings())
    exporter = InMemorySpanExporter()
    answering, stop = traced(app, lambda: repository.names, exporter=exporter)

    async def ask():
        transport = httpx.ASGITransport(answering)
        async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=60) as client:
            kind = {"content-type": "application/octet-stream", "user-agent": SECRET, "x-name": SECRET}
            parent = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
            return [
                (
                    await client.post(
                        f"/v1/models/aged:encode?age=77.25&sex=F&{SECRET}", content=scan, headers=kind | parent
                    )
                ),
                (await client.post("/v1/models/aged:encode?age=77.25&sex=F", content=scan, headers=kind | parent)),
                (await client.get(f"/v1/models/{SECRET}")),
                (await client.get(f"/files/{SECRET}")),
                (await client.post("/v1/models/blobs:JaneDoe_1960")),
                (await client.get("/v2/models/blobs/JaneDoe")),
                (await client.get("/v2/health/ready")),
                (await client.get("/metrics")),
            ]

    answers = asyncio.run(ask())
    stop()
    app.work.close()
    return exporter.get_finished_spans(), [answer.status_code for answer in answers]


def test_a_span_for_each_request_but_probes(spans):
    found, statuses = spans
    assert statuses == [400, 200, 404, 404, 404, 404, 200, 200]
    assert [span.name for span in found] == [
        "POST /v1/models/aged:encode", "POST /v1/models/aged:encode", "GET /v1/models/{model}",
        "GET /{other}", "POST /{other}", "GET /{other}",
    ]  # fmt: skip
    assert [span.attributes["http.status_code"] for span in found] == statuses[:6]


def test_spans_join_the_callers_trace(spans):
    assert [f"{span.context.trace_id:032x}" == TRACE for span in spans[0]] == [True, True, False, False, False, False]


def test_spans_say_nothing_that_a_request_brought(spans):
    text = " ".join(span.to_json() for span in spans[0])
    assert "aged" in text
    for said in ("Jane", SECRET, SECRET.lower(), "age=", "sex=", "77.25"):
        assert said not in text
