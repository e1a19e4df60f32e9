"""Relaxed categorical codes against scipy, enumeration of all codes and finite differences."""

import itertools
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from kerasvae.distributions import Context, UniformCodesPrior, closed_kl
from kerasvae.distributions.relaxed_categorical import RelaxedCategoricalPosterior
from kerasvae.errors import ArgumentError, ModelError, RecipeError
from kerasvae.models import VAE
from kerasvae.networks import dense_decoder, dense_encoder
from kerasvae.objectives import ELBO
from kerasvae.training.build import build_model
from kerasvae.training.callbacks import Schedules
from kerasvae.training.recipe import parse_recipe
from kerasvae.training.schedules import Linear

SEED = tf.constant([3, 4])
D, P, K = 6, 3, 4


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def probabilities(parameters):
    """π, (B, P, K), float64."""
    return special.softmax(np.asarray(parameters, "f8").reshape(-1, P, K), axis=-1)


@pytest.fixture
def posterior():
    return RelaxedCategoricalPosterior(D, P, K, seed=1)


def test_outputs_are_the_mean_vector_and_the_most_likely_code(posterior):
    parameters = 2 * numbers(5, P * K)
    found, pi = posterior.deterministic(parameters), probabilities(parameters)
    assert posterior.parameter_size(D) == P * K
    assert list(found) == [output.name for output in posterior.outputs] == ["embedding", "codes"]
    assert (found["embedding"].dtype, found["codes"].dtype) == (tf.float32, tf.int32)
    mean = np.einsum("bpk,kw->bpw", pi, np.asarray(posterior.codebook, "f8")).reshape(5, D)
    np.testing.assert_allclose(found["embedding"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["codes"], pi.argmax(axis=-1))
    np.testing.assert_array_equal(posterior(parameters), found["embedding"])
    low = tf.cast(parameters, tf.bfloat16)
    assert posterior.deterministic(low)["embedding"].dtype == posterior.draw(low, 1, SEED)[0].dtype == tf.float32


def test_shapes_are_known_in_a_graph_of_unknown_batch(posterior):
    specification = tf.TensorSpec((None, P * K), tf.float32)
    made = tf.function(posterior.deterministic).get_concrete_function(specification).structured_outputs
    assert {name: tuple(spec.shape) for name, spec in made.items()} == {"embedding": (None, D), "codes": (None, P)}
    drawn = tf.function(lambda p: posterior.draw(p, 2, SEED)).get_concrete_function(specification).structured_outputs
    assert [tuple(spec.shape) for spec in drawn] == [(2, None, D), (2, None)]


@pytest.mark.parametrize("temperature", [0.002, 1.0])
def test_draws_relax_codes_of_the_right_frequencies(posterior, temperature):
    posterior.temperature.assign(temperature)
    parameters, samples = numbers(1, P * K, seed=2), 4000
    z, log_q = posterior.draw(parameters, samples, SEED)
    pi = probabilities(parameters)[0]
    parts = z.numpy().reshape(samples, P, D // P)
    away = np.abs(parts[:, :, None] - np.asarray(posterior.codebook)).max(axis=-1)
    if temperature < 0.1:  # at a codebook vector, but for draws whose two best are close
        codes, sharp = away.argmin(axis=-1), (away.min(axis=-1) < 1e-3).all(axis=-1)
        assert sharp.mean() > 0.95
        for position in range(P):
            assert stats.chisquare(np.bincount(codes[:, position], minlength=K), samples * pi[position]).pvalue > 1e-3
        np.testing.assert_allclose(log_q.numpy()[sharp, 0], np.log(pi[range(P), codes]).sum(axis=1)[sharp], rtol=1e-4)
        np.testing.assert_allclose(posterior.log_prob(parameters, z).numpy()[sharp], log_q.numpy()[sharp], rtol=1e-5)
    else:
        assert (away.min(axis=-1) < 1e-3).mean() < 0.1
    # whatever the temperature, the codes that are relaxed are distributed as π: log q has their entropy
    error = np.std(log_q) / np.sqrt(samples)
    assert -np.mean(log_q) == pytest.approx(stats.entropy(pi, axis=-1).sum(), abs=4 * error)
    np.testing.assert_array_equal(z, posterior.draw(parameters, samples, SEED)[0])
    assert not np.allclose(z, posterior.draw(parameters, samples, SEED + 1)[0])


def test_relaxed_weights_are_the_gumbel_softmax():
    """For two codes, logit(y₁) = (log π₁/π₂ + logistic noise) / τ, a logistic distribution."""
    posterior = RelaxedCategoricalPosterior(1, 1, 2, temperature=0.7)
    posterior.codebook.assign([[1.0], [0.0]])  # z is y₁
    y = posterior.draw(tf.constant([[0.8, -0.4]]), 4000, SEED)[0].numpy().ravel().astype("f8")
    assert stats.kstest(special.logit(y), stats.logistic(1.2 / 0.7, 1 / 0.7).cdf).pvalue > 1e-3


def test_probabilities_of_all_codes_sum_to_one(posterior):
    parameters = numbers(2, P * K)
    every = tf.constant(list(itertools.product(range(K), repeat=P)), tf.int32)
    z = posterior.look_up(every)[:, None]
    log_q = posterior.log_prob(parameters, z).numpy()
    np.testing.assert_allclose(np.exp(log_q).sum(axis=0), 1, rtol=1e-5)
    pi = probabilities(parameters)
    expected = [sum(np.log(pi[b, p, code[p]]) for p in range(P)) for code in every.numpy() for b in range(2)]
    np.testing.assert_allclose(log_q.ravel(), expected, rtol=1e-4, atol=1e-5)


def test_kl_in_closed_form(posterior):
    parameters, context = 3 * numbers(5, P * K), Context(posterior=posterior)
    parameters[0, :K] = [0, 300, 0, 0]  # a certain code: p log p of probabilities that underflow
    kl, per_dimension = closed_kl(posterior, parameters, UniformCodesPrior(), context)
    expected = stats.entropy(probabilities(parameters), np.full((1, 1, K), 1 / K), axis=-1).sum(axis=-1)
    np.testing.assert_allclose(kl, expected, rtol=1e-5)
    assert per_dimension is None
    z, log_q = posterior.draw(parameters, 2000, SEED)
    sampled = (log_q - UniformCodesPrior().log_prob(z, context)).numpy()
    np.testing.assert_array_less(np.abs(sampled.mean(0) - kl), 4 * sampled.std(0) / np.sqrt(2000) + 1e-5)


def test_gradients_are_those_of_finite_differences(posterior):
    parameters, context = numbers(1, P * K, seed=1), Context(posterior=posterior)

    def value(parameters):
        z = posterior.draw(parameters, 3, SEED)[0]
        kl = closed_kl(posterior, parameters, UniformCodesPrior(), context)[0]
        return tf.reduce_sum(tf.sin(z) * np.arange(1, D + 1, dtype="f4")) + 2 * tf.reduce_sum(kl)

    watched, codebook = tf.constant(parameters), posterior.codebook.value
    with tf.GradientTape() as tape:
        tape.watch(watched)
        target = value(watched)
    found, of_codebook = tape.gradient(target, [watched, codebook])
    step = 1e-2 * np.eye(P * K, dtype="f4")[:, None]
    numeric = [(float(value(parameters + s)) - float(value(parameters - s))) / 2e-2 for s in step]
    np.testing.assert_allclose(found[0], numeric, rtol=1e-2, atol=1e-2)
    start, along = np.asarray(posterior.codebook), numbers(K, D // P, seed=4)
    ends = []
    for sign in (1, -1):
        posterior.codebook.assign(start + sign * 1e-2 * along)
        ends.append(float(value(parameters)))
    assert float(tf.reduce_sum(of_codebook * along)) == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=1e-2)


# --- in a model ----------------------------------------------------------------------------------


def model(posterior):
    encoder = dense_encoder((8,), posterior.parameter_size(D), (10,))
    made = VAE(encoder, dense_decoder((8,), D, (10,)), posterior=posterior, prior=UniformCodesPrior(), objective=ELBO())
    made.compile(keras.optimizers.Adam(1e-2))
    return made


def test_training_moves_codebook_and_temperature_and_a_file_keeps_both(posterior, tmp_path):
    keras.utils.set_random_seed(0)
    start, x = np.asarray(posterior.codebook), np.repeat(2 * numbers(4, 8, seed=5), 8, axis=0)
    vae = model(posterior)
    before = vae.evaluate(x, verbose=0, return_dict=True)["loss"]
    seen = vae.fit(x, epochs=10, batch_size=16, verbose=0, callbacks=[Schedules(20, {"temperature": Linear(1.0, 0.2)})])
    # two steps an epoch: the last step of epoch e is number 2 e + 1 of 20
    np.testing.assert_allclose(seen.history["temperature"], [1 - 0.8 * (2 * e + 1) / 20 for e in range(10)], rtol=1e-5)
    assert float(posterior.temperature) == pytest.approx(0.2)
    assert vae.evaluate(x, verbose=0, return_dict=True)["loss"] < before
    assert np.abs(np.asarray(posterior.codebook) - start).max() > 1e-2
    vae.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(again.posterior.codebook), np.asarray(posterior.codebook))
    assert float(again.posterior.temperature) == float(again.scheduled["temperature"]) == pytest.approx(0.2)
    again.scheduled["temperature"].assign(0.1)  # one variable, not two
    assert float(again.posterior.temperature) == pytest.approx(0.1)
    assert sum(v is again.posterior.codebook for v in again.trainable_variables) == 1
    np.testing.assert_array_equal(again.reconstruct(x), vae.reconstruct(x))
    with pytest.raises(ModelError, match="have a density to weigh draws by, but received 'relaxed_categorical'"):
        vae.log_evidence(x[:1])


def test_weights_are_float32_and_config_survives_json():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        posterior = RelaxedCategoricalPosterior(D, P, K, temperature=0.5, seed=3)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {str(weight.dtype) for weight in posterior.weights} == {"float32"}
    assert [weight.shape for weight in posterior.trainable_variables] == [(K, D // P)]
    posterior.temperature.assign(0.1)  # where a schedule left it is state, not configuration
    again = RelaxedCategoricalPosterior.from_config(json.loads(json.dumps(posterior.get_config())))
    assert again.get_config() == posterior.get_config()
    assert float(again.temperature) == pytest.approx(0.5)
    np.testing.assert_array_equal(np.asarray(again.codebook), np.asarray(posterior.codebook))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_temperatures_are_refused(temperature):
    with pytest.raises(ArgumentError, match="temperature must be positive and finite"):
        RelaxedCategoricalPosterior(D, P, K, temperature=temperature)


def test_a_recipe_builds_it():
    section = {
        "start": "random", "network": "dense", "latent_size": 6, "posterior": "relaxed_categorical",
        "posterior_options": {"positions": 2, "codebook_size": 7, "temperature": 0.6}, "prior": "uniform_codes",
    }  # fmt: skip
    content = {"pipeline": {"intensity": {"kind": "zscore"}}, "model": section}
    built = build_model(parse_recipe(content, "here"), numbers(4, 3, 3, 3), SimpleNamespace(mask=None)).model
    assert (built.posterior.kind, built.prior.kind) == ("relaxed_categorical", "uniform_codes")
    assert float(built.scheduled["temperature"]) == pytest.approx(0.6)
    assert built.encode(numbers(4, 3, 3, 3))["codes"].shape == (4, 2)
    section["posterior_options"]["temprature"] = 1.0
    with pytest.raises(RecipeError, match="Did you mean 'temperature'"):
        build_model(parse_recipe(content, "here"), numbers(4, 3, 3, 3), SimpleNamespace(mask=None))
