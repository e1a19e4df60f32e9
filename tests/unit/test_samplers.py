"""Where new codes come from: against mixtures known by construction, closed forms and samples of the truth."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from scipy.spatial.distance import cdist

from kerasvae import VAE, Covariates, MixtureSampler, PriorSampler, TwoStageSampler
from kerasvae.distributions import (
    PointPosterior,
    PowerSphericalPosterior,
    UniformSpherePrior,
    VonMisesFisherPosterior,
)
from kerasvae.errors import ArgumentError, ModelError
from kerasvae.models.samplers.normals import JointNormals
from kerasvae.objectives import RAE

V, D = 5, 2
LOADINGS = np.random.default_rng(1).normal(size=(D, V)).astype("f4")
OFFSET = np.linspace(-1, 1, V).astype("f4")

WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[-3.0, 0.0], [2.0, 3.0], [3.0, -2.0]])
ROOTS = np.array([[[0.6, 0.0], [0.3, 0.5]], [[0.4, 0.0], [0.0, 0.9]], [[0.5, 0.0], [-0.4, 0.3]]])


def truth(people, seed):
    """Positions of people: three normals, (people, 2)."""
    rng = np.random.default_rng(seed)
    group = rng.choice(3, people, p=WEIGHTS)
    return MEANS[group] + np.einsum("nij,nj->ni", ROOTS[group], rng.standard_normal((people, D)))


def images(z):
    return (z @ LOADINGS + OFFSET).astype("f4")


def hand_made(stddev=None, condition=0, **options):
    """A model whose code is the person's position in `images`, with a posterior of one width, or of none."""
    inverse = np.linalg.pinv(LOADINGS)
    kernel, bias = inverse, -OFFSET @ inverse
    if stddev is None:
        options = {"posterior": PointPosterior(), "objective": RAE()} | options
    else:  # the encoder gives softplus⁻¹ of what lies above the posterior's floor
        kernel = np.concatenate([kernel, np.zeros((V, D))], axis=1)
        bias = np.concatenate([bias, np.full(D, np.log(np.expm1(stddev - 1e-4)))])
    networks = []
    for width, weights in ((V, (kernel, bias)), (D, (LOADINGS, OFFSET))):
        main, beside = keras.Input((width,)), keras.Input((condition,)) if condition else None
        network = keras.Model([main, beside] if condition else main, keras.layers.Dense(weights[0].shape[1])(main))
        network.set_weights(weights)
        networks.append(network)
    return VAE(*networks, **options)


def projected_cdf(direction, extra):
    """Of a population of normals with variance `extra` added, along a direction."""
    means = MEANS @ direction
    scales = np.sqrt(((direction @ ROOTS) ** 2).sum(1) + extra)
    return lambda t: (WEIGHTS * stats.norm.cdf(np.asarray(t)[:, None], means, scales)).sum(1)


def energy(a, b):
    """Energy distance 2 E|a − b| − E|a − a'| − E|b − b'| (Székely & Rizzo 2013)."""
    return 2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean()


# --- the mixture ---------------------------------------------------------------------------------

STDDEV = 0.8


@pytest.fixture(scope="module")
def fitted():
    return MixtureSampler.fit(hand_made(STDDEV), images(truth(1500, 0)), components=3, draws=2)


def test_codes_of_the_mixture_are_draws_of_the_aggregate_posterior_and_the_priors_are_not(fitted):
    """q(z) is known: the population's normals, each wider by the posterior's variance."""
    codes, prior = fitted.codes(1500, seed=5), PriorSampler(fitted.model).codes(1500, seed=5)
    assert codes.dtype == np.float32
    for angle in np.linspace(0, np.pi, 5)[:-1]:
        direction = np.array([np.cos(angle), np.sin(angle)])
        expected = projected_cdf(direction, STDDEV**2)
        assert stats.kstest(codes @ direction, expected).pvalue > 0.01
        assert stats.kstest(codes @ direction, projected_cdf(direction, 0)).statistic > 0.03
        assert stats.kstest(prior @ direction, expected).pvalue < 1e-8
        assert stats.kstest(prior @ direction, "norm").pvalue > 0.01


