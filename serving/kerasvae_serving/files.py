"""Images among files and folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from kerasvae.errors import ArgumentError, VolumeError

__all__ = ["find_images"]

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")


def find_images(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Images among the inputs, and below those that are folders, each once, sorted.

    The order of the inputs is of no account: a shell's pattern may come out in another on another machine.

    Raises:
        ArgumentError: If an input does not exist, or there is no image.
        VolumeError: If a folder cannot be read.
    """
    found: set[Path] = set()
    given = [Path(entry) for entry in inputs]
    for path in given:
        if path.is_dir():
            found.update(_below(path))
        elif _exists(path):
            found.add(path)
        else:
            raise ArgumentError("INPUT", rule="exist", got=f"{path}, which does not", fix="Check the path")
    if not found:
        raise ArgumentError(
            "INPUT",
            rule=f"hold images ({', '.join(SUFFIXES)})",
            got=f"none in {', '.join(map(str, given)) or 'nothing'}",
            fix="Give image files, or a folder of them",
        )
    return sorted(found)


def _below(folder: Path) -> Iterator[Path]:
    """Images in a folder and its subfolders; a folder that cannot be read is an error, not an empty one."""

    def refuse(error: OSError) -> None:
        raise _locked(error) from error

    for root, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(root) / name for name in names if name.endswith(SUFFIXES))


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _locked(error) from error
    return True


def _locked(error: OSError) -> VolumeError:
    return VolumeError(
        error.filename, rule="be readable", got=str(error.strerror).lower(), fix="Change its permissions"
    )
