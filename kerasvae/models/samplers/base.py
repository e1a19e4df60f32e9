"""What a sampler is, and the simplest: the model's own prior.

A decoder has learnt to make images of the codes it was given: draws of the aggregate posterior
q(z) = 1/N Σ_n q(z|x_n). The ELBO holds −KL(q(z) ‖ p(z)) (Hoffman & Johnson 2016, ELBO surgery, NeurIPS workshop on
Advances in Approximate Bayesian Inference), but a trained model need not have brought it to 0; where q(z) ≠ p(z), the
prior also draws codes that the decoder has never seen. A fitted sampler draws from an estimate of q(z) instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError, ModelError
from kerasvae.models.vae import VAE
from kerasvae.objectives.rules import whole_number

__all__ = ["LEAST_PEOPLE", "PriorSampler", "Sampler", "aggregate", "seeds_of"]

LEAST_PEOPLE = 10
"""With fewer people an estimate of where codes lie is a list of these people."""

_SPHERE, _CHOICE = "its codes are points of a sphere", "its codes are choices from a list"
NOT_EUCLIDEAN: Mapping[str, str] = MappingProxyType(
    {
        "power_spherical": _SPHERE,
        "von_mises_fisher": _SPHERE,
        "vector_quantised": _CHOICE,
        "relaxed_categorical": _CHOICE,
    }
)
"""Kinds of posterior whose codes have no density in Euclidean space, and why."""


class Sampler:
    """Codes of new people, and their images.

    Args:
        model: A trained model; its decoder makes the images.
    """

    def __init__(self, model: VAE) -> None:
        self.model = model

    def codes(self, count: int, seed: int = 0, covariates: Any = None) -> NDArray[np.float32]:
        """New codes, (count, d).

        Args:
            count: How many, 1 or more.
            seed: Seed of the draws, 0 or more; they depend on nothing else.
            covariates: Of the people to be made, one row each, or one row for all; only for a model that takes them.

        Raises:
            ArgumentError: If `count`, `seed` or `covariates` is outside its rule.
        """
        count, seed = whole_number("count", count, least=1), whole_number("seed", seed, least=0)
        return self._draw(count, seed, self.model.rows_for(count, covariates))

    def images(self, count: int, seed: int = 0, covariates: Any = None, *, noise: bool = False) -> NDArray[np.float32]:
        """The images of `codes` with the same arguments, (count, *data_shape), in the unit of the training images.

        Args:
            count: How many, 1 or more.
            seed: Seed of the draws, 0 or more.
            covariates: See `codes`.
            noise: Draw images from the likelihood. Else they are its means, which lack what codes do not explain.
        """
        z = self.codes(count, seed, covariates)
        rows = self.model.rows_for(count, covariates)
        return self.model.decode(z, covariates=rows, noise_seed=seeds_of(seed)[2] if noise else None)

    def _draw(self, count: int, seed: int, rows: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Codes, (count, d), for covariates in their units, (count, k)."""
        raise NotImplementedError


class PriorSampler(Sampler):
    """Codes from the model's prior p(z), or p(z|c) where the prior is a conditional one.

    With a `point` posterior nothing has made codes follow the prior unless the objective did; fit another sampler.
    """

    def _draw(self, count: int, seed: int, rows: NDArray[np.float32] | None) -> NDArray[np.float32]:
        return self.model.sample_codes(count, seed, rows)


def seeds_of(seed: int) -> tuple[int, int, int]:
    """Seeds of three streams that share no draws: of what is drawn first, of codes made from it, and of images."""
    first, second, third = (np.random.SeedSequence(seed).generate_state(3) >> 1).tolist()
    return first, second, third


def aggregate(model: VAE, x: Any, draws: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Draws of the aggregate posterior, (draws, n, d), and the people's covariates in their units, (n, k).

    A `point` posterior gives each code once.

    Raises:
        ModelError: If codes are not points of Euclidean space.
        ArgumentError: If there are fewer than `LEAST_PEOPLE` people, or a code is not finite.
    """
    draws = whole_number("draws", draws, least=1)
    kind = model.posterior.kind
    if kind in NOT_EUCLIDEAN:
        raise ModelError(
            "The posterior of a model with a fitted sampler",
            rule="have codes that are points of Euclidean space",
            got=f"{kind!r}: {NOT_EUCLIDEAN[kind]}",
            fix="Use PriorSampler",
        )
    given = model.checked(x)
    people = len(given["image"])
    if people < LEAST_PEOPLE:
        raise ArgumentError("x", rule=f"hold {LEAST_PEOPLE} people or more", got=people, fix="Use PriorSampler")
    codes = model.draw_codes(x, 1 if kind == "point" else draws, seed)
    bad = ~np.isfinite(codes).all(axis=(0, 2))
    if bad.any():
        raise ArgumentError(
            "x",
            rule="give finite codes",
            got=f"NaN or infinity in row {int(np.argmax(bad))}",
            fix="Look at that image",
        )
    return codes, given.get("covariates")