def test_moments_of_the_mixture_hold_the_posteriors_variance(fitted):
    codes = fitted.codes(20000, seed=1)
    mean = WEIGHTS @ MEANS
    within = np.einsum("k,kij,klj->il", WEIGHTS, ROOTS, ROOTS)
    between = (MEANS - mean).T @ (WEIGHTS[:, None] * (MEANS - mean))
    np.testing.assert_allclose(codes.mean(0), mean, atol=0.25)  # three standard errors of 1500 people
    np.testing.assert_allclose(np.cov(codes.T), within + between + STDDEV**2 * np.eye(D), atol=0.6)
    order = np.argsort(fitted.mixture.means[:, 0])
    np.testing.assert_allclose(fitted.mixture.means[order], MEANS, atol=0.25)
    np.testing.assert_allclose(fitted.mixture.weights[order], WEIGHTS, atol=0.05)
    np.testing.assert_allclose(
        fitted.mixture.covariances[order], ROOTS @ ROOTS.transpose(0, 2, 1) + STDDEV**2 * np.eye(D), atol=0.25
    )


def test_the_number_of_components_is_found_whatever_the_number_of_draws():
    for draws in (1, 10):
        sampler = MixtureSampler.fit(hand_made(0.2), images(truth(75, 2)), draws=draws)
        assert len(sampler.mixture.weights) == 3
    one = np.random.default_rng(3).normal(size=(50, D)) * [0.01, 100]  # of unlike scales
    sampler = MixtureSampler.fit(hand_made(), images(one))
    assert len(sampler.mixture.weights) == 1
    np.testing.assert_allclose(np.cov(sampler.codes(20000).T)[[0, 1], [0, 1]], one.var(axis=0), rtol=0.05)


