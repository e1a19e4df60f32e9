"""Writing so that nothing is lost: a temporary name in the same folder, then one rename. No TensorFlow.

A reader sees the old file or the new one, never half of it; when the disk is full the old one stands.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kerasvae.errors import StorageError

__all__ = ["atomic_path", "is_vacant", "recover"]


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, seal: str = "") -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    The block writes a file or makes a folder at the temporary path, whose name ends as `path` does (so that
    writers which look at the suffix work). The result is flushed to the disk and renamed; a folder that stands at
    `path` is put aside first and removed last (`recover` brings it back if the machine stops in between). An empty
    folder at `path`, which may be a mount point or the working folder, is filled instead, `seal` last. After any error
    the temporary is removed and `path` is as before.

    Args:
        path: Where the result shall be. Missing parent folders are made.
        seal: Name of the file by which a reader knows that a folder is whole.

    Yields:
        The path to write to.

    Raises:
        StorageError: If the operating system refuses (disk full, no permission, read-only, nothing was written).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(Path(folder) / "note.txt") as temporary:
    ...         _ = temporary.write_text("all or nothing")
    ...     (Path(folder) / "note.txt").read_text()
    'all or nothing'
    """
    final = Path(os.path.abspath(path))  # noqa: PTH100  a link at `path` is replaced, not followed
    empty = final.is_dir() and not final.is_symlink() and not any(final.iterdir())
    temporary = (final if empty else final.parent) / f".{uuid.uuid4().hex[:12]}-{final.name}"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        if empty and temporary.is_dir():
            _fill(final, temporary, seal)
        else:
            _replace(temporary, final)
    except OSError as error:
        _remove(temporary)
        raise StorageError(
            final,
            rule="be a place that can be written to",
            got=error.strerror or str(error) or type(error).__name__,
            fix="Free some space or choose another folder; what stood there before is untouched",
        ) from error
    except BaseException:
        _remove(temporary)
        raise


def is_vacant(path: Path) -> bool:
    """Whether nothing is at a path, or an empty folder: what may be filled without losing anything."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _flush(path: Path) -> None:
    """Ask the operating system to put a file, or every file of a folder, on the disk."""
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    for file in files:
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())


def _replace(temporary: Path, final: Path) -> None:
    """Rename; a folder cannot replace a folder in one step, so the old one is put aside and restored on failure."""
    if temporary.is_dir() and final.is_dir() and not final.is_symlink():
        aside = final.with_name(f".{uuid.uuid4().hex[:12]}-old-{final.name}")
        final.replace(aside)
        try:
            temporary.replace(final)
        except BaseException:
            if not final.exists():
                aside.replace(final)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    else:
        temporary.replace(final)
    if os.name == "posix":  # the rename itself lives in the folder's entry
        descriptor = os.open(final.parent, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems refuse to flush folders; the rename has happened
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _fill(final: Path, temporary: Path, seal: str) -> None:
    """Move what is in a folder up into its parent, the file that seals it last."""
    for entry in sorted(temporary.iterdir(), key=lambda entry: (entry.name == seal, entry.name)):
        entry.replace(final / entry.name)
    temporary.rmdir()


def recover(path: str | os.PathLike[str]) -> None:
    """Bring back a folder that was put aside by an `atomic_path` which was stopped between its two renames.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (Path(folder) / ".0123456789ab-old-checkpoint").mkdir()
    ...     recover(Path(folder) / "checkpoint")
    ...     [entry.name for entry in Path(folder).iterdir()]
    ['checkpoint']
    """
    final = Path(path)
    aside = sorted(final.parent.glob(f".*-old-{final.name}")) if final.parent.is_dir() else []
    if aside and not final.exists():
        aside[-1].replace(final)


def _remove(path: Path) -> None:
    """Remove what a failed block left; a second failure must not hide the first."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
