"""Does a reconstruction know who it is of?

A model stuck at the mean brain reconstructs everybody alike and still has a small voxel error, because people
differ little from their mean. These numbers compare with the differences between people instead. All are computed
in float64 from images already cut to the mask: arrays of shape (n, v).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError

__all__ = ["explained_variance", "identification", "identification_chance", "variance_ratio"]


def _pair(images: NDArray, reconstructions: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, r = (np.asarray(a, dtype=np.float64).reshape(len(a), -1) for a in (images, reconstructions))
    if x.shape != r.shape or not len(x):
        raise ArgumentError(
            "reconstructions", rule=f"have the shape of images, {x.shape}", got=r.shape, fix="Cut both to the same mask"
        )
    return x, r


def explained_variance(images: NDArray, reconstructions: NDArray, train_mean: NDArray) -> float:
    """Share of the variance between people that the reconstructions explain.

    1 − Σᵢ‖xᵢ − x̂ᵢ‖² / Σᵢ‖xᵢ − x̄‖², with x̄ the mean of the *training* people: the out-of-sample R² of Campbell &
    Thompson 2008, Rev. Financ. Stud. 21(4). One is perfect; zero is the mean brain; below zero is worse.

    Args:
        images: Held-out people, (n, v).
        reconstructions: (n, v).
        train_mean: Mean image of the training people, (v,).
    """
    x, r = _pair(images, reconstructions)
    mean = np.asarray(train_mean, dtype=np.float64).reshape(-1)
    return float(1 - np.square(x - r).sum() / np.square(x - mean).sum())


def identification(images: NDArray, reconstructions: NDArray, people: Sequence[str] | None = None) -> float:
    """Share of reconstructions whose nearest image is one of the same person.

    mean over i of [argminⱼ ‖x̂ᵢ − xⱼ‖ = i], the identification rate of Finn et al. 2015, Nat. Neurosci. 18:1664,
    with Euclidean distance. Chance: `identification_chance`.

    Args:
        images: (n, v).
        reconstructions: (n, v).
        people: Person of each image, where people have several scans; by default each image is a person.
    """
    x, r = _pair(images, reconstructions)
    distance = np.square(r).sum(1)[:, None] - 2 * r @ x.T + np.square(x).sum(1)[None]
    who = np.arange(len(x)) if people is None else np.asarray(people)
    return float(np.mean(who[distance.argmin(axis=1)] == who))


def identification_chance(people: Sequence[str]) -> float:
    """The `identification` of reconstructions to which any scan is as near: Σ (mₖ/n)², person k having mₖ of n scans.

    >>> identification_chance(["a", "a", "b", "b"])
    0.5

    Args:
        people: Person of each scan.
    """
    shares = np.unique(np.asarray(people), return_counts=True)[1] / len(people)
    return float(np.square(shares).sum())


def variance_ratio(images: NDArray, reconstructions: NDArray) -> float:
    """tr Var(x̂) / tr Var(x): zero where every reconstruction is the same, one where they vary as much as people do.

    It says nothing about whether the variation is right; read it beside `explained_variance`.

    Args:
        images: (n, v).
        reconstructions: (n, v).
    """
    x, r = _pair(images, reconstructions)
    total = x.var(axis=0).sum()
    return float(r.var(axis=0).sum() / total) if total > 0 else float("nan")
