"""The short way of a request: from the socket to the work and back, past HTTP parser, ASGI and Starlette.

A small image is encoded in the time that those take. What goes this way is plain: `POST /v2/models/…/infer`, or
`POST /v1/models/…:encode` or `:score` with the file itself as its body and without covariates, whose head came in one
piece, with a Content-Length and without anything that changes how a message is read, for a model that is in service
and from a caller who may ask. All else, and with it nearly every refusal, goes the long way.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from functools import lru_cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.responses import Response

from kerasvae.errors import KerasVAEError
from kerasvae_serving import open_inference as oip
from kerasvae_serving.answers import Made
from kerasvae_serving.app import App
from kerasvae_serving.scans import is_file, media_type
from kerasvae_serving.settings import key_of

if TYPE_CHECKING:
    from kerasvae_serving.work import Piece

__all__ = ["Asked", "Express", "plain"]

Answer = Callable[[list[bytes], bool], None]
LONGEST = 2**13
"""Bytes of a head."""
_MODEL = rb"([A-Za-z0-9._-]+)(?:/versions/([0-9]+))?"
_HEADS = (
    re.compile(rb"POST /v2/models/%s/(infer) HTTP/1\.1\r\n" % _MODEL),
    re.compile(rb"POST /v1/models/%s:(encode|score) HTTP/1\.1\r\n" % _MODEL),
)
_FIELD = re.compile(rb"([A-Za-z0-9-]+):[ \t]*([!-~](?:[ -~]*[!-~])?)[ \t]*\r\n")
_OTHERWISE = {b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", b"te", b"trailer", b"proxy-connection"}
"""Fields that change how a message is read."""


class Asked(NamedTuple):
    """The head of a plain request.

    Args:
        verb: infer, encode or score.
        name: Of the graph, or of the model.
        version: As it was given.
        key: API key.
        json_length: The field Inference-Header-Content-Length.
        length: Bytes of the body.
        start: Where that begins.
    """

    verb: str
    name: str
    version: str | None
    key: str | None
    json_length: str | None
    length: int
    start: int


def plain(data: bytes) -> Asked | None:
    r"""The head of a request, if it is plain; None: it goes the long way.

    >>> plain(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
    Asked(verb='infer', name='m', version=None, key=None, json_length=None, length=2, start=64)
    """
    end = data.find(b"\r\n\r\n")
    return None if end < 0 else _known(data[: end + 4])


@lru_cache(maxsize=64)  # a client sends the same head again and again
def _known(data: bytes) -> Asked | None:
    found = _HEADS[0].match(data) or _HEADS[1].match(data)
    if found is None:
        return None
    place = found.end()
    fields: dict[bytes, bytes] = {}
    while not data.startswith(b"\r\n", place):
        field = _FIELD.match(data, place)
        if field is None:
            return None
        name = field[1].lower()
        if name in fields or name in _OTHERWISE:
            return None
        fields[name] = field[2]
        place = field.end()
    length = fields.get(b"content-length", b"")
    if not length.isdigit() or len(length) > 12 or fields.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    verb = found[3].decode()
    if verb != "infer" and not is_file(media_type(fields.get(b"content-type", b"").decode())):
        return None
    other, json_length = fields.get(b"x-api-key"), fields.get(oip.JSON_LENGTH.encode())
    return Asked(
        verb,
        found[1].decode(),
        found[2].decode() if found[2] else None,
        key_of(fields.get(b"authorization", b"").decode(), None if other is None else other.decode()),
        None if json_length is None else json_length.decode(),
        int(length),
        place + 2,
    )


class Express:
    """Answers plain requests.

    Args:
        app: What answers.
    """

    def __init__(self, app: App) -> None:
        self._app, self.bodies = app, app.bodies

    def welcome(self, asked: Asked) -> bool:
        """Whether its body may come."""
        bodies = self.bodies
        if asked.length > bodies.most or bodies.held >= bodies.at_once:
            return False
        try:
            self._app.admit(asked.key)
            self._work(asked, memoryview(b""))
        except KerasVAEError:
            return False
        return True

    def take(self, asked: Asked, body: memoryview, answer: Answer) -> Piece | None:
        """Work on a request, and call `answer` in the loop with what is to be sent and whether to close then."""
        done = partial(self._done, asked, answer, time.perf_counter())
        try:
            return self._app.work.start(self._work(asked, body), done)
        except Exception as error:
            done(None, error)
            return None

    def _work(self, asked: Asked, body: memoryview) -> Callable[[], Made]:
        """What is to be done.

        Raises:
            UnknownModelError: If the model is not in service.
        """
        app = self._app
        if asked.verb == "infer":
            found, signature = app.repository.resolve(asked.name, asked.version)
            return partial(app.infer, found, signature, asked.name, body, asked.json_length)
        found = app.repository.get(asked.name, asked.version)
        return lambda: app.scans.answer(found, asked.verb, bytes(body))

    def refuse(self, asked: Asked, error: Exception, answer: Answer) -> None:
        """Answer that it cannot be worked on."""
        self._done(asked, answer, time.perf_counter(), None, error)

    def _done(self, asked: Asked, answer: Answer, begun: float, made: Any, error: BaseException | None) -> None:
        app = self._app
        if error is None:
            content, told, status, close = made.content, made.told, 200, False
            more = "".join(f"{name}: {value}\r\n" for name, value in made.headers.items())
            head = f"HTTP/1.1 200 OK\r\ncontent-type: {made.kind}\r\ncontent-length: {len(content)}\r\n{more}".encode()
        else:
            told = None
            response = app.failure(asked.verb, error)
            head, content, status = _head(response), bytes(response.body), response.status_code
            close = response.headers.get("connection") == "close"
        if app.draining and not close:
            head, close = head + b"connection: close\r\n", True
        answer([head + b"\r\n", content], close)
        seconds = time.perf_counter() - begun
        asyncio.get_running_loop().call_soon(self._count, asked, status, seconds, told)  # the answer goes out first

    def _count(self, asked: Asked, status: int, seconds: float, told: Callable[[], None] | None) -> None:
        self._app.count(asked.verb, asked.name, status, seconds)
        if told is not None:
            told()


def _head(response: Response) -> bytes:
    phrase = HTTPStatus(response.status_code).phrase
    lines = [f"HTTP/1.1 {response.status_code} {phrase}\r\n".encode()]
    lines += [b"%s: %s\r\n" % pair for pair in response.raw_headers]
    return b"".join(lines)
