"""A Gaussian mixture fitted to codes after training.

Ghosh, Sajjadi, Vergari, Black & Schölkopf 2020, From Variational to Deterministic Autoencoders, ICLR,
arXiv 1903.12436: ex-post density estimation, with a mixture of 10 normals of full covariance.
Tomczak & Welling 2018, VAE with a VampPrior, AISTATS, arXiv 1705.07120: of all priors the aggregate
posterior q(z) = 1/N Σ_n q(z|x_n) would maximise the ELBO.

It is fitted to draws of q(z|x_n), not to posterior means: the decoder was trained on draws, whose variance is that of
the means and the mean posterior variance together. Means alone lie too close, the more so the less a code says.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError, ModelError, TrainingError
from kerasvae.models.samplers.base import LEAST_PEOPLE, Sampler, aggregate
from kerasvae.models.samplers.files import check_model, codes_digest, file_path
from kerasvae.models.samplers.normals import JointNormals
from kerasvae.models.vae import VAE
from kerasvae.objectives.rules import whole_number
from kerasvae.storage import atomic_path

__all__ = ["MixtureSampler"]

MOST_COMPONENTS = 10
"""The largest number of components that is tried where it is not given."""


class MixtureSampler(Sampler):
    """Codes from a mixture of normals of full covariance: z ~ Σ_k w_k N(μ_k, Σ_k).

    For a model with covariates it is a mixture over code and standardised covariates together, and codes are drawn from
    what it says of z at the covariates asked for, exactly (`JointNormals`). A category counts as a number, 0 or 1, for
    each level but the first: within a component it moves the mean.

    A component that few people make up draws these very people anew. So each must have `LEAST_PEOPLE` of them, and more
    than it has dimensions; a person is shared between components by their probabilities. A narrow posterior leaves
    little else between a draw and the nearest person: look at both before new images are called new.

    Args:
        model: The model whose codes these are.
        mixture: In the units of codes and of standardised covariates.
        people: How many it was fitted to.
    """

    def __init__(self, model: VAE, mixture: JointNormals, people: int) -> None:
        super().__init__(model)
        self.mixture = mixture
        self.people = people

    @classmethod
    def fit(cls, model: VAE, x: Any, components: int | None = None, *, draws: int = 10, seed: int = 0) -> Self:
        """A mixture of the codes of training people; expectation maximisation by scikit-learn.

        Args:
            model: A trained model whose codes are points of Euclidean space.
            x: Training images, one a person, (n, *data_shape); with covariates where the model takes them.
            components: Number of normals K. By default that of 1 to 10 with the smallest
                BIC = −2 Σ_n log p(z_n|c_n) + P log n (Schwarz 1978, Annals of Statistics 6), where log p is averaged
                over a person's draws, n counts people and P all parameters of the mixture.
            draws: Posterior draws a person; a `point` posterior has one.
            seed: Of the draws and of the fit's starts; Python's and NumPy's global seeds are not touched.

        Raises:
            ModelError: If codes are not points of Euclidean space.
            ArgumentError: If there are too few people, in all or in a component.
            TrainingError: If the fit with `components` does not converge.
        """
        seed = whole_number("seed", seed, least=0)
        codes, rows = aggregate(model, x, draws, seed)
        count, people, size = codes.shape
        condition = _condition(model, rows, people)
        y = np.concatenate([codes.reshape(-1, size), np.tile(condition, (count, 1))], axis=1, dtype=np.float64)
        least = max(LEAST_PEOPLE, y.shape[1] + 1)
        most = min(MOST_COMPONENTS, people // least)
        wanted = range(1, most + 1) if components is None else [whole_number("components", components, least=1)]
        if not wanted or max(wanted) * least > people:
            raise ArgumentError(
                "x",
                rule=f"hold {least} people or more for each component, of {y.shape[1]} dimensions",
                got=f"{people} people for {components or 1}",
                fix=f"Use {most} components or fewer" if most else "Use PriorSampler or TwoStageSampler",
            )
        fits = [_fitted(y, number, size, people, seed) for number in wanted]
        if components is not None:
            _check(fits[0], components, least)
        usable = [fit.mixture for fit in fits if fit.converged and fit.smallest >= least]
        return cls(model, min(usable, key=lambda mixture: _bic(mixture, y, people)), people)

    def _draw(self, count: int, seed: int, rows: NDArray[np.float32] | None) -> NDArray[np.float32]:
        condition = _condition(self.model, rows, count)
        return self.mixture.draw(condition, np.random.default_rng(seed)).astype(np.float32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mixture, not the model, to an .npz file."""
        mixture, digest = self.mixture, codes_digest(self.model)
        with atomic_path(file_path(path, ".npz")) as temporary:
            np.savez(
                temporary,
                weights=mixture.weights,
                means=mixture.means,
                covariances=mixture.covariances,
                people=self.people,
                digest=digest,
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: VAE) -> Self:
        """The sampler that `save` wrote, for the model that it was fitted to.

        Raises:
            ModelError: If the file is another, or was fitted to another model.
        """
        try:
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                stored = {name: file[name] for name in ("weights", "means", "covariances", "people", "digest")}
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise ModelError(path, rule="be what MixtureSampler.save wrote", got=error, fix="Fit it anew") from error
        check_model(path, str(stored["digest"]), model)
        mixture = JointNormals(stored["weights"], stored["means"], stored["covariances"], model.latent_size)
        return cls(model, mixture, int(stored["people"]))


