"""What goes with what: one declared table; the rest is refused with a sentence.

`docs/models.md` shows the table; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kerasvae.distributions import Likelihood, Posterior, Prior
from kerasvae.errors import ModelError
from kerasvae.objectives import Objective, Wrapper

__all__ = ["CONDITIONAL_PRIORS", "OBJECTIVES", "PRIORS", "check_combination"]

NORMALS = ("normal", "full_normal", "low_rank_normal")
DENSITIES = (*NORMALS, "iaf", "real_nvp", "ladder", "power_spherical", "von_mises_fisher")
REAL = ("standard_normal", "mixture", "vamp", "flow", "conditional_normal", "regression")
KNOWN = (*REAL, "uniform_sphere", "uniform_codes", "ladder")
CODES = ("vector_quantised", "relaxed_categorical")
POINTS = (*DENSITIES, "point")
INDEPENDENCE = ("with_hsic", "with_adversary")

FIXED = ("standard_normal", "uniform_sphere")
WITH_KL = (*DENSITIES, "relaxed_categorical")
NO_KL = "it needs the posterior's density, or a KL that the encoder can lower"

CONDITIONAL_PRIORS = ("conditional_normal", "regression")
"""Priors that need covariates, hence a model that takes them."""

PRIORS: Mapping[str, tuple[tuple[str, ...], str]] = MappingProxyType(
    {
        "normal": (REAL, "its codes are points of Euclidean space, without levels"),
        "full_normal": (REAL, "its codes are points of Euclidean space, without levels"),
        "low_rank_normal": (REAL, "its codes are points of Euclidean space, without levels"),
        "iaf": (tuple(p for p in REAL if p != "vamp"), "its density is quick to compute at its own draws only"),
        "real_nvp": (REAL, "its codes are points of Euclidean space, without levels"),
        "ladder": (("ladder", *REAL), "its codes are points of Euclidean space"),
        "power_spherical": (("uniform_sphere",), "its codes are points of a sphere"),
        "von_mises_fisher": (("uniform_sphere",), "its codes are points of a sphere"),
        "point": (("standard_normal",), "without a density it gives a prior nothing to learn from"),
        "vector_quantised": (("uniform_codes",), "its codes are numbers of codebook vectors"),
        "relaxed_categorical": (("uniform_codes",), "its codes are numbers of codebook vectors"),
    }
)
"""Kind of posterior, to the kinds of prior it goes with, and why only these."""

OBJECTIVES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...] | None, str]] = MappingProxyType(
    {
        "elbo": (WITH_KL, None, NO_KL),
        "monte_carlo_elbo": (DENSITIES, None, "it needs the posterior's density"),
        "sticking_the_landing": (NORMALS, None, "the density must depend on the encoder's output alone"),
        "iwae": (DENSITIES, None, "it needs the posterior's density"),
        "dreg": (NORMALS, None, "the density must depend on the encoder's output alone"),
        "miwae": (DENSITIES, None, "it needs the posterior's density"),
        "capacity": (WITH_KL, None, NO_KL),
        "free_bits": (
            ("normal", "ladder"),
            ("standard_normal", "conditional_normal", "regression", "ladder"),
            "the KL must be a sum over dimensions",
        ),
        "info_vae": (DENSITIES, None, "it needs the posterior's density"),
        "wae_mmd": ((*DENSITIES, "point"), FIXED, "it gives a prior with weights of its own nothing to learn from"),
        "beta_tcvae": (("normal",), ("standard_normal",), "posterior and prior must be products over dimensions"),
        "factor_vae": ((*NORMALS, "iaf", "real_nvp"), None, "codes are permuted dimension by dimension"),
        "dip_vae": (NORMALS, None, "it needs the posterior's mean and covariance"),
        "rae": (("point", *NORMALS), ("standard_normal",), "it shrinks codes towards 0"),
        "reconstruction": (
            (*DENSITIES, "point", *CODES),
            (*FIXED, "uniform_codes"),
            "it looks at the reconstruction alone",
        ),
        "commitment": (("vector_quantised",), ("uniform_codes",), "it draws the encoder's output to a codebook vector"),
        "adversarial": (
            (*DENSITIES, "point"),
            FIXED,
            "it gives a prior with weights of its own nothing to learn from",
        ),
    }
)
"""Kind of objective, to the kinds of posterior and (None: all) of prior it goes with, and why only these."""


def check_combination(
    posterior: Posterior, prior: Prior, likelihood: Likelihood, objective: Objective, *, conditional: bool = False
) -> None:
    """Refuse parts that do not go together. Parts of a user's own, with a kind that is not in the table, pass.

    Args:
        posterior: q(z|x).
        prior: p(z).
        likelihood: p(x|z).
        objective: What is minimised.
        conditional: Whether the model takes covariates.

    Raises:
        ModelError: Naming the two that do not fit, why, and what to take instead.
    """
    if prior.kind in CONDITIONAL_PRIORS and not conditional:
        raise ModelError(
            f"The prior {prior.kind!r}",
            rule="be given covariates",
            got="a model that takes none",
            fix="Give the model covariates, or take another prior",
        )
    memory = int(getattr(objective, "memory", False))
    if prior.kind in CONDITIONAL_PRIORS and memory:
        raise ModelError(
            f"The memory of the objective {objective.kind!r}",
            rule=f"be 0 with the prior {prior.kind!r}: remembered codes belong to other covariates",
            got=memory,
            fix="Take larger batches instead",
        )
    if prior.kind == "vamp" and conditional:
        raise ModelError(
            "The prior 'vamp'",
            rule="be given an encoder of images alone: its pseudo-images have no covariates",
            got="a model that takes covariates",
            fix="Use 'conditional_normal'",
        )
    if posterior.kind in PRIORS:
        valid, reason = PRIORS[posterior.kind]
        if prior.kind not in valid and prior.kind in KNOWN:
            raise _misfit("prior", prior.kind, f"the posterior {posterior.kind!r}", valid, reason)
    if isinstance(objective, Wrapper):
        inner = objective.objective
        if objective.kind in INDEPENDENCE and posterior.kind in CODES:
            raise _misfit("posterior", posterior.kind, f"the objective {objective.kind!r}", POINTS, "it moves codes")
        if objective.kind == "with_ms_ssim" and likelihood.kind == "categorical":
            raise _misfit(
                "likelihood", "categorical", f"the objective {objective.kind!r}", ("normal",), "it compares intensities"
            )
        check_combination(posterior, prior, likelihood, inner, conditional=conditional)
    elif objective.kind in OBJECTIVES:
        posteriors, priors, reason = OBJECTIVES[objective.kind]
        if not getattr(objective, "needs_dimensions", True):
            posteriors, priors, reason = WITH_KL, None, NO_KL
        whose = f"the objective {objective.kind!r}"
        if posterior.kind not in posteriors and posterior.kind in PRIORS:
            raise _misfit("posterior", posterior.kind, whose, posteriors, reason)
        if priors is not None and prior.kind not in priors and prior.kind in KNOWN:
            raise _misfit("prior", prior.kind, whose, priors, reason)


def _misfit(part: str, kind: str, whose: str, valid: tuple[str, ...], reason: str) -> ModelError:
    return ModelError(
        f"The {part} of {whose}",
        rule=f"be one of {', '.join(valid)}, since {reason}",
        got=repr(kind),
        fix=f"Take {valid[0]!r}",
    )
