"""Bounds on log p(x) and what is done to their KL: values by hand, order of the bounds, gradients of the estimators."""

import json
from itertools import pairwise

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from scipy.special import expit, log_expit, logsumexp

from kerasvae.distributions import NormalLikelihood
from kerasvae.errors import ArgumentError, ModelError
from kerasvae.models import VAE
from kerasvae.networks import dense_decoder, dense_encoder
from kerasvae.objectives import Draws
from kerasvae.objectives.capacity import Capacity
from kerasvae.objectives.free_bits import FreeBits
from kerasvae.objectives.iwae import IWAE, DReG
from kerasvae.objectives.miwae import MIWAE
from kerasvae.objectives.monte_carlo import MonteCarloELBO
from kerasvae.objectives.sticking import StickingTheLanding

RNG = np.random.default_rng(11)
OBJECTIVES = (
    FreeBits(free_bits=0.3),
    FreeBits(free_bits=0.3, groups=[[1, 0], [2]], per="group", batch_averaged=False, samples=2),
    FreeBits(free_bits=2.0, per="group"),
    Capacity(gamma=3.0, capacity=2.0),
    IWAE(samples=3),
    DReG(samples=3),
    MIWAE(samples=4, groups=2),
    MonteCarloELBO(beta=0.5, samples=2),
    StickingTheLanding(samples=2),
)


def made(objective, log_likelihood=((0.0,),), log_prior=((0.0,),), log_posterior=((0.0,),), kl=None, parts=None, **now):
    """Draws of an objective from plain arrays; `now` are its scheduled numbers where they have moved."""
    numbers = {name: objective.get_config()[name] for name in objective.scheduled} | now
    if parts is not None:
        kl = tf.reduce_sum(parts, axis=-1)
    return Draws(
        z=tf.zeros((*np.shape(log_likelihood), 3)),
        log_likelihood=tf.constant(log_likelihood, tf.float32),
        log_prior=tf.constant(log_prior, tf.float32),
        log_posterior=tf.constant(log_posterior, tf.float32),
        kl=tf.zeros(np.shape(log_likelihood)[1]) if kl is None else tf.cast(kl, tf.float32),
        kl_per_dimension=None if parts is None else tf.cast(parts, tf.float32),
        parameters=tf.zeros((1, 0)),
        outputs={},
        draw_prior=lambda count: tf.zeros((1, 3)),
        memory=tf.zeros((0, 3)),
        pairwise=lambda: tf.zeros((1, 1, 3)),
        people=tf.constant(1.0),
        scheduled={name: tf.constant(value, tf.float32) for name, value in numbers.items()},
        critic=None,
        seed=tf.constant([0, 0]),
    )


# --- importance-weighted bounds ------------------------------------------------------------------


def densities(samples=6, people=4):
    return RNG.normal(-20, 3, (samples, people)), RNG.normal(-4, 1, (samples, people)), RNG.normal(1, 1, (6, people))


def test_bounds_are_the_papers_formulas():
    likelihood, prior, posterior = arrays = densities()
    log_w = likelihood + prior - posterior
    weights = np.exp(log_w)
    iwae = np.log(weights.mean(0))
    np.testing.assert_allclose(IWAE(6).terms(made(IWAE(6), *arrays)).loss, -iwae, rtol=1e-5)
    np.testing.assert_allclose(IWAE(6).terms(made(IWAE(6), *arrays)).per_subject["iwae_bound"], iwae, rtol=1e-5)
    np.testing.assert_allclose(DReG(6).terms(made(DReG(6), *arrays)).loss, -iwae, rtol=1e-5)
    np.testing.assert_allclose(
        DReG(6).code_weight(made(DReG(6), *arrays)), weights / weights.sum(0), rtol=1e-4, atol=1e-7
    )
    for groups, each in ((1, 6), (2, 3), (3, 2), (6, 1)):
        objective = MIWAE(samples=6, groups=groups)
        expected = np.mean([np.log(weights[g * each : (g + 1) * each].mean(0)) for g in range(groups)], axis=0)
        terms = objective.terms(made(objective, *arrays))
        np.testing.assert_allclose(terms.loss, -expected, rtol=1e-5)
        np.testing.assert_allclose(terms.per_subject["miwae_bound"], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [MonteCarloELBO, StickingTheLanding])
