"""A judge of images that never saw the model: a number, such as age, read from the voxels by ridge regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasvae.analysis.association import fisher_interval

__all__ = ["FEWEST", "Reader"]

Numbers = NDArray[np.float64]
FOLDS = 5
FEWEST = 2 * FOLDS
"""People to learn from."""
PENALTIES = np.logspace(-4, 4, 17)
"""Among which is chosen, for images that are one long on average."""


@dataclass(frozen=True)
class Reader:
    """A linear reading of images.

    What is read of people left out is nearer to the mean than the truth is, the more so the fewer people there are to
    learn from. So a reading is not held against the number itself but against what is read, on average, of real people
    with this number who were left out: a + b y, by least squares.

    Args:
        weights: (v,).
        offset: Reading of an image of zeros.
        line: a and b.
        r: Correlation of number and reading over people left out.
        r_low: Lower end of its 95 % interval; where that is below 0, nothing is known to be read.
        mae: Mean absolute error, likewise.
        people: How many it was learned from.
    """

    weights: Numbers
    offset: float
    line: tuple[float, float]
    r: float
    r_low: float
    mae: float
    people: int

    @classmethod
    def fit(cls, images: ArrayLike, numbers: ArrayLike, people: Sequence[Any]) -> Reader:
        """Ridge regression, its penalty by leave-one-out, judged in five-fold cross-validation by person.

        Args:
            images: (n, v), cut to the mask.
            numbers: (n,), all known, of ten people or more.
            people: (n,): whose.
        """
        from sklearn.linear_model import RidgeCV
        from sklearn.model_selection import GroupKFold, cross_val_predict

        x, y = np.asarray(images, np.float64), np.asarray(numbers, np.float64)
        mean = x.mean(axis=0)
        # images turned into n numbers that hold all of them: ridge regression does not notice, and is faster
        left, sizes, axes = np.linalg.svd(x - mean, full_matrices=False)
        scale = np.sqrt(np.square(sizes).sum() / len(x)) or 1.0
        scores = left * sizes / scale  # one long, on average
        ridge = RidgeCV(alphas=PENALTIES)
        who = np.unique(np.asarray(people), return_inverse=True)[1]
        read = cross_val_predict(ridge, scores, y, groups=who, cv=GroupKFold(FOLDS))
        b, a = np.polyfit(y, read, 1)
        ridge.fit(scores, y)
        weights = axes.T @ ridge.coef_ / scale
        r = float(np.corrcoef(y, read)[0, 1]) if np.ptp(read) > 0 else 0.0
        count = int(who.max()) + 1
        offset = float(ridge.intercept_ - mean @ weights)
        mae = float(np.abs(y - read).mean())
        return cls(weights, offset, (float(a), float(b)), r, fisher_interval(r, count - 1)[0], mae, count)

    def read(self, images: ArrayLike) -> Numbers:
        """The number in each image, (n, v) to (n,)."""
        return np.asarray(images, np.float64) @ self.weights + self.offset

    def expected(self, number: float) -> float:
        """What is read, on average, of a real person with this number."""
        return self.line[0] + self.line[1] * number

    def as_json(self) -> dict[str, float]:
        """How well it reads."""
        return {"r": self.r, "r_low": self.r_low, "mae": self.mae, "people": self.people}
