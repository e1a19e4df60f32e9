"""Dynamic batching: requests for one graph that come together run together. Worth its wait on a GPU alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError
from kerasvae_serving.signatures import Signature, Tensors

__all__ = ["Batches"]


class Batches:
    """Runs signatures, of several threads at once where they meet.

    The first thread to come waits for others, then runs all of theirs and its own, and each takes its rows.

    Args:
        most: Rows of one run; 1: every request runs alone.
        wait: Seconds that the first of a batch waits for others.
        ran: Told the rows of each run.

    Raises:
        ArgumentError: If one of them is outside its range.
    """

    def __init__(self, most: int, wait: float, ran: Callable[[int], None] = lambda rows: None) -> None:
        for name, value, least in (("--batch", most, 1), ("--batch-wait", wait, 0)):
            if not value >= least:
                raise ArgumentError(name, rule=f"be {least} or more", got=value, fix="Raise it")
        self._most, self._wait, self._ran = most, wait, ran
        self._lock = threading.Lock()
        self._open: dict[int, _Batch] = {}  # by the signature's id, which is its own as long as a batch is open

    def run(self, signature: Signature, given: Mapping[str, NDArray[Any]]) -> Tensors:
        """What `signature.run` returns for these rows."""
        rows = len(next(iter(given.values())))
        if rows >= self._most:
            self._ran(rows)
            return signature.run(given)
        with self._lock:
            batch = self._open.get(id(signature))
            first = batch is None or batch.rows + rows > self._most
            if batch is None or first:
                if batch is not None:
                    batch.full.set()  # its first thread need not wait for what does not fit
                batch = self._open[id(signature)] = _Batch()
            start = batch.rows
            batch.parts.append(given)
            batch.rows += rows
            if batch.rows == self._most:
                self._close(signature, batch)
        if first:
            try:
                batch.full.wait(self._wait)
                with self._lock:
                    self._close(signature, batch)
                batch.found = self._together(signature, batch)
            finally:
                batch.done.set()
        batch.done.wait()
        if batch.found is None:  # one request spoiled it: each hears about its own
            return signature.run(given)
        return {name: value[start : start + rows] for name, value in batch.found.items()}

    def _close(self, signature: Signature, batch: _Batch) -> None:
        batch.full.set()
        if self._open.get(id(signature)) is batch:
            del self._open[id(signature)]

    def _together(self, signature: Signature, batch: _Batch) -> Tensors | None:
        names = batch.parts[0]
        self._ran(batch.rows)
        try:
            return signature.run({name: np.concatenate([part[name] for part in batch.parts]) for name in names})
        except Exception:
            return None


class _Batch:
    """Requests that run together."""

    def __init__(self) -> None:
        self.parts: list[Mapping[str, NDArray[Any]]] = []
        self.rows = 0
        self.full, self.done = threading.Event(), threading.Event()
        self.found: Tensors | None = None
