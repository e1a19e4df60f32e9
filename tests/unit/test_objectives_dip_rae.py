"""DIP-VAE against covariances of numpy, and deterministic autoencoders."""

import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasvae.distributions.point import PointPosterior
from kerasvae.errors import ArgumentError, ModelError
from kerasvae.models import VAE
from kerasvae.networks import dense_decoder, dense_encoder
from kerasvae.objectives import Draws
from kerasvae.objectives.adversarial import AdversarialAutoencoder
from kerasvae.objectives.dip_vae import DIPVAE, aggregate_covariance, mean_covariance
from kerasvae.objectives.rae import RAE, Reconstruction

RNG = np.random.default_rng(0)


def make_draws(**given):
    """Draws with what a test gives; the rest is None."""
    parts = {
        name: tf.constant(value, tf.float32) if isinstance(value, np.ndarray) else value
        for name, value in given.items()
    }
    return Draws(**{name: parts.get(name) for name in Draws._fields})


def numbers(**values):
    return {name: tf.constant(value) for name, value in values.items()}


def single(array):
    return tf.constant(array, tf.float32)


# --- DIP-VAE -------------------------------------------------------------------------------------


def dip_terms(variant, mean, stddev, memory=None, **scales):
    people, d = mean.shape
    draws = make_draws(
        z=mean[None],
        log_likelihood=RNG.standard_normal((1, people)),
        kl=RNG.random(people),
        outputs={"mean": single(mean), "stddev": single(stddev)},
        memory=np.zeros((0, d)) if memory is None else memory,
        scheduled=numbers(lambda_off_diagonal=3.0, lambda_diagonal=5.0),
    )
    return draws, DIPVAE(variant, 3.0, 5.0).terms(draws)


@pytest.mark.parametrize("variant", ["i", "ii"])
def test_dip_penalty_is_the_formula(variant):
    mean, stddev = RNG.standard_normal((9, 3)), RNG.random((9, 3)) + 0.1
    draws, terms = dip_terms(variant, mean, stddev)
    covariance = np.cov(mean.T)
    if variant == "ii":
        covariance = covariance + np.diag((stddev**2).mean(0))
    off = sum(covariance[i, j] ** 2 for i, j in itertools.permutations(range(3), 2))
    diagonal = ((np.diag(covariance) - 1) ** 2).sum()
    assert float(terms.aggregate["dip_off_diagonal"]) == pytest.approx(off, rel=1e-4)
    assert float(terms.aggregate["dip_diagonal"]) == pytest.approx(diagonal, rel=1e-4)
    assert float(terms.penalty) == pytest.approx(3 * off + 5 * diagonal, rel=1e-4)
    np.testing.assert_allclose(terms.loss, draws.kl - draws.log_likelihood[0], rtol=1e-5)


@pytest.mark.parametrize("variant", ["i", "ii"])
def test_dip_gradient_against_finite_differences(variant):
    mean, stddev = RNG.standard_normal((6, 3)), RNG.random((6, 3)) + 0.1
    directions = RNG.standard_normal((2, 6, 3))

    def penalty(step):
        covariance = np.cov((mean + step * directions[0]).T)
        if variant == "ii":
            covariance = covariance + np.diag(((stddev + step * directions[1]) ** 2).mean(0))
        diagonal = ((np.diag(covariance) - 1) ** 2).sum()
        return 3 * ((covariance**2).sum() - (np.diag(covariance) ** 2).sum()) + 5 * diagonal

    means, stddevs = tf.Variable(single(mean)), tf.Variable(single(stddev))
    with tf.GradientTape() as tape:
        draws = make_draws(
            z=mean[None],
            log_likelihood=np.zeros((1, 6)),
            kl=np.zeros(6),
            outputs={"mean": means.value(), "stddev": stddevs.value()},
            memory=np.zeros((0, 3)),
            scheduled=numbers(lambda_off_diagonal=3.0, lambda_diagonal=5.0),
        )
        loss = DIPVAE(variant, 3.0, 5.0).terms(draws).penalty
    gradients = tape.gradient(loss, [means, stddevs], unconnected_gradients="zero")
    slope = sum((g.numpy() * direction).sum() for g, direction in zip(gradients, directions, strict=True))
    assert slope == pytest.approx((penalty(1e-5) - penalty(-1e-5)) / 2e-5, rel=1e-3)


