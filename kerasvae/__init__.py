"""kerasvae: from a folder of brain images to a deployable encoder that you can trust.

Public names are loaded when first used; importing this package imports no TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kerasvae.backend import require_tensorflow

if TYPE_CHECKING:
    from kerasvae.covariates import Covariate, Covariates
    from kerasvae.data import Cohort, Split
    from kerasvae.data.augment import (
        Augmentation,
        MixNeighbours,
        RandomAffine,
        RandomBiasField,
        RandomBlur,
        RandomElastic,
        RandomFlip,
        RandomGamma,
        RandomNoise,
        augmented,
    )
    from kerasvae.data.simulate import simulate
    from kerasvae.distributions import NormalLikelihood, NormalPosterior, StandardNormalPrior
    from kerasvae.models import VAE, MixtureSampler, PriorSampler, RegressionVAE, TwoStageSampler
    from kerasvae.networks import (
        SmoothPrior,
        conv_decoder,
        conv_encoder,
        dense_decoder,
        dense_encoder,
        fit_core,
        ladder_encoder,
        linear_start,
    )
    from kerasvae.preprocess import Pipeline, fit_pipeline
    from kerasvae.training.cross_fit import CrossFit
    from kerasvae.training.guard import CollapseGuard
    from kerasvae.training.recipe import Recipe, load_recipe
    from kerasvae.training.run import Run, load_run
    from kerasvae.training.textbook import textbook
    from kerasvae.training.train import train

__version__ = "0.1.0"

_HOMES = {
    "VAE": "kerasvae.models",
    "RegressionVAE": "kerasvae.models",
    "MixtureSampler": "kerasvae.models",
    "PriorSampler": "kerasvae.models",
    "TwoStageSampler": "kerasvae.models",
    "Covariate": "kerasvae.covariates",
    "Covariates": "kerasvae.covariates",
    "Cohort": "kerasvae.data",
    "Split": "kerasvae.data",
    **dict.fromkeys(
        (
            "Augmentation",
            "MixNeighbours",
            "RandomAffine",
            "RandomBiasField",
            "RandomBlur",
            "RandomElastic",
            "RandomFlip",
            "RandomGamma",
            "RandomNoise",
            "augmented",
        ),
        "kerasvae.data.augment",
    ),
    "simulate": "kerasvae.data.simulate",
    "NormalLikelihood": "kerasvae.distributions",
    "NormalPosterior": "kerasvae.distributions",
    "StandardNormalPrior": "kerasvae.distributions",
    "conv_decoder": "kerasvae.networks",
    "conv_encoder": "kerasvae.networks",
    "dense_decoder": "kerasvae.networks",
    "dense_encoder": "kerasvae.networks",
    "SmoothPrior": "kerasvae.networks",
    "fit_core": "kerasvae.networks",
    "ladder_encoder": "kerasvae.networks",
    "linear_start": "kerasvae.networks",
    "CollapseGuard": "kerasvae.training.guard",
    "Pipeline": "kerasvae.preprocess",
    "fit_pipeline": "kerasvae.preprocess",
    "Recipe": "kerasvae.training.recipe",
    "load_recipe": "kerasvae.training.recipe",
    "Run": "kerasvae.training.run",
    "load_run": "kerasvae.training.run",
    "CrossFit": "kerasvae.training.cross_fit",
    "textbook": "kerasvae.training.textbook",
    "train": "kerasvae.training.train",
}

_ON_KERAS = {"CollapseGuard", "CrossFit", "train"} | {
    name for name, home in _HOMES.items() if home.endswith(("augment", "distributions", "models", "networks"))
}

__all__ = [
    "VAE",
    "Augmentation",
    "Cohort",
    "CollapseGuard",
    "Covariate",
    "Covariates",
    "CrossFit",
    "MixNeighbours",
    "MixtureSampler",
    "NormalLikelihood",
    "NormalPosterior",
    "Pipeline",
    "PriorSampler",
    "RandomAffine",
    "RandomBiasField",
    "RandomBlur",
    "RandomElastic",
    "RandomFlip",
    "RandomGamma",
    "RandomNoise",
    "Recipe",
    "RegressionVAE",
    "Run",
    "SmoothPrior",
    "Split",
    "StandardNormalPrior",
    "TwoStageSampler",
    "__version__",
    "augmented",
    "conv_decoder",
    "conv_encoder",
    "dense_decoder",
    "dense_encoder",
    "fit_core",
    "fit_pipeline",
    "ladder_encoder",
    "linear_start",
    "load_recipe",
    "load_run",
    "simulate",
    "textbook",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kerasvae' has no attribute {name!r}")
    if name in _ON_KERAS:
        require_tensorflow()
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted(__all__)
