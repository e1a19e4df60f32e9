"""A cohort in parts: which images are whose, where a part is kept, and one table of all parts.

Part i of n has images i, i + n, i + 2n … of the sorted list: no two parts differ by more than one image, and what lies
together, such as the large images of one site, is spread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerasvae.errors import ArgumentError, CohortError, VolumeError
from kerasvae_serving.journal import read_ended, remove_journal
from kerasvae_serving.records import UNLIKE, Written, difference
from kerasvae_serving.tables import write_latents

__all__ = ["WHOLE", "Shard", "check_division", "check_shard", "finish", "gather", "parse_shard", "part_of"]

Shard = tuple[int, int]
"""Part, from 0, and number of parts."""
WHOLE: Shard = (0, 1)
"""All of it."""


def parse_shard(text: str) -> Shard:
    """Read ``i/n``.

    Raises:
        ArgumentError: If it is none.

    >>> parse_shard("0/4")
    (0, 4)
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    return check_shard((int(found[1]), int(found[2])) if found else (-1, -1), repr(text))


def check_shard(shard: Shard, got: str = "") -> Shard:
    """The shard itself.

    Raises:
        ArgumentError: If it is none.
    """
    index, count = shard
    if not 0 <= index < count:
        raise ArgumentError(
            "--shard",
            rule="be i/n with i from 0 to n − 1",
            got=got or f"{index}/{count}",
            fix="Number the parts from 0, as Slurm's arrays and Kubernetes' Indexed Jobs do",
        )
    return shard


def part_of(out: str | os.PathLike[str], shard: Shard) -> Path:
    """Where a part of a table is kept until all are there."""
    return _folder(out) / f"{shard[0]}-of-{shard[1]}.jsonl"


def check_division(out: str | os.PathLike[str], count: int) -> None:
    """Refuse a division into other parts than those that are there.

    Raises:
        ArgumentError: If so.
    """
    others = sorted({n for _, n in _parts(out)} - {count})
    if others:
        raise ArgumentError(
            _folder(out),
            rule=f"hold parts of one division, into {count}",
            got=f"some of a division into {others[0]}",
            fix="Go on with that, choose another --out, or remove the folder to begin anew",
        )


def gather(out: str | os.PathLike[str]) -> dict[str, str]:
    """Write the table of which every part is done, and remove the parts.

    Args:
        out: The table, as it was named to each `encode_files` with its `shard`.

    Returns:
        Path of each image left out, and why.

    Raises:
        ArgumentError: If there is no part, or they are not of one run.
        CohortError: If one is missing, not done, or being written.
        VolumeError: If every image was left out.
        StorageError: If the table cannot be written.
    """
    paths = _parts(out)
    if not paths:
        raise ArgumentError(
            _folder(out),
            rule="hold parts of a table",
            got="none",
            fix="Run `kerasvae encode … --shard` with this --out",
        )
    count = max(n for _, n in paths)
    check_division(out, count)
    parts = {index: read_ended(path) for (index, _), path in paths.items()}
    _check_same({index: part.run for index, part in parts.items() if part.run is not None}, count, _folder(out))
    undone = [index for index in range(count) if index not in parts or not _done(parts[index], (index, count))]
    if undone:
        few = ", ".join(f"{index}/{count}" for index in undone[:5]) + (" and others" if len(undone) > 5 else "")
        raise CohortError(
            _folder(out),
            rule=f"hold {count} parts, each done",
            got=f"{len(undone)} that {'is' if len(undone) == 1 else 'are'} missing or not done ({few})",
            fix="Run the same `kerasvae encode` for it again" if len(undone) == 1 else "Run them again",
        )
    left_out = finish(out, list(parts.values()))
    for path in paths.values():
        remove_journal(path)
    return left_out


def finish(out: str | os.PathLike[str], parts: Sequence[Written]) -> dict[str, str]:
    """Write the table of parts that are done; see `gather`."""
    records = sorted((record for part in parts for record in part.records.values()), key=lambda record: record.index)
    left_out = {record.file: record.reason for record in records if record.reason is not None}
    if len(left_out) == len(records):
        raise VolumeError(
            "INPUT",
            rule="hold one usable image",
            got=f"none of {len(records)}; of the first: {records[0].reason}",
            fix="Mend what is said of it",
        )
    columns = next(part.columns for part in parts if part.columns)
    write_latents(out, columns, ((r.file, r.cells.split("\t")) for r in records if r.cells is not None))
    return left_out


def _folder(out: str | os.PathLike[str]) -> Path:
    return Path(f"{os.fspath(out)}.parts")


def _parts(out: str | os.PathLike[str]) -> dict[Shard, Path]:
    named = ((re.fullmatch(r"(\d+)-of-(\d+)\.jsonl", path.name), path) for path in sorted(_folder(out).glob("*.jsonl")))
    return {(int(found[1]), int(found[2])): path for found, path in named if found}


def _check_same(runs: dict[int, dict[str, Any]], count: int, folder: Path) -> None:
    """Refuse parts of more than one run."""
    for index, run in runs.items():
        first, of_first = next(iter(runs.items()))
        unlike = difference(run, of_first | {"shard": [index, count]})
        if unlike is not None:
            raise ArgumentError(
                folder,
                rule="hold parts of one run",
                got=f"part {index} begun with {UNLIKE[unlike]} than part {first}",
                fix="Run the one that is wrong again, as the others were and with --restart",
            )


def _done(part: Written, shard: Shard) -> bool:
    return part.run is not None and part.records.keys() == set(range(shard[0], part.run["count"], shard[1]))
