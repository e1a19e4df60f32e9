"""What a bundle's graphs compute, as named functions of named tensors: those of the SavedModel's signatures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.bundle import Tensor
from kerasvae_serving.engine import Engine

__all__ = ["Signature", "Tensors", "signatures"]

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Signature:
    """A function of tensors, each with a batch axis that its `Tensor` leaves out.

    Args:
        inputs: What it takes, all of it needed.
        outputs: What it gives.
        run: The function, of arrays that were checked.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    run: Callable[[Mapping[str, NDArray[Any]]], Tensors]


def signatures(engine: Engine) -> dict[str, Signature]:
    """``encode``, ``decode``, ``reconstruct`` and, where the bundle has reference people, ``score``."""
    manifest = engine.manifest
    image, *rest = manifest.inputs
    code = Tensor(name="z", shape=(manifest.latent_size,), meaning="code")
    made = Tensor(name="reconstruction", shape=manifest.data_shape, meaning="mean image of the code")

    def encode(given: Mapping[str, NDArray[Any]]) -> Tensors:
        return engine.encode(given["image"], given.get("covariates"))

    def decode(given: Mapping[str, NDArray[Any]]) -> Tensors:
        return {"reconstruction": engine.decode(given["z"], given.get("covariates"))}

    def reconstruct(given: Mapping[str, NDArray[Any]]) -> Tensors:
        return {"reconstruction": engine.reconstruct(given["image"], given.get("covariates"))}

    def score(given: Mapping[str, NDArray[Any]]) -> Tensors:
        found = engine.score(given["image"], given.get("covariates"))
        return {name: value.astype(np.float32) for name, value in found.items()}

    found = {
        "encode": Signature(manifest.inputs, manifest.outputs, encode),
        "decode": Signature((code, *rest), (made,), decode),
        "reconstruct": Signature((image, *rest), (made,), reconstruct),
    }
    if manifest.reference is not None:
        names = ["residual", "distance"] + (["surprise"] if manifest.reference.sigma is not None else [])
        scores = tuple(
            Tensor(name=f"{name}{end}", shape=(), meaning=f"see kerasvae.scoring: {name}{end}")
            for end in ("", "_percentile")
            for name in names
        )
        found["score"] = Signature((image, *rest), scores, score)
    return found
