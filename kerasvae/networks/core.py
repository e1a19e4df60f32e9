"""The linear core of a model: principal axes of people's images, variances along them and the noise around them.

Tipping & Bishop 1999, Probabilistic Principal Component Analysis, J. R. Stat. Soc. B 61(3):611-622: see
`kerasvae.networks.linear`, which makes networks of it. Of few people the sample covariance can be replaced by the most
probable one under a smooth prior: see `kerasvae.networks.covariance_map`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError
from kerasvae.networks.covariance_map import (
    KINDS,
    Choice,
    choose_prior,
    mirror_index,
    probable_axes,
    sample_axes,
)
from kerasvae.networks.left_out import (
    Find,
    Fit,
    energy_around,
    explained_by,
    fits_without,
    fitted_to,
    folds_of,
    residuals_of,
    scale_by,
    turn_to,
)
from kerasvae.networks.prior_covariance import PriorCovariance, SmoothPrior, checked_spacing
from kerasvae.networks.spline import Coarse
from kerasvae.types import Array, Mask

__all__ = ["Core", "LeftOut", "core_codes", "fit_core"]

MOST_LEVERAGE = 0.9
"""Of one person on what follows from covariates: at 1 the fit passes through that person's image."""


class Core(NamedTuple):
    """Probabilistic PCA of masked images.

    Attributes:
        mean: Mean image over mask voxels, (v,); its coefficients where axes are coarse.
        axes: Orthonormal principal axes as rows, (q, v).
        eigenvalues: Variances along them, largest first, (q,).
        noise_variance: σ² per voxel.
        slopes: Change of the image with each standardised covariate, (c, v); no rows without.
        mirrored: Whether left and right were exchanged to double the sample.
        priors: What was believed of the covariance beforehand; nothing in plain probabilistic PCA.
        choice: What cross-validation said of it, where it was asked to choose.
        rotation: Of codes, (q, q): what turns codes along the axes into the model's; None for the axes themselves.
        mirror_images: Part of left-out people's variance that is explained without mirror images and with them, where
            cross-validation was asked.
        left_out: Cores without some of the people, each person being left out of one; see `fit_core`.
        step: Voxels between the knots of the splines that axes consist of, see `kerasvae.networks.spline`; v is then
            the number of coefficients. 1: axes are images.
        background: Where axes are coarse, the mean image over mask voxels, (w,).
    """

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    eigenvalues: NDArray[np.float64]
    noise_variance: float
    slopes: NDArray[np.float32]
    mirrored: bool = False
    priors: tuple[SmoothPrior, ...] = ()
    choice: Choice | None = None
    rotation: NDArray[np.float32] | None = None
    mirror_images: tuple[float, float] | None = None
    left_out: tuple[LeftOut, ...] = ()
    step: int = 1
    background: NDArray[np.float32] | None = None

    @property
    def loading_scale(self) -> NDArray[np.float64]:
        """Standard deviation along each axis beyond the noise, √(λ − σ²), (q,): the length of its column of W."""
        return np.sqrt(np.maximum(self.eigenvalues - self.noise_variance, 0.0))

    def describe(self) -> str:
        """How the axes were found, as one sentence.

        >>> nothing = np.zeros((0, 4), np.float32)
        >>> Core(np.zeros(4), nothing, np.zeros(0), 1.0, nothing, mirrored=True).describe()
        'Linear core: principal axes of the images and their mirror images.'
        """
        text = "Linear core: principal axes of the images" + (" and their mirror images" if self.mirrored else "")
        text += f", as splines with a knot every {self.step} voxels" if self.step > 1 else ""
        text += ", with a " + " and a ".join(map(str, self.priors)) if self.priors else ""
        if self.choice is None and self.mirror_images is None:
            return f"{text}."
        kept = self.choice.explained if self.choice is not None else 0.0
        others = []
        if self.choice is not None:
            others.append(f"without a prior {self.choice.without:.3f}" if self.priors else "and no prior does better")
        if self.mirror_images is not None:
            kept, other = self.mirror_images[self.mirrored], self.mirror_images[not self.mirrored]
            others.insert(0, f"{'without' if self.mirrored else 'with'} mirror images {other:.3f}")
        return f"{text}; of training people left out they explain {kept:.3f} of the variance, {', '.join(others)}."


