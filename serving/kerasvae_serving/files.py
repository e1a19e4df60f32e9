"""From image files to a table of latents."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import AnswerError, ArgumentError, KerasVAEError, VolumeError
from kerasvae.storage import atomic_path
from kerasvae_serving.engine import Engine

if TYPE_CHECKING:
    from kerasvae_serving.client import Client

__all__ = ["encode_files", "find_images"]

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
AHEAD = 4
"""Images read ahead of the encoder."""


def encode_files(
    source: Engine | Client,
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    covariates: str | os.PathLike[str] | None = None,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Encode images and write a table with one row each.

    Columns: ``file`` (as given), ``participant_id`` and ``session_id`` (from a BIDS name, else ``n/a``), then each
    output of the encoder with its index, e.g. ``mean_0``, or ``scale_tril_0_1`` where it has two axes; codes are whole
    numbers. Separated by tabs, or by commas where `out` ends in .csv.

    Args:
        source: An engine with a pipeline, or a client of a server.
        inputs: Images, or folders that are searched for images.
        out: The table; written when all is done, and what stood there before is kept until then.
        covariates: For a model that takes them: a table with a row for each image, found by its column ``file``, or by
            ``participant_id`` and, where there is one, ``session_id``.
        skip_bad: Leave out images that cannot be used, or whose covariates cannot, instead of stopping at the first.
        progress: Called with images done and images in all.

    Returns:
        Path of each image left out, and why.

    Raises:
        ArgumentError: If there is no image, or a covariate is missing or outside its rule.
        VolumeError: At the first image that cannot be used, or if none can.
        ServingError: If a server does not answer, or refuses for another reason than the image.
    """
    files = find_images(inputs)
    table = _Table(covariates) if covariates is not None else None
    columns = ["file", "participant_id", "session_id"]
    left_out: dict[str, str] = {}
    rows = []
    for done, (path, result) in enumerate(_encoded(source, files, table), start=1):
        if isinstance(result, KerasVAEError):
            if not skip_bad:
                raise result
            left_out[str(path)] = str(result)
        else:
            rows.append({**_names(path), **_cells(result)})
        if progress:
            progress(done, len(files))
    if not rows:
        raise VolumeError(
            "INPUT", rule="hold one usable image", got=f"none of {len(files)}", fix="See the reasons above"
        )
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        delimiter = "," if Path(out).suffix == ".csv" else "\t"
        names = [*columns, *(name for name in rows[0] if name not in columns)]
        writer = csv.DictWriter(stream, names, delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return left_out


def find_images(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Images among the inputs, and below those that are folders, each once, in order.

    Raises:
        ArgumentError: If an input does not exist, or there is no image.
        VolumeError: If a folder cannot be read.
    """
    found: dict[Path, None] = {}
    given = [Path(entry) for entry in inputs]
    for path in given:
        if path.is_dir():
            found |= dict.fromkeys(sorted(_below(path)))
        elif _exists(path):
            found[path] = None
        else:
            raise ArgumentError("INPUT", rule="exist", got=f"{path}, which does not", fix="Check the path")
    if not found:
        raise ArgumentError(
            "INPUT",
            rule=f"hold images ({', '.join(SUFFIXES)})",
            got=f"none in {', '.join(map(str, given)) or 'nothing'}",
            fix="Give image files, or a folder of them",
        )
    return list(found)


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


class _Table:
    """Covariates of images, from a file with tabs, or commas where its name ends in .csv."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as stream:
                self.rows = list(csv.DictReader(stream, delimiter="," if self.path.suffix == ".csv" else "\t"))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ArgumentError("--covariates", rule="be a readable table", got=str(error), fix="Correct it") from error
        columns = self.rows[0] if self.rows else {}
        self.keys = ["file"] if "file" in columns else [k for k in ("participant_id", "session_id") if k in columns]
        if "file" not in columns and "participant_id" not in columns:
            raise ArgumentError(
                "--covariates",
                rule="have rows, and a column file or participant_id",
                got=f"{self.path} with the columns {', '.join(columns) or 'none'}",
                fix="Add one, so that rows and images can be matched",
            )

    def of(self, path: Path) -> dict[str, str]:
        """The row of an image.

        Raises:
            ArgumentError: If there is none, or more than one.
        """
        names = _names(path)
        wanted = [names[key] for key in self.keys]
        found = [row for row in self.rows if [(row[key] or "n/a").strip() for key in self.keys] == wanted]
        if len(found) != 1:
            raise ArgumentError(
                "--covariates",
                rule=f"have one row for {path.name} ({', '.join(wanted)})",
                got=f"{len(found)} in {self.path}",
                fix="Add what is missing, or remove what is twice",
            )
        return {name: cell or "" for name, cell in found[0].items() if name is not None}


def _encoded(
    source: Engine | Client, files: Sequence[Path], table: _Table | None
) -> Iterator[tuple[Path, dict[str, NDArray[Any]] | KerasVAEError]]:
    """The outputs or the error of each file, in order; a few files are worked on ahead, in other threads."""

    def attempt(path: Path) -> Any:
        try:
            given = None if table is None else table.of(path)
            if isinstance(source, Engine):
                return source.pipeline.apply(path), given
            known = {} if given is None else {name: given[name] for name in source.covariates if name in given}
            return source.encode(path, known or None).outputs
        except AnswerError as error:
            if error.http_status in (400, 422):  # of this image; anything else is the server's
                return error
            raise
        except (VolumeError, ArgumentError) as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        rest = iter(files)
        waiting = [(path, pool.submit(attempt, path)) for path in islice(rest, AHEAD)]
        while waiting:
            path, future = waiting.pop(0)
            for following in islice(rest, 1):
                waiting.append((following, pool.submit(attempt, following)))
            found = future.result()
            if isinstance(found, tuple) and isinstance(source, Engine):
                found = _run(source, *found)
            yield path, found


def _run(
    engine: Engine, volume: NDArray[np.float32], given: dict[str, str] | None
) -> dict[str, NDArray[Any]] | ArgumentError:
    try:
        return {name: value[0] for name, value in engine.encode(volume[None], given).items()}
    except ArgumentError as error:
        return error


def _names(path: Path) -> dict[str, str]:
    """File, person and session of an image."""
    found = {key: re.search(rf"(?:^|_)({key}-[A-Za-z0-9]+)(?=_|\.)", path.name) for key in ("sub", "ses")}
    person, session = (match.group(1) if match else "n/a" for match in found.values())
    return {"file": str(path), "participant_id": person, "session_id": session}


def _cells(outputs: dict[str, NDArray[Any]]) -> dict[str, str]:
    """One cell for each number: a column for each index along every axis; the bare name where there is no axis."""
    return {
        "_".join([name, *map(str, index)]): _cell(values[index].item())
        for name, values in outputs.items()
        for index in np.ndindex(values.shape)
    }


def _cell(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"
