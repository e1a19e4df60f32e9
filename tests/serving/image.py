"""A Dockerfile's steps on this machine, without Docker: those of a stage, with its folders moved into one of ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

MOVED = ("/opt", "/wheels", "/src")


@dataclass
class Stage:
    """A stage of a Dockerfile: its steps in their order, as (instruction, words)."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        """The words of the last step of this kind."""
        return [words for kind, words in self.steps if kind == instruction][-1]


def stages(text: str) -> list[Stage]:
    """The stages of a Dockerfile."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found: list[Stage] = []
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        kind, _, words = line.strip().partition(" ")
        if kind == "FROM":
            base, _, name = words.partition(" AS ")
            found.append(Stage(base, name))
        elif kind:
            found[-1].steps.append((kind, words.strip()))
    return found


def rehearse(stage: Stage, context: Path, folder: Path) -> None:
    """Carry out WORKDIR, COPY and RUN of a stage, with the Python that runs this as the base image's.

    Args:
        stage: What to do.
        context: What COPY takes from.
        folder: What stands for the image's root.
    """
    python = folder / "base" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(getattr(sys, "_base_executable", sys.executable))
    environment = clean(python.parent)
    place = folder
    for kind, words in stage.steps:
        if kind == "WORKDIR":
            place = folder / words.lstrip("/")
            place.mkdir(parents=True)
        elif kind == "COPY":
            *sources, goal = words.split()
            for source in sources:
                _copy(context / source, place / goal, into=goal.endswith("/"))
        elif kind == "RUN":
            call = ["bash", "-euo", "pipefail", "-c", moved(words, folder)]
            done = subprocess.run(call, cwd=place, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{words}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        else:
            raise AssertionError(f"{kind} is not rehearsed")


def moved(words: str, folder: Path) -> str:
    """A command with the image's folders in ours."""
    return re.sub(rf"(?<![\w./-])({'|'.join(MOVED)})(?=/|\s|$|:)", rf"{folder}\1", words)


def clean(*first: Path) -> dict[str, str]:
    """An environment without this one's Python."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {"PATH": ":".join([*map(str, first), os.environ["PATH"]])}


def words_of(value: str) -> list[str]:
    """An instruction's exec form."""
    found = json.loads(value)
    assert isinstance(found, list)
    return found


def _copy(source: Path, goal: Path, *, into: bool) -> None:
    goal = goal / source.name if into else goal
    goal.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, goal, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, goal)
