"""Encoding by the workers of a Ray cluster: the same table, kept as it goes in the same journal.

The driver alone writes. Workers need this package in the same versions, and the bundle and the images under the same
paths. What a worker had in hand when it died is given to another.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import ray
import ray.data
from ray.exceptions import RayError

from kerasvae.errors import ArgumentError, BundleError, KerasVAEError, ServingError, VolumeError
from kerasvae_serving.cohort import Outcome, Task, encode_tasks, outcome_of
from kerasvae_serving.engine import Engine
from kerasvae_serving.shards import Shard

__all__ = ["encode_with_ray"]

TOGETHER = 8
"""Images that a worker is given at a time: as many are done again after the driver's end, for each worker."""

PATIENCE_S = 5.0
"""Until a cluster must take a connection."""


def encode_with_ray(
    engine: Engine,
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    address: str = "local",
    covariates: str | os.PathLike[str] | None = None,
    skip_bad: bool = False,
    shard: Shard | None = None,
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """`encode_files` with an engine in each of Ray's workers, one for a core; one core of the cluster stays free.

    Args:
        engine: The bundle, which every worker opens under the same path.
        inputs: As for `encode_files`; so are the arguments that are not named here, and what is returned.
        out: The table, on the driver.
        address: "local" for workers on this machine, "auto" for the cluster that it belongs to, or a cluster's address.
            Without effect where `ray.init` was called before.

    Raises:
        ServingError: If the cluster cannot be reached, or a worker fails otherwise than at an image.
    """
    ours = not ray.is_initialized()
    if ours:
        _connect(address)
    try:
        return encode_tasks(
            lambda tasks: _encoded(engine, tasks),
            engine.identity,
            inputs,
            out,
            covariates=covariates,
            skip_bad=skip_bad,
            shard=shard,
            restart=restart,
            progress=progress,
        )
    finally:
        if ours:
            ray.shutdown()


class _Worker:
    """An engine that outlives the images it is given; what keeps it from working is an answer too."""

    def __init__(self, bundle: str, identity: dict[str, str]) -> None:
        self._bundle, self._identity = bundle, identity
        self._engine: Engine | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = {"failed": False, "outcome": self._outcome(row)}
        except KerasVAEError as error:
            answer = {"failed": True, "outcome": error}
        return {"number": row["number"], "answer": pickle.dumps(answer)}

    def _outcome(self, row: dict[str, Any]) -> Outcome:
        if self._engine is None:
            self._engine = self._open()
        pipeline = self._engine.pipeline
        try:
            volume = pipeline.apply(row["path"])
        except (VolumeError, ArgumentError) as error:
            return error
        return outcome_of(self._engine, volume, json.loads(row["covariates"]))

    def _open(self) -> Engine:
        engine = Engine(self._bundle, provider=self._identity["provider"], precision=self._identity["precision"])
        if engine.identity != self._identity:
            raise BundleError(
                self._bundle,
                rule="be on every worker what it is on the driver, with the same packages",
                got=f"{engine.identity}, not {self._identity}",
                fix="Put the same on all machines",
            )
        return engine


def _connect(address: str) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        if ":" in address:  # Ray itself would try for minutes
            place = urlsplit(address if "//" in address else f"//{address}")
            socket.create_connection((place.hostname or "", place.port or 0), PATIENCE_S).close()
        local = {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise ServingError(
            "--ray",
            rule="be local, auto, or the address of a cluster that can be reached",
            got=f"{address!r}: {_first_line(error)}",
            fix="Correct it, or start the cluster",
        ) from error


def _encoded(engine: Engine, tasks: Sequence[Task]) -> Iterator[tuple[Task, Outcome]]:
    """The outcome of each task, in the order in which they come."""
    rows = []
    for number, task in enumerate(tasks):
        if isinstance(task.covariates, ArgumentError):
            yield task, task.covariates
        else:
            path = os.path.abspath(task.path)  # noqa: PTH100  a worker has a folder of its own
            rows.append({"number": number, "path": path, "covariates": json.dumps(task.covariates)})
    if not rows:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # the stream of results needs a core too: with as many actors as cores it would wait for ever
    cores = int(ray.cluster_resources().get("CPU", 1))
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, cores - 1))
    blocks = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // TOGETHER))
    results = blocks.map(
        _Worker,
        fn_constructor_args=(os.path.abspath(engine.path), engine.identity),  # noqa: PTH100
        compute=pool,
        num_cpus=1 if cores > 1 else 0.5,
    )
    try:
        for row in results.iter_rows():
            answer = pickle.loads(row["answer"])
            if answer["failed"]:
                raise answer["outcome"]
            yield tasks[row["number"]], answer["outcome"]
    except RayError as error:
        got, fix = _first_line(error), "See Ray's own log; what was done is kept"
        raise ServingError("A worker of Ray", rule="end its work", got=got, fix=fix) from error


def _first_line(error: BaseException) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return next(iter(plain.splitlines()), type(error).__name__)[:200]
