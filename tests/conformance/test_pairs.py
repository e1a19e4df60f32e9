"""Every pair of parts that the compatibility table allows meets in some model that trains.

A covering array, made greedily: few models, in which every valid pair of posterior, prior, likelihood and objective
occurs together. The registry in `cases.py` holds the models that meet every artefact.
"""

from __future__ import annotations

import itertools
import json

import keras
import numpy as np
import pytest

from kerasvae import VAE, Covariate, Covariates, dense_decoder, dense_encoder
from kerasvae import distributions as d
from kerasvae import objectives as o
from kerasvae.errors import ModelError
from kerasvae.models.compatibility import CONDITIONAL_PRIORS, OBJECTIVES, PRIORS, check_combination

VOXELS, LATENT, PEOPLE = 6, 4, 5
COVARIATES = Covariates([Covariate(name="age", kind="continuous", mean=50, stddev=10)])

MAKERS = {
    "posterior": {
        "normal": d.NormalPosterior,
        "full_normal": d.FullNormalPosterior,
        "low_rank_normal": lambda: d.LowRankNormalPosterior(rank=1),
        "iaf": lambda: d.InverseAutoregressiveFlowPosterior(LATENT, units=4),
        "real_nvp": lambda: d.RealNVPPosterior(LATENT, flows=2, units=4),
        "power_spherical": d.PowerSphericalPosterior,
        "von_mises_fisher": d.VonMisesFisherPosterior,
        "ladder": lambda: d.LadderPosterior(LATENT, (1, 3), units=(4,)),
        "point": d.PointPosterior,
        "vector_quantised": lambda: d.VectorQuantisedPosterior(LATENT, positions=2, codebook_size=3),
        "relaxed_categorical": lambda: d.RelaxedCategoricalPosterior(LATENT, positions=2, codebook_size=3),
    },
    "prior": {
        "standard_normal": d.StandardNormalPrior,
        "mixture": lambda: d.MixturePrior(LATENT, components=2),
        "vamp": lambda: d.VampPrior((VOXELS,), pseudo_inputs=2),
        "flow": lambda: d.FlowPrior(LATENT, flows=2, units=4),
        "uniform_sphere": d.UniformSpherePrior,
        "uniform_codes": d.UniformCodesPrior,
        "ladder": d.LadderPrior,
        "conditional_normal": lambda: d.ConditionalNormalPrior(LATENT, 1, units=(4,)),
        "regression": lambda: d.RegressionPrior(LATENT),
    },
    "likelihood": {
        "normal": d.NormalLikelihood,
        "laplace": d.LaplaceLikelihood,
        "student_t": d.StudentTLikelihood,
        "bernoulli": d.BernoulliLikelihood,
        "continuous_bernoulli": d.ContinuousBernoulliLikelihood,
        "discretised_logistic": lambda: d.DiscretisedLogisticLikelihood(levels=2),
        "categorical": lambda: d.CategoricalLikelihood(2),
    },
    "objective": {
        "elbo": o.ELBO,
        "monte_carlo_elbo": o.MonteCarloELBO,
        "sticking_the_landing": o.StickingTheLanding,
        "iwae": lambda: o.IWAE(2),
        "dreg": lambda: o.DReG(2),
        "miwae": lambda: o.MIWAE(samples=2, groups=2),
        "capacity": o.Capacity,
        "free_bits": lambda: o.FreeBits(0.001),
        "info_vae": lambda: o.InfoVAE(alpha=0.5, lambda_=2.0),
        "wae_mmd": o.WAEMMD,
        "beta_tcvae": o.BetaTCVAE,
        "factor_vae": lambda: o.FactorVAE(units=(4,)),
        "dip_vae": o.DIPVAE,
        "rae": o.RAE,
        "reconstruction": o.Reconstruction,
        "commitment": o.Commitment,
        "adversarial": lambda: o.AdversarialAutoencoder(units=(4,)),
    },
}
FAMILIES = tuple(MAKERS)


class Kind:
    """Stands for a part of which only the kind is asked."""

    def __init__(self, kind):
        self.kind = kind


def is_valid(combination):
    try:
        check_combination(*map(Kind, combination), conditional=combination[1] in CONDITIONAL_PRIORS)
    except ModelError:
        return False
    return True


def pairs_of(combination):
    return frozenset(itertools.combinations(zip(FAMILIES, combination, strict=True), 2))


def covering_array():
    """Combinations, in a fixed order, that together hold every pair that any valid combination holds."""
    pairs = {
        combination: pairs_of(combination)
        for combination in itertools.product(*(MAKERS[family] for family in FAMILIES))
        if is_valid(combination)
    }
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        best = max(pairs, key=lambda combination: len(pairs[combination] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return chosen


COMBINATIONS = covering_array()


def test_every_part_takes_part():
    assert set(MAKERS["posterior"]) == set(PRIORS)
    assert set(MAKERS["objective"]) == set(OBJECTIVES)
    for index, family in enumerate(FAMILIES):
        assert {combination[index] for combination in COMBINATIONS} == set(MAKERS[family])


@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_a_pair_trains(combination):
    keras.utils.set_random_seed(0)
    posterior, prior, likelihood, objective = (
        MAKERS[family][kind]() for family, kind in zip(FAMILIES, combination, strict=True)
    )
    conditional = combination[1] in CONDITIONAL_PRIORS
    size = 1 if conditional else 0
    made = (VOXELS,) if likelihood.channels == 1 else (VOXELS, likelihood.channels)
    model = VAE(
        dense_encoder((VOXELS,), posterior.parameter_size(LATENT), (5,), condition_size=size),
        dense_decoder(made, LATENT, (5,), condition_size=size),
        data_shape=(VOXELS,), posterior=posterior, prior=prior, likelihood=likelihood, objective=objective,
        covariates=COVARIATES if conditional else None,
    )  # fmt: skip
    x = {"image": (np.random.default_rng(0).random((PEOPLE, VOXELS)) < 0.5).astype("f4")}
    if conditional:
        x["covariates"] = np.linspace(40, 60, PEOPLE)[:, None].astype("f4")
    model.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
    before = [np.array(variable) for variable in model.main_variables]
    history = model.fit(x, batch_size=PEOPLE, epochs=2, verbose=0).history
    for name, values in history.items():
        assert np.isfinite(values).all(), name
    moved = sum(not np.array_equal(a, b) for a, b in zip(before, model.main_variables, strict=True))
    assert moved == len(before)
    assert model.reconstruct(x).shape == (PEOPLE, VOXELS)
    again = VAE.from_config(json.loads(json.dumps(model.get_config())))
    assert json.dumps(again.get_config()) == json.dumps(model.get_config())
