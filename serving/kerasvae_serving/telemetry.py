"""Traces of requests over HTTP, by OpenTelemetry's instrumentation of ASGI; nothing in them tells of a patient."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["traced"]

CARRIED = (b"traceparent", b"tracestate", b"host")
"""Headers that the instrumentation may see: whose trace it is, and no more."""
QUIET = ("/v2/health/live", "/v2/health/ready", "/metrics")
KNOWN = (*QUIET, "/v2", "/v2/repository/index", "/v1/models", "/docs", "/openapi.json")
_MODEL = re.compile(
    r"(/v[12]/models/)([^/:]+)((?:/versions/\d{1,9})?"
    r"(?:/(?:infer|ready|metadata)|:(?:encode|score|reconstruct|deviation|predict|rollback|activate))?)"
)


def traced(
    app: ASGIApp, models: Callable[[], Iterable[str]], *, exporter: Any = None
) -> tuple[ASGIApp, Callable[[], None]]:
    """An application whose requests have spans, and what is to be called at the end.

    The span of a request knows its method, its path with the name of a model in service, and its status. Query and
    headers, which may hold covariates and names, are kept from the instrumentation, as is any other path's text.

    Args:
        app: The application.
        models: Names of the models in service.
        exporter: Of spans; None: OTLP over HTTP, to where the standard variables OTEL_EXPORTER_OTLP_… say.

    Raises:
        ModuleNotFoundError: Without the extra `telemetry`.
    """
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.metrics import NoOpMeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.util.http import ExcludeList

    if exporter is None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "kerasvae"}).merge(Resource.create()))
    provider.add_span_processor(BatchSpanProcessor(exporter))

    async def whole(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope.get("kerasvae", scope), receive, send)

    middleware = OpenTelemetryMiddleware(
        whole,
        excluded_urls=ExcludeList(QUIET),
        default_span_details=lambda scope: (f"{scope['method']} {scope['path']}", {}),
        tracer_provider=provider,
        meter_provider=NoOpMeterProvider(),  # Prometheus has the figures
        exclude_spans=["receive", "send"],
    )

    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = _known(scope["path"], models())
            headers = [(name, value) for name, value in scope["headers"] if name in CARRIED]
            scope = {
                **scope, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers,
                "client": None, "kerasvae": scope,
            }  # fmt: skip
        await middleware(scope, receive, send)

    return bare, provider.shutdown


def _known(path: str, models: Iterable[str]) -> str:
    """A path without what is not ours in it."""
    found = _MODEL.fullmatch(path)
    if found is not None:
        head, name, tail = found.groups()
        known = name if name.removesuffix("-decoder") in models else "{model}"
        return f"{head}{known}{tail}"
    return path if path in KNOWN else "/{other}"
