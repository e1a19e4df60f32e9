"""Answers over HTTP: JSON, and what an error becomes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from kerasvae.errors import KerasVAEError, ServingError

__all__ = ["as_json", "refuse"]

log = logging.getLogger("kerasvae.serving")


def refuse(error: KerasVAEError) -> Response:
    """The answer that an error becomes."""
    headers = {}
    status = error.http_status
    if status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not read
    if status in (429, 503):
        headers["retry-after"] = "1"
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status >= 500 and not isinstance(error, ServingError):
        log.error("failed", extra={"error": type(error).__name__})
    return as_json({"error": str(error)}, status, headers)


def as_json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON; arrays become lists."""
    data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(data, status, dict(headers or {}), "application/json")
