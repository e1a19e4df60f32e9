"""The registry: a model gets every check of `test_conformance.py` by one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

from kerasvae import (
    VAE,
    Covariate,
    Covariates,
    NormalLikelihood,
    RegressionVAE,
    conv_decoder,
    conv_encoder,
    dense_decoder,
    dense_encoder,
    fit_core,
    ladder_encoder,
    linear_start,
)
from kerasvae import distributions as d
from kerasvae import objectives as o
from kerasvae.distributions import Likelihood, Posterior, Prior
from kerasvae.objectives import ELBO, Objective


@dataclass(frozen=True)
class Case:
    """A model to check.

    Args:
        name: For the test's name.
        shape: Shape of one subject.
        make: From training images, (n, *shape), to a model that is not compiled.
        support: What the images may be: real, unit (0 to 1), binary, levels (eight between 0 and 1) or labels (0 to 2).
        beside: What the model is given beside images: covariates, target, site.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[np.ndarray], VAE]
    support: str = "real"
    beside: tuple[str, ...] = ()

    def images(self, people: int = 12, seed: int = 0) -> np.ndarray:
        """Images with two factors and some noise, float32 (people, *shape)."""
        rng = np.random.default_rng([seed, 7])
        factors, patterns = rng.standard_normal((people, 2)), np.random.default_rng(5).standard_normal((2, *self.shape))
        noise = 0.2 * rng.standard_normal((people, *self.shape))
        return SUPPORTS[self.support](1 + np.tensordot(factors, patterns, 1) + noise).astype(np.float32)

    def inputs(self, people: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
        """What the model takes, by name."""
        rng = np.random.default_rng([seed, 8])
        age = rng.uniform(7e4, 29e4, people)
        site = rng.integers(0, 3, people)
        age[0], site[:3] = np.nan, (0, 1, 2)
        given = {"covariates": np.stack([age, site], 1).astype("f4"), "target": age[:, None].astype("f4")}
        given["site"] = np.where(np.arange(people) == people - 1, np.nan, site)[:, None].astype("f4")
        return {"image": self.images(people, seed), **{name: given[name] for name in self.beside}}


def rows(inputs: dict[str, np.ndarray], part: slice) -> dict[str, np.ndarray]:
    """Some of the people."""
    return {name: values[part] for name, values in inputs.items()}


def _unit(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


SUPPORTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "real": lambda x: x,
    "unit": _unit,
    "binary": lambda x: (x > 1).astype(float),
    "levels": lambda x: np.rint(7 * _unit(x)) / 7,
    "labels": lambda x: np.digitize(x, [0.5, 1.5]).astype(float),
}


def conv(images: np.ndarray, **options) -> VAE:
    shape = images.shape[1:]
    return VAE(conv_encoder(shape, 6, (4, 8), dropout=0.1, seed=0), conv_decoder(shape, 3, (4, 8)), **options)


def from_pca(images: np.ndarray) -> VAE:
    shape = images.shape[1:]
    mask = np.random.default_rng(1).random(shape) < 0.7
    networks = linear_start(conv_encoder(shape, 6, (4,)), conv_decoder(shape, 3, (4,)), fit_core(images, 3, mask), mask)
    return VAE(*networks, likelihood=NormalLikelihood(mask=mask))


def refined(images: np.ndarray) -> VAE:
    """Corrections by each voxel's surroundings, away from their zeros, beside a line."""
    mask = np.random.default_rng(1).random(images.shape[1:]) < 0.7
    networks = linear_start(None, None, fit_core(images, 3, mask), mask, refine=(4, 3))
    for network, name in zip(networks, ("encoder_refine", "decoder_refine"), strict=True):
        last = network.get_layer(name).last
        last.set_weights([np.full(weight.shape, 0.1) for weight in last.get_weights()])
    return VAE(*networks, likelihood=NormalLikelihood(mask=mask))


def users_own(images: np.ndarray) -> VAE:
    """Plain Keras, sequential, without a word of kerasvae in it."""
    shape = images.shape[1:]
    layers = keras.layers
    encoder = keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(9, "relu"), layers.Dense(4)])
    decoder = keras.Sequential(
        [keras.Input((2,)), layers.Dense(9, "relu"), layers.Dense(int(np.prod(shape))), layers.Reshape(shape)]
    )
    return VAE(encoder, decoder, objective=ELBO(beta=0.5), seed=3)


VECTOR, LATENT = (15,), 3