def test_monte_carlo_elbo_is_the_mean_over_draws_and_follows_its_schedule(kind):
    likelihood, prior, posterior = arrays = densities()
    objective, kl = kind(beta=1.0, samples=6), np.array([3.0, 1.0, 4.0, 1.5])
    for beta in (1.0, 0.25):
        terms = objective.terms(made(objective, *arrays, kl=kl, beta=beta))
        expected = -(likelihood + beta * (prior - posterior)).mean(0)
        np.testing.assert_allclose(terms.loss, expected, rtol=1e-5)
        np.testing.assert_allclose(terms.total, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(terms.per_subject["sampled_kl"], (posterior - prior).mean(0), rtol=1e-5)
    np.testing.assert_allclose(terms.per_subject["kl"], kl)
    np.testing.assert_allclose(terms.per_subject["elbo"], likelihood.mean(0) - kl, rtol=1e-5)


@pytest.mark.parametrize("objective", [IWAE(3), DReG(3), MIWAE(3, 1)])
def test_log_densities_of_large_images_do_not_overflow(objective):
    likelihood = np.array([[-1e6, 1e6], [-1e6 + 1, 1e6 + 2], [-1e6 - 3, 1e6]])
    draws = made(objective, likelihood, np.zeros((3, 2)), np.zeros((3, 2)))
    np.testing.assert_allclose(-objective.terms(draws).loss, logsumexp(likelihood, 0) - np.log(3), rtol=2e-7)


def test_bounds_rise_with_draws_to_the_exact_evidence():
    """x|z ~ N(wz, σ²I), z ~ N(0, 1): log p(x) is known; q is deliberately not the exact posterior."""
    w, sigma, x, mean, stddev, repeats = np.array([1.0, -0.5]), 0.6, np.array([0.9, 0.4]), 0.1, 0.8, 6000
    evidence = stats.multivariate_normal.logpdf(x, np.zeros(2), np.outer(w, w) + sigma**2 * np.eye(2))
    second = ((x - w * mean) ** 2).sum() + (w**2).sum() * stddev**2
    kl = 0.5 * (mean**2 + stddev**2 - 1) - np.log(stddev)
    elbo = -np.log(2 * np.pi * sigma**2) - second / (2 * sigma**2) - kl

    rng = np.random.default_rng(0)

    def bound(objective):
        z = rng.normal(mean, stddev, (objective.samples, repeats))
        likelihood = stats.norm.logpdf(x, z[..., None] * w, sigma).sum(-1)
        draws = made(objective, likelihood, stats.norm.logpdf(z), stats.norm.logpdf(z, mean, stddev))
        values = -objective.terms(draws).loss.numpy().astype("f8")
        return values.mean(), values.std() / np.sqrt(repeats)

    bounds = [bound(IWAE(samples)) for samples in (1, 2, 4, 8, 64)]
    assert bounds[0][0] == pytest.approx(elbo, abs=4 * bounds[0][1])
    for (low, low_error), (high, high_error) in pairwise(bounds):
        assert high - low > 4 * np.hypot(low_error, high_error)
    for value, error in bounds:
        assert value <= evidence + 4 * error
    assert bounds[-1][0] > evidence - 0.05
    middle, error = bound(MIWAE(samples=8, groups=2))
    assert middle == pytest.approx(bounds[2][0], abs=4 * np.hypot(error, bounds[2][1]))  # M = 2, K = 4: IWAE(4)
    assert elbo + 4 * error < middle < bounds[3][0] - 4 * np.hypot(error, bounds[3][1])


# --- gradients through a real model --------------------------------------------------------------

LOADINGS, OFFSET, SIGMA = np.array([[1.2, -0.7]]), np.array([0.2, 0.1]), 0.7
X = np.array([[0.9, 0.4], [-0.6, 1.1], [0.3, -1.5]])


def linear(objective, encoder_kernel, encoder_bias):
    """x|z ~ N(z W + b, σ²I) with one latent dimension, and a linear encoder of mean and raw scale."""
    encoder = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    decoder = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    encoder.set_weights([np.asarray(encoder_kernel, "f4"), np.asarray(encoder_bias, "f4")])
    decoder.set_weights([LOADINGS.astype("f4"), OFFSET.astype("f4")])
    return VAE(encoder, decoder, likelihood=NormalLikelihood(scale="fixed", stddev=SIGMA), objective=objective)


OFF = (np.array([[0.3, 0.2], [-0.2, 0.1]]), np.array([0.1, -0.3]))
"""An encoder that is not at the exact posterior."""


def exact_encoder():
    precision = 1 + (LOADINGS**2).sum() / SIGMA**2
    gain = LOADINGS[0] / SIGMA**2 / precision
    raw = np.log(np.expm1(precision**-0.5 - 1e-4))
    return np.stack([gain, np.zeros(2)], axis=1), np.array([-OFFSET @ gain, raw])


def gradients(model, images=X):
    images = tf.constant(images, tf.float32)

    @tf.function
    def step(seed):
        with tf.GradientTape() as tape:
            draws, _ = model.draws(images, seed, training=True)
            loss = model.objective.terms(draws).total
        encoder, decoder = model.encoder.trainable_variables, model.decoder.trainable_variables
        found = tape.gradient(loss, [*encoder, *decoder])
        flat = [tf.concat([tf.reshape(g, [-1]) for g in part], 0) for part in (found[:2], found[2:])]
        return loss, flat[0], flat[1], draws.z[..., 0]

    def at(seed):
        return [value.numpy().astype("f8") for value in step(tf.constant([seed, 3]))]

    return at


def path_gradient(z, code_gradient, kernel, bias):
    """Σ over draws and subjects of code_gradient · ∂z/∂(encoder weights), by the chain rule."""
    mean, raw = (X @ kernel + bias).T
    epsilon = (z - mean) / (1e-4 - log_expit(-raw))
    reached = np.stack([code_gradient.sum(0), (code_gradient * epsilon * expit(raw)).sum(0)], axis=1)
    return np.concatenate([(X.T @ reached).ravel(), reached.sum(0)])


@pytest.mark.parametrize("kind", [DReG, StickingTheLanding])
def test_encoder_gradient_is_the_papers_formula(kind):
    kernel, bias = OFF
    _, found, _, z = gradients(linear(kind(samples=5), kernel, bias))(4)
    mean, raw = (X @ kernel + bias).T
    stddev = 1e-4 - log_expit(-raw)
    residual = X - z[..., None] * LOADINGS[0] - OFFSET
    slope = (residual * LOADINGS[0]).sum(-1) / SIGMA**2 - z + (z - mean) / stddev**2
    log_w = stats.norm.logpdf(residual / SIGMA).sum(-1) + stats.norm.logpdf(z) - stats.norm.logpdf(z, mean, stddev)
    shares = np.exp(log_w - logsumexp(log_w, axis=0))
    factor = shares**2 if kind is DReG else 1 / 5
    np.testing.assert_allclose(found, path_gradient(z, -factor * slope / len(X), kernel, bias), rtol=2e-4, atol=1e-5)


def test_dreg_is_unbiased_for_the_encoder_less_noisy_and_leaves_the_decoder_alone():
    plain, doubly = (gradients(linear(kind(samples=8), *OFF), np.repeat(X, 250, axis=0)) for kind in (IWAE, DReG))
    pairs = [(plain(seed), doubly(seed)) for seed in range(150)]
    for (loss, _, decoder, _), (same_loss, _, same_decoder, _) in pairs[:5]:
        assert loss == same_loss
        np.testing.assert_array_equal(decoder, same_decoder)
    first, second = (np.array([pair[which][1] for pair in pairs]) for which in (0, 1))
    difference = second - first
    error = difference.std(0) / np.sqrt(len(pairs))
    assert np.abs(difference.mean(0) / error).max() < 4
    signal = first.mean(0) / (first.std(0) / np.sqrt(len(pairs)))
    assert np.abs(signal).max() > 20  # a bias of a fifth of the gradient would show
    assert (second.var(0) < 0.6 * first.var(0)).all()


@pytest.mark.parametrize("kind", [DReG, StickingTheLanding])
def test_no_noise_is_left_at_the_exact_posterior(kind):
    sharp = gradients(linear(kind(samples=4), *exact_encoder()))
    noisy = gradients(linear({DReG: IWAE, StickingTheLanding: MonteCarloELBO}[kind](samples=4), *exact_encoder()))
    for seed in range(5):
        assert np.abs(sharp(seed)[1]).max() < 1e-5
        assert np.abs(noisy(seed)[1]).max() > 1e-2


# --- what is done to the KL ----------------------------------------------------------------------

PARTS = np.array([[0.1, 0.9, 2.0], [0.3, 0.2, 0.4], [0.2, 0.4, 0.9]])
LIKELIHOOD = np.array([[-5.0, -6.0, -7.0], [-6.0, -8.0, -9.0]])


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ({}, [[0], [1], [2]]),
        ({"groups": [[2, 0], [1]], "per": "group"}, [[0, 2], [1]]),
        ({"per": "group"}, [[0, 1, 2]]),
    ],
)
@pytest.mark.parametrize("free", [0.0, 0.5, 1.4])
def test_free_bits_hold_the_kl_above_the_threshold(options, columns, free):
    parts = np.stack([PARTS[:, column].sum(1) for column in columns], axis=1)
    own, batch = np.maximum(parts, free).sum(1), np.maximum(parts.mean(0), free).sum()
    likelihood = LIKELIHOOD.mean(0)
    for batch_averaged in (True, False):
        objective = FreeBits(free_bits=9.0, batch_averaged=batch_averaged, samples=2, **options)
        draws = made(objective, LIKELIHOOD, LIKELIHOOD, LIKELIHOOD, parts=PARTS, free_bits=free)
        terms = objective.terms(draws)
        np.testing.assert_allclose(terms.per_subject["clamped_kl"], own, rtol=1e-6)
        np.testing.assert_allclose(terms.aggregate["batch_clamped_kl"], batch, rtol=1e-6)
        np.testing.assert_allclose(terms.loss, -likelihood if batch_averaged else own - likelihood, rtol=1e-6)
        np.testing.assert_allclose(terms.penalty, batch if batch_averaged else 0, rtol=1e-6)
        expected = (batch if batch_averaged else own.mean()) - likelihood.mean()
        np.testing.assert_allclose(terms.total, expected, rtol=1e-6)
        if free == 0:
            np.testing.assert_allclose(terms.total, PARTS.sum(1).mean() - likelihood.mean(), rtol=1e-6)


