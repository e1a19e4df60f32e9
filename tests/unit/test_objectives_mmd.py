"""MMD against sums over pairs in float64, its two estimators, and the two objectives that use it."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasvae.errors import ArgumentError
from kerasvae.models import VAE
from kerasvae.networks import dense_decoder, dense_encoder
from kerasvae.objectives import Draws
from kerasvae.objectives.mmd import WAEMMD, InfoVAE, mmd, with_memory

RNG = np.random.default_rng(5)
SCALES = (0.3, 1.0, 4.0)
LIKELIHOOD = RNG.normal(-9, 2, (2, 5))
KL = RNG.uniform(1, 4, 5)
OBJECTIVES = (
    InfoVAE(alpha=0.3, lambda_=50.0, memory=7),
    InfoVAE(alpha=1.0, lambda_=20.0, kernel="rbf", scales=(0.5, 2.0), estimator="biased", samples=2),
    WAEMMD(lambda_=30.0, memory=6, samples=2),
    WAEMMD(lambda_=30.0, scales=(1.0,)),
)


def kernel(a, b, name, scales):
    square, widths = ((a - b) ** 2).sum(), [2 * len(a) * scale for scale in scales]
    return np.mean([c / (c + square) if name == "imq" else np.exp(-square / c) for c in widths])


def by_pairs(x, y, name, scales, estimator):
    """Gretton et al. 2012, equations 3 (unbiased) and 5 (biased, squared), as they are written."""
    x, y = np.asarray(x, "f8"), np.asarray(y, "f8")
    m, n, skip = len(x), len(y), estimator == "unbiased"
    own = sum(kernel(x[i], x[j], name, scales) for i in range(m) for j in range(m) if not (skip and i == j))
    prior = sum(kernel(y[i], y[j], name, scales) for i in range(n) for j in range(n) if not (skip and i == j))
    cross = sum(kernel(a, b, name, scales) for a in x for b in y)
    pairs = (m * (m - 1), n * (n - 1)) if skip else (m * m, n * n)
    return own / pairs[0] + prior / pairs[1] - 2 * cross / (m * n)


def made(objective, z, prior, memory=None, kl=KL, likelihood=LIKELIHOOD):
    """Draws of an objective from plain arrays."""
    size = z.shape[-1]
    return Draws(
        z=tf.convert_to_tensor(z, tf.float32),
        log_likelihood=tf.constant(likelihood[: len(z)], tf.float32),
        log_prior=tf.zeros(z.shape[:2]),
        log_posterior=tf.zeros(z.shape[:2]),
        kl=tf.constant(kl, tf.float32),
        kl_per_dimension=None,
        parameters=tf.zeros((1, 0)),
        outputs={},
        draw_prior=lambda count: tf.constant(prior, tf.float32),
        memory=tf.zeros((0, size)) if memory is None else tf.constant(memory, tf.float32),
        pairwise=lambda: tf.zeros((1, 1, size)),
        people=tf.constant(1.0),
        scheduled={name: tf.constant(objective.get_config()[name]) for name in objective.scheduled},
        critic=None,
        seed=tf.constant([0, 0]),
    )


# --- the function --------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("name", ["imq", "rbf"])
def test_mmd_is_the_sum_over_pairs(name, estimator):
    x, y = RNG.normal(0.4, 1.3, (6, 3)).astype("f4"), RNG.normal(0, 1, (4, 3)).astype("f4")
    for scales in (SCALES, (1.0,)):
        found = mmd(x, y, kernel=name, scales=scales, estimator=estimator)
        assert float(found) == pytest.approx(by_pairs(x, y, name, scales, estimator), abs=1e-6)
        assert found.dtype == tf.float32
        assert found.shape == ()


def test_gradient_is_the_slope_by_finite_differences():
    x, y = RNG.normal(0.4, 1.3, (4, 2)), RNG.normal(0, 1, (5, 2))
    for name in ("imq", "rbf"):
        z = tf.Variable(x, dtype=tf.float32)
        with tf.GradientTape() as tape:
            value = mmd(z, y, kernel=name, scales=SCALES)
        found = tape.gradient(value, z).numpy()
        for index in np.ndindex(x.shape):
            step = np.zeros(x.shape)
            step[index] = 1e-4
            up, down = (by_pairs(x + sign * step, y, name, SCALES, "unbiased") for sign in (1, -1))
            assert found[index] == pytest.approx((up - down) / 2e-4, abs=2e-6)


@pytest.mark.parametrize("name", ["imq", "rbf"])
def test_only_the_unbiased_estimate_has_mean_zero_under_equality(name):
    pairs = np.random.default_rng(1).standard_normal((400, 2, 8, 2)).astype("f4")
    shifted = pairs + np.array([[[0.8]], [[0.0]]], "f4")

    def over(sets, estimator):
        one = tf.function(lambda pair: mmd(pair[0], pair[1], kernel=name, scales=SCALES, estimator=estimator))
        values = np.array([one(pair) for pair in tf.constant(sets)])
        return values, values.mean(), values.std() / np.sqrt(len(values))

    values, mean, error = over(pairs, "unbiased")
    assert abs(mean) < 4 * error
    assert values.min() < 0
    values, mean, error = over(pairs, "biased")
    assert values.min() >= 0
    assert mean > 20 * error
    assert over(shifted, "unbiased")[1] > 20 * error


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("name", ["imq", "rbf"])
def test_gradient_at_coincident_codes_is_finite(name, estimator):
    z = tf.Variable([[0.5, -1.0], [0.5, -1.0], [0.0, 0.0]])
    with tf.GradientTape() as tape:
        value = mmd(z, tf.zeros((3, 2)), kernel=name, estimator=estimator)
    assert np.isfinite(tape.gradient(value, z)).all()
    if estimator == "biased":
        assert float(mmd(z, z, kernel=name, estimator=estimator)) == pytest.approx(0, abs=1e-6)


def test_it_works_with_unknown_sizes_and_is_zero_where_no_pair_exists():
    graph = tf.function(mmd, input_signature=[tf.TensorSpec((None, 2)), tf.TensorSpec((None, 2))])
    x, y = RNG.standard_normal((2, 5, 2)).astype("f4")
    assert float(graph(x, y)) == pytest.approx(float(mmd(x, y)), abs=1e-6)
    z = tf.Variable(x[:1])
    with tf.GradientTape() as tape:
        value = graph(z, y)
    assert float(value) == 0
    assert np.isfinite(tape.gradient(value, z)).all()


def test_memory_joins_the_codes_and_leaves_the_meaning_of_the_gradient():
    """The slope of the mean over codes and memory is made up for the codes that carry none."""
    x, memory, y = RNG.normal(0.5, 1, (3, 2)), RNG.normal(0, 1, (5, 2)), RNG.normal(0, 1, (4, 2))
    z = tf.Variable(x, dtype=tf.float32)
    with tf.GradientTape() as tape:
        value = mmd(with_memory(z, tf.constant(memory, tf.float32)), y, scales=SCALES)
    everyone = np.concatenate([x, memory])
    assert float(value) == pytest.approx(by_pairs(everyone, y, "imq", SCALES, "unbiased"), abs=1e-6)
    found = tape.gradient(value, z).numpy()
    for index in np.ndindex(x.shape):
        step = np.zeros(everyone.shape)
        step[index] = 1e-4
        up, down = (by_pairs(everyone + sign * step, y, "imq", SCALES, "unbiased") for sign in (1, -1))
        assert found[index] == pytest.approx(8 / 3 * (up - down) / 2e-4, abs=5e-6)


def test_memory_does_not_change_the_expected_gradient():
    """∂/∂shift of MMD²(N(shift, 1), N(0, 1)), with and without remembered codes of the same distribution."""
    shift = tf.Variable(0.5)

    @tf.function
    def slope(noise, memory, prior):
        with tf.GradientTape() as tape:
            value = mmd(with_memory(shift + noise, shift + memory), prior, scales=(1.0,))
        return tape.gradient(value, shift)

    noise = np.random.default_rng(2).standard_normal((300, 3, 10, 1)).astype("f4")
    without = np.array([slope(a[:4], b[:0], c) for a, b, c in noise])
    with_it = np.array([slope(a[:4], b, c) for a, b, c in noise])
    error = np.hypot(without.std(), with_it.std()) / np.sqrt(len(noise))
    assert abs(without.mean() - with_it.mean()) < 4 * error
    assert without.mean() > 6 * error
    assert with_it.std() < without.std()


# --- the objectives ------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(("name", "estimator"), [("imq", "unbiased"), ("rbf", "biased")])
def test_objectives_are_the_papers_formulas(samples, name, estimator):
    z, prior, memory = RNG.normal(0.5, 1, (samples, 5, 2)), RNG.normal(0, 1, (5 * samples, 2)), RNG.normal(0, 1, (3, 2))
    everyone = [np.concatenate([codes, memory]) for codes in z]
    expected = np.mean([by_pairs(codes, prior, name, SCALES, estimator) for codes in everyone])
    likelihood = LIKELIHOOD[:samples].mean(0)
    options = {"kernel": name, "scales": SCALES, "estimator": estimator, "samples": samples, "memory": 3}
    info, wae = InfoVAE(alpha=0.25, lambda_=40.0, **options), WAEMMD(lambda_=40.0, **options)
    terms = info.terms(made(info, z, prior, memory))
    np.testing.assert_allclose(terms.aggregate["mmd"], expected, atol=1e-6)
    np.testing.assert_allclose(terms.loss, 0.75 * KL - likelihood, rtol=1e-6)
    np.testing.assert_allclose(terms.penalty, (0.25 + 40 - 1) * expected, atol=1e-4)
    np.testing.assert_allclose(terms.total, (0.75 * KL - likelihood).mean() + 39.25 * expected, rtol=1e-5)
    terms = wae.terms(made(wae, z, prior, memory))
    np.testing.assert_allclose(terms.aggregate["mmd"], expected, atol=1e-6)
    np.testing.assert_allclose(terms.loss, -likelihood, rtol=1e-6)
    np.testing.assert_allclose(terms.penalty, 40 * expected, atol=1e-4)
    np.testing.assert_allclose(terms.per_subject["elbo"], likelihood - KL, rtol=1e-6)


@pytest.mark.parametrize(("alpha", "lambda_"), [(0.0, 1.0), (0.3, 0.7), (0.7, 0.3), (-3.0, 4.0)])
def test_info_vae_holds_the_elbo_and_the_beta_family_at_its_edge(alpha, lambda_):
    objective = InfoVAE(alpha=alpha, lambda_=lambda_)
    terms = objective.terms(made(objective, RNG.normal(4, 1, (1, 5, 2)), RNG.normal(0, 1, (5, 2))))
    np.testing.assert_allclose(terms.total, ((1 - alpha) * KL - LIKELIHOOD[0]).mean(), rtol=1e-5)
    assert abs(float(terms.aggregate["mmd"])) > 0.1


def test_the_penalty_pulls_codes_to_the_prior():
    rng = np.random.default_rng(3)
    shift, prior = tf.Variable([1.5, -1.0]), rng.standard_normal((64, 2))
    noise = tf.constant(rng.standard_normal((1, 64, 2)), tf.float32)
    objective, optimiser = WAEMMD(), keras.optimizers.SGD(1e-3)
    for _ in range(60):
        with tf.GradientTape() as tape:
            draws = made(objective, noise, prior, kl=np.zeros(64), likelihood=np.zeros((1, 64)))
            loss = objective.terms(draws._replace(z=noise + shift)).total
        optimiser.apply(tape.gradient(loss, [shift]), [shift])
    assert np.abs(shift.numpy()).max() < 0.4


@pytest.mark.parametrize(
    ("kind", "arguments", "name"),
    [
        (InfoVAE, {"alpha": 1.1}, "alpha"),
        (InfoVAE, {"alpha": float("nan")}, "alpha"),
        (InfoVAE, {"alpha": -float("inf")}, "alpha"),
        (InfoVAE, {"alpha": 0.5, "lambda_": 0.4}, "lambda_"),
        (InfoVAE, {"alpha": -2.0, "lambda_": 2.9}, "lambda_"),
        (InfoVAE, {"lambda_": float("inf")}, "lambda_"),
        (WAEMMD, {"lambda_": -1.0}, "lambda_"),
        (WAEMMD, {"kernel": "gaussian"}, "kernel"),
        (InfoVAE, {"estimator": "unbiassed"}, "estimator"),
        (InfoVAE, {"scales": ()}, "scales"),
        (WAEMMD, {"scales": (1.0, 0.0)}, "scales"),
        (WAEMMD, {"scales": (1.0, -2.0)}, "scales"),
        (InfoVAE, {"memory": -1}, "memory"),
        (WAEMMD, {"memory": 2.5}, "memory"),
        (WAEMMD, {"samples": 0}, "samples"),
    ],
)
def test_bad_constants_are_one_sentence(kind, arguments, name):
    with pytest.raises(ArgumentError, match=rf"^{name} must .*, but received .*[.?]$"):
        kind(**arguments)


@pytest.mark.parametrize("argument", [{"kernel": "linear"}, {"estimator": "none"}, {"scales": [0]}])
def test_the_function_refuses_them_too(argument):
    with pytest.raises(ArgumentError, match=rf"^{next(iter(argument))} must"):
        mmd(np.zeros((2, 2)), np.zeros((2, 2)), **argument)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.kind)
def test_config_round_trip(objective):
    described = json.loads(json.dumps(keras.saving.serialize_keras_object(objective)))
    again = keras.saving.deserialize_keras_object(described)
    assert type(again) is type(objective)
    assert again.get_config() == objective.get_config()
    assert (again.samples, again.memory) == (objective.samples, objective.memory)
    assert type(objective)(**objective.get_config()).get_config() == objective.get_config()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.kind)
def test_a_real_model_trains_and_reports_its_terms(objective):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(2).standard_normal((9, 15)).astype("f4")
    model = VAE(dense_encoder((15,), 6, (8,)), dense_decoder((15,), 3, (8,)), objective=objective)
    model.compile(keras.optimizers.Adam(1e-3))
    before = [np.array(variable) for variable in model.main_variables]
    history = model.fit(x, epochs=2, batch_size=4, verbose=0).history  # the last batch holds one person
    assert set(history) == {"loss", "elbo", "log_likelihood", "kl", "sigma", "mmd"}
    assert all(np.isfinite(values).all() for values in history.values())
    assert all((np.array(now) != then).any() for now, then in zip(model.main_variables, before, strict=True))
    assert int(model.remembered) == objective.memory
    assert model.memory.shape == (objective.memory, 3)
