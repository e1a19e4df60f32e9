"""From a recipe to a model: parts by their kind, sizes from the data."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

import kerasvae.distributions as distributions
import kerasvae.objectives as objectives
from kerasvae.covariates import FEWEST, Covariate, Covariates
from kerasvae.distributions import Likelihood, Posterior, Prior, RegressionPrior, inverse_positive
from kerasvae.errors import RecipeError, nearest
from kerasvae.models import VAE, RegressionVAE
from kerasvae.models.coding import Coding
from kerasvae.models.regression import FLOOR
from kerasvae.networks import (
    Core,
    conv_decoder,
    conv_encoder,
    core_codes,
    dense_decoder,
    dense_encoder,
    fit_core,
    linear_start,
)
from kerasvae.objectives import Objective, Wrapper
from kerasvae.objectives.independence import Independence
from kerasvae.preprocess import Pipeline
from kerasvae.training.recipe import ModelSection, Recipe
from kerasvae.types import Array, Mask

__all__ = ["Built", "build_model", "kinds"]


FEWEST_TO_LEAVE_OUT = 8
"""People, beside one for each column of a design, below which a core without some of them says little."""


class Built(NamedTuple):
    """A model, and what its linear start is made of.

    Attributes:
        model: Compiled, not trained.
        core: The linear start; None without one.
    """

    model: VAE
    core: Core | None = None


def kinds(module: Any, base: Any) -> dict[str, Any]:
    """The public classes of a family that a recipe can name, by their kind.

    >>> sorted(kinds(distributions, Prior))[:3]
    ['conditional_normal', 'flow', 'ladder']
    """
    found = (getattr(module, name) for name in module.__all__)
    family: list[Any] = [c for c in found if isinstance(c, type) and issubclass(c, base)]
    return {c.kind: c for c in family if c is not base and (issubclass(base, Wrapper) or not issubclass(c, Wrapper))}


def build_model(
    recipe: Recipe,
    images: Array,
    pipeline: Pipeline,
    table: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, str] | None = None,
    limits: Mapping[str, Sequence[str]] | None = None,
    people: Sequence[str] | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Built:
    """The recipe's model; covariates and a linear start are fitted to the training people.

    Args:
        recipe: Sections `model`, `objective` and `training` are used.
        images: Training people, (n, *data_shape).
        pipeline: Its mask restricts the likelihood.
        table: Their covariates, column name to n cells, for models that take any.
        units: Of columns.
        limits: Covariates of the whole cohort; see `Covariates.fit`.
        people: The person of each image; by default each is another.
        tell: Called with a sentence about a linear start.

    Raises:
        RecipeError: If a part is unknown or an option of it is, or a covariate is not in the table.
        ArgumentError: If a covariate does not vary or has missing values.
        ModelError: If the parts do not go together.
    """
    section, shape = recipe.model, images.shape[1:]
    if section.network == "refine" and section.start != "linear":
        raise RecipeError(
            "model.network",
            rule="be 'conv' or 'dense' without a linear start, for there is nothing to refine",
            got="'refine'",
            fix='Set model.start = "linear", or another network',
        )
    covariates, target = _covariates(section, table or {}, units or {}, limits or {})
    condition = None if covariates is None else Coding(covariates)(covariates.matrix(table or {})).numpy()
    condition_size = 0 if condition is None else condition.shape[1]
    sizes = {"latent_size": section.latent_size, "data_shape": shape, "condition_size": condition_size}
    posterior = _part(Posterior, section.posterior, section.posterior_options, sizes, "model.posterior")
    # a regression's prior is its own, unless another is asked for, which it refuses
    kind = "regression" if target and section.prior == "standard_normal" else section.prior
    prior = _part(Prior, kind, section.prior_options, sizes, "model.prior")
    likelihood = _likelihood(section, shape, pipeline.mask)
    width = posterior.parameter_size(section.latent_size) + (2 if target else 0)
    encoder, decoder = _networks(recipe, shape, width, likelihood.channels, condition_size)
    core = None
    if section.start == "linear":
        _check_linear(section)
        core = _core(recipe, images, pipeline, condition, people)
        tell(core.describe())
        reading = None
        if target:
            values = Covariates([target]).matrix({target.name: (table or {})[target.name]})[:, 0]
            codes = core_codes(core, images, pipeline.mask, condition)
            reading = _regression_start(prior, codes, core.noise_variance / core.eigenvalues, values, target)
        refine = section.refine if section.network == "refine" else ()
        encoder, decoder = linear_start(
            encoder, decoder, core, pipeline.mask, data_shape=shape, refine=refine, reading=reading
        )
        likelihood.set_sigma(float(np.sqrt(core.noise_variance)))
    parts: dict[str, Any] = {
        "posterior": posterior,
        "prior": prior,
        "likelihood": likelihood,
        "objective": _independent(recipe, _objective(recipe), table or {}),
        "seed": recipe.training.seed,
        "covariates": covariates,
    }
    model = RegressionVAE(encoder, decoder, target=target, **parts) if target else VAE(encoder, decoder, **parts)
    model.compile(keras.optimizers.Adam(recipe.training.learning_rate))
    return Built(model, core)


def _covariates(
    section: ModelSection,
    table: Mapping[str, Sequence[str]],
    units: Mapping[str, str],
    limits: Mapping[str, Sequence[str]],
) -> tuple[Covariates | None, Covariate | None]:
    """What the model takes beside the image, and what it regresses on it."""
    wanted = (*section.condition, *([section.target] if section.target else []))
    _check_columns("model.condition and model.target", wanted, table)
    if section.target in section.condition:
        raise RecipeError(
            "model.target",
            rule="be left out of model.condition: what is given need not be regressed",
            got=repr(section.target),
            fix="Take it out of one of them",
        )
    target = covariates = None
    if section.target:
        target = Covariates.fit({section.target: table[section.target]}, units=units, missing="mean", limits=limits)[0]
    if section.condition:
        covariates = Covariates.fit(
            {name: table[name] for name in section.condition},
            categorical=section.categorical,
            units=units,
            missing=section.missing,
            limits=limits,
        )
    return covariates, target


def _core(
    recipe: Recipe,
    images: Array,
    pipeline: Pipeline,
    condition: NDArray[np.float32] | None,
    people: Sequence[str] | None,
) -> Core:
    """The linear core as the recipe asks for it; what is plain needs no grid."""
    section = recipe.model
    options: dict[str, Any] = {}
    if section.core_prior != "none":
        options = {"prior": section.core_prior, "spacing_mm": pipeline.grid.spacing}
    columns = 1 + (0 if condition is None else condition.shape[1])
    enough = len(set(people) if people is not None else images) >= FEWEST_TO_LEAVE_OUT + columns
    return fit_core(
        images,
        section.latent_size,
        pipeline.mask,
        condition,
        mirror=section.core_mirror,
        groups=people,
        cross_fit=recipe.training.cross_fit and enough,
        step=section.core_step,
        seed=recipe.training.seed,
        **options,
    )


def _regression_start(
    prior: Prior,
    codes: NDArray[np.float64],
    variances: NDArray[np.float64],
    values: NDArray[np.float32],
    target: Covariate,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Let a linear start read the target, and its prior know the direction in which codes change with it.

    The reading is ridge regression on the codes, its strength and its error found by leaving one person out.

    Args:
        prior: A regression prior; its u and σ are set.
        codes: Posterior means of the training people, (n, q).
        variances: Their posterior variances, (q,).
        values: Their targets, (n,), NaN where unknown.
        target: The target.

    Returns:
        Weights (q, 2) and biases (2,) for f and the raw g of q(r|x), see `RegressionVAE`.
    """
    from sklearn.linear_model import RidgeCV

    known = np.isfinite(values)
    codes, r = codes[known], (values[known].astype(np.float64) - target.mean) / target.stddev
    ridge = RidgeCV(np.logspace(-3, 4, 22), store_cv_results=True).fit(codes, r)
    stddev = float(np.sqrt(ridge.cv_results_.mean(axis=0).min()))
    if isinstance(prior, RegressionPrior):
        slope = codes.T @ r
        u = slope / np.linalg.norm(slope)
        spread = np.mean(np.square(codes - np.outer(r, u))) + np.mean(variances)
        prior.set(u, float(np.sqrt(spread)))
    weights = np.stack([ridge.coef_, np.zeros_like(ridge.coef_)], axis=1)
    return weights, np.array([ridge.intercept_, inverse_positive(max(stddev, 2 * FLOOR), FLOOR)])