def test_what_is_free_has_no_gradient():
    parts = tf.Variable(PARTS, dtype=tf.float32)
    for batch_averaged, expected in ((True, np.tile([0, 0, 1 / 3], (3, 1))), (False, (PARTS > 0.6) / 3)):
        objective = FreeBits(free_bits=0.6, batch_averaged=batch_averaged)
        with tf.GradientTape() as tape:
            total = objective.terms(made(objective, LIKELIHOOD, LIKELIHOOD, LIKELIHOOD, parts=parts)).total
        np.testing.assert_allclose(tape.gradient(total, parts), expected, rtol=1e-6)


def test_free_bits_of_a_kl_that_is_no_sum_over_dimensions():
    arrays = (LIKELIHOOD, LIKELIHOOD, LIKELIHOOD)
    whole = FreeBits(free_bits=1.0, per="group", batch_averaged=False)
    terms = whole.terms(made(whole, *arrays, kl=[0.5, 3.0, 1.0]))
    np.testing.assert_allclose(terms.per_subject["clamped_kl"], [1, 3, 1])
    with pytest.raises(ModelError, match="must be a sum over dimensions"):
        FreeBits().terms(made(FreeBits(), *arrays, kl=[0.5, 3.0, 1.0]))


def test_free_bits_groups_must_hold_all_dimensions_of_the_model():
    objective = FreeBits(groups=[[0], [1]], per="group")
    with pytest.raises(ArgumentError, match="groups must name every latent dimension once"):
        objective.terms(made(objective, LIKELIHOOD, LIKELIHOOD, LIKELIHOOD, parts=PARTS))


