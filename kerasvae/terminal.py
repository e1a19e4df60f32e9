"""What a command shows: lines, lines that begin with a coloured word, and progress. rich is imported when needed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["bar", "err", "out", "resumable"]

Report = Callable[..., None]
EVERY_S = 30.0
"""Between two lines about a stage in a file."""


class _Stream:
    """A standard stream.

    Args:
        stderr: Whether it is that of errors.
    """

    def __init__(self, *, stderr: bool) -> None:
        self._stderr = stderr

    @cached_property
    def console(self) -> Console:
        """For rich."""
        from rich.console import Console

        # without markup: a path may hold brackets
        return Console(stderr=self._stderr, highlight=False, soft_wrap=True, markup=False)

    def print(self, text: str) -> None:
        """A line."""
        self.console.print(text)

    def say(self, word: str, colour: str, text: str) -> None:
        """A line that begins with a coloured word."""
        from rich.text import Text

        self.console.print(Text.assemble((word, colour), text))


out = _Stream(stderr=False)
err = _Stream(stderr=True)


@contextmanager
def bar() -> Iterator[Report]:
    """A function `(stage, done, total, text)` that draws a bar for each stage on the terminal's error stream.

    Where that is a file, as of a batch job, it writes lines: as a stage begins and ends, and every half minute.
    Within, Ctrl-C takes effect at the next call of the function, between two pieces of work: raised inside TensorFlow
    it can be lost or come out as something else. A second Ctrl-C takes effect at once.
    """
    with _bars() if err.console.is_terminal else nullcontext(_lines()) as show:
        pressed: list[int] = []

        def press(number: int, frame: Any) -> None:
            if pressed:
                raise KeyboardInterrupt
            pressed.append(number)

        def report(stage: str, done: int, total: int, text: str = "") -> None:
            if pressed:
                raise KeyboardInterrupt
            show(stage, done, total, text)

        before = signal.signal(signal.SIGINT, press)
        try:
            yield report
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _bars() -> Iterator[Report]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<11}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[text]}"), console=err.console) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int, text: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, text=text)
            bars.update(tasks[stage], completed=done, total=total, text=text)

        yield show


def _lines() -> Report:
    shown: dict[str, float] = {}

    def show(stage: str, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if done >= total or now - shown.get(stage, -EVERY_S) >= EVERY_S:
            shown[stage] = now
            err.print(f"{stage} {done}/{total}{f': {text}' if text else ''}")

    return show


@contextmanager
def resumable(folder: Path, how: str = "Add --resume to the same command to go on") -> Iterator[Report]:
    """`bar` around work that can go on where Ctrl-C stopped it."""
    try:
        with bar() as report:
            yield report
    except KeyboardInterrupt:
        err.print(f"\nInterrupted. {how}; so far: {folder}")
        raise typer.Exit(130) from None
