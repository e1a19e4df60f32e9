"""The declared table: what it names exists, what it refuses is refused, and the guide shows it."""

import itertools
from pathlib import Path

import pytest

import kerasvae.distributions as distributions
import kerasvae.objectives as objectives
from kerasvae.covariates import Covariate
from kerasvae.distributions import Likelihood, Posterior, Prior
from kerasvae.errors import ModelError
from kerasvae.models.compatibility import CONDITIONAL_PRIORS, OBJECTIVES, PRIORS, check_combination
from kerasvae.objectives import ELBO, FreeBits, Objective, WithAdversary, WithHSIC, WithMSSSIM, Wrapper

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


def kinds(module, base):
    """Every public kind of a family, to its class."""
    found = [getattr(module, name) for name in module.__all__]
    found = [c for c in found if isinstance(c, type) and issubclass(c, base) and c not in (base, Wrapper)]
    return {c.kind: c for c in found}


POSTERIOR_KINDS, PRIOR_KINDS = kinds(distributions, Posterior), kinds(distributions, Prior)
OBJECTIVE_KINDS = {kind: c for kind, c in kinds(objectives, Objective).items() if not issubclass(c, Wrapper)}
SITE = Covariate(name="site", kind="categorical", levels=("a", "b"), shares=(0.5, 0.5))


class Part:
    """Stands for a part of which only the kind is asked."""

    def __init__(self, kind):
        self.kind = kind


def check(posterior="normal", prior="standard_normal", objective="elbo", likelihood="normal", conditional=None):
    conditional = prior in CONDITIONAL_PRIORS if conditional is None else conditional
    parts = (Part(posterior), Part(prior), Part(likelihood), Part(objective))
    check_combination(*parts, conditional=conditional)


def test_the_table_names_every_part_that_there_is_and_no_other():
    assert set(PRIORS) == set(POSTERIOR_KINDS)
    assert {prior for valid, _ in PRIORS.values() for prior in valid} == set(PRIOR_KINDS)
    assert set(OBJECTIVES) == set(OBJECTIVE_KINDS)
    assert {p for posteriors, _, _ in OBJECTIVES.values() for p in posteriors} == set(POSTERIOR_KINDS)


@pytest.mark.parametrize(("posterior", "prior"), list(itertools.product(PRIORS, PRIOR_KINDS)))
def test_posterior_and_prior(posterior, prior):
    valid, reason = PRIORS[posterior]
    objective = "reconstruction"
    if posterior == "point" or prior in valid:
        objective = next(o for o, (posteriors, _, _) in OBJECTIVES.items() if posterior in posteriors)
    if prior in valid:
        check(posterior, prior, objective)
    else:
        with pytest.raises(ModelError, match=reason):
            check(posterior, prior, objective)


@pytest.mark.parametrize(("objective", "posterior"), list(itertools.product(OBJECTIVES, PRIORS)))
def test_objective_and_posterior(objective, posterior):
    posteriors, priors, reason = OBJECTIVES[objective]
    prior = PRIORS[posterior][0][0]
    if posterior in posteriors and (priors is None or prior in priors):
        check(posterior, prior, objective)
    else:
        with pytest.raises(ModelError, match=reason):
            check(posterior, prior, objective)


@pytest.mark.parametrize("prior", CONDITIONAL_PRIORS)
def test_priors_with_covariates_need_a_model_that_takes_them(prior):
    with pytest.raises(ModelError, match="be given covariates"):
        check(prior=prior, conditional=False)
    check(prior=prior, conditional=True)


def test_pseudo_images_have_no_covariates():
    with pytest.raises(ModelError, match="pseudo-images have no covariates"):
        check(prior="vamp", conditional=True)


def test_what_an_objective_wraps_is_checked_too():
    wrapped = WithMSSSIM(ELBO(), weight=1.0, data_range=1.0)
    with pytest.raises(ModelError, match="compares intensities"):
        check_combination(Part("normal"), Part("standard_normal"), Part("categorical"), wrapped)
    with pytest.raises(ModelError, match="density"):
        check_combination(Part("point"), Part("standard_normal"), Part("normal"), wrapped)
    check_combination(Part("normal"), Part("standard_normal"), Part("normal"), wrapped)


@pytest.mark.parametrize("penalty", [WithHSIC, WithAdversary])
def test_codes_that_pay_for_a_site_are_points(penalty):
    parts = Part("standard_normal"), Part("categorical")
    check_combination(Part("normal"), *parts, penalty(ELBO(), SITE))
    with pytest.raises(ModelError, match="KL that the encoder can lower"):
        check_combination(Part("point"), *parts, penalty(ELBO(), SITE))
    codes = Part("relaxed_categorical"), Part("uniform_codes"), Part("normal")
    with pytest.raises(ModelError, match="moves codes"):
        check_combination(*codes, penalty(ELBO(), SITE))
    with pytest.raises(ModelError, match="compares intensities"):
        check_combination(Part("normal"), *parts, penalty(WithMSSSIM(ELBO(), weight=1.0, data_range=1.0), SITE))


def test_free_bits_for_the_whole_code_need_no_dimensions():
    for posterior, prior in (("full_normal", "mixture"), ("power_spherical", "uniform_sphere"), ("iaf", "flow")):
        parts = Part(posterior), Part(prior), Part("normal")
        check_combination(*parts, FreeBits(0.5, per="group"))
        with pytest.raises(ModelError, match="sum over dimensions"):
            check_combination(*parts, FreeBits(0.5))
    with pytest.raises(ModelError, match="KL that the encoder can lower"):
        check_combination(Part("point"), Part("standard_normal"), Part("normal"), FreeBits(0.5, per="group"))


def test_a_part_of_ones_own_passes():
    check(posterior="mine", prior="mine", objective="mine")


def rows():
    """The two tables of the guide, from the code."""
    for posterior, (priors, _) in PRIORS.items():
        yield f"| `{posterior}` | {POSTERIOR_KINDS[posterior].__name__} | {', '.join(f'`{p}`' for p in priors)} |"
    for objective, (posteriors, priors, _) in OBJECTIVES.items():
        shown = "all" if priors is None else ", ".join(f"`{p}`" for p in priors)
        names = ", ".join(f"`{p}`" for p in posteriors)
        yield f"| `{objective}` | {OBJECTIVE_KINDS[objective].__name__} | {names} | {shown} |"


def test_the_guide_shows_the_table():
    guide = GUIDE.read_text(encoding="utf-8").splitlines()
    assert [row for row in rows() if row not in guide] == []
    for name, kind in kinds(distributions, Likelihood).items():
        assert any(line.startswith(f"| `{name}` | {kind.__name__} |") for line in guide), name
    for name, kind in PRIOR_KINDS.items():
        assert any(line.startswith(f"| `{name}` | {kind.__name__} |") for line in guide), name
