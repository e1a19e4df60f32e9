"""The log: a JSON object a line, from a thread of its own, so that no request waits for who reads it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Full, Queue
from typing import TextIO

import orjson

__all__ = ["logging_to"]

log = logging.getLogger("kerasvae.serving")
LOG_KEYS = ("endpoint", "model", "status", "ms", "error", "news", "http", "grpc")
"""What a line of the log may hold beside its message: nothing that a request brought."""
MOST = 1000
"""Lines that wait for a reader; more are lost, and counted."""
LAST_S = 2.0
"""Time that the last lines have."""


@contextmanager
def logging_to(stream: TextIO, *, verbose: bool = False) -> Iterator[None]:
    """Write the server's log to a stream. A stream that nobody reads, or on a full disk, costs lines and no answers.

    Args:
        stream: E.g. the standard error.
        verbose: Every answer, not only refusals.
    """
    handler = _Handler(stream)
    logging.getLogger().addHandler(handler)  # what libraries say goes the same way
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


class _Handler(logging.Handler):
    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream, self._lost = stream, 0
        self._lines: Queue[str | None] = Queue(MOST)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()
        self.setFormatter(_Lines())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except Full:
            self._lost += 1

    def close(self) -> None:
        try:
            self._lines.put(None, timeout=LAST_S)
            self._thread.join(LAST_S)
        except Full:  # nobody reads
            pass
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            lost, self._lost = self._lost, 0
            if lost:
                line = f'{{"level":"warning","message":"lines of the log were lost","count":{lost}}}\n{line}'
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # a full disk, a closed stream
                self._lost += 1 + lost


class _Lines(logging.Formatter):
    """A JSON object a line; of what libraries say who said it and which error, as their words may be a client's."""

    def format(self, record: logging.LogRecord) -> str:
        known = {key: getattr(record, key) for key in LOG_KEYS if hasattr(record, key)}
        message = record.getMessage() if record.name == log.name else f"a word of {record.name}"
        if record.exc_info and record.exc_info[0] is not None:
            known["error"] = record.exc_info[0].__name__
        head = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower()}
        return orjson.dumps(head | {"message": message} | known).decode()