def test_a_point_posterior_gives_the_moments_of_its_codes():
    z = truth(60, 4)
    sampler = MixtureSampler.fit(hand_made(), images(z), components=1)
    np.testing.assert_allclose(sampler.mixture.means[0], z.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(sampler.mixture.covariances[0], np.cov(z.T, bias=True), rtol=1e-4, atol=1e-4)
    assert sampler.people == 60


# --- covariates ----------------------------------------------------------------------------------

JOINT = JointNormals(
    np.array([0.35, 0.65]),
    np.array([[0.0, 1.0, -1.0], [2.0, -1.0, 1.0]]),
    np.array([[[1.0, 0.5, 0.2], [0.5, 0.8, 0.1], [0.2, 0.1, 0.6]], [[0.7, -0.3, 0.0], [-0.3, 0.9, 0.4], [0, 0.4, 1]]]),
    1,
)
"""A code of one number and a condition of two."""


def joint_density(z, c):
    y = np.concatenate([np.reshape(z, (-1, 1)), np.tile(c, (np.size(z), 1))], axis=1)
    return sum(
        weight * stats.multivariate_normal(mean, covariance).pdf(y)
        for weight, mean, covariance in zip(*JOINT[:3], strict=True)
    )


@pytest.mark.parametrize("condition", [(0.3, 0.4), (-1.0, 1.5), (1.5, -2.0)])
def test_the_conditional_mixture_is_the_ratio_of_densities(condition):
    grid = np.linspace(-12, 14, 4001)
    joint = joint_density(grid, condition)
    expected = joint / np.trapezoid(joint, grid)
    c = np.tile(condition, (len(grid), 1))
    np.testing.assert_allclose(np.exp(JOINT.log_prob(grid[:, None], c)), expected, atol=1e-6)
    codes = JOINT.draw(np.tile(condition, (3000, 1)), np.random.default_rng(2))[:, 0]
    cdf = np.cumsum(expected) * (grid[1] - grid[0])
    assert stats.kstest(codes, lambda t: np.interp(t, grid, cdf)).pvalue > 0.01


def table(people, seed=6):
    rng = np.random.default_rng(seed)
    return {"age": rng.uniform(20, 80, people), "sex": rng.choice(["F", "M"], people)}


def test_codes_at_given_covariates_are_the_normal_regression_on_them():
    """With one component: mean and covariance of least squares, from the people's positions in float64."""
    who, rng = table(200), np.random.default_rng(7)
    design = np.column_stack([np.ones(200), who["age"], who["sex"] == "M"])
    z = design @ [[1.0, -2.0], [0.05, 0.02], [0.5, 3.0]] + rng.normal(size=(200, D)) @ [[0.5, 0.3], [0.0, 0.4]]
    covariates = Covariates.fit(who, units={"age": "years"})
    model = hand_made(condition=2, covariates=covariates)
    sampler = MixtureSampler.fit(model, {"image": images(z), "covariates": who}, components=1)
    slopes, *_ = np.linalg.lstsq(design, z, rcond=None)
    residual = np.cov((z - design @ slopes).T, bias=True)
    for age, sex in ((30, "M"), (75, "F")):
        codes = sampler.codes(20000, seed=2, covariates={"age": [age], "sex": [sex]})
        np.testing.assert_allclose(codes.mean(axis=0), np.array([1, age, sex == "M"]) @ slopes, atol=0.02)
        np.testing.assert_allclose(np.cov(codes.T), residual, atol=0.02)
    both = sampler.codes(2, covariates={"age": [30, 75], "sex": ["M", "F"]})
    np.testing.assert_allclose(
        sampler.images(2, covariates={"age": [30, 75], "sex": ["M", "F"]}), images(both), atol=1e-5
    )


def test_each_level_of_a_category_gets_its_own_codes():
    """Two groups of unlike place and shape, so that no one normal serves: the number of components is chosen."""
    rng, sex = np.random.default_rng(8), np.repeat(["F", "M"], 150)
    z = rng.normal(size=(300, D)) * np.where(sex[:, None] == "F", [0.2, 1.5], [1.5, 0.2]) + 4 * (sex == "M")[:, None]
    model = hand_made(0.1, condition=1, covariates=Covariates.fit({"sex": sex}))
    sampler = MixtureSampler.fit(model, {"image": images(z), "covariates": {"sex": sex}}, draws=2)
    for level, scales, centre in (("F", [0.2, 1.5], 0), ("M", [1.5, 0.2], 4)):
        codes = sampler.codes(600, covariates={"sex": [level]})
        for axis in range(D):
            deviates = (codes[:, axis] - centre) / np.hypot(scales[axis], 0.1)
            assert stats.kstest(deviates, "norm").statistic < 0.15


# --- two stages ----------------------------------------------------------------------------------


def crescent(people, seed):
    """People on a bent line, of mean 0: neither the prior nor any normal lies there."""
    rng = np.random.default_rng(seed)
    along = rng.normal(size=people)
    return np.stack([2 * along, 2 * along**2 - 2 + 0.3 * rng.normal(size=people)], axis=1)


@pytest.fixture(scope="module")
def second():
    return TwoStageSampler.fit(
        hand_made(0.05), images(crescent(400, 0)), units=(32, 32), epochs=100, learning_rate=1e-2, draws=1
    )


def test_a_second_stage_draws_where_the_codes_are(second):
    fresh, codes = crescent(600, 1), second.codes(600, seed=3)
    found, same = energy(codes, fresh), energy(crescent(600, 2), fresh)
    prior = energy(PriorSampler(second.model).codes(600, seed=3), fresh)
    normal = energy(np.random.default_rng(4).multivariate_normal(fresh.mean(0), np.cov(fresh.T), 600), fresh)
    assert found < 0.4 * normal < normal < prior
    assert same < 0.1 * normal


def test_a_second_stage_repeats_nobody(second):
    people, codes, fresh = crescent(400, 0), second.codes(600, seed=3), crescent(600, 1)
    near, expected = cdist(codes, people).min(axis=1), cdist(fresh, people).min(axis=1)
    assert near.min() > 0
    assert 0.5 < np.median(near) / np.median(expected) < 2


def test_a_second_stage_takes_the_covariates_with_it():
    rng, who = np.random.default_rng(9), {"age": np.random.default_rng(10).uniform(20, 80, 200)}
    z = np.stack([who["age"] / 10 - 5, np.zeros(200)], 1) + 0.3 * rng.normal(size=(200, D))
    model = hand_made(condition=1, covariates=Covariates.fit(who))
    sampler = TwoStageSampler.fit(
        model, {"image": images(z), "covariates": who}, units=(32,), epochs=40, batch_size=20, learning_rate=1e-2
    )
    for age in (30, 70):
        codes = sampler.codes(500, covariates={"age": [age]})
        np.testing.assert_allclose(codes.mean(axis=0), [age / 10 - 5, 0], atol=0.4)
        assert codes[:, 0].std() < 1  # of 1.7 in all ages together


def test_a_second_stage_depends_on_its_seed_alone_and_leaves_global_states_alone():
    x, model, options = images(crescent(30, 0)), hand_made(), {"units": (8,), "epochs": 2}

    def states():
        return random.random(), np.random.random(), float(tf.random.normal(()))

    keras.utils.set_random_seed(1)
    untouched = states()
    keras.utils.set_random_seed(1)
    first = TwoStageSampler.fit(model, x, **options).codes(5)
    assert states() == untouched
    keras.utils.set_random_seed(2)
    np.testing.assert_array_equal(TwoStageSampler.fit(model, x, **options).codes(5), first)
    assert not np.array_equal(TwoStageSampler.fit(model, x, seed=1, **options).codes(5), first)


def test_the_latent_size_of_the_second_stage_may_differ_and_callbacks_are_called():
    seen = []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["elbo"]))
    sampler = TwoStageSampler.fit(
        hand_made(), images(crescent(20, 0)), 3, units=(4,), epochs=2, batch_size=8, callbacks=[callback]
    )
    assert sampler.second.latent_size == 3
    assert sampler.codes(4).shape == (4, D)
    assert len(seen) == 2


