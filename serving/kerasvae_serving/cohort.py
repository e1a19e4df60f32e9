"""From image files to a table of latents: in one go or in parts, and on from where an earlier run stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import AlignmentError, AnswerError, ArgumentError, KerasVAEError, VolumeError
from kerasvae_serving.engine import Engine
from kerasvae_serving.files import find_images
from kerasvae_serving.journal import Journal
from kerasvae_serving.records import FORMAT
from kerasvae_serving.shards import WHOLE, Shard, check_division, check_shard, finish, part_of
from kerasvae_serving.tables import CovariateTable, cells_of

if TYPE_CHECKING:
    from kerasvae_serving.client import Client

__all__ = ["Outcome", "Task", "encode_files", "encode_tasks", "outcome_of"]

AHEAD = 4
"""Images read ahead of the encoder."""


@dataclass(frozen=True)
class Task:
    """An image to encode.

    Args:
        index: Its place in the list of all images.
        path: The file.
        covariates: Of the person; an error where they are not to be found; None where none are given.
        state: Size and time of change of the file, and a digest of the covariates: an image is done in a state.
    """

    index: int
    path: Path
    covariates: dict[str, str] | ArgumentError | None
    state: list[Any]


Outcome = dict[str, str] | KerasVAEError
"""The latents of an image by name, or why there are none."""
Work = Callable[[Sequence[Task]], Iterator[tuple[Task, Outcome]]]


def encode_files(
    source: Engine | Client,
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    covariates: str | os.PathLike[str] | None = None,
    skip_bad: bool = False,
    shard: Shard | None = None,
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Encode images and write a table with one row each, in the order of their paths.

    Columns: ``file`` (as given), ``participant_id`` and ``session_id`` (from a BIDS name, else ``n/a``), then each
    output of the encoder with its index, e.g. ``mean_0``, or ``scale_tril_0_1`` where it has two axes; codes are whole
    numbers. Separated by tabs, or by commas where `out` ends in .csv.

    What is done is kept beside `out`, in the folder ``<out>.parts``, until the table is written: a call that was
    interrupted, killed or stopped by an error goes on when it is made again. Images that were changed in between, or
    whose covariates were, are encoded again; those that were left out are not tried again, unless `skip_bad` is off.

    Args:
        source: An engine with a pipeline, or a client of a server.
        inputs: Images, or folders that are searched for images.
        out: The table; written when all is done, and what stood there before is kept until then.
        covariates: For a model that takes them: a table with a row for each image, found by its column ``file``, or by
            ``participant_id`` and, where there is one, ``session_id``.
        skip_bad: Leave out images that cannot be used, or whose covariates cannot, instead of stopping at the first.
        shard: ``(i, n)``: encode part i, from 0, of n parts only, and write no table; `gather` does when all are done.
        restart: Forget what was done of it before.
        progress: Called with images done and images in all.

    Returns:
        Path of each image left out, and why.

    Raises:
        ArgumentError: If there is no image, a covariate is missing or outside its rule, or what is kept beside `out`
            was begun with another model, with other images or in other parts.
        VolumeError: At the first image that cannot be used, or if none can.
        ServingError: If a server does not answer, or refuses for another reason than the image.
        StorageError: If the disk is full, say, or another process is at the same part.
    """

    def work(tasks: Sequence[Task]) -> Iterator[tuple[Task, Outcome]]:
        return _encoded(source, tasks)

    identity = source.identity if isinstance(source, Engine) else source.settle()
    return encode_tasks(
        work,
        identity,
        inputs,
        out,
        covariates=covariates,
        skip_bad=skip_bad,
        shard=shard,
        restart=restart,
        progress=progress,
    )


