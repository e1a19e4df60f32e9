"""Answers over HTTP: what a piece of work made, JSON, and what an error becomes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson
from starlette.responses import Response

from kerasvae.errors import KerasVAEError, ServingError

__all__ = ["BINARY", "JSON", "Made", "as_json", "json_of", "refuse"]

log = logging.getLogger("kerasvae.serving")
JSON, BINARY = "application/json", "application/octet-stream"


class Made(NamedTuple):
    """What a piece of work made of a request.

    Args:
        content: The body of the answer.
        kind: Its media type.
        headers: Further ones.
        told: What is then counted, in the loop.
    """

    content: bytes
    kind: str = JSON
    headers: Mapping[str, str] = {}
    told: Callable[[], None] = lambda: None

    def response(self) -> Response:
        """For Starlette; what is to be counted is."""
        self.told()
        return Response(self.content, headers=dict(self.headers), media_type=self.kind)


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
    return Response(json_of(content), status, dict(headers or {}), JSON)


def json_of(content: Any) -> bytes:
    """JSON, in which arrays become lists."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
