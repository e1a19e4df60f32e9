"""Whether a run draws its training people again, in codes and images, and to whom each generated one is nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.generation.generator import HELD_OUT, LEARNED, Generator
from kerasvae.analysis.generation.memorisation import LEAST_HELD_OUT, Memorisation, memorisation, nearest_of
from kerasvae.conformal import conformal_p

__all__ = ["CODES", "Check", "novelty"]

Numbers = NDArray[np.float64]
DRAWS = 2
"""People who are drawn with the values of each held-out person, for the check."""
CODES = {
    "participant_id": "of the generated person",
    "nearest": "training or validation person with the nearest code",
    "distance": "Mahalanobis distance to that code, by the covariance of codes given the values",
    "p": "share of held-out people, the generated one counted with them, whose code is as near to a training person's; "
    "small: a copy",
    "nearest_image": "training or validation person with the nearest image",
    "distance_image": "root mean squared difference to it in the mask, model units, before noise",
    "p_image": "as p, for reconstructions of held-out people",
}
"""Columns of codes.tsv but the codes."""


@dataclass(frozen=True)
class Check:
    """Whether a run draws its training people again.

    Args:
        codes: Distances between codes.
        images: Between images in the mask, root mean squares, of decoded codes to training images.
        own: Share of held-out people whose reconstruction is nearer to their own image than to any training image. A
            decoder that knows training people by heart gives these, whatever the code.
    """

    codes: Memorisation
    images: Memorisation
    own: float

    def as_json(self) -> dict[str, Any]:
        """As memorisation.json holds it."""
        return {"codes": self.codes.as_json(), "images": self.images.as_json(), "own": self.own}

    def describe(self) -> list[str]:
        """Sentences."""
        return [
            f"Codes of people drawn with the values of {len(self.codes.held_out)} held-out people are "
            f"{self.codes.describe()}.",
            f"Their images are {self.images.describe()}.",
            f"Of held-out people {self.own:.0%} are reconstructed nearer to themselves than to any training person.",
        ]


def novelty(
    generator: Generator, codes: Numbers, images: NDArray[Any], *, seed: int = 0
) -> tuple[Check | None, list[dict[str, Any]]]:
    """Whether a run draws its training people again, and to whom each generated person is nearest.

    All is tested with people drawn for it, who have the values of held-out people: those of one age and sex alone may
    be farther from others, or nearer, for that reason. Both are compared as draws, a held-out person's of the
    posterior, and as what is decoded from these. Training and validation people are those to be nearest to.

    Args:
        generator: Its run's people are compared with.
        codes: Of generated people, (m, d).
        images: Theirs without noise, (m, x, y, z).
        seed: Of the draws.

    Returns:
        The figures, None where fewer than three people are held out; and of each generated person the columns of
        `CODES` between participant_id and the codes, p unknown where there are no figures.
    """
    latents, given = generator.latents, generator.given
    learned = [row for row, role in enumerate(latents.roles) if role in LEARNED]
    names = [latents.people[row] for row in learned]
    known, known_images = given.whitened(latents.codes[learned]), _real(generator, learned)
    found = _check(generator, known, known_images, seed)
    columns: dict[str, Any] = {}
    for ending, made, others, judge in (
        ("", given.whitened(codes), known, None if found is None else found.codes),
        ("_image", _scaled(generator, images), known_images, None if found is None else found.images),
    ):
        near, away = nearest_of(made, others)
        p = ["n/a"] * len(made) if judge is None else conformal_p(-away, -judge.held_out).tolist()
        columns |= {f"nearest{ending}": [names[row] for row in near], f"distance{ending}": away.tolist()}
        columns[f"p{ending}"] = p
    return found, [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _check(generator: Generator, known: Numbers, known_images: Numbers, seed: int) -> Check | None:
    """The figures, of whitened codes of those learned from, (t, d), and their images, (t, v)."""
    latents, given = generator.latents, generator.given
    rows = generator.known(HELD_OUT)
    if len(rows) < LEAST_HELD_OUT:
        return None
    table, own = generator.table(rows), latents.codes[rows]
    values = np.repeat(given.numbers(table), 1 if given.variables else len(rows), axis=0)
    drawn = given.sample(values, DRAWS, seed).reshape(-1, own.shape[1])
    many = {name: cells * DRAWS for name, cells in table.items()}
    theirs = latents.take(rows).drawn(np.random.default_rng([seed, 1]))
    drawn_images, their_images, again = (
        _scaled(generator, generator.decode(codes, of)) for codes, of in ((drawn, many), (theirs, table), (own, table))
    )
    itself = np.linalg.norm(again - _real(generator, rows), axis=1)
    return Check(
        memorisation(given.whitened(drawn), known, given.whitened(theirs)),
        memorisation(drawn_images, known_images, their_images),
        float(np.mean(itself < nearest_of(again, known_images)[1])),
    )


def _real(generator: Generator, rows: list[int]) -> Numbers:
    return _scaled(generator, generator.run.store.load(generator.scans(rows)))


def _scaled(generator: Generator, images: NDArray[Any]) -> Numbers:
    """Images cut to the mask, (n, v), such that their distances are root mean squared differences."""
    return images[:, generator.run.pipeline.inside] / np.sqrt(generator.run.pipeline.inside.sum())