def parts(
    posterior: Posterior, prior: Prior, likelihood: Likelihood, objective: Objective, shape: tuple[int, ...] = VECTOR
) -> VAE:
    """Dense networks of the widths that the parts ask for."""
    made = shape if likelihood.channels == 1 else (*shape, likelihood.channels)
    encoder = dense_encoder(shape, posterior.parameter_size(LATENT), (12,))
    decoder = dense_decoder(made, LATENT, (12,))
    return VAE(
        encoder, decoder, posterior=posterior, prior=prior, likelihood=likelihood, objective=objective,
        data_shape=shape,
    )  # fmt: skip


# Every posterior, prior, likelihood and objective at least once, in combinations that differ in as much as they can.
PARTS = (
    ("full normal, mixture, Laplace, IWAE", "real", lambda: (
        d.FullNormalPosterior(), d.MixturePrior(LATENT, components=3), d.LaplaceLikelihood(), o.IWAE(3))),
    ("low rank, VampPrior, Student-t, DReG", "real", lambda: (
        d.LowRankNormalPosterior(rank=1), d.VampPrior(VECTOR, pseudo_inputs=4), d.StudentTLikelihood(), o.DReG(2))),
    ("power spherical, learned scale, ELBO", "real", lambda: (
        d.PowerSphericalPosterior(), d.UniformSpherePrior(), d.NormalLikelihood(scale="learned"), o.ELBO())),
    ("von Mises-Fisher, scale per voxel, WAE-MMD", "real", lambda: (
        d.VonMisesFisherPosterior(), d.UniformSpherePrior(), d.NormalLikelihood(scale="per_voxel", data_shape=VECTOR),
        o.WAEMMD(10.0, memory=8))),
    ("inverse autoregressive flow, flow prior, decoded scale, MIWAE", "real", lambda: (
        d.InverseAutoregressiveFlowPosterior(LATENT, units=8), d.FlowPrior(LATENT, flows=2, units=8),
        d.NormalLikelihood(scale="decoder"), o.MIWAE(samples=4, groups=2))),
    ("real NVP, continuous Bernoulli, InfoVAE", "unit", lambda: (
        d.RealNVPPosterior(LATENT, flows=2, units=8), d.StandardNormalPrior(), d.ContinuousBernoulliLikelihood(),
        o.InfoVAE(alpha=0.5, lambda_=10.0))),
    ("normal, flow prior, Bernoulli, Monte-Carlo KL", "binary", lambda: (
        d.NormalPosterior(), d.FlowPrior(LATENT, flows=2, units=8), d.BernoulliLikelihood(), o.MonteCarloELBO())),
    ("normal, discretised logistic, β-TCVAE", "levels", lambda: (
        d.NormalPosterior(), d.StandardNormalPrior(), d.DiscretisedLogisticLikelihood(levels=8),
        o.BetaTCVAE(beta=2.0))),
    ("normal, mixture, categorical, FactorVAE", "labels", lambda: (
        d.NormalPosterior(), d.MixturePrior(LATENT, components=3), d.CategoricalLikelihood(3),
        o.FactorVAE(gamma=1.0, units=(8,)))),
    ("full normal, VampPrior, DIP-VAE", "real", lambda: (
        d.FullNormalPosterior(), d.VampPrior(VECTOR, pseudo_inputs=4), d.NormalLikelihood(), o.DIPVAE())),
    ("point, RAE", "real", lambda: (
        d.PointPosterior(), d.StandardNormalPrior(), d.NormalLikelihood(), o.RAE())),
    ("point, adversarial", "real", lambda: (
        d.PointPosterior(), d.StandardNormalPrior(), d.LaplaceLikelihood(scale="fixed"),
        o.AdversarialAutoencoder(units=(8,)))),
    ("low rank, sticking the landing", "real", lambda: (
        d.LowRankNormalPosterior(rank=2), d.StandardNormalPrior(), d.NormalLikelihood(), o.StickingTheLanding())),
    ("normal, free bits", "real", lambda: (
        d.NormalPosterior(), d.StandardNormalPrior(), d.NormalLikelihood(), o.FreeBits(free_bits=0.1))),
    ("real NVP, VampPrior, capacity", "real", lambda: (
        d.RealNVPPosterior(LATENT, flows=2, units=8), d.VampPrior(VECTOR, pseudo_inputs=4), d.NormalLikelihood(),
        o.Capacity(gamma=10.0, capacity=2.0))),
    ("ladder, mixture, IWAE", "real", lambda: (
        d.LadderPosterior(LATENT, levels=(1, 2), units=(8,)), d.MixturePrior(LATENT, components=3),
        d.LaplaceLikelihood(), o.IWAE(3))),
    ("point, plain autoencoder", "real", lambda: (
        d.PointPosterior(), d.StandardNormalPrior(), d.StudentTLikelihood(), o.Reconstruction())),
    ("vector quantised, uniform codes, commitment", "real", lambda: (
        d.VectorQuantisedPosterior(LATENT, positions=3, codebook_size=8), d.UniformCodesPrior(), d.NormalLikelihood(),
        o.Commitment())),
    ("relaxed categorical, uniform codes, Bernoulli", "binary", lambda: (
        d.RelaxedCategoricalPosterior(LATENT, positions=1, codebook_size=8), d.UniformCodesPrior(),
        d.BernoulliLikelihood(), o.ELBO())),
)  # fmt: skip