def encode_tasks(
    work: Work,
    identity: dict[str, str],
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    covariates: str | os.PathLike[str] | None = None,
    skip_bad: bool = False,
    shard: Shard | None = None,
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """`encode_files` by whatever does the work.

    Args:
        work: Gives the outcome of each task, in any order.
        identity: What decides the outcomes, see `kerasvae_serving.records.UNLIKE`.
    """
    index, count = WHOLE if shard is None else check_shard(shard)
    files = find_images(inputs)
    table = None if covariates is None else CovariateTable(covariates)
    run = identity | {
        "format": FORMAT,
        "images": hashlib.sha256("\0".join(map(str, files)).encode("utf-8", "surrogateescape")).hexdigest(),
        "count": len(files),
        "covariates": None if table is None else table.digest,
        "shard": [index, count],
    }
    check_division(out, count)
    with Journal(part_of(out, (index, count)), run, restart=restart) as journal:
        tasks = [_task(place, files[place], table) for place in range(index, len(files), count)]
        known = journal.records
        done = {
            task.index
            for task in tasks
            if task.index in known
            and known[task.index].state == task.state
            and (skip_bad or known[task.index].reason is None)
        }
        journal.begin(known.keys() - done)
        rest = [task for task in tasks if task.index not in done]
        for number, (task, outcome) in enumerate(work(rest), start=len(done) + 1):
            if isinstance(outcome, KerasVAEError) and not skip_bad:
                if str(task.path) not in str(outcome):
                    outcome.add_note(str(task.path))  # which of thousands
                raise outcome
            kept = str(outcome) if isinstance(outcome, KerasVAEError) else outcome
            journal.add(task.index, str(task.path), task.state, kept)
            if progress:
                progress(number, len(tasks))
        if shard is not None:
            return {r.file: r.reason for _, r in sorted(journal.records.items()) if r.reason is not None}
        left_out = finish(out, [journal.written])
        journal.remove()
        return left_out


def _task(index: int, path: Path, table: CovariateTable | None) -> Task:
    given: dict[str, str] | ArgumentError | None
    try:
        given = None if table is None else table.of(path)
        told = "" if given is None else json.dumps(given, sort_keys=True)
    except ArgumentError as error:
        given, told = error, str(error)
    try:
        found = path.stat()
        state: list[Any] = [found.st_size, found.st_mtime_ns]
    except OSError:  # reading it will say why
        state = [None, None]
    return Task(index, path, given, [*state, hashlib.sha256(told.encode()).hexdigest()[:16]])


def _encoded(source: Engine | Client, tasks: Sequence[Task]) -> Iterator[tuple[Task, Outcome]]:
    """The outcome of each task, in order; a few files are worked on ahead, in other threads."""

    def attempt(task: Task) -> NDArray[np.float32] | Outcome:
        if isinstance(task.covariates, ArgumentError):
            return task.covariates
        try:
            if isinstance(source, Engine):
                return source.pipeline.apply(task.path)
            given = task.covariates or {}
            known = {name: given[name] for name in source.covariates if name in given} if given else None
            found = source.encode(task.path, known or None)
            if found.keeps_contract is False:  # refused, as by an engine
                got = found.reasons[0] if found.reasons else "another"
                return AlignmentError(task.path, rule="keep the alignment contract", got=got, fix="Prepare it so")
            return cells_of(found.outputs)
        except AnswerError as error:
            if error.http_status in (400, 413, 422):  # of this image; anything else is the server's
                return error
            raise
        except (VolumeError, ArgumentError) as error:
            return error

    pool = ThreadPoolExecutor(2)
    try:
        rest = iter(tasks)
        waiting = [(task, pool.submit(attempt, task)) for task in islice(rest, AHEAD)]
        while waiting:
            task, future = waiting.pop(0)
            for following in islice(rest, 1):
                waiting.append((following, pool.submit(attempt, following)))
            found = future.result()
            if isinstance(found, np.ndarray):
                assert isinstance(source, Engine)
                yield task, outcome_of(source, found, task.covariates)
            else:
                yield task, found
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # what is interrupted waits for no server


def outcome_of(engine: Engine, volume: NDArray[np.float32], covariates: Any) -> Outcome:
    """The latents of a preprocessed image."""
    try:
        return cells_of({name: value[0] for name, value in engine.encode(volume[None], covariates).items()})
    except ArgumentError as error:
        return error
