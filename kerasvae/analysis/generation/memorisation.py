"""Are generated people new, or training people again? No TensorFlow.

A generator that copies puts its people nearer to training people than new real people are to them. So the distances of
generated people to their nearest training person are held against those of real people whom no weight was fitted to, by
Mann & Whitney's test: the statistic C_T of Meehan, Chaudhuri & Dasgupta 2020, A non-parametric test to detect
data-copying in generative models, AISTATS, arXiv 2004.05675, section 3, with one cell for the whole space, as cohorts
of brain images are too small for several. Far below 0 it means copying, far above 0 people unlike any real one.

Both kinds must come the same way: an image without noise is nearer to everything than one with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.spatial.distance import cdist

from kerasvae.conformal import conformal_p
from kerasvae.errors import ArgumentError

__all__ = ["LEAST_HELD_OUT", "Memorisation", "memorisation", "nearest_of"]

Numbers = NDArray[np.float64]
LEVEL = 0.05
"""How often people drawn like real ones are called copied or unlike them."""
LEAST_HELD_OUT = 3
"""Held-out people below which no order of theirs is rare: with as many generated ones the least p is 1/20."""


@dataclass(frozen=True)
class Memorisation:
    """What m generated people have to do with the training people.

    Args:
        nearest: Row of the nearest training person of each, (m,).
        distance: To them, (m,).
        held_out: Distance of each held-out person to their nearest training person, (n,).
        p: Of each generated person alone, (m,): would a held-out person be as near? Conformal, at least 1/(n + 1).
        ratio: Median of `distance` over that of `held_out`: below 1 nearer than real people are.
        statistic: C_T: the number of pairs in which the generated person is farther, standardised.
        p_copied: That generated people are no nearer than real ones, by Mann & Whitney's test.
        p_far: That they are no farther.
    """

    nearest: NDArray[np.intp]
    distance: Numbers
    held_out: Numbers
    p: Numbers
    ratio: float
    statistic: float
    p_copied: float
    p_far: float

    def as_json(self) -> dict[str, Any]:
        """The figures of all together."""
        names = ("ratio", "statistic", "p_copied", "p_far")
        return {"generated": len(self.distance), "held_out": len(self.held_out)} | {n: getattr(self, n) for n in names}

    def describe(self) -> str:
        """The verdict as a phrase."""
        if self.p_copied <= LEVEL / 2:
            verdict = f"nearer to training people than real people are (p {self.p_copied:.4f}), as copies are"
        elif self.p_far <= LEVEL / 2:
            verdict = (
                f"farther from training people than real people are (p {self.p_far:.4f}), as people unlike any are"
            )
        else:
            verdict = f"as far from training people as real people are (p {min(self.p_copied, self.p_far):.4f})"
        return f"{verdict}; median distance {self.ratio:.2f} times theirs"


def memorisation(generated: ArrayLike, train: ArrayLike, held_out: ArrayLike) -> Memorisation:
    """Hold generated people against held-out ones, by the distance of each to the nearest training person.

    Args:
        generated: (m, v): codes, or images cut to the mask.
        train: (t, v).
        held_out: (n, v): people whom no weight was fitted to, made in the way of `generated`.

    Raises:
        ArgumentError: If there are fewer than three held-out people, nobody else, or widths differ.
    """
    made, known, new = (np.asarray(each, np.float64) for each in (generated, train, held_out))
    if len(new) < LEAST_HELD_OUT or not len(made) or not len(known):
        got = f"{len(made)} generated, {len(known)} training and {len(new)} held-out people"
        rule = f"hold {LEAST_HELD_OUT} held-out people, and some of the others"
        raise ArgumentError("The comparison", rule=rule, got=got, fix="Hold more people out")
    if len({each.shape[1:] for each in (made, known, new)}) != 1 or made.ndim != 2:
        got = ", ".join(str(each.shape) for each in (made, known, new))
        raise ArgumentError("The comparison", rule="be between rows of one width", got=got, fix="Cut all to one mask")
    nearest, distance = nearest_of(made, known)
    reference = nearest_of(new, known)[1]
    m, n = len(distance), len(reference)
    copied, far = (stats.mannwhitneyu(distance, reference, alternative=side) for side in ("less", "greater"))
    middle = float(np.median(reference))
    return Memorisation(
        nearest=nearest,
        distance=distance,
        held_out=reference,
        p=conformal_p(-distance, -reference),
        ratio=float(np.median(distance)) / middle if middle > 0 else math.nan,
        statistic=float((copied.statistic - m * n / 2) / math.sqrt(m * n * (m + n + 1) / 12)),
        p_copied=float(copied.pvalue),
        p_far=float(far.pvalue),
    )


def nearest_of(rows: Numbers, others: Numbers) -> tuple[NDArray[np.intp], Numbers]:
    """Of each row, (m, v), the nearest of others, (t, v): which, and its Euclidean distance, each (m,)."""
    distances = cdist(rows, others)
    nearest = distances.argmin(axis=1)
    return nearest, distances[np.arange(len(rows)), nearest]
