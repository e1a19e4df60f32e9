"""People changed by a model: whom their images are of, and what is read from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.generation.generator import LEARNED, Generator, Table
from kerasvae.analysis.generation.memorisation import nearest_of
from kerasvae.analysis.generation.reading import FEWEST, Reader
from kerasvae.metrics import identification

__all__ = ["Changed", "cells_of", "change", "identified", "meanings_of", "nearest_to", "read_of", "readers_of"]

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Changed:
    """Some people, changed.

    Args:
        codes: Moved, (n, d).
        difference: What is decoded of these less what is decoded of their own, (n, x, y, z), model units.
        decoded: What is decoded of the moved ones.
        images: Own images and the difference.
        again: Codes of `images`, (n, d).
    """

    codes: Numbers
    difference: NDArray[np.float32]
    decoded: NDArray[np.float32]
    images: NDArray[np.float32]
    again: Numbers


def change(generator: Generator, images: NDArray[np.float32], before: Table, new: Mapping[str, str]) -> Changed:
    """Change people.

    Args:
        generator: Knows how.
        images: Theirs, (n, x, y, z), model units.
        before: Their values, n cells each.
        new: What changes, and to what.
    """
    after = {**before, **cells_of(new, len(images))}
    own = generator.encode(images, before)
    moved = generator.given.shift(own, generator.numbers(before), generator.numbers(after))
    decoded = generator.decode(moved, after)
    difference = decoded - generator.decode(own, before)
    changed = images + difference
    return Changed(moved, difference, decoded, changed, generator.encode(changed, after))


def cells_of(new: Mapping[str, str], count: int) -> dict[str, list[str]]:
    """Values as a table of `count` rows that are all alike."""
    return {name: [value] * count for name, value in new.items()}


def readers_of(generator: Generator, names: Iterable[str]) -> dict[str, Reader]:
    """Of each number among the names a judge of images, learned from training and validation people; none of few."""
    rows = generator.known(LEARNED)
    numbers = [variable for variable in generator.asked if variable.name in names and not variable.levels]
    if len(rows) < FEWEST or not numbers:
        return {}
    images = generator.run.store.load(generator.scans(rows))[:, generator.run.pipeline.inside]
    table = generator.table(rows)
    return {
        variable.name: Reader.fit(images, [variable.number(cell) for cell in table[variable.name]], rows)
        for variable in numbers
    }


def read_of(
    generator: Generator, readers: Mapping[str, Reader], new: Mapping[str, str], images: NDArray[np.float32]
) -> dict[str, float]:
    """What is read from images, on average, and what would be of real people with these values."""
    found = {}
    for name, reader in readers.items():
        found[f"reading_{name}"] = float(reader.read(images[:, generator.run.pipeline.inside]).mean())
        found[f"expected_{name}"] = reader.expected(float(new[name]))
    return found


def nearest_to(generator: Generator, own: Changed, all_: Changed, judged: list[int], person: str) -> dict[str, Any]:
    """Columns about whom a changed image is nearest to.

    Args:
        generator: Its run's people are compared with.
        own: The person, changed.
        all_: All who are judged, changed in the same way.
        judged: Their rows.
        person: Who is left out of the others.
    """
    whitened, people = generator.given.whitened, [generator.latents.people[row] for row in judged]
    others = [index for index, name in enumerate(people) if name != person]
    found: dict[str, Any] = {"distance_own": float(np.linalg.norm(whitened(own.again) - whitened(own.codes)))}
    if others:
        near, away = nearest_of(whitened(own.again), whitened(all_.codes[others]))
        found |= {"distance_other": float(away[0]), "nearest_other": people[others[near[0]]]}
    return found


def identified(generator: Generator, changed: Changed, images: NDArray[np.float32]) -> dict[str, float]:
    """How many stay themselves: by code, and by what is decoded, beside their images as they are."""
    whitened, inside = generator.given.whitened, generator.run.pipeline.inside
    return {
        "identification": identification(whitened(changed.codes), whitened(changed.again)),
        "identification_image": identification(images[:, inside], changed.decoded[:, inside]),
    }


def meanings_of(readers: Mapping[str, Reader]) -> dict[str, str]:
    """Of the columns of `read_of`."""
    return {
        column: text
        for name, each in readers.items()
        for column, text in (
            (
                f"reading_{name}",
                f"read from the changed image by ridge regression on the voxels of {each.people} people",
            ),
            (f"expected_{name}", "what is read, on average, of real people with the value asked for who were left out"),
        )
    }
