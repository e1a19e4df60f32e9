"""Work that is shared out: a few threads, a short queue, a deadline; more is refused, and probes never wait."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from kerasvae.errors import ArgumentError, DeadlineError, OverloadedError

__all__ = ["Piece", "Work"]

Result = TypeVar("Result")
Done = Callable[[Any, BaseException | None], None]


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
        self._threads = _Threads(workers)

    def start(self, function: Callable[[], Any], done: Done, *, deadline: float | None = None) -> Piece:
        """Begin a piece of work.

        A piece whose deadline passes while it waits is never begun; one that was begun ends by itself, and its place
        is free only then.

        Args:
            function: It must be safe to run in a thread.
            done: Called once, in the loop, with what the function returned and None, or None and an error.
            deadline: Seconds until then, if fewer than the server's.

        Raises:
            OverloadedError: If workers and queue are full.
        """
        if self.busy >= self.most:
            raise OverloadedError(
                "The server",
                rule=f"have fewer than {self.most} requests at work or waiting",
                got="one more",
                fix="Try again in a second",
            )
        seconds = self.deadline if deadline is None else min(deadline, self.deadline)
        piece = Piece(self, function, done, seconds)
        self.busy += 1
        self._threads.give(piece.work)
        return piece

    async def run(self, function: Callable[[], Result], *, deadline: float | None = None) -> Result:
        """What the function returns; see `start`.

        Raises:
            OverloadedError: At once, if workers and queue are full.
            DeadlineError: If the answer is not there in time.
        """
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def done(made: Any, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(made)
            else:
                answer.set_exception(error)

        piece = self.start(function, done, deadline=deadline)
        try:
            return await answer
        finally:
            piece.give_up()

    def close(self) -> None:
        """Let what was begun end; then the threads do."""
        self._threads.close()


class Piece:
    """A piece of work, from when it waits to its answer."""

    __slots__ = ("_alarm", "_done", "_function", "_loop", "_open", "_seconds", "_to")

    def __init__(self, to: Work, function: Callable[[], Any], done: Done, seconds: float) -> None:
        self._to, self._function, self._done, self._seconds, self._open = to, function, done, seconds, True
        self._loop = asyncio.get_running_loop()
        self._alarm = self._loop.call_later(seconds, self._expire)

    def give_up(self) -> None:
        """Nobody waits for its answer any more."""
        self._open = False
        self._alarm.cancel()

    def work(self) -> None:
        """In a thread."""
        made, error = None, None
        if self._open:
            try:
                made = self._function()
            except BaseException as raised:
                error = raised
        try:
            self._loop.call_soon_threadsafe(self._finish, made, error)
        except RuntimeError:  # the loop has ended with the server
            self._to.busy -= 1

    def _finish(self, made: Any, error: BaseException | None) -> None:
        self._to.busy -= 1
        if self._open:
            self.give_up()
            self._done(made, error)

    def _expire(self) -> None:
        if self._open:
            self.give_up()
            rule, fix = f"be ready within {self._seconds:g} s", "Try again, or raise --deadline"
            self._done(None, DeadlineError("The answer", rule=rule, got="none yet", fix=fix))


class _Threads:
    """Threads that are woken one at a time, the last to rest first: its caches are the warmest.

    A `queue.SimpleQueue` wakes a second thread after each first, to find nothing; that takes as long as a small image.
    """

    def __init__(self, number: int) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._resting: list[threading.Lock] = []
        self._closed = False
        for index in range(number):
            threading.Thread(target=self._live, name=f"work-{index}", daemon=True).start()

    def give(self, work: Callable[[], None]) -> None:
        with self._lock:
            self._waiting.append(work)
            bell = self._resting.pop() if self._resting else None
        if bell is not None:
            bell.release()

    def close(self) -> None:
        """What waits is still done."""
        with self._lock:
            self._closed = True
            bells, self._resting = self._resting, []
        for bell in bells:
            bell.release()

    def _live(self) -> None:
        bell = threading.Lock()
        bell.acquire()
        while True:
            with self._lock:
                work = self._waiting.popleft() if self._waiting else None
                if work is None:
                    if self._closed:
                        return
                    self._resting.append(bell)
            if work is None:
                bell.acquire()
            else:
                work()
