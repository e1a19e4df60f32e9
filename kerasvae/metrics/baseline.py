"""PCA, the peer every model stands beside: same people, same mask, same number of components."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pca_codes", "pca_reconstruct"]


def pca_reconstruct(fit: NDArray, images: NDArray, components: int) -> NDArray[np.float32]:
    """Reconstruct held-out images from principal components (scikit-learn, full singular value decomposition).

    Jolliffe 2002, Principal Component Analysis, 2nd ed.

    Args:
        fit: Images of train and validation people, (n, v).
        images: Held-out images, (m, v).
        components: Number of components; at most n − 1 of them carry anything and are used.
    """
    pca = _fitted(fit, components)
    return pca.inverse_transform(pca.transform(images)).astype(np.float32)


def pca_codes(fit: NDArray, images: NDArray, components: int) -> NDArray[np.float64]:
    """Scores of images on principal components, (m, components used); arguments as for `pca_reconstruct`."""
    return np.asarray(_fitted(fit, components).transform(images), np.float64)


def _fitted(fit: NDArray, components: int) -> Any:
    from sklearn.decomposition import PCA

    return PCA(min(components, len(fit) - 1, fit.shape[1]), svd_solver="full").fit(fit)
