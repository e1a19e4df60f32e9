"""The input gate: is this scan one that the model can say something about?

Two questions. Does the scan keep the alignment contract, which sees scans that were not registered, turned, not
skull-stripped or of another contrast? And are residual and distance what people of the reference have? A scan is told
to be out of distribution if it breaks the contract, or if either score is so high that fewer than 2.5 % of people like
those of the reference score as high: 5 % of good scans at most, by Bonferroni, if their scores are log-normal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import AlignmentError, VolumeError
from kerasvae.preprocess import read_volume
from kerasvae.preprocess.nifti import MAX_VOXELS
from kerasvae.scoring import predictive_p
from kerasvae.types import Array, Volume
from kerasvae_serving.engine import Engine

__all__ = ["FALSE_ALARMS", "JUDGED", "Examined", "examine", "unusual"]

FALSE_ALARMS = 0.05
"""Share of good scans that may be told to be out of distribution."""
EDGES_MM = (0.05, 50.0)
"""Edges of voxels that a scan of a head may have."""
FEWEST = 3
"""Reference people by whom a score can be judged."""
JUDGED = {"residual": "differs from its reconstruction", "distance": "has a code that lies far from all"}
"""Scores that are judged, and what a high one means."""


@dataclass(frozen=True)
class Examined:
    """A scan, its codes, and whether the model knows its like.

    Args:
        volume: As it was read.
        image: As the encoder takes it, (1, *data_shape).
        codes: The encoder's outputs, (1, …) each.
        scores: Of `Engine.score`, and their percentiles; empty where the bundle has no reference.
        reasons: Why it is out of distribution, a sentence each; empty if it is not.
        judged: Whether anything was known to judge it by.
        covariates: As a table of one row; None: the model was given none.
        keeps_contract: Whether the scan keeps the alignment contract.
    """

    volume: Volume
    image: Array
    codes: dict[str, NDArray[Any]]
    scores: dict[str, float]
    reasons: tuple[str, ...]
    judged: bool = True
    covariates: dict[str, list[Any]] | None = None
    keeps_contract: bool = True

    @property
    def in_distribution(self) -> bool | None:
        """None: the bundle has neither contract nor reference, so nothing is known."""
        return not self.reasons if self.judged else None


def examine(
    engine: Engine,
    content: bytes,
    covariates: Mapping[str, Any] | None = None,
    *,
    strict: bool = False,
    max_voxels: int = MAX_VOXELS,
) -> Examined:
    """Read, prepare, encode and judge a scan.

    Args:
        engine: With a pipeline.
        content: The bytes of a file.
        covariates: Of the person, by name, for a model that takes them.
        strict: Refuse a scan that is out of distribution.
        max_voxels: Largest scan that is read.

    Raises:
        VolumeError: If it cannot be used; with `strict` also if it is out of distribution.
        ArgumentError: If a covariate is missing or outside its rule.
    """
    table = None if covariates is None else {name: [value] for name, value in covariates.items()}
    volume = read_volume(content, max_voxels=max_voxels)
    edges = np.linalg.norm(volume.affine[:3, :3], axis=0)
    if not (edges.min() >= EDGES_MM[0] and edges.max() <= EDGES_MM[1]):  # else resampling could take hours
        got = " × ".join(f"{edge:.3g}" for edge in edges)
        raise VolumeError(
            "image", rule=f"have voxels of {EDGES_MM[0]} to {EDGES_MM[1]} mm", got=got, fix="Check its affine"
        )
    reasons: list[str] = []
    kept = True
    try:
        image = engine.prepare(volume)
    except AlignmentError as error:
        if strict:
            raise
        reasons.append(str(error))
        kept = False
        image = engine.prepare(volume, check=False)
    codes = engine.encode(image, table)
    reference = engine.manifest.reference
    scores: dict[str, float] = {}
    if reference is not None:
        scores = {name: float(value[0]) for name, value in engine.score_of(image, codes, table).items()}
        reasons += unusual(engine, scores)
        if strict and reasons:
            raise VolumeError("image", rule="be like the reference people's", got=reasons[0], fix="Look at the scan")
    known = 0 if reference is None else min(len(getattr(reference, name)) for name in JUDGED)
    judged = known >= FEWEST or engine.pipeline.alignment is not None
    return Examined(volume, image, codes, scores, tuple(reasons), judged, table, kept)


def unusual(engine: Engine, scores: Mapping[str, float]) -> list[str]:
    """Sentences about scores that people of the reference do not have."""
    found = []
    for name, meaning in JUDGED.items():
        known = np.asarray(getattr(engine.reference, name))
        # not "<": a score that is no number is no good sign
        if len(known) >= FEWEST and not predictive_p(scores[name], known) >= FALSE_ALARMS / len(JUDGED):
            found.append(
                f"The image {meaning} more than those of people like the {len(known)} of the reference do: {name} "
                f"{scores[name]:.3g}, theirs {np.min(known):.3g} to {np.max(known):.3g}."
            )
    return found
