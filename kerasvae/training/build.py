"""From a recipe to a model: parts by their kind, sizes from the data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

import kerasvae.distributions as distributions
import kerasvae.objectives as objectives
from kerasvae.distributions import Likelihood, Posterior, Prior
from kerasvae.errors import RecipeError, nearest
from kerasvae.models import VAE
from kerasvae.networks import conv_decoder, conv_encoder, dense_decoder, dense_encoder, fit_core, linear_start
from kerasvae.objectives import Objective, WithMSSSIM
from kerasvae.preprocess import Pipeline
from kerasvae.training.recipe import ModelSection, Recipe
from kerasvae.types import Array, Mask

__all__ = ["build_model", "kinds"]


def kinds(module: Any, base: Any) -> dict[str, Any]:
    """The public classes of a family that a recipe can name, by their kind.

    >>> sorted(kinds(distributions, Prior))[:3]
    ['conditional_normal', 'flow', 'ladder']
    """
    found = (getattr(module, name) for name in module.__all__)
    family: list[Any] = [c for c in found if isinstance(c, type) and issubclass(c, base)]
    return {c.kind: c for c in family if c not in (base, WithMSSSIM)}


def build_model(recipe: Recipe, images: Array, pipeline: Pipeline) -> VAE:
    """The recipe's model; a linear start is fitted to `images`.

    Args:
        recipe: Sections `model`, `objective` and `training` are used.
        images: Training people, (n, *data_shape).
        pipeline: Its mask restricts the likelihood.

    Raises:
        RecipeError: If a part is unknown or an option of it is.
        ModelError: If the parts do not go together.
    """
    section, shape = recipe.model, images.shape[1:]
    sizes = {"latent_size": section.latent_size, "data_shape": shape}
    posterior = _part(Posterior, section.posterior, section.posterior_options, sizes, "model.posterior")
    prior = _part(Prior, section.prior, section.prior_options, sizes, "model.prior")
    likelihood = _likelihood(section, shape, pipeline.mask)
    encoder, decoder = _networks(recipe, shape, posterior.parameter_size(section.latent_size), likelihood.channels)
    if section.start == "linear":
        _check_linear(section)
        core = fit_core(images, section.latent_size, pipeline.mask)
        encoder, decoder = linear_start(encoder, decoder, core, pipeline.mask)
        likelihood.set_sigma(float(np.sqrt(core.noise_variance)))
    model = VAE(
        encoder,
        decoder,
        posterior=posterior,
        prior=prior,
        likelihood=likelihood,
        objective=_objective(recipe),
        seed=recipe.training.seed,
    )
    model.compile(keras.optimizers.Adam(recipe.training.learning_rate))
    return model


def _networks(recipe: Recipe, shape: tuple[int, ...], width: int, channels: int) -> tuple[keras.Model, keras.Model]:
    section = recipe.model
    if section.network == "dense":
        made = (*shape, channels) if channels > 1 else shape
        return dense_encoder(shape, width), dense_decoder(made, section.latent_size)
    options: dict[str, Any] = {"filters": section.filters, "norm": section.norm}
    encoder = conv_encoder(shape, width, dropout=section.dropout, seed=recipe.training.seed, **options)
    return encoder, conv_decoder(shape, section.latent_size, channels=channels, **options)


def _likelihood(section: ModelSection, shape: tuple[int, ...], mask: Mask | None) -> Any:
    """The likelihood; for the normal one `scale` and `stddev` are keys of their own."""
    options = dict(section.likelihood_options)
    if section.likelihood == "normal":
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
    if section.scale in ("per_voxel", "decoder"):
        raise RecipeError(
            "model.scale",
            rule="be one number with a linear start: 'optimal', 'learned' or 'fixed'",
            got=repr(section.scale),
            fix='Set model.start = "random"',
        )


def _part(base: Any, kind: str, options: Mapping[str, Any], sizes: Mapping[str, Any], key: str) -> Any:
    """An object of a kind: its options from the recipe, and those of the sizes that its constructor takes."""
    family = kinds(objectives if base is Objective else distributions, base)
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