def _networks(
    recipe: Recipe, shape: tuple[int, ...], width: int, channels: int, condition_size: int
) -> tuple[keras.Model | None, keras.Model | None]:
    """The networks, or nothing where a linear start is refined and has none beside it."""
    section = recipe.model
    if section.network == "refine":
        return None, None
    if section.network == "dense":
        made = (*shape, channels) if channels > 1 else shape
        encoder = dense_encoder(shape, width, condition_size=condition_size)
        return encoder, dense_decoder(made, section.latent_size, condition_size=condition_size)
    options: dict[str, Any] = {"filters": section.filters, "norm": section.norm, "condition_size": condition_size}
    encoder = conv_encoder(shape, width, dropout=section.dropout, seed=recipe.training.seed, **options)
    return encoder, conv_decoder(shape, section.latent_size, channels=channels, **options)


def _likelihood(section: ModelSection, shape: tuple[int, ...], mask: Mask | None) -> Any:
    """The likelihood; for the normal one `scale` and `stddev` are keys of their own."""
    options = dict(section.likelihood_options)
    if section.likelihood == "normal" and section.scale == "voxel_mean":
        # mean over N voxels of (x − x̂)², with the KL beside it, is −log N(x; x̂, N/2) and a constant
        voxels = math.prod(shape) if mask is None else int(mask.sum())
        options = {"scale": "fixed", "stddev": math.sqrt(voxels / 2)} | options
    elif section.likelihood == "normal":
        floor = min(1e-3, section.stddev / 10)
        options = {"scale": section.scale, "stddev": section.stddev, "floor": floor} | options
    sizes = {"data_shape": shape, "mask": mask}
    return _part(Likelihood, section.likelihood, options, sizes, "model.likelihood")