@pytest.mark.parametrize("variant", ["i", "ii"])
def test_remembered_codes_leave_the_covariance_unbiased_and_make_it_steadier(variant):
    truth = np.array([[1.0, 0.5], [0.5, 0.8]])
    stddev = np.array([0.7, 0.4])
    expected = truth + (np.diag(stddev**2) if variant == "ii" else 0)
    found: dict[int, list] = {0: [], 60: []}
    for seed, slots in itertools.product(range(150), found):
        rng = np.random.default_rng(seed)
        mean = rng.multivariate_normal(np.ones(2), truth, 5)
        old = rng.multivariate_normal(np.ones(2), truth, slots) + stddev * rng.standard_normal((slots, 2))
        within = single(np.diag(stddev**2))
        found[slots].append(aggregate_covariance(single(mean), within, single(old), variant).numpy())
    for matrices in found.values():
        error = np.std(matrices, axis=0) / np.sqrt(len(matrices))
        assert (np.abs(np.mean(matrices, axis=0) - expected) < 4 * error).all()
    assert (np.std(found[60], axis=0) < 0.5 * np.std(found[0], axis=0)).all()


def test_a_long_memory_does_not_thin_the_gradient():
    rng = np.random.default_rng(1)
    people, slots, stddev = 4000, 40_000, 0.5
    mean = 1.3 * rng.standard_normal((people, 2))
    old = 1.3 * rng.standard_normal((slots, 2)) + stddev * rng.standard_normal((slots, 2))
    scale = tf.Variable(1.0)
    with tf.GradientTape() as tape:
        covariance = aggregate_covariance(scale * single(mean), single(np.eye(2) * stddev**2), single(old), "i")
        loss = covariance[0, 0]
    # d/ds of s²·1.69 at s = 1
    assert float(tape.gradient(loss, scale)) == pytest.approx(2 * 1.69, rel=0.1)


def test_mean_covariance_of_every_normal_posterior():
    stddev = RNG.random((5, 3))
    np.testing.assert_allclose(mean_covariance({"stddev": single(stddev)}), np.diag((stddev**2).mean(0)), rtol=1e-5)
    tril = np.tril(RNG.standard_normal((5, 3, 3)))
    expected = np.mean([lower @ lower.T for lower in tril], axis=0)
    np.testing.assert_allclose(
        mean_covariance({"stddev": single(stddev), "scale_tril": single(tril)}), expected, rtol=1e-4, atol=1e-6
    )
    factor = RNG.standard_normal((5, 3, 2))
    expected = np.mean([np.diag(s**2) + u @ u.T for s, u in zip(stddev, factor, strict=True)], axis=0)
    outputs = {"stddev": single(stddev), "diagonal": single(stddev), "factor": single(factor)}
    np.testing.assert_allclose(mean_covariance(outputs), expected, rtol=1e-4, atol=1e-6)


def test_dip_of_one_person_is_finite():
    _, terms = dip_terms("i", np.ones((1, 2)), np.ones((1, 2)))
    assert float(terms.penalty) == pytest.approx(5 * 2)  # no scatter: each variance misses 1 by 1


def test_dip_needs_means_and_deviations():
    draws = make_draws(z=np.zeros((1, 2, 2)), outputs={"mean": tf.zeros((2, 2))}, memory=np.zeros((0, 2)))
    with pytest.raises(ModelError, match="mean and stddev"):
        DIPVAE().terms(draws)


# --- deterministic autoencoders ------------------------------------------------------------------


def test_rae_is_reconstruction_plus_half_the_squared_norm():
    z, log_likelihood = RNG.standard_normal((2, 4, 3)), RNG.standard_normal((2, 4))
    draws = make_draws(z=z, log_likelihood=log_likelihood, kl=np.zeros(4), scheduled=numbers(beta=0.7))
    terms = RAE(beta=0.7).terms(draws)
    size = 0.5 * (np.linalg.norm(z, axis=-1) ** 2).mean(0)
    np.testing.assert_allclose(terms.per_subject["half_square_norm"], size, rtol=1e-5)
    np.testing.assert_allclose(terms.loss, 0.7 * size - log_likelihood.mean(0), rtol=1e-5)
    np.testing.assert_allclose(Reconstruction().terms(draws).loss, -log_likelihood.mean(0), rtol=1e-5)


