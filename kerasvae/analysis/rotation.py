"""Codes on other axes: principal ones, or varimax.

The axes of a VAE are not identifiable. With a standard normal prior, whose density is the same in all directions, a
model whose codes are turned by any orthogonal matrix, its decoder turning them back, has the same likelihood; no data
tell the two apart (Locatello et al. 2019, Challenging Common Assumptions in the Unsupervised Learning of Disentangled
Representations, ICML, theorem 1; Khemakhem et al. 2020, Variational Autoencoders and Nonlinear ICA, AISTATS). That a
normal posterior is diagonal favours some axes (Rolinek et al. 2019, Variational Autoencoders Pursue PCA Directions (by
Accident), CVPR), but those along which codes vary alike stay undetermined. A statement about one dimension is therefore
one about the axes that were chosen. Two choices depend on the codes and images alone, not on how the axes came out of
the training:

- *principal*: eigenvectors of the covariance of the training people's codes, the largest variance first (Jolliffe 2002,
  Principal Component Analysis, 2nd ed., chapter 1). Undetermined where two variances are equal.
- *varimax* (Kaiser 1958, The varimax criterion for analytic rotation in factor analysis, Psychometrika 23:187): axes
  each of which goes with few voxels. The loadings that are made simple are the covariances of voxels with codes,
  Cov(xᵥ, zₖ). Loadings of the codes' own dimensions would only lead back to the axes of the training, which are what
  is to be got rid of; covariances with voxels turn with the codes, so that the result does not depend on these axes,
  and a dimension that does not vary has no say. Voxels are not weighted by their communality ("raw" varimax), which
  would give those at the rim as much of a say as others.

Both are orthogonal, so that distances stay, and fitted to training people alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasvae.analysis.latents import Latents, scans_of
from kerasvae.errors import ArgumentError
from kerasvae.training.run import Run

__all__ = ["KINDS", "Kind", "Rotation", "principal_axes", "rotated", "rotation_of", "varimax"]

Numbers = NDArray[np.float64]
Kind = Literal["none", "principal", "varimax"]
KINDS: tuple[Kind, ...] = ("none", "principal", "varimax")
ROUNDS = 200
"""Times that all pairs are turned, at most."""
STILL = 1e-6
"""Angles below it, in radians, are none."""
TINY = 1e-14
"""Of the sum of fourth powers: what is below is rounding."""


class Rotation(NamedTuple):
    """Axes for codes.

    Attributes:
        kind: How they were chosen.
        matrix: R, orthogonal, (d, d): a column for each axis, in the dimensions of the codes.
    """

    kind: Kind
    matrix: Numbers

    def of_codes(self, codes: Numbers) -> Numbers:
        """z R, (n, d)."""
        return codes @ self.matrix


def rotated(run: Run, latents: Latents, kind: Kind) -> tuple[Latents, Rotation]:
    """A run's codes and their standard deviations on other axes; what these have in common is not kept.

    Args:
        run: See `rotation_of`.
        latents: Of all its scans.
        kind: Of axes.
    """
    rotation = rotation_of(run, latents.scans, latents.roles, latents.codes, kind)
    stddev = latents.stddev_along(rotation.matrix)
    return replace(latents, codes=rotation.of_codes(latents.codes), stddev=stddev, root=None), rotation


def rotation_of(
    run: Run, scans: Sequence[tuple[str, str]], roles: Sequence[str], codes: Numbers, kind: Kind
) -> Rotation:
    """Axes that are fitted to a run's training people.

    They are in the order of the variance of codes along them; the largest entry of each is positive.

    Args:
        run: Of varimax its images are read, in the mask.
        scans: Person and session of each, (n,).
        roles: Of each scan, (n,).
        codes: (n, d).
        kind: Of axes; "none": those of the training.

    Raises:
        ArgumentError: If the kind is unknown.
    """
    if kind not in KINDS:
        raise ArgumentError("The axes", rule=f"be {', '.join(KINDS)}", got=repr(kind)[:60], fix="Correct it")
    if kind == "none":
        return Rotation(kind, np.eye(codes.shape[1]))
    rows = np.flatnonzero(np.array(roles) == "train")
    matrix = principal_axes(codes[rows])
    if kind == "varimax":
        voxels = run.store.load(scans_of(run, scans, rows))[:, run.pipeline.inside]
        away = codes[rows] - codes[rows].mean(axis=0)
        matrix = matrix @ varimax(voxels.T.astype(np.float64) @ (away @ matrix) / len(rows))
        matrix = matrix[:, np.argsort(-(away @ matrix).var(axis=0), kind="stable")]
    largest = np.take_along_axis(matrix, abs(matrix).argmax(axis=0)[None], axis=0)
    return Rotation(kind, matrix * np.where(largest < 0, -1.0, 1.0))


def principal_axes(codes: ArrayLike) -> Numbers:
    """Eigenvectors of the covariance of codes (n, d) as columns, (d, d), the largest variance first."""
    codes = np.asarray(codes, np.float64)
    away = codes - codes.mean(axis=0)
    return np.linalg.eigh(away.T @ away)[1][:, ::-1]


def varimax(loadings: ArrayLike) -> Numbers:
    """The rotation R, (d, d), with which the columns of A R have the largest variances of squares, summed.

    The criterion is that of Kaiser 1958 without the weighting of rows, and so is the way: two columns x, y at a time
    are turned by the angle φ that is best for them, with u = x² − y² and v = 2xy
    tan 4φ = (2 Σuv − 2 Σu Σv / n) / (Σ(u² − v²) − ((Σu)² − (Σv)²) / n), until no pair turns any more, or 200 times. It
    may find a local maximum.

    Args:
        loadings: A, (n, d).
    """
    columns = np.ascontiguousarray(np.asarray(loadings, np.float64).T)
    matrix = np.eye(len(columns))  # a row for each column of R
    least = TINY * float(np.square(np.square(columns).sum(axis=0)).sum())
    for _ in range(ROUNDS):
        largest = 0.0
        for i, j in combinations(range(len(columns)), 2):
            x, y = columns[i], columns[j]
            u, v = (x + y) * (x - y), 2 * x * y
            first, second = u.sum(), v.sum()
            top = 2 * (u @ v - first * second / len(u))
            bottom = u @ u - v @ v - (first**2 - second**2) / len(u)
            if math.hypot(top, bottom) <= least:
                continue
            angle = math.atan2(top, bottom) / 4
            turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
            columns[[i, j]], matrix[[i, j]] = turn @ columns[[i, j]], turn @ matrix[[i, j]]
            largest = max(largest, abs(angle))
        if largest < STILL:
            break
    return matrix.T
