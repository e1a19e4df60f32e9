"""A connection over HTTP: uvicorn's, with time limits of its own and bodies that are not copied again and again."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from typing import Any

import numpy as np
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kerasvae_serving.express import LONGEST, Asked, Express, plain
from kerasvae_serving.work import Piece

__all__ = ["Connection"]

TOGETHER = 2**20
"""Bytes that are read, or handed on of a body, at once."""
ALIGNED = 64
"""Tensors begin at multiples of it."""
HEAD = 2**16
"""Bytes of a head, and of all that follows a body in chunks."""
FIELD = bytes(32)
"""What a field takes beside its words."""
PIPELINE = 32
"""Requests of a connection that may wait for answers."""


class Connection(asyncio.BufferedProtocol):
    """A connection; plain requests go the short way, all else is uvicorn's.

    What is read lies in one buffer that all connections share, as each hands on what it read before another reads. The
    body of a plain request is read to where it stays, its tensors where the processor likes them.

    Args:
        express: The short way; None: there is none.
        patience: Longest silence, seconds.
    """

    _buffer = memoryview(bytearray(TOGETHER))
    _first = _buffer[:LONGEST]  # little of a body comes with its head: the rest is read to where it stays

    def __init__(self, *arguments: Any, express: Express | None, patience: float, **named: Any) -> None:
        self._to = _Patient(self, *arguments, patience=patience, **named)
        self._express, self._patience = express, patience
        self._loop = asyncio.get_running_loop()
        self._asked: Asked | None = None
        self._body = memoryview(b"")
        self._place, self._end = 0, 0.0
        self._piece: Piece | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._early: list[bytes] = []
        self._paused = False
        self.closing = False

    @property
    def busy(self) -> bool:
        """Whether a request is on the short way."""
        return self._asked is not None

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport
        self._to.connection_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to read to."""
        if self._place < len(self._body):
            return self._body[self._place :]
        return self._first if self._to.between else self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """What was read."""
        if self._asked is None:
            self._read(self._buffer[:nbytes])
        elif self._place < len(self._body):
            self._hold(nbytes)
            if self._asked is None:
                return
            if self._place == len(self._body):
                self._whole(self._asked)
        else:  # the next request, though this one is not answered
            self._early.append(bytes(self._buffer[:nbytes]))

    def connection_lost(self, error: Exception | None) -> None:
        """End."""
        if self._asked is not None:
            self._release()
            if self._piece is not None:
                self._piece.give_up()
        self._to.connection_lost(error)

    def eof_received(self) -> None:
        """The client will say no more."""
        self._to.eof_received()

    def pause_writing(self) -> None:
        """Part of an answer waits to be read."""
        self._to.pause_writing()

    def resume_writing(self) -> None:
        """It was read."""
        self._to.resume_writing()
        if not self.busy:
            self._go_on()

    def _read(self, data: memoryview) -> None:
        if self._express is not None and self._to.between:
            asked = plain(bytes(data[:LONGEST]))
            rest = 0 if asked is None else len(data) - asked.start
            if asked is not None and rest <= asked.length and self._express.welcome(asked):
                self._begin(asked, data[asked.start :])
                return
        self._to.data_received(data)  # type: ignore[arg-type]

    def _begin(self, asked: Asked, data: memoryview) -> None:
        assert self._express is not None
        self._to.stop_waiting()
        room = np.empty(asked.length + ALIGNED, np.uint8)
        digits = asked.json_length or ""
        tensors = int(digits) if digits.isdecimal() and len(digits) < 10 else 0  # where they begin
        shift = -(room.__array_interface__["data"][0] + tensors) % ALIGNED
        self._asked, self._body = asked, room.data[shift : shift + asked.length]
        self._body[: len(data)] = data
        self._place = len(data)
        self._express.bodies.held += self._place
        if self._place == asked.length:
            self._whole(asked)
        else:
            self._end = self._loop.time() + 4 * self._patience
            self._alarm = self._loop.call_later(self._patience, self._late, self._place)

    def _hold(self, nbytes: int) -> None:
        """Count what came; where all bodies together are too much, this one is refused."""
        assert self._express is not None
        assert self._asked is not None
        bodies = self._express.bodies
        self._place += nbytes
        bodies.held += nbytes
        if bodies.held > bodies.at_once:
            asked = self._asked
            self._release()
            self._express.refuse(asked, bodies.full(), self._answer)
            self._transport.close()  # the rest of the body is not read

    def _late(self, before: int) -> None:
        """Once in a while: has anything come?"""
        assert self._asked is not None
        assert self._express is not None
        left = self._end - self._loop.time()
        if self._place > before and left > 0:
            self._alarm = self._loop.call_later(min(self._patience, left), self._late, self._place)
        else:
            asked, size = self._asked, self._place
            self._release()
            self._express.refuse(asked, self._express.bodies.slow(size), self._answer)

    def _release(self) -> None:
        """The body is no longer being read."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._express is not None and len(self._body):
            self._express.bodies.held -= self._place
        self._body = memoryview(b"")

    def _whole(self, asked: Asked) -> None:
        assert self._express is not None
        body = self._body
        self._release()
        self._transport.pause_reading()
        self._paused = True
        self._piece = self._express.take(asked, body, self._answer)

    def _go_on(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def _answer(self, parts: list[bytes], close: bool) -> None:
        self._asked = self._piece = None
        if self._transport.is_closing():
            return
        if sum(map(len, parts)) < TOGETHER:
            parts = [b"".join(parts)]  # one packet, where it is small
        for part in parts:
            self._transport.write(part)
        if close or self.closing:
            self._transport.close()
            return
        self._to.wait()
        if not self._to.flow.write_paused:
            self._go_on()
        early, self._early = b"".join(self._early), []
        if early:
            self._read(memoryview(early))


class _Patient(HttpToolsProtocol):
    """HTTP whose headers must come in time: a connection that sends them drop by drop is closed."""

    def __init__(self, front: Connection, *arguments: Any, patience: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._front, self._patience = front, patience
        self._read_whole, self._in_head, self._head, self._before = True, False, 0, 0
        self._timer: asyncio.TimerHandle | None = None
        self._pieces: list[bytes] = []
        self._size, self._woken = 0, 0.0
        self._unread: tuple[asyncio.TimerHandle, int] | None = None

    @property
    def between(self) -> bool:
        """Whether what is read next begins a request."""
        return self._read_whole and (self.cycle is None or self.cycle.response_complete) and not self.pipeline

    def shutdown(self) -> None:
        """Close, after the answer that is due."""
        if self._front.busy:
            self._front.closing = True
        else:
            super().shutdown()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head += len(data)  # the parser tells a field when it is whole
            if self._head > HEAD:
                self.send_400_response("")
        if self._timer is None and self.cycle is not None and self.cycle.response_complete:
            self.wait()  # uvicorn has just stopped its own clock

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= PIPELINE:
            raise ValueError("too many requests that wait for their answers")
        super().on_message_begin()
        self._read_whole, self._in_head, self._head = False, True, 0
        self.wait()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name, value, FIELD)
        super().on_header(name, value)

    def _count(self, *parts: bytes) -> None:
        self._head += sum(map(len, parts))
        if self._head > HEAD:
            raise ValueError("a head that is too large")

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, or is one too many."""
        status, rule = "400 Bad Request", f"be a request of HTTP/1.1, of which at most {PIPELINE} wait for answers"
        if self._head > HEAD:
            status, rule = "431 Request Header Fields Too Large", f"have a head of at most {HEAD} bytes"
        sentence = f"The request must {rule}, but received another. Correct it."
        body = orjson.dumps({"error": sentence})
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def on_body(self, body: bytes) -> None:
        """Wake the application for a good piece of a body, or once a second, and not for each packet."""
        self._pieces.append(body)
        self._size += len(body)
        if self._size >= TOGETHER or self.loop.time() >= self._woken + 1:
            self._hand_on()

    def on_message_complete(self) -> None:
        self._read_whole = True
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
        self._in_head = False
        self._stop()
        self._pieces, self._size, self._woken = [], 0, self.loop.time()
        super().on_headers_complete()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop()
        self.resume_writing()
        for cycle, _ in self.pipeline:  # uvicorn tells the last one alone
            cycle.disconnected = True
            cycle.message_event.set()
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
        left = self._left()
        if self._unread is not None and left >= self._unread[1]:
            self.transport.abort()
        else:
            self._unread = self.loop.call_later(self._patience, self._look_again), left

    def wait(self) -> None:
        """Close if nothing comes."""
        self._stop()
        self._timer = self.loop.call_later(self._patience, self._close)

    def stop_waiting(self) -> None:
        """Something came."""
        self._stop()
        self._unset_keepalive_if_required()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came after an answer."""
        self._close()

    def _close(self) -> None:
        """Close, unless an answer is still being read."""
        if self.transport.is_closing():
            return
        left = self._left()
        if 0 < left != self._before:
            self._before = left
            self.wait()
        elif left:
            self.transport.abort()
        else:
            self.transport.close()

    def _left(self) -> int:
        """Bytes that the client has not read."""
        return self.transport.get_write_buffer_size() + _unsent(self.transport)


def _unsent(transport: Any) -> int:
    """Bytes that the system holds and the client has not taken; 0 where it does not say."""
    try:
        found = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, AttributeError):
        return 0
    return int(struct.unpack("i", found)[0])