def _objective(recipe: Recipe) -> Objective:
    """The objective; `training.beta` is its `beta` where that is the weight of the KL, 1 for the bound."""
    section = recipe.objective
    options = dict(section.options)
    kind = kinds(objectives, Objective).get(section.kind)
    beta = None if kind is None else inspect.signature(kind).parameters.get("beta")
    if beta is not None and beta.default == 1.0:
        options.setdefault("beta", recipe.training.beta)
    elif recipe.training.beta != 1.0:
        raise RecipeError(
            "training.beta",
            rule=f"be 1 with the objective {section.kind!r}, whose weights are in objective.options",
            got=recipe.training.beta,
            fix="Take it out",
        )
    return _part(Objective, section.kind, options, {}, "objective.kind")


def _independent(recipe: Recipe, objective: Objective, table: Mapping[str, Sequence[str]]) -> Objective:
    """The objective, with a price for what codes tell of a category where the recipe names one.

    People of a level with few of them do not count, as those of whom it is not known.
    """
    section = recipe.objective
    if not section.independent_of:
        return objective
    _check_columns("objective.independent_of", [section.independent_of], table)
    name, cells = section.independent_of, [cell.strip() for cell in table[section.independent_of]]
    known = {name: [cell if cells.count(cell) >= FEWEST else "" for cell in cells]}
    sizes = {"objective": objective, "site": Covariates.fit(known, categorical=[name], missing="mean")[0]}
    kind = f"with_{section.independence}"
    return _part(Independence, kind, section.independence_options, sizes, "objective.independence")


def _check_columns(key: str, wanted: Sequence[str], table: Mapping[str, Sequence[str]]) -> None:
    """Refuse names that are no column."""
    for name in wanted:
        if name not in table:
            close = nearest(name, table)
            raise RecipeError(
                key,
                rule="name columns of the cohort's table",
                got=repr(name),
                fix=f"Did you mean {close!r}?" if close else f"It has {', '.join(table) or 'none'}",
            )


def _check_linear(section: ModelSection) -> None:
    """Probabilistic PCA is a normal posterior and a normal likelihood with one scale."""
    for key, kind in (("posterior", section.posterior), ("likelihood", section.likelihood)):
        if kind != "normal":
            raise RecipeError(
                f"model.{key}",
                rule="be 'normal' with a linear start, which is probabilistic PCA",
                got=repr(kind),
                fix='Set model.start = "random"',
            )
    if section.scale in ("per_voxel", "decoder", "voxel_mean"):
        raise RecipeError(
            "model.scale",
            rule="be one number with a linear start: 'optimal', 'learned' or 'fixed'",
            got=repr(section.scale),
            fix='Set model.start = "random"',
        )


def _part(base: Any, kind: str, options: Mapping[str, Any], sizes: Mapping[str, Any], key: str) -> Any:
    """An object of a kind: its options from the recipe, and those of the sizes that its constructor takes."""
    family = kinds(objectives if issubclass(base, Objective) else distributions, base)
    if kind not in family:
        close = nearest(kind, family)
        raise RecipeError(
            key,
            rule=f"be one of {', '.join(family)}",
            got=repr(kind),
            fix=f"Did you mean {close!r}?" if close else "Choose one",
        )
    known = [name for name in inspect.signature(family[kind]).parameters if name != "kwargs"]
    for name in options:
        if name not in known:
            close = nearest(name, known)
            raise RecipeError(
                f"The option {name!r} of {key} {kind!r}",
                rule="be one that it has",
                got="an unknown option",
                fix=f"Did you mean {close!r}?" if close else f"Valid: {', '.join(known) or 'none'}",
            )
    given = {name: value for name, value in sizes.items() if name in known} | dict(options)
    for name, parameter in inspect.signature(family[kind]).parameters.items():
        required = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if required and name not in given:
            raise RecipeError(
                f"The option {name!r} of {key} {kind!r}", rule="be given", got="nothing", fix="Add it to the options"
            )
    return family[kind](**given)