class LeftOut(NamedTuple):
    """People, and a core that does not know them.

    Attributes:
        rows: Whose images they are, (m,), as positions in what was given.
        core: Of all others, with the variances, noise and beliefs of the core of all, its codes turned so that loadings
            come as near as they can to those of the core of all.
    """

    rows: NDArray[np.intp]
    core: Core


def fit_core(
    images: NDArray[np.float32],
    latent_size: int,
    mask: Mask | None = None,
    condition: NDArray[np.float32] | None = None,
    *,
    mirror: bool | Literal["auto"] = False,
    prior: Literal["auto", "variance", "deformation"] | SmoothPrior | Sequence[SmoothPrior] | None = None,
    spacing_mm: Sequence[float] | None = None,
    groups: Sequence[Any] | None = None,
    cross_fit: bool = False,
    step: int = 1,
    seed: int = 0,
) -> Core:
    """Probabilistic PCA: of the sample covariance, or of the most probable one under a smooth prior.

    Without a prior it is exact, through the n × n Gram matrix (n people, far fewer than voxels). With one, axes are the
    leading eigenvectors of S + f T, found by Lanczos iteration, and the variances along them and σ² those of training
    people left out, five-fold; no v × v matrix is formed. A person whose image differs from the mean by more than ten
    times the median person's sum of squares is then scaled down to that, so that one bad image decides nothing.

    Args:
        images: (n, *data_shape), training people only.
        latent_size: Number of components q; components beyond n − 1 get eigenvalue σ² and stay inactive.
        mask: Voxels to use.
        condition: Standardised covariates, (n, c): what follows from them by a line is taken out first.
        mirror: Count every person's deviation from the mean also with left and right (axis 0) exchanged, about the
            middle of the grid. The mean keeps its asymmetry. A voxel whose counterpart is outside the mask keeps its
            value. "auto" does so where people left out are then explained better; with too few people to leave some out
            it does, and vectors have no left and right.
        prior: One belief or several that add up. Of a kind that is named, width and share are chosen among the training
            people; "auto" chooses the kind, too, and takes none where none is better, and where there can be none:
            vectors have no neighbours, and few images leave none to be left out.
        spacing_mm: Distance between voxels along each axis, mm; a prior needs it.
        groups: The person of each image, (n,), so that nobody is both learned from and left out; by default each image
            is another person.
        cross_fit: Keep the cores of five folds, `Core.left_out`, which train what stands beside a core.
        step: Voxels between the knots of the splines that axes consist of: for large grids, whose axes would take much
            memory and time. The mean keeps every voxel.
        seed: Of the folds and of the iteration's start.

    Raises:
        ArgumentError: With fewer than three images, or images that do not differ; with covariates that determine a
            person's image; with a prior or mirror images of what has no axes, a spacing that does not fit, or too few
            people to leave some out.
    """
    if len(images) < 3:
        raise ArgumentError("images", rule="hold at least three people", got=len(images), fix="Train on more people")
    if step < 1 or int(step) != step:
        raise ArgumentError("step", rule="be a whole number of voxels, 1 or more", got=step, fix="Use 1")
    inside = np.ones(images.shape[1:], bool) if mask is None else np.asarray(mask, bool)
    flat = images.reshape(len(images), -1) if mask is None else images[:, mask]
    whole, background = None, None
    design = np.ones((len(flat), 1)) if condition is None else np.column_stack([np.ones(len(flat)), condition])
    _check_condition(design)
    if step > 1:
        coarse = Coarse.of(inside, step)
        whole, flat, inside = flat, coarse.down(flat), coarse.inside
        background = fitted_to(whole, design)[0]
        spacing_mm = None if spacing_mm is None else tuple(step * length for length in spacing_mm)
    people = np.arange(len(flat)) if groups is None else np.asarray(groups)
    if len(people) != len(flat):
        raise ArgumentError("groups", rule="name each image's person", got=len(people), fix=f"Give {len(flat)} names")
    enough = _can_leave_out(people, design, seed)
    exchanges = _exchanges(mirror, inside, enough)
    count = _supported(flat, design, latent_size)
    named = _named(prior)
    if prior is not None and inside.ndim > 1 and spacing_mm is None:
        raise ArgumentError("spacing_mm", rule="be given with a prior", got=None, fix="Give `pipeline.grid.spacing`")
    choosing = isinstance(prior, str) and (prior != "auto" or (inside.ndim > 1 and enough))
    if choosing or named or cross_fit:
        _check_left_out(flat, people, design, enough)
    spacing = checked_spacing(inside, spacing_mm or ()) if choosing or named else ()
    if count < 1:
        raise _no_variance()
    ways = []
    for exchange in exchanges:
        choice, priors = None, named
        if choosing:
            kinds = KINDS if prior == "auto" else tuple(kind for kind in KINDS if kind == prior)
            choice = choose_prior(flat, design, inside, spacing, count, exchange, people, seed, kinds)
            priors = choice.priors
        find = _finder(inside, priors, spacing, count, exchange, seed)
        judged = bool(priors) or cross_fit or len(exchanges) > 1
        fits = fits_without(flat, design, find, folds_of(people, seed), whole) if judged else []
        ways.append(_Way(exchange, priors, choice, find, fits))
    explained = [explained_by(way.fits) for way in ways]
    way = ways[int(np.argmax(explained))]
    if way.priors:
        core = _most_probable(flat, design, latent_size, way)
    else:
        core = _of_sample(flat, design, latent_size, way, whole)
    core = core._replace(mirrored=way.exchange is not None, priors=way.priors, choice=way.choice)
    core = core._replace(step=step, background=background)
    if len(ways) > 1:
        core = core._replace(mirror_images=(explained[0], explained[1]))
    return core._replace(left_out=tuple(_without(core, fit) for fit in way.fits)) if cross_fit else core