def test_rae_gradient_is_beta_times_the_code_also_at_zero():
    z = tf.Variable([[[0.0, 0.0, 0.0], [1.0, -2.0, 3.0]]])
    with tf.GradientTape() as tape:
        draws = make_draws(z=z.value(), log_likelihood=np.zeros((1, 2)), kl=np.zeros(2), scheduled=numbers(beta=0.7))
        loss = tf.reduce_sum(RAE(beta=0.7).terms(draws).loss)
    np.testing.assert_allclose(tape.gradient(loss, z), 0.7 * z.numpy(), rtol=1e-6)


# --- in the model --------------------------------------------------------------------------------

NORMAL = {
    "dip i": lambda: DIPVAE("i"),
    "dip ii": lambda: DIPVAE("ii"),
    "dip with memory": lambda: DIPVAE("i", memory=7),
    "reconstruction": lambda: Reconstruction(),
}
POINT = {
    "rae": lambda: RAE(beta=0.1),
    "reconstruction": lambda: Reconstruction(),
    "adversarial": lambda: AdversarialAutoencoder(units=(8,)),
}


def vectors(people=12):
    rng = np.random.default_rng(9)
    return (
        rng.standard_normal((people, 2)) @ rng.standard_normal((2, 15)) + 0.1 * rng.standard_normal((people, 15))
    ).astype("f4")


def fit(objective, posterior=None, epochs=2, batch_size=11, rate=1e-3, repeats=1, **options):
    keras.utils.set_random_seed(1)
    width = 2 if posterior else 4
    model = VAE(
        dense_encoder((15,), width, (8,)), dense_decoder((15,), 2, (8,)), posterior=posterior, objective=objective
    )
    model.compile(keras.optimizers.Adam(rate), **options)
    history = model.fit(
        np.tile(vectors(), (repeats, 1)), epochs=epochs, batch_size=batch_size, shuffle=False, verbose=0
    ).history
    return model, history


@pytest.mark.parametrize(
    ("objective", "posterior"),
    [*((make, None) for make in NORMAL.values()), *((make, PointPosterior) for make in POINT.values())],
    ids=[*NORMAL, *(f"point {name}" for name in POINT)],
)
def test_trains_a_model_and_reports_its_terms(objective, posterior):
    objective = objective()
    _, history = fit(objective, posterior and posterior())  # the last batch has one person
    reported = {"loss", "elbo", "log_likelihood", "kl", "sigma", *objective.scheduled}
    assert set(history) == reported | set(objective.extras) | set(objective.aggregates)
    assert all(np.isfinite(column).all() for column in history.values())


def test_dip_remembers_codes_in_the_model():
    model, _ = fit(DIPVAE("i", memory=7), run_eagerly=True)
    assert int(model.remembered) == 7
    assert np.abs(np.array(model.memory)).sum(1).all()


def test_dip_brings_the_codes_closer_to_unit_covariance():
    def distance(objective):
        model, _ = fit(objective, epochs=1, batch_size=12, rate=1e-2, repeats=150)  # everyone in each batch
        return np.abs(np.cov(model.encode(vectors())["mean"].T) - np.eye(2)).max()

    assert distance(DIPVAE("i", 100.0, 100.0)) < 0.15 < distance(DIPVAE("i", 0.0, 0.0))


@pytest.mark.parametrize("make", [*NORMAL.values(), POINT["rae"]], ids=[*NORMAL, "rae"])
def test_config_round_trip(make):
    objective = make()
    written = json.dumps(keras.saving.serialize_keras_object(objective))
    again = keras.saving.deserialize_keras_object(json.loads(written))
    assert type(again) is type(objective)
    assert again.get_config() == objective.get_config()
    assert again.memory == objective.memory


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (DIPVAE, {"variant": "iii"}),
        (DIPVAE, {"lambda_diagonal": -1.0}),
        (DIPVAE, {"lambda_off_diagonal": float("nan")}),
        (DIPVAE, {"memory": -1}),
        (DIPVAE, {"memory": 1.5}),
        (RAE, {"beta": -1.0}),
        (RAE, {"beta": float("inf")}),
    ],
)
def test_bad_constants_are_one_sentence(kind, arguments):
    with pytest.raises(ArgumentError, match=f"^{next(iter(arguments))} must"):
        kind(**arguments)
