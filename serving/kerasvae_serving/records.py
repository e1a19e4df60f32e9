"""The lines of a journal: what run it is of, the names of the columns, a line for each image, and which to forget.

Each line is a JSON array of a checksum and an object. Reading stops at the first line that is not whole, which is where
a process was killed or a disk was full; what follows is done again.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import Any, BinaryIO

__all__ = ["FORMAT", "UNLIKE", "Record", "Written", "difference", "line_of", "read_lines"]

FORMAT = 1
"""Of the lines; another is not read."""
UNLIKE = {
    "format": "another version of kerasvae",
    "server": "another bundle or server",
    "model": "another model",
    "precision": "another precision",
    "provider": "another execution provider",
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


def read_lines(stream: BinaryIO) -> Written:
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
        elif "forget" in content:
            for index in content["forget"]:
                found.records.pop(index, None)
        else:
            record = Record(**content)
            found.records[record.index] = record
        found.size += len(line)
    return found


def difference(run: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The first thing in which two runs differ, one of `UNLIKE`; covariates last."""
    return next((name for name in UNLIKE if run.get(name) != other.get(name)), None)


def line_of(content: dict[str, Any]) -> bytes:
    r"""A line.

    >>> line_of({"columns": ["mean_0"]})
    b'["459e24ec",{"columns": ["mean_0"]}]\n'
    """
    return _line(json.dumps(content).encode())


def _line(text: bytes) -> bytes:
    return b'["%08x",%b]\n' % (zlib.crc32(text), text)


def _content(line: bytes) -> dict[str, Any] | None:
    """What a line holds; None if it is not whole."""
    text = line[12:-2]
    content: dict[str, Any] | None = json.loads(text) if line == _line(text) else None
    return content