class _Way(NamedTuple):
    """One way to find axes, and how far they hold for people left out."""

    exchange: NDArray[np.intp] | None
    priors: tuple[SmoothPrior, ...]
    choice: Choice | None
    find: Find
    fits: list[Fit]


def _exchanges(mirror: bool | Literal["auto"], inside: Mask, enough: bool) -> list[NDArray[np.intp] | None]:
    """What may be done about mirror images: nothing, or the exchange; both, in this order, where it is to be judged."""
    if mirror == "auto":
        if inside.ndim == 1:
            return [None]
        return [None, mirror_index(inside)] if enough else [mirror_index(inside)]
    if mirror and inside.ndim == 1:
        raise ArgumentError(
            "images", rule="be slices or volumes for mirror images", got="1 axis", fix="Set mirror to False"
        )
    return [mirror_index(inside) if mirror else None]


def _named(prior: str | SmoothPrior | Sequence[SmoothPrior] | None) -> tuple[SmoothPrior, ...]:
    """Priors that are given; none where they are to be chosen."""
    if isinstance(prior, str):
        if prior not in ("auto", *KINDS):
            names = ", ".join(map(repr, ("auto", *KINDS)))
            raise ArgumentError("prior", rule=f"be {names} or a SmoothPrior", got=repr(prior), fix="Choose one of them")
        return ()
    return () if prior is None else (prior,) if isinstance(prior, SmoothPrior) else tuple(prior)


def _finder(
    inside: Mask,
    priors: tuple[SmoothPrior, ...],
    spacing_mm: Sequence[float],
    count: int,
    exchange: NDArray[np.intp] | None,
    seed: int,
) -> Find:
    """Axes of people's most probable covariance, or of their sample's."""

    def make_prior(mean: Array, stddev: Array) -> PriorCovariance:
        return PriorCovariance(priors, mean, stddev, inside, spacing_mm)

    def probable(flat: Array, design: NDArray[np.float64]) -> tuple[Array, Array, Array]:
        return probable_axes(flat, design, make_prior, count, exchange, seed)

    def sample(flat: Array, design: NDArray[np.float64]) -> tuple[Array, Array, Array]:
        coefficients, residuals = residuals_of(flat, design)
        found = sample_axes(residuals, _supported(flat, design, count), exchange)[1]
        return coefficients, residuals, np.concatenate([found, np.zeros((count - len(found), flat.shape[1]), "f4")])

    return probable if priors else sample


def _check_condition(design: NDArray[np.float64]) -> None:
    """Refuse covariates that leave nothing to learn, or that would reproduce a person's image by themselves."""
    people, columns = design.shape
    if people - 1 - columns < 1:
        raise ArgumentError(
            "condition",
            rule=f"have fewer columns than people, less three: {people - 3}",
            got=columns - 1,
            fix="Use fewer covariates, or more people",
        )
    leverage = np.einsum("nc,cn->n", design, np.linalg.pinv(design))
    if columns > 1 and leverage.max() > MOST_LEVERAGE:
        raise ArgumentError(
            "condition",
            rule=f"leave the leverage of every person at {MOST_LEVERAGE} or below",
            got=f"{leverage.max():.2f} in row {int(leverage.argmax())}, whose image the covariates would reproduce",
            fix="Join levels, or use fewer covariates",
        )


