"""PCA beside a model: the same people, mask, number of components and covariates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.metrics import pca_reconstruct
from kerasvae.types import Mask

if TYPE_CHECKING:
    from kerasvae.models import VAE

__all__ = ["pca_beside"]


def pca_beside(model: VAE, fit: Mapping[str, NDArray], inputs: Mapping[str, NDArray], inside: Mask) -> NDArray[Any]:
    """Reconstructions by PCA with as many components as the model has dimensions, in the mask, (n, v).

    Where the model takes covariates PCA gets them too: it is then PCA of what a line in them leaves.

    Args:
        model: Its size and covariates are used.
        fit: People that PCA is fitted to: ``image``, and ``covariates`` as numbers where the model takes them.
        inputs: The n people to be reconstructed.
        inside: Voxels that count, (*data_shape).
    """
    known, x = fit["image"][:, inside], inputs["image"][:, inside]
    coding = model.coding
    if coding is None:
        return pca_reconstruct(known, x, model.latent_size)

    def design(of: Mapping[str, NDArray]) -> NDArray[np.float64]:
        return np.column_stack([np.ones(len(of["image"])), coding(of["covariates"])])

    slopes = np.linalg.pinv(design(fit)) @ known
    expected = design(inputs) @ slopes
    return expected + pca_reconstruct(known - design(fit) @ slopes, x - expected, model.latent_size)
