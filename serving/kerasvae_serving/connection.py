"""A connection over HTTP: uvicorn's, with time limits of its own and bodies that are not copied again and again."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Connection"]

TOGETHER = 2**20
"""Bytes that are read, or handed on of a body, at once."""


class Connection(asyncio.BufferedProtocol):
    """Reads into one buffer that all connections share, as each hands on what it read before another reads.

    Without it every 64 kB of a body are an object of their own, and copied once more.
    """

    _buffer = memoryview(bytearray(TOGETHER))

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._to = _Patient(*arguments, **named)
        for name in ("connection_made", "connection_lost", "eof_received", "pause_writing", "resume_writing"):
            setattr(self, name, getattr(self._to, name))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to read to."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on what was read."""
        self._to.data_received(self._buffer[:nbytes])  # type: ignore[arg-type]


class _Patient(HttpToolsProtocol):
    """HTTP whose headers must come in time: a connection that sends them drop by drop is closed."""

    def __init__(self, *arguments: Any, patience: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None
        self._pieces: list[bytes] = []
        self._size, self._woken = 0, 0.0
        self._unread: tuple[asyncio.TimerHandle, int] | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._timer is None and self.cycle is not None and self.cycle.response_complete:
            self._wait()  # uvicorn has just stopped its own clock

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait()

    def on_body(self, body: bytes) -> None:
        """Wake the application for a good piece of a body, or once a second, and not for each packet."""
        self._pieces.append(body)
        self._size += len(body)
        if self._size >= TOGETHER or self.loop.time() >= self._woken + 1:
            self._hand_on()

    def on_message_complete(self) -> None:
        self._hand_on()
        super().on_message_complete()

    def _hand_on(self) -> None:
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces, self._size, self._woken = [], 0, self.loop.time()
        if not self.cycle.response_complete and body:
            # bytes in the place of uvicorn's bytearray, as long as it holds nothing: they are handed on uncopied
            self.cycle.body = self.cycle.body + body if self.cycle.body else body  # type: ignore[assignment]
            if len(self.cycle.body) > TOGETHER:
                self.flow.pause_reading()
            self.cycle.message_event.set()

    def on_headers_complete(self) -> None:
        self._stop()
        self._pieces, self._size, self._woken = [], 0, self.loop.time()
        super().on_headers_complete()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop()
        self.resume_writing()
        super().connection_lost(error)

    def pause_writing(self) -> None:
        """Part of an answer waits to be read."""
        super().pause_writing()
        self._look_again()

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread[0].cancel()
            self._unread = None
        super().resume_writing()

    def _look_again(self) -> None:
        """A client that reads nothing of its answer is not waited for, one that is slow is."""
        left = self.transport.get_write_buffer_size() + _unsent(self.transport)
        if self._unread is not None and left >= self._unread[1]:
            self.transport.abort()
        else:
            self._unread = self.loop.call_later(self._patience, self._look_again), left

    def _wait(self) -> None:
        self._stop()
        self._timer = self.loop.call_later(self._patience, self._close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def _unsent(transport: Any) -> int:
    """Bytes that the system holds and the client has not taken; 0 where it does not say."""
    try:
        found = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, AttributeError):
        return 0
    return int(struct.unpack("i", found)[0])