class _Fit(NamedTuple):
    """A mixture, how many people its smallest component has, and whether the likelihood stopped rising."""

    mixture: JointNormals
    smallest: float
    converged: bool


def _fitted(y: NDArray[np.float64], components: int, size: int, people: int, seed: int) -> _Fit:
    """A mixture of the rows (draws · people, d + c), standardised for the fit, whose floor is 1e-6 of a variance."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    centre, scale = y.mean(axis=0), y.std(axis=0)
    scale[scale == 0] = 1.0
    standardised = (y - centre) / scale
    mixture = GaussianMixture(components, n_init=3, max_iter=500, reg_covar=1e-6, random_state=seed)
    # one thread: for matrices this small, BLAS spends most of the time on waking others
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` says it
        mixture.fit(standardised)
        belongs = mixture.predict_proba(standardised).reshape(-1, people, components).mean(axis=0)
    means, covariances = centre + scale * mixture.means_, scale[:, None] * mixture.covariances_ * scale
    joint = JointNormals(mixture.weights_, means, covariances, size)
    return _Fit(joint, float(belongs.sum(axis=0).min()), bool(mixture.converged_))


def _check(fit: _Fit, components: int, least: int) -> None:
    if not fit.converged:
        raise TrainingError(
            f"The mixture of {components} components",
            rule="converge within 500 steps",
            got="a likelihood that still rises",
            fix="Use fewer components",
        )
    if fit.smallest < least:
        raise ArgumentError(
            "components",
            rule=f"leave each component {least} people or more",
            got=f"{components}, of which one has {fit.smallest:.1f}",
            fix="Use fewer, or None to have their number chosen",
        )


def _bic(mixture: JointNormals, y: NDArray[np.float64], people: int) -> float:
    """−2 log p + P log n, with each person's draws counting as one person."""
    components, dimensions = mixture.means.shape
    parameters = components * (dimensions + dimensions * (dimensions + 1) // 2) + components - 1
    log_prob = mixture.log_prob(y[:, : mixture.size], y[:, mixture.size :])
    return float(-2 * people * log_prob.mean() + parameters * np.log(people))


def _condition(model: VAE, rows: NDArray[np.float32] | None, count: int) -> NDArray[np.float64]:
    """Covariates in their units, (n, k), standardised as the model does, (n, c); c is 0 where it takes none."""
    if model.coding is None or rows is None:
        return np.zeros((count, 0))
    if np.isnan(rows).any():
        raise ArgumentError(
            "covariates",
            rule="be known for everybody whom a mixture is fitted to or draws: the mean may be where nobody is",
            got=f"{int(np.isnan(rows).any(axis=1).sum())} people with a missing one",
            fix="Leave them out, or give a value",
        )
    return model.coding(rows).numpy().astype(np.float64)
