"""PCA beside a model: the same people, mask, number of components and covariates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.metrics import pca_codes, pca_reconstruct
from kerasvae.types import Mask

if TYPE_CHECKING:
    from kerasvae.models import VAE
    from kerasvae.models.coding import Coding

__all__ = ["pca_beside", "pca_codes_beside"]


def pca_beside(model: VAE, fit: Mapping[str, NDArray], inputs: Mapping[str, NDArray], inside: Mask) -> NDArray[Any]:
    """Reconstructions by PCA with as many components as the model has dimensions, in the mask, (n, v).

    Where the model takes covariates PCA gets them too: it is then PCA of what a line in them leaves.

    Args:
        model: Its size and covariates are used.
        fit: People that PCA is fitted to: ``image``, and ``covariates`` as numbers where the model takes them.
        inputs: The n people to be reconstructed.
        inside: Voxels that count, (*data_shape).
    """
    known, x, expected = _left_over(model.coding, fit, inputs, inside)
    found = pca_reconstruct(known, x, model.latent_size)
    return found if expected is None else expected + found


def pca_codes_beside(
    coding: Coding | None, components: int, fit: Mapping[str, NDArray], inputs: Mapping[str, NDArray], inside: Mask
) -> NDArray[np.float64]:
    """Scores on the components of `pca_beside`, (n, components).

    Args:
        coding: The model's, of its covariates; None of a model without.
        components: Their number, at most.
        fit: As for `pca_beside`.
        inputs: As for `pca_beside`.
        inside: As for `pca_beside`.
    """
    known, x, _ = _left_over(coding, fit, inputs, inside)
    return pca_codes(known, x, components)


def _left_over(
    coding: Coding | None, fit: Mapping[str, NDArray], inputs: Mapping[str, NDArray], inside: Mask
) -> tuple[NDArray, NDArray, NDArray | None]:
    """Voxels of both less what a line in the covariates expects, and that expectation of `inputs`, where there are."""
    known, x = fit["image"][:, inside], inputs["image"][:, inside]
    if coding is None:
        return known, x, None

    def design(of: Mapping[str, NDArray]) -> NDArray[np.float64]:
        return np.column_stack([np.ones(len(of["image"])), coding(of["covariates"])])

    slopes = np.linalg.pinv(design(fit)) @ known
    expected = design(inputs) @ slopes
    return known - design(fit) @ slopes, x - expected, expected