def similar(images: np.ndarray) -> VAE:
    """A slice with a structural term in its loss."""
    return conv(images, objective=o.WithMSSSIM(ELBO(), weight=10.0, data_range=6.0))


COVARIATES = Covariates(
    [
        # in days: float16 would not hold them
        Covariate(name="age", kind="continuous", unit="days", mean=18e4, stddev=6e4, low=0, high=3e5, missing="mean"),
        Covariate(name="site", kind="categorical", levels=("a", "b", "c"), shares=(0.5, 0.25, 0.25)),
    ]
)
WIDTH = COVARIATES.width


def conditional(images: np.ndarray) -> VAE:
    """Covariates in encoder, decoder and prior."""
    shape = images.shape[1:]
    networks = (
        conv_encoder(shape, 6, (4, 8), condition_size=WIDTH),
        conv_decoder(shape, 3, (4, 8), condition_size=WIDTH),
    )
    return VAE(*networks, prior=d.ConditionalNormalPrior(3, WIDTH, units=(8,)), covariates=COVARIATES)


def conditional_from_pca(images: np.ndarray) -> VAE:
    """Probabilistic PCA of what covariates leave."""
    shape, condition = images.shape[1:], np.random.default_rng(2).standard_normal((len(images), WIDTH))
    networks = dense_encoder(shape, 6, (8,), condition_size=WIDTH), dense_decoder(shape, 3, (8,), condition_size=WIDTH)
    core = fit_core(images, 3, condition=condition)
    return VAE(*linear_start(*networks, core), covariates=COVARIATES)


def regression(images: np.ndarray) -> VAE:
    """Age read from the image, from a linear start."""
    shape = images.shape[1:]
    networks = linear_start(conv_encoder(shape, 8, (4,)), conv_decoder(shape, 3, (4,)), fit_core(images, 3))
    return RegressionVAE(*networks, target=COVARIATES[0])


def independent(images: np.ndarray) -> VAE:
    """Codes that pay for what they tell of a site."""
    return conv(images, objective=o.WithHSIC(o.FreeBits(0.1), COVARIATES[1], site_weight=20.0))


def adversary(images: np.ndarray) -> VAE:
    """The same by a critic."""
    shape, objective = images.shape[1:], o.WithAdversary(ELBO(), COVARIATES[1], site_weight=1.0, units=(8,))
    return VAE(dense_encoder(shape, 6, (8,)), dense_decoder(shape, 3, (8,)), objective=objective)


def ladder(images: np.ndarray) -> VAE:
    """Three levels, each read from a depth of its own, with free bits for each."""
    shape, levels, filters = images.shape[1:], (1, 2, 2), (4, 8, 8)
    posterior = d.LadderPosterior(5, levels, units=(8,))
    return VAE(
        ladder_encoder(shape, levels, filters, dropout=0.1, seed=0), conv_decoder(shape, 5, filters),
        posterior=posterior, prior=d.LadderPrior(), objective=o.FreeBits(0.1, groups=posterior.groups, per="group"),
    )  # fmt: skip


CASES = (
    *(Case(name, VECTOR, lambda images, make=make: parts(*make()), support) for name, support, make in PARTS),
    Case("ladder", (9, 8, 7), ladder),
    Case("MS-SSIM", (16, 14), similar),
    Case("volume", (8, 9, 7), conv),
    Case("odd volume", (5, 13, 6), lambda images: conv(images, likelihood=NormalLikelihood(scale="fixed", stddev=0.5))),
    Case("slice", (10, 9), conv),
    Case("vector", (15,), lambda images: VAE(dense_encoder((15,), 6, (8,)), dense_decoder((15,), 3, (8,)))),
    Case("from PCA", (8, 9, 7), from_pca),
    Case("from PCA, refined", (8, 9, 7), refined),
    Case("covariates, conditional prior", (8, 9, 7), conditional, beside=("covariates",)),
    Case("covariates, from PCA", (15,), conditional_from_pca, beside=("covariates",)),
    Case("regression", (8, 9), regression, beside=("target",)),
    Case("HSIC", (8, 9), independent, beside=("site",)),
    Case("adversary of the site", (15,), adversary, beside=("site",)),
    Case("user's own", (6, 5, 4), users_own),
)
