"""What a long encoding has done, kept as it goes: whatever ends the process, the next one goes on from there.

A journal is appended to and never changed. Each line is a JSON array of a checksum and an object: first what run it is
of, then the names of the columns, and a line for each image. Reading stops at the first line that is not whole, which
is where a process was killed or a disk was full; what follows is done again.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from kerasvae.errors import ArgumentError, CohortError, StorageError

__all__ = ["FORMAT", "UNLIKE", "Journal", "Record", "Written", "difference", "read_ended", "remove_journal"]

FORMAT = 1
"""Of the lines; another is not read."""
SYNC_S = 1.0
"""Seconds between two flushes to the disk: what a power failure costs. What ends the process alone costs nothing."""
UNLIKE = {
    "format": "another version of kerasvae",
    "server": "another bundle or server",
    "model": "another model",
    "precision": "another precision",
    "software": "other versions of kerasvae, ONNX Runtime, NumPy or SciPy",
    "digest": "other weights or preprocessing",
    "images": "another list of images",
    "shard": "another part",
    "covariates": "another table of covariates",
}
"""How a difference in each thing that identifies a run is called."""


@dataclass(frozen=True)
class Record:
    """What came of an image.

    Args:
        index: Its place in the list of all images.
        file: As it was given.
        state: Size, time of change and covariates that it was encoded with.
        cells: Its latents, with tabs between them; None where it was left out.
        reason: Why it was left out.
    """

    index: int
    file: str
    state: list[Any]
    cells: str | None = None
    reason: str | None = None


@dataclass
class Written:
    """What a journal holds.

    Args:
        run: What run it is of, see `UNLIKE`; None where not even that is whole.
        columns: Names of the latents.
        records: Of each image the last.
        size: Bytes that are whole.
    """

    run: dict[str, Any] | None = None
    columns: list[str] = field(default_factory=list)
    records: dict[int, Record] = field(default_factory=dict)
    size: int = 0


class Journal:
    """A journal that is open to go on; one process may have it, and its lock ends with the process.

    File systems without locks (some mounts of Lustre) do not keep a second process away, NFS does by its lock daemon.

    Args:
        path: The file; it and its folder are made where they are missing, and removed if nothing was done.
        run: What this run is.
        restart: Begin anew whatever is there.

    Raises:
        ArgumentError: If it is of another run. A changed table of covariates alone is none: it changes the state of
            the images that it is about.
        StorageError: If another process has it, or it cannot be written.
    """

    def __init__(self, path: Path, run: dict[str, Any], *, restart: bool = False) -> None:
        self.path, self._run, self._synced = path, run, time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _take(path)
        except OSError as error:
            raise self._unwritten(error) from error
        try:
            with open(self._file, "rb", closefd=False) as stream:
                found = Written() if restart else read_journal(stream)
            if found.run is not None and (unlike := difference(found.run, run)) not in (None, "covariates"):
                raise ArgumentError(
                    path,
                    rule="be of this run to go on with",
                    got=f"one begun with {UNLIKE[unlike or '']}",
                    fix="Give what it was begun with, choose another --out, or begin anew with --restart",
                )
            self.records, self.columns = found.records, found.columns
            os.ftruncate(self._file, found.size)
            if found.run != run:
                self._append({"run": run})
        except OSError as error:
            os.close(self._file)
            raise self._unwritten(error) from error
        except BaseException:
            os.close(self._file)
            raise

    @property
    def written(self) -> Written:
        """What it holds by now."""
        return Written(self._run, self.columns, self.records)

    def add(self, index: int, file: str, state: list[Any], outcome: dict[str, str] | str) -> None:
        """Keep the latents of an image by name, or the reason why it is left out.

        Raises:
            StorageError: If the disk is full, say; what was kept before stays.
        """
        if isinstance(outcome, str):
            record = Record(index, file, state, reason=outcome)
        else:
            if not self.columns:
                self._append({"columns": list(outcome)})
                self.columns = list(outcome)
            record = Record(index, file, state, cells="\t".join(outcome.values()))
        self._append({name: value for name, value in vars(record).items() if value is not None})
        self.records[index] = record

    def remove(self) -> None:
        """Remove the file, and its folder if that is empty: all that it held is in the table."""
        remove_journal(self.path)

    def _append(self, content: dict[str, Any]) -> None:
        rest = _line(json.dumps(content, ensure_ascii=True).encode())
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
            if time.monotonic() - self._synced >= SYNC_S:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: OSError) -> StorageError:
        if isinstance(error, BlockingIOError):
            got, fix = "one that another process is writing", "Wait for it, or end it"
        else:
            got = error.strerror or type(error).__name__
            fix = "Mend that, and give the same command again: what was done is kept"
        return StorageError(self.path, rule="be a file that this process alone can write", got=got, fix=fix)

    def __enter__(self) -> Self:
        """Itself; closed at the end of the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Flush and close."""
        try:
            if kind is not None and not self.records:
                self.remove()
            os.fsync(self._file)
        except OSError as error:
            if kind is None:
                raise self._unwritten(error) from error
        finally:
            os.close(self._file)


def read_journal(stream: BinaryIO) -> Written:
    """All that is whole in a journal."""
    found = Written()
    for line in stream:
        content = _content(line)
        if content is None:
            break
        if "run" in content:
            found.run = content["run"]
            if content["run"].get("format") != FORMAT:
                break
        elif "columns" in content:
            found.columns = content["columns"]
        else:
            record = Record(**content)
            found.records[record.index] = record
        found.size += len(line)
    return found


def read_ended(path: Path) -> Written:
    """`read_journal`, of a journal that nobody is writing.

    Raises:
        CohortError: If somebody is, or it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            _lock(stream.fileno(), fcntl.LOCK_SH)
            return read_journal(stream)
    except OSError as error:
        busy = isinstance(error, BlockingIOError)
        got = "one that a process is writing" if busy else error.strerror or type(error).__name__
        raise CohortError(
            path, rule="be a finished part", got=got, fix="Wait for it" if busy else "Mend that"
        ) from error


def remove_journal(path: Path) -> None:
    """Remove a journal, and its folder if that is empty then."""
    path.unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()


def difference(run: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The first thing in which two runs differ, one of `UNLIKE`; covariates last."""
    return next((name for name in UNLIKE if run.get(name) != other.get(name)), None)


def _take(path: Path) -> int:
    """Open a journal and lock it; not one that its last owner removed in between."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            _lock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file), os.stat(path)):  # noqa: PTH116
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, kind: int) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        pass


def _line(text: bytes) -> bytes:
    return b'["%08x",%b]\n' % (zlib.crc32(text), text)


def _content(line: bytes) -> dict[str, Any] | None:
    """What a line holds; None if it is not whole."""
    text = line[12:-2]
    content: dict[str, Any] | None = json.loads(text) if line == _line(text) else None
    return content
