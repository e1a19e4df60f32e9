"""Work that is shared out: a few threads, a short queue, a deadline; more is refused, and probes never wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from kerasvae.errors import ArgumentError, DeadlineError, OverloadedError

__all__ = ["Work"]

Result = TypeVar("Result")


class Work:
    """Threads for what takes long.

    Args:
        workers: Pieces of work at a time.
        queue: Pieces that may wait.
        deadline: Longest time until an answer, seconds.
    """

    def __init__(self, workers: int, queue: int, deadline: float) -> None:
        for name, value, least in (("workers", workers, 1), ("queue", queue, 0)):
            if value < least:
                raise ArgumentError(f"--{name}", rule=f"be {least} or more", got=value, fix="Raise it")
        if not deadline > 0:
            raise ArgumentError("--deadline", rule="be above 0 seconds", got=deadline, fix="Raise it")
        self.workers, self.most, self.deadline = workers, workers + queue, deadline
        self.busy = 0
        self._pool = ThreadPoolExecutor(workers, "work")

    async def run(self, function: Callable[..., Result], *arguments: Any, deadline: float | None = None) -> Result:
        """What the function returns.

        A piece of work whose deadline passes while it waits is never begun; one that was begun ends by itself, and its
        place is free only then.

        Args:
            function: It must be safe to run in a thread.
            arguments: Its arguments.
            deadline: Seconds that the caller waits, if fewer than the server's.

        Raises:
            OverloadedError: At once, if workers and queue are full.
            DeadlineError: If the answer is not there in time.
        """
        if self.busy >= self.most:
            raise OverloadedError(
                "The server",
                rule=f"have fewer than {self.most} requests at work or waiting",
                got="one more",
                fix="Try again in a second",
            )
        loop = asyncio.get_running_loop()
        self.busy += 1
        future = self._pool.submit(function, *arguments)
        future.add_done_callback(lambda _: _later(loop, self._free))
        seconds = self.deadline if deadline is None else min(deadline, self.deadline)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if future.done() and not future.cancelled():
                return future.result()  # the function's own TimeoutError, or an answer that was just in time
            raise DeadlineError(
                "The answer",
                rule=f"be ready within {seconds:g} s",
                got="none yet",
                fix="Try again, or raise --deadline",
            ) from None

    def close(self) -> None:
        """Let what was begun end; begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _free(self) -> None:
        self.busy -= 1


def _later(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:  # the loop has ended with the server
        function()