def _of_sample(flat: Array, design: NDArray[np.float64], latent_size: int, way: _Way, whole: Array | None) -> Core:
    """Maximum likelihood: eigenvectors of the sample covariance."""
    fitted, residuals = residuals_of(flat, design)
    values, axes = sample_axes(residuals, _supported(flat, design, latent_size), way.exchange)
    kept = len(axes)
    if values[0] <= 0 or kept < 1:
        raise _no_variance()
    total, voxels = float(values.sum()), flat.shape[1]
    if whole is not None:
        energies = energy_around(whole, design, fitted_to(whole, design), range(len(whole)))
        total, voxels = float(energies.mean()), whole.shape[1]
    noise = float((total - values[:kept].sum()) / (voxels - kept))
    noise = max(noise, 1e-12 * float(values[0]))
    return _filled(fitted, axes, values[:kept], noise, latent_size)


def _most_probable(flat: Array, design: NDArray[np.float64], latent_size: int, way: _Way) -> Core:
    """Eigenvectors of S + f T, with the variances of people left out."""
    fitted, _, axes = way.find(flat, design)
    variances, noise = scale_by(way.fits)
    noise = max(noise, 1e-12 * float(variances[0]))
    return _filled(fitted, axes, variances, noise, latent_size)


def _without(core: Core, fit: Fit) -> LeftOut:
    """The core of a fit, with the scale of the core of all and its codes turned to that one's."""
    axes = np.zeros_like(core.axes)
    axes[: len(fit.axes)] = fit.axes
    turn = turn_to(axes, core.axes, core.loading_scale)
    mean, slopes = fit.coefficients[0], fit.coefficients[1:]
    other = core._replace(mean=mean, axes=axes, slopes=slopes, rotation=turn, background=fit.background)
    return LeftOut(fit.rows, other)


def _filled(
    fitted: NDArray[np.float32], found: Any, variances: NDArray[np.float64], noise: float, latent_size: int
) -> Core:
    """A core of the axes that were found; the rest have the variance of the noise and no direction."""
    axes = np.zeros((latent_size, fitted.shape[1]), np.float32)
    axes[: len(found)] = found
    eigenvalues = np.full(latent_size, noise)
    eigenvalues[: len(found)] = np.maximum(variances, noise)
    return Core(fitted[0], axes, eigenvalues, noise, fitted[1:])


def _supported(flat: Array, design: NDArray[np.float64], latent_size: int) -> int:
    """How many components so many people support, at most."""
    return min(latent_size, len(flat) - 1 - design.shape[1], flat.shape[1] - 1)


def _can_leave_out(people: NDArray[Any], design: NDArray[np.float64], seed: int) -> bool:
    """Whether every fold's learners are more than the design has columns."""
    if len(np.unique(people)) < 3:
        return False
    return min(len(train) for train, _ in folds_of(people, seed)) > design.shape[1]


def _check_left_out(flat: Array, people: NDArray[Any], design: NDArray[np.float64], enough: bool) -> None:
    """ArgumentError if people cannot be left out, or do not differ."""
    if not enough:
        got = f"{len(np.unique(people))} people, {design.shape[1] - 1} covariates"
        fix = "Use more people, or neither a prior nor cross-fitting"
        raise ArgumentError("images", rule="be enough to leave people out", got=got, fix=fix)
    if not (flat != flat[0]).any():
        raise _no_variance()


def _no_variance() -> ArgumentError:
    return ArgumentError("images", rule="differ between people", got="no variance", fix="Check the preprocessing")


def core_codes(
    core: Core,
    images: NDArray[np.float32],
    mask: Mask | None = None,
    condition: NDArray[np.float32] | None = None,
) -> NDArray[np.float64]:
    """Posterior means of probabilistic PCA, (n, q), in prior standard deviations; arguments as for `fit_core`."""
    flat = images.reshape(len(images), -1) if mask is None else images[:, mask]
    if core.step > 1:
        flat = Coarse.of(np.ones(images.shape[1:], bool) if mask is None else mask, core.step).down(flat)
    expected = core.mean if condition is None else core.mean + condition @ core.slopes
    return (flat - expected) @ core.axes.T * (core.loading_scale / core.eigenvalues)