def test_capacity_is_the_distance_of_each_subjects_kl_and_follows_its_schedule():
    objective, kl = Capacity(gamma=7.0, capacity=5.0), np.array([1.0, 2.5, 4.0])
    for capacity in (0.0, 2.5, 5.0):
        terms = objective.terms(made(objective, LIKELIHOOD, LIKELIHOOD, LIKELIHOOD, kl=kl, capacity=capacity))
        np.testing.assert_allclose(terms.loss, 7 * np.abs(kl - capacity) - LIKELIHOOD.mean(0), rtol=1e-6)
        np.testing.assert_allclose(terms.per_subject["capacity_gap"], np.abs(kl - capacity))


# --- the house -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "name"),
    [
        (IWAE, {"samples": 0}, "samples"),
        (IWAE, {"samples": 2.5}, "samples"),
        (DReG, {"samples": -1}, "samples"),
        (MIWAE, {"samples": 5, "groups": 2}, "samples"),
        (MIWAE, {"samples": 4, "groups": 0}, "groups"),
        (MonteCarloELBO, {"beta": -0.1}, "beta"),
        (MonteCarloELBO, {"beta": float("nan")}, "beta"),
        (StickingTheLanding, {"samples": True}, "samples"),
        (Capacity, {"gamma": -1.0}, "gamma"),
        (Capacity, {"capacity": float("inf")}, "capacity"),
        (Capacity, {"samples": 0}, "samples"),
        (FreeBits, {"free_bits": -0.5}, "free_bits"),
        (FreeBits, {"per": "dimensions"}, "per"),
        (FreeBits, {"groups": [[0]]}, "groups"),
        (FreeBits, {"groups": [[0], [0, 1]], "per": "group"}, "groups"),
        (FreeBits, {"groups": [[0], [2]], "per": "group"}, "groups"),
        (FreeBits, {"groups": [[0], []], "per": "group"}, "groups"),
        (FreeBits, {"groups": [], "per": "group"}, "groups"),
        (FreeBits, {"batch_averaged": "yes"}, "batch_averaged"),
        (FreeBits, {"samples": 0}, "samples"),
    ],
)
def test_bad_constants_are_one_sentence(kind, arguments, name):
    with pytest.raises(ArgumentError, match=rf"^{name} must .*, but received .*[.?]$"):
        kind(**arguments)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.kind)
def test_config_round_trip(objective):
    described = json.loads(json.dumps(keras.saving.serialize_keras_object(objective)))
    again = keras.saving.deserialize_keras_object(described)
    assert type(again) is type(objective)
    assert again.get_config() == objective.get_config()
    assert again.samples == objective.samples
    assert type(objective)(**objective.get_config()).get_config() == objective.get_config()
    assert set(objective.scheduled) <= set(objective.get_config())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.kind)
def test_a_real_model_trains_and_reports_its_terms(objective):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(2).standard_normal((10, 15)).astype("f4")
    model = VAE(dense_encoder((15,), 6, (8,)), dense_decoder((15,), 3, (8,)), objective=objective)
    model.compile(keras.optimizers.Adam(1e-3))
    before = [np.array(variable) for variable in model.main_variables]
    history = model.fit(x, epochs=2, batch_size=4, verbose=0).history
    wanted = {"loss", "elbo", "log_likelihood", "kl", "sigma", *objective.scheduled}
    assert set(history) == wanted | set(objective.extras) | set(objective.aggregates)
    assert all(np.isfinite(values).all() for values in history.values())
    assert all((np.array(now) != then).any() for now, then in zip(model.main_variables, before, strict=True))
