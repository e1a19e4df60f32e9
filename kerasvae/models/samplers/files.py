"""Which model a sampler's file belongs to."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from kerasvae.errors import ArgumentError, ModelError
from kerasvae.models.vae import VAE

__all__ = ["check_model", "codes_digest", "file_path"]


def codes_digest(model: VAE) -> str:
    """SHA-256 over what codes mean: encoder, posterior, decoder and covariates.

    The likelihood is left out: its scale may be set anew, on other people, without codes changing.
    """
    digest = hashlib.sha256()
    if model.covariates is not None:
        digest.update(json.dumps(model.covariates.to_config(), sort_keys=True).encode())
    for part in (model.encoder, model.posterior, model.decoder):
        for variable in part.variables:
            values = np.ascontiguousarray(variable.numpy())
            digest.update(f"{values.dtype.str} {values.shape}".encode())
            digest.update(values.tobytes())
    return digest.hexdigest()


def check_model(path: str | os.PathLike[str], digest: str, model: VAE) -> None:
    """Refuse a sampler of other codes.

    Raises:
        ModelError: If `digest` is not the model's.
    """
    own = codes_digest(model)
    if digest != own:
        raise ModelError(
            path,
            rule=f"belong to the model {own[:12]}: another training gives the same codes another meaning",
            got=f"a sampler fitted to the codes of {digest[:12]}",
            fix="Load the model it was fitted to, or fit a sampler to this one",
        )


def file_path(path: str | os.PathLike[str], suffix: str) -> Path:
    """The path, which must end in `suffix`.

    Raises:
        ArgumentError: If it does not.
    """
    if Path(path).suffix != suffix:
        raise ArgumentError("path", rule=f"end in {suffix}", got=str(path), fix=f"Add {suffix}")
    return Path(path)
