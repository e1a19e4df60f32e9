"""Bodies of requests: no more bytes than are taken, no longer than is waited, whichever way they come."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from kerasvae.errors import ArgumentError, MediaTypeError, OverloadedError, SlowRequestError, TooLargeError

__all__ = ["Bodies", "form"]

FIELDS = 64
"""Fields of a form beside its file."""


@dataclass
class Bodies:
    """Reads bodies.

    Args:
        most: Bytes of one body, unpacked.
        at_once: Bytes of all bodies that are being read.
        patience: Longest silence within a body, seconds; four times as long for a whole one.
    """

    most: int
    at_once: int
    patience: float
    held: int = 0

    async def read(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        """All of a body, unpacked where Content-Encoding says that it is packed.

        Raises:
            TooLargeError: If it is larger than what is taken.
            OverloadedError: If there are as many bytes in the house as it holds.
            SlowRequestError: If it does not come in time.
            MediaTypeError: If its Content-Encoding is unknown.
            ArgumentError: If it ends early, or cannot be unpacked.
        """
        declared = headers.get("content-length")
        if declared is not None and declared.isdecimal() and int(declared) > self.most:
            raise self._too_large(declared)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "", "gzip", "deflate"):
            raise MediaTypeError("Content-Encoding", rule="be gzip or deflate", got=repr(encoding), fix="Leave it out")
        body = await self._collect(receive)
        return body if encoding in ("identity", "") else self._unpack(body, encoding)

    async def _collect(self, receive: Receive) -> bytes:
        chunks: list[bytes] = []
        size = 0
        now = asyncio.get_running_loop().time
        end = now() + 4 * self.patience
        try:
            async with asyncio.timeout(self.patience) as alarm:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    if chunk := message.get("body", b""):
                        chunks.append(chunk)
                        size += len(chunk)
                        self.held += len(chunk)
                        self._check(size)
                    if not message.get("more_body", False):
                        break
                    alarm.reschedule(min(now() + self.patience, end))
        except TimeoutError:
            raise self.slow(size) from None
        finally:
            self.held -= size
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def slow(self, size: int) -> SlowRequestError:
        """What is said of a body that does not come in time."""
        rule = f"come without a pause of {self.patience:g} s, and within {4 * self.patience:g} s"
        return SlowRequestError("The body", rule=rule, got=f"{size} bytes so far", fix="Send it again")

    def _check(self, size: int) -> None:
        if size > self.most:
            raise self._too_large(f"{size} or more")
        if self.held > self.at_once:
            raise self.full()

    def full(self) -> OverloadedError:
        """What is said where all bodies together are too much."""
        rule = f"be reading at most {self.at_once} bytes of bodies"
        return OverloadedError("The server", rule=rule, got="more", fix="Try again in a second")

    def _unpack(self, body: bytes, encoding: str) -> bytes:
        reader = zlib.decompressobj(wbits=31 if encoding == "gzip" else 15)
        try:
            made = reader.decompress(body, self.most + 1)
        except zlib.error as error:
            raise ArgumentError("The body", rule=f"be {encoding}", got=str(error), fix="Send it again") from None
        if len(made) > self.most:
            raise self._too_large(f"more when unpacked, from {len(body)}")
        if not reader.eof:
            raise ArgumentError("The body", rule=f"be whole {encoding}", got="a part of it", fix="Send it again")
        return made

    def _too_large(self, got: object) -> TooLargeError:
        return TooLargeError(
            "The body", rule=f"have at most {self.most} bytes", got=got, fix="Send less, or raise --max-body"
        )


async def form(request: Request, body: bytes) -> tuple[bytes, Mapping[str, str]]:
    """The one file of a multipart body, and its other fields.

    Raises:
        ArgumentError: If it is broken, or has not exactly one file.
    """

    async def replay() -> AsyncGenerator[bytes]:
        yield body

    from starlette.formparsers import MultiPartParser

    parser = MultiPartParser(request.headers, replay(), max_files=1, max_fields=FIELDS, max_part_size=2**16)
    parser.spool_max_size = len(body) + 1  # a scan is not written to a disk
    try:
        found = await parser.parse()
    except (MultiPartException, KeyError) as error:
        got = getattr(error, "message", "no boundary")
        raise ArgumentError(
            "The body", rule="be multipart/form-data with one file", got=got, fix="Correct it"
        ) from None
    files = [value for value in found.values() if not isinstance(value, str)]
    fields = {name: value for name, value in found.multi_items() if isinstance(value, str)}
    if len(files) != 1:
        raise ArgumentError("The body", rule="hold one file", got=f"{len(files)}", fix="Add it, e.g. -F image=@scan")
    try:
        return await files[0].read(), fields
    finally:
        await found.close()