# --- all of them ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["prior", "mixture", "two_stage"])
def sampler(request, fitted, second):
    return {"prior": PriorSampler(fitted.model), "mixture": fitted, "two_stage": second}[request.param]


def test_images_are_decoded_codes_and_seeds_repeat(sampler):
    codes = sampler.codes(20, seed=3)
    np.testing.assert_array_equal(sampler.codes(20, seed=3), codes)
    assert np.abs(sampler.codes(20, seed=4) - codes).min() > 0
    np.testing.assert_allclose(sampler.images(20, seed=3), codes @ LOADINGS + OFFSET, atol=1e-5)
    np.testing.assert_array_equal(sampler.images(20, seed=3, noise=True), sampler.images(20, seed=3, noise=True))


def test_noise_is_the_likelihoods_and_its_own(sampler):
    """σ is 1 before training; noise must share no draws with codes, nor one batch of images with the next."""
    codes, drawn = sampler.codes(1500, seed=3), sampler.images(1500, seed=3, noise=True)
    noise = drawn - (codes @ LOADINGS + OFFSET)
    assert stats.kstest(noise.ravel(), "norm").pvalue > 0.001
    together = np.corrcoef(np.concatenate([codes, noise], axis=1).T)[D:]
    np.testing.assert_array_less(np.abs(together[:, :D]), 0.1)
    assert len(np.unique(noise[:, 0].round(4))) > 1400


def test_draws_of_different_seeds_share_nothing(sampler):
    both = [sampler.codes(1000, seed=seed) for seed in (0, 1)]
    assert abs(np.corrcoef(both[0][:, 0], both[1][:, 0])[0, 1]) < 0.12


@pytest.mark.parametrize("suffix", [".npz", ".keras"])
def test_files_bring_the_sampler_back_for_its_model_alone(suffix, tmp_path, fitted, second):
    sampler = fitted if suffix == ".npz" else second
    path = tmp_path / f"sampler{suffix}"
    sampler.save(path)
    sampler.model.compile()
    sampler.model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    model.likelihood.set_sigma(0.5)  # calibrated later: no other codes
    again = type(sampler).load(path, model)
    np.testing.assert_array_equal(again.codes(7, seed=2), sampler.codes(7, seed=2))
    model.decoder.layers[-1].bias.assign_add(np.ones(V))
    with pytest.raises(ModelError, match=r"belong to the model .* fitted to the codes of"):
        type(sampler).load(path, model)
    with pytest.raises(ArgumentError, match=rf"end in \{suffix}"):
        sampler.save(tmp_path / "sampler.pickle")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelError, match=r"Sampler\.save wrote"):
        type(sampler).load(path, sampler.model)
    with pytest.raises(ModelError, match=r"Sampler\.save wrote"):
        type(sampler).load(tmp_path / f"absent{suffix}", sampler.model)
    if suffix == ".keras":
        with pytest.raises(ModelError, match=r"Sampler\.save wrote, but received VAE"):
            type(sampler).load(tmp_path / "model.keras", sampler.model)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MixtureSampler, TwoStageSampler])
