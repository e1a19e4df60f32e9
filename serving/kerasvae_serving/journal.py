"""What a long encoding has done, kept as it goes: whatever ends the process, the next one goes on from there.

A journal is appended to and never changed; see `kerasvae_serving.records` for its lines.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from kerasvae.errors import ArgumentError, CohortError, StorageError
from kerasvae_serving.records import UNLIKE, Record, Written, difference, line_of, read_lines

__all__ = ["Journal", "read_ended", "remove_journal"]

SYNC_S = 1.0
"""Seconds between two flushes to the disk: what a power failure costs. What ends the process alone costs nothing."""


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
                found = Written() if restart else read_lines(stream)
            if found.run is not None and (unlike := difference(found.run, run)) not in (None, "covariates"):
                raise ArgumentError(
                    path,
                    rule="be of this run to go on with",
                    got=f"one begun with {UNLIKE[unlike or '']}",
                    fix="Give what it was begun with, choose another --out, or begin anew with --restart",
                )
            self.records, self.columns, self._begun = found.records, found.columns, found.run
            os.ftruncate(self._file, found.size)
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

    def begin(self, stale: Iterable[int]) -> None:
        """Forget what is not so any more, then say that all that is left is of this run.

        Args:
            stale: Images that changed, or whose covariates did.

        Raises:
            StorageError: As `add`.
        """
        gone = sorted(stale)
        if gone:
            self._append({"forget": gone})
            for index in gone:
                del self.records[index]
        if self._begun != self._run:
            self._append({"run": self._run})

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
        rest = line_of(content)
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


def read_ended(path: Path) -> Written:
    """All that is whole in a journal that nobody is writing.

    Raises:
        CohortError: If somebody is, or it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            _lock(stream.fileno(), fcntl.LOCK_SH)
            return read_lines(stream)
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
