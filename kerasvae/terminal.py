"""What a command shows: lines, lines that begin with a coloured word, and bars. rich is imported when it is needed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["bar", "err", "out", "resumable"]

Report = Callable[..., None]


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
    """A function `(stage, done, total, text)` that draws one line a stage on the terminal's error stream.

    Within, Ctrl-C takes effect at the next call of the function, between two pieces of work: raised inside TensorFlow
    it can be lost or come out as something else. A second Ctrl-C takes effect at once.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<11}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[text]}"), console=err.console) as bars:
        tasks: dict[str, Any] = {}
        pressed: list[int] = []

        def press(number: int, frame: Any) -> None:
            if pressed:
                raise KeyboardInterrupt
            pressed.append(number)

        def report(stage: str, done: int, total: int, text: str = "") -> None:
            if pressed:
                raise KeyboardInterrupt
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, text=text)
            bars.update(tasks[stage], completed=done, total=total, text=text)

        before = signal.signal(signal.SIGINT, press)
        try:
            yield report
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def resumable(folder: Path, how: str = "Add --resume to the same command to go on") -> Iterator[Report]:
    """`bar` around work that can go on where Ctrl-C stopped it."""
    try:
        with bar() as report:
            yield report
    except KeyboardInterrupt:
        err.print(f"\nInterrupted. {how}; so far: {folder}")
        raise typer.Exit(130) from None