@pytest.mark.parametrize("posterior", [PowerSphericalPosterior, VonMisesFisherPosterior])
def test_codes_on_the_sphere_are_refused(kind, posterior):
    encoder = keras.Sequential([keras.Input((V,)), keras.layers.Dense(posterior().parameter_size(3))])
    decoder = keras.Sequential([keras.Input((3,)), keras.layers.Dense(V)])
    model = VAE(encoder, decoder, posterior=posterior(), prior=UniformSpherePrior())
    with pytest.raises(ModelError, match=r"Euclidean space, but received .*sphere\. Use PriorSampler"):
        kind.fit(model, images(truth(20, 0)))
    np.testing.assert_allclose(np.linalg.norm(PriorSampler(model).codes(5), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["vector_quantised", "relaxed_categorical"])
def test_codes_that_are_choices_are_refused(name):
    model = hand_made()
    model.posterior.kind = name
    with pytest.raises(ModelError, match="choices from a list"):
        MixtureSampler.fit(model, images(truth(20, 0)))


def test_too_few_people_are_refused():
    for kind in (MixtureSampler, TwoStageSampler):
        with pytest.raises(ArgumentError, match=r"10 people or more, but received 9"):
            kind.fit(hand_made(), images(truth(9, 0)))
    with pytest.raises(ArgumentError, match=r"10 people or more for each.*39 people for 4\. Use 3 components"):
        MixtureSampler.fit(hand_made(), images(truth(39, 0)), components=4)
    wide = VAE(*(keras.Sequential([keras.Input((n,)), keras.layers.Dense(m)]) for n, m in ((V, 40), (20, V))))
    with pytest.raises(ArgumentError, match=r"21 people .* of 20 dimensions, but received 20 .*PriorSampler or Two"):
        MixtureSampler.fit(wide, images(truth(20, 0)))


def test_a_component_of_a_few_people_is_refused_and_not_chosen():
    """Four people far from the others would be drawn again and again by a component of their own."""
    z = np.random.default_rng(5).normal(size=(60, D))
    z[:4] += 50
    with pytest.raises(ArgumentError, match=r"leave each component 10 people or more, but received 2, .*4\.0"):
        MixtureSampler.fit(hand_made(), images(z), components=2)
    chosen = MixtureSampler.fit(hand_made(), images(z)).mixture
    assert (chosen.weights * 60 > 9.9).all()


def test_calls_outside_their_rules_are_refused(fitted):
    for arguments, sentence in (
        ({"count": 0}, "count must be a whole number, 1 or more"),
        ({"count": 2, "seed": -1}, "seed must be a whole number, 0 or more"),
        ({"count": 2, "covariates": [[1.0]]}, "covariates must be left out"),
    ):
        with pytest.raises(ArgumentError, match=sentence):
            fitted.codes(**arguments)
    x = images(truth(20, 0))
    x[7, 0] = np.nan
    with pytest.raises(ArgumentError, match="finite codes, but received NaN or infinity in row 7"):
        MixtureSampler.fit(fitted.model, x)
    conditional = hand_made(condition=1, covariates=Covariates.fit({"age": np.arange(20.0)}))
    given = {"image": images(truth(20, 0)), "covariates": {"age": np.arange(20.0)}}
    sampler = MixtureSampler.fit(conditional, given)
    with pytest.raises(ArgumentError, match="covariates must be given"):
        sampler.codes(2)
    with pytest.raises(ArgumentError, match="shape"):
        sampler.codes(2, covariates=[[1.0], [2.0], [3.0]])
