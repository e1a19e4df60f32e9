"""What must hold of whole models: the linear optimum, the unit of every term, and extreme inputs."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from scipy.linalg import subspace_angles

import kerasvae.distributions as parts
from kerasvae.distributions import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    DiscretisedLogisticLikelihood,
    FullNormalPosterior,
    InverseAutoregressiveFlowPosterior,
    LadderPosterior,
    LadderPrior,
    LaplaceLikelihood,
    Likelihood,
    LowRankNormalPosterior,
    NormalLikelihood,
    NormalPosterior,
    PointPosterior,
    Posterior,
    PowerSphericalPosterior,
    RealNVPPosterior,
    RelaxedCategoricalPosterior,
    StandardNormalPrior,
    StudentTLikelihood,
    UniformCodesPrior,
    UniformSpherePrior,
    VectorQuantisedPosterior,
    VonMisesFisherPosterior,
)
from kerasvae.models import VAE
from kerasvae.networks import dense_decoder, dense_encoder
from kerasvae.objectives import ELBO, RAE, Commitment, Reconstruction

LATENT = 3


def softplus(x):
    return np.logaddexp(0, x)


def kinds(base):
    """Kinds of all public classes of a part."""
    public = (getattr(parts, name) for name in parts.__all__)
    return {thing.kind for thing in public if isinstance(thing, type) and issubclass(thing, base) and thing is not base}


# --- the linear VAE is probabilistic PCA ---------------------------------------------------------

PEOPLE, VOXELS = 200, 12


def linear_people():
    """Three factors of unlike variance in noise, float32 (200, 12)."""
    rng = np.random.default_rng(11)
    axes = np.linalg.qr(rng.standard_normal((VOXELS, LATENT)))[0]
    factors = rng.standard_normal((PEOPLE, LATENT)) * np.sqrt([6.0, 3.0, 1.5])
    noise = 0.5 * rng.standard_normal((PEOPLE, VOXELS))
    return (factors @ axes.T + rng.standard_normal(VOXELS) + noise).astype("f4")


def probabilistic_pca(x):
    """Tipping & Bishop 1999 in float64: principal axes, σ² (equation 8), and log-likelihoods in nats a person
    (equation 4) at the maximum (equation 7) and of the model of rank 0, whose σ² is the mean eigenvalue.
    """
    covariance = np.cov(x.T.astype("f8"), bias=True)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    noise = values[LATENT:].mean()
    loadings = vectors[:, :LATENT] * np.sqrt(values[:LATENT] - noise)

    def log_likelihood(c):
        trace = np.trace(np.linalg.solve(c, covariance))
        return -0.5 * (VOXELS * np.log(2 * np.pi) + np.linalg.slogdet(c)[1] + trace)

    best = log_likelihood(loadings @ loadings.T + noise * np.eye(VOXELS))
    return vectors[:, :LATENT], noise, best, log_likelihood(values.mean() * np.eye(VOXELS))


def linear_elbo(model, x):
    """The mean ELBO of one-layer networks from their weights, in closed form and float64."""
    kernel, bias = (weights.astype("f8") for weights in model.encoder.get_weights())
    loadings, offset = (weights.astype("f8") for weights in model.decoder.get_weights())
    variance = float(model.likelihood.sigma()) ** 2
    parameters = x.astype("f8") @ kernel + bias
    mean, rest = parameters[:, :LATENT], parameters[:, LATENT:]
    root = np.zeros((len(x), LATENT, LATENT))
    diagonal = np.arange(LATENT)
    root[:, diagonal, diagonal] = 1e-4 + softplus(rest[:, :LATENT])
    if model.posterior.kind == "full_normal":
        root[:, [1, 2, 2], [0, 0, 1]] = rest[:, LATENT:]
    covariance = root @ root.transpose(0, 2, 1)
    trace, log_det = np.trace(covariance, axis1=1, axis2=2), np.linalg.slogdet(covariance)[1]
    kl = 0.5 * (trace + (mean**2).sum(1) - LATENT - log_det)
    residual = ((x - mean @ loadings - offset) ** 2).sum(1) + np.einsum("bij,iv,jv->b", covariance, loadings, loadings)
    return np.mean(-0.5 * (VOXELS * np.log(2 * np.pi * variance) + residual / variance) - kl)


@pytest.mark.parametrize(
    ("posterior", "scale"),
    [(NormalPosterior, "optimal"), (NormalPosterior, "learned"), (FullNormalPosterior, "learned")],
)
def test_a_linear_vae_is_trained_to_probabilistic_pca(posterior, scale):
    """Also with a diagonal posterior: Lucas et al. 2019, arXiv 1911.02469."""
    x, steps = linear_people(), 2000
    axes, noise, best, without = probabilistic_pca(x)
    keras.utils.set_random_seed(1)
    layers, posterior = keras.layers, posterior()
    encoder = keras.Sequential([keras.Input((VOXELS,)), layers.Dense(posterior.parameter_size(LATENT))])
    decoder = keras.Sequential([keras.Input((LATENT,)), layers.Dense(VOXELS)])
    model = VAE(
        encoder, decoder, posterior=posterior, likelihood=NormalLikelihood(scale=scale), objective=ELBO(samples=4)
    )
    assert best - linear_elbo(model, x) > best - without  # at the start it knows less than a model of rank 0
    rate = keras.optimizers.schedules.CosineDecay(0.05, steps)
    model.compile(keras.optimizers.Adam(rate), steps_per_execution=50)
    everyone = tf.data.Dataset.from_tensors(x).repeat()  # the full batch at every step
    model.fit(everyone, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)

    elbo = linear_elbo(model, x)
    assert elbo <= best + 1e-9  # a bound on the likelihood of a model that cannot beat the maximum
    assert best - elbo < 1e-3 * (best - without)
    loadings = model.decoder.get_weights()[0].T.astype("f8")
    assert np.degrees(subspace_angles(loadings, axes)).max() < 0.3
    assert float(model.likelihood.sigma()) ** 2 == pytest.approx(noise, rel=0.01)

    reported = [model.elbo(x, PEOPLE, samples=50, seed=seed)["elbo"].mean(dtype="f8") for seed in range(10)]
    assert abs(np.mean(reported) - elbo) < 4 * np.std(reported, ddof=1) / np.sqrt(10)


# --- scale-free ----------------------------------------------------------------------------------

SHAPE = (3, 5)
LIKELIHOODS = {
    "normal, fixed": (lambda mask: NormalLikelihood("fixed", stddev=0.7, mask=mask), "real"),
    "normal, decoder": (lambda mask: NormalLikelihood("decoder", stddev=0.7, mask=mask), "real"),
    "laplace": (lambda mask: LaplaceLikelihood("fixed", scale_value=0.7, mask=mask), "real"),
    "student_t": (
        lambda mask: StudentTLikelihood("fixed", scale_value=0.7, learn_degrees_of_freedom=False, mask=mask),
        "real",
    ),
    "bernoulli": (lambda mask: BernoulliLikelihood(mask=mask), "binary"),
    "continuous_bernoulli": (lambda mask: ContinuousBernoulliLikelihood(mask=mask), "unit"),
    "discretised_logistic": (
        lambda mask: DiscretisedLogisticLikelihood(16, scale="fixed", scale_value=0.2, mask=mask),
        "levels",
    ),
    "categorical": (lambda mask: CategoricalLikelihood(4, mask=mask), "labels"),
}
"""Each likelihood in a form without a parameter of its own that training moves, and what its images hold."""


def images_of(support, people=4):
    rng = np.random.default_rng(5)
    shape = (people, *SHAPE)
    return {
        "real": rng.standard_normal(shape),
        "unit": rng.random(shape),
        "binary": rng.integers(0, 2, shape),
        "levels": rng.integers(0, 16, shape) / 15,
        "labels": rng.integers(0, 4, shape),
    }[support].astype("f4")


def once_and_twice(likelihood, mask):
    """A linear model of images, and the same of images with every voxel twice: equal codes for equal people."""
    rng = np.random.default_rng(6)
    channels = () if likelihood(None).channels == 1 else (likelihood(None).channels,)
    kernel = 0.3 * rng.standard_normal((*SHAPE, 2 * LATENT))
    loadings, offset = rng.standard_normal((LATENT, *SHAPE, *channels)), rng.standard_normal((*SHAPE, *channels))
    models = []
    for times in (1, 2):
        shape = (times * SHAPE[0], SHAPE[1])
        layers = keras.layers
        encoder = keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(2 * LATENT)])
        size = math.prod((*shape, *channels))
        decoder = keras.Sequential([keras.Input((LATENT,)), layers.Dense(size), layers.Reshape((*shape, *channels))])
        encoder.set_weights(
            [np.repeat(kernel, times, axis=0).reshape(-1, 2 * LATENT) / times, np.linspace(-1, 1, 2 * LATENT)]
        )
        decoder.set_weights(
            [np.repeat(loadings, times, axis=1).reshape(LATENT, -1), np.repeat(offset, times, axis=0).ravel()]
        )
        own = None if mask is None else np.repeat(mask, times, axis=0)
        models.append(VAE(encoder, decoder, likelihood=likelihood(own)))
    return models


def test_every_likelihood_is_scaled_here():
    assert {make(None).kind for make, _ in LIKELIHOODS.values()} == kinds(Likelihood)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_twice_the_voxels_double_the_log_likelihood_and_leave_the_kl(name, masked):
    make, support = LIKELIHOODS[name]
    x = images_of(support)
    mask = np.arange(15).reshape(SHAPE) % 4 > 0 if masked else None
    once, twice = once_and_twice(make, mask)
    first, second = (
        model.elbo(np.repeat(x, times, axis=1), samples=2, seed=3) for times, model in ((1, once), (2, twice))
    )
    np.testing.assert_allclose(second["log_likelihood"], 2 * first["log_likelihood"], rtol=1e-5)
    np.testing.assert_allclose(second["kl"], first["kl"], rtol=1e-5)
    np.testing.assert_allclose(second["kl_per_dimension"], first["kl_per_dimension"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(second["elbo"], 2 * first["log_likelihood"] - first["kl"], rtol=1e-5)


def test_terms_of_a_subject_are_its_own_whatever_the_batch():
    rng = np.random.default_rng(8)
    x = rng.standard_normal((7, 15)).astype("f4")
    model = VAE(
        dense_encoder((15,), 2 * LATENT, (8,)),
        dense_decoder((15,), LATENT, (8,)),
        likelihood=NormalLikelihood("fixed", stddev=0.7),
        objective=ELBO(samples=3),
    )
    for people in (1, 2, 7):
        draws, _ = model.draws(tf.constant(x[:people]), tf.constant([1, 2]))
        terms = model.objective.terms(draws)
        for person in range(people):
            mean, raw = np.split(np.asarray(model.encoder(x[[person]]), "f8")[0], 2)
            stddev = 1e-4 + softplus(raw)
            kl = np.sum(0.5 * (stddev**2 + mean**2 - 1) - np.log(stddev))
            decoded = np.asarray(model.decoder(draws.z[:, person]), "f8")
            log_likelihood = stats.norm.logpdf(x[person].astype("f8"), decoded, 0.7).sum(1)
            np.testing.assert_allclose(draws.log_likelihood[:, person], log_likelihood, rtol=1e-5)
            np.testing.assert_allclose(terms.per_subject["kl"][person], kl, rtol=1e-4)
            np.testing.assert_allclose(terms.loss[person], kl - log_likelihood.mean(), rtol=1e-5)
        np.testing.assert_allclose(terms.total, np.mean(terms.loss), rtol=1e-6)


def test_means_over_subjects_do_not_change_with_the_batch_size():
    # Without draws every term is a function of the image alone, and can be compared whole.
    x = np.random.default_rng(9).standard_normal((10, 15)).astype("f4")
    networks = dense_encoder((15,), LATENT, (8,)), dense_decoder((15,), LATENT, (8,))
    model = VAE(*networks, posterior=PointPosterior(), objective=Reconstruction())
    model.compile()
    whole, mean = model.elbo(x, batch_size=10), model.evaluate(x, batch_size=10, verbose=0, return_dict=True)
    assert mean["log_likelihood"] == pytest.approx(whole["log_likelihood"].mean(), rel=1e-5)
    assert mean["kl"] == pytest.approx(whole["kl"].mean(), rel=1e-5)
    for size in (1, 4):  # 4, 4 and 2 people
        for name, value in model.elbo(x, batch_size=size).items():
            np.testing.assert_allclose(value, whole[name], rtol=1e-5)
        found = model.evaluate(x, batch_size=size, verbose=0, return_dict=True)
        assert found == pytest.approx(mean, rel=1e-5)


# --- extreme inputs ------------------------------------------------------------------------------

CODES = 4
POSTERIORS = {
    "normal": NormalPosterior,
    "full_normal": FullNormalPosterior,
    "low_rank_normal": LowRankNormalPosterior,
    "iaf": lambda: InverseAutoregressiveFlowPosterior(CODES, units=8, context_size=3),
    "real_nvp": lambda: RealNVPPosterior(CODES, units=8, context_size=3),
    "power_spherical": PowerSphericalPosterior,
    "von_mises_fisher": VonMisesFisherPosterior,
    "ladder": lambda: LadderPosterior(CODES, (1, CODES - 1), units=(4,)),
    "point": PointPosterior,
    "vector_quantised": lambda: VectorQuantisedPosterior(CODES, positions=2, codebook_size=5),
    "relaxed_categorical": lambda: RelaxedCategoricalPosterior(CODES, positions=2, codebook_size=5),
}
EXTREME_PRIORS = {
    "power_spherical": UniformSpherePrior,
    "von_mises_fisher": UniformSpherePrior,
    "ladder": LadderPrior,
    "vector_quantised": UniformCodesPrior,
    "relaxed_categorical": UniformCodesPrior,
}
EXTREME_OBJECTIVES = {"point": RAE, "vector_quantised": Commitment}  # they have no KL that an encoder could lower


def extreme_model(kind, encoder):
    posterior = POSTERIORS[kind]()
    return VAE(
        encoder(posterior.parameter_size(CODES)),
        dense_decoder((15,), CODES, (8,)),
        posterior=posterior,
        prior=EXTREME_PRIORS.get(kind, StandardNormalPrior)(),
        objective=EXTREME_OBJECTIVES[kind]() if kind in EXTREME_OBJECTIVES else ELBO(samples=2),
    )


def stir(model, seed):
    """Move every weight, for flows start at weights of zero."""
    for number, variable in enumerate(model.trainable_variables):
        noise = np.random.default_rng([seed, number]).standard_normal(variable.shape)
        variable.assign_add(0.1 * noise)


def check_finite(model, x):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        draws, decoded = model.draws(x, tf.constant([3, 4]), training=True)
        terms = model.objective.terms(draws)
        loss = terms.total
    named = {**terms.per_subject, "loss": terms.loss, "z": draws.z, "decoded": decoded, **draws.outputs}
    named |= {"log_prior": draws.log_prior, "log_posterior": draws.log_posterior}
    for name, value in named.items():
        assert np.isfinite(value).all(), name
    watched = [("x", x), *((variable.path, variable) for variable in model.trainable_variables)]
    for (name, _), gradient in zip(watched, tape.gradient(loss, [value for _, value in watched]), strict=True):
        assert gradient is not None, name
        assert np.isfinite(gradient).all(), name
    model.likelihood.update(x, decoded[: len(x)])
    assert np.isfinite(float(model.likelihood.sigma()))


def test_every_posterior_meets_the_extremes():
    assert set(POSTERIORS) == kinds(Posterior)


@pytest.mark.parametrize("kind", POSTERIORS)
def test_extreme_images_give_finite_terms_and_gradients(kind):
    keras.utils.set_random_seed(2)
    x = np.array([np.full(15, 1e4), np.full(15, -1e4), 1e4 * (-1.0) ** np.arange(15), np.zeros(15)], "f4")
    model = extreme_model(kind, lambda width: dense_encoder((15,), width, (8,)))
    stir(model, 2)
    check_finite(model, x)


@pytest.mark.parametrize("kind", POSTERIORS)
def test_extreme_encoder_outputs_give_finite_terms_and_gradients(kind):
    keras.utils.set_random_seed(3)
    people = 15

    def encoder(width):
        """Person i, an image with a one in voxel i, to outputs that are all 1e3, −1e3, 0, or of random signs."""
        signs = np.random.default_rng(4).choice([-1.0, 1.0], (people, width))
        signs[:5] = [
            np.ones(width),
            -np.ones(width),
            np.zeros(width),
            *((-1.0) ** (np.arange(width) + i) for i in (0, 1)),
        ]
        network = keras.Sequential([keras.Input((15,)), keras.layers.Dense(width, use_bias=False)])
        network.set_weights([1e3 * signs])
        return network

    model = extreme_model(kind, encoder)
    kept = model.encoder.get_weights()
    stir(model, 3)
    model.encoder.set_weights(kept)
    check_finite(model, np.eye(people, dtype="f4"))
