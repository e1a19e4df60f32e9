"""Work that is shared out: a few threads, a short queue, a deadline; more is refused, and probes never wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
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
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        for number in range(workers):
            threading.Thread(target=self._work, name=f"work-{number}", daemon=True).start()

    async def run(self, function: Callable[[], Result], *, deadline: float | None = None) -> Result:
        """What the function returns.

        A piece of work whose deadline passes while it waits is never begun; one that was begun ends by itself, and its
        place is free only then.

        Args:
            function: It must be safe to run in a thread.
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
        answer: asyncio.Future[Result] = loop.create_future()
        seconds = self.deadline if deadline is None else min(deadline, self.deadline)

        def work() -> None:
            made, error = None, None
            if not answer.done():  # it may have been given up while it waited
                try:
                    made = function()
                except BaseException as raised:
                    error = raised
            try:
                loop.call_soon_threadsafe(finish, made, error)
            except RuntimeError:  # the loop has ended with the server
                self.busy -= 1

        def finish(made: Any, error: BaseException | None) -> None:
            self.busy -= 1
            if answer.done():
                return
            if error is None:
                answer.set_result(made)
            else:
                answer.set_exception(error)

        def expire() -> None:
            if not answer.done():
                rule = f"be ready within {seconds:g} s"
                fix = "Try again, or raise --deadline"
                answer.set_exception(DeadlineError("The answer", rule=rule, got="none yet", fix=fix))

        self.busy += 1
        self._waiting.put(work)
        alarm = loop.call_later(seconds, expire)
        try:
            return await answer
        finally:
            alarm.cancel()

    def close(self) -> None:
        """Let what was begun end; then the threads do."""
        for _ in range(self.workers):
            self._waiting.put(None)

    def _work(self) -> None:
        while (work := self._waiting.get()) is not None:
            work()
