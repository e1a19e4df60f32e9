"""Arguments and options that several commands have."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from kerasvae.errors import ArgumentError
from kerasvae.terminal import out

__all__ = [
    "BundleArgument",
    "DataOption",
    "JsonOption",
    "PrecisionOption",
    "ProviderOption",
    "RecipeArgument",
    "RunArgument",
    "SetOption",
    "answer",
    "assignments",
    "command_line",
    "names",
    "whole_numbers",
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
RecipeArgument = Annotated[str, typer.Argument(help="A TOML file, or a shipped recipe: demo, t1-4mm, gm-4mm.")]
DataOption = Annotated[Path, typer.Option(help="BIDS derivative folder, or a table with a `path` column.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override: section.key=value.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `kerasvae train` wrote.")]
PrecisionOption = Annotated[str, typer.Option(help="Of the ONNX graphs: float32, or what the bundle has.")]
ProviderOption = Annotated[str, typer.Option(help="What runs them: auto, cpu, cuda, openvino.")]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder that `kerasvae export` wrote.")]


def answer(json_: bool, content: Any, lines: Iterable[str], last: str) -> None:
    """Print what a command found: one JSON object for machines, else sentences, and where the files are."""
    if json_:
        sys.stdout.write(json.dumps(content) + "\n")
        return
    for line in [*lines, last]:
        out.print(line)


def command_line() -> str:
    """What was asked for, as a shell takes it, for the files that say how they were made."""
    return shlex.join(["kerasvae", *sys.argv[1:]])


def names(text: str) -> list[str]:
    """What stands between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def assignments(texts: list[str]) -> dict[str, str]:
    """What stands on both sides of each equals sign.

    Raises:
        ArgumentError: If there is none, a side is empty, or a name stands twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        if not name or not value or name in found:
            rule = "be NAME=VALUE, each name once"
            raise ArgumentError("--set", rule=rule, got=repr(text)[:60], fix="Write it as --set age=70")
        found[name] = value
    return found


def whole_numbers(text: str, option: str) -> list[int]:
    """Those that stand between commas.

    Args:
        text: What was given.
        option: As what, for the sentence about something else.
    """
    words = names(text)
    if wrong := [word for word in words if not word.isdecimal()]:
        raise ArgumentError(option, rule="be whole numbers between commas", got=repr(wrong[0])[:60], fix="Correct it")
    return [int(word) for word in words]
