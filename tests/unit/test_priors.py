"""Priors: densities against scipy, integrals, moments of their draws, and life inside a model."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import integrate, special, stats

from kerasvae.distributions import Context, NormalPosterior
from kerasvae.distributions.conditional_prior import ConditionalNormalPrior
from kerasvae.distributions.flow_prior import FlowPrior
from kerasvae.distributions.full_normal import FullNormalPosterior
from kerasvae.distributions.mixture_prior import MixturePrior
from kerasvae.distributions.regression_prior import RegressionPrior
from kerasvae.distributions.sphere_prior import UniformSpherePrior
from kerasvae.distributions.vamp_prior import VampPrior
from kerasvae.errors import ArgumentError, ModelError
from kerasvae.models import VAE
from kerasvae.networks import dense_decoder, dense_encoder
from kerasvae.objectives import ELBO

RNG = np.random.default_rng(11)
SEED = tf.constant([3, 4])
MAKERS = {
    "mixture": lambda **more: MixturePrior(2, components=3, seed=5, floor=0.05, **more),
    "vamp": lambda **more: VampPrior((4,), pseudo_inputs=3, seed=5, mean=0.5, stddev=2.0, **more),
    "flow": lambda **more: FlowPrior(2, flows=3, units=8, seed=5, **more),
    "uniform_sphere": lambda **more: UniformSpherePrior(**more),
    "conditional_normal": lambda **more: ConditionalNormalPrior(2, 3, units=(5, 4), seed=5, floor=0.02, **more),
    "regression": lambda **more: RegressionPrior(2, floor=0.02, **more),
}


def softplus(x):
    return np.log1p(np.exp(x))


def codes(*shape):
    return RNG.standard_normal(shape).astype("f4")


def shake(prior, scale=0.5, seed=0):
    """Weights that are not the ones at the start."""
    rng = np.random.default_rng(seed)
    for variable in prior.weights:
        variable.assign(variable.numpy() + scale * rng.standard_normal(variable.shape).astype("f4"))
    return prior


def linear_context(posterior, data_size, latent_size):
    """A known linear encoder, its matrix and its offset."""
    rng = np.random.default_rng(9)
    width = posterior.parameter_size(latent_size)
    matrix, offset = rng.standard_normal((data_size, width)) / 2, rng.standard_normal(width)
    encode = lambda image: image @ matrix.astype("f4") + offset.astype("f4")  # noqa: E731
    return Context(posterior=posterior, encode=encode), matrix, offset


def context_for(kind):
    if kind == "vamp":
        return linear_context(NormalPosterior(), 4, 2)[0]
    columns = {"conditional_normal": 3, "regression": 1}.get(kind)
    return Context(condition=None if columns is None else tf.constant(np.ones((5, columns), "f4")))


def integral(log_density, low=-14.0, high=14.0, step=0.05):
    """Over the plane, by the rectangle rule, whose error is exponentially small for smooth densities."""
    axis = np.arange(low, high, step)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(1, -1, 2).astype("f4")
    density = np.exp(log_density(grid).numpy().astype("f8"))[0]
    return density.sum() * step**2, grid[0], density * step**2


def check_gradients(prior, log_prob, formula, rtol=2e-3):
    """TensorFlow's gradient of Σ log p in every weight, beside central differences of a float64 formula."""
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(log_prob())
    gradients = tape.gradient(total, prior.trainable_variables)
    values = [np.array(variable.numpy(), "f8") for variable in prior.trainable_variables]
    for index, gradient in enumerate(gradients):
        expected = np.empty_like(values[index])
        for place in np.ndindex(expected.shape):
            ends = []
            for sign in (1, -1):
                moved = [np.array(value) for value in values]
                moved[index][place] += sign * 1e-5
                ends.append(formula(*moved).sum())
            expected[place] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(gradient, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


# --- mixture ------------------------------------------------------------------------------------------------------


def mixture_formula(z, floor):
    def formula(logits, means, raw):
        each = stats.norm.logpdf(z[..., None, :], means, floor + softplus(raw)).sum(-1)
        return special.logsumexp(each, axis=-1, b=special.softmax(logits))

    return formula


def test_mixture_density_and_gradient_against_scipy():
    prior = shake(MixturePrior(3, components=4, floor=0.05))
    z = codes(2, 5, 3)
    formula = mixture_formula(z.astype("f8"), 0.05)
    expected = formula(*(variable.numpy().astype("f8") for variable in (prior.logits, prior.means, prior.raw)))
    assert expected.shape == (2, 5)
    np.testing.assert_allclose(prior.log_prob(z), expected, rtol=2e-6)
    check_gradients(prior, lambda: prior.log_prob(z), formula)


def test_mixture_far_away_does_not_underflow():
    prior = MixturePrior(2, components=3)
    z = np.full((1, 1, 2), 60.0, "f4")
    expected = mixture_formula(z.astype("f8"), 0.01)(*(variable.numpy() for variable in prior.weights))
    assert expected < -1000
    np.testing.assert_allclose(prior.log_prob(z), expected, rtol=1e-5)


def test_mixture_integrates_to_one_on_the_line_and_the_plane():
    line = shake(MixturePrior(1, components=3))
    axis = np.linspace(-12, 12, 4001)
    density = np.exp(line.log_prob(axis.astype("f4")[None, :, None]).numpy().astype("f8"))[0]
    assert integrate.simpson(density, x=axis) == pytest.approx(1, abs=1e-5)
    assert integral(shake(MixturePrior(2, components=5)).log_prob)[0] == pytest.approx(1, abs=1e-4)


def test_mixture_draws_have_its_moments():
    prior = shake(MixturePrior(2, components=3))
    parts = {name: value.numpy().astype("f8") for name, value in prior.parts().items()}
    weight, mean, stddev = parts["weight"], parts["mean"], parts["stddev"]
    expected = weight @ mean
    covariance = np.einsum("k,ki,kj->ij", weight, mean, mean) + np.diag(weight @ stddev**2)
    covariance -= np.outer(expected, expected)
    z = prior.sample(100_000, 2, SEED).numpy()
    np.testing.assert_allclose(z.mean(0), expected, atol=5 * np.sqrt(covariance.max() / 1e5))
    np.testing.assert_allclose(np.cov(z.T), covariance, atol=0.03 * covariance.max())
    # each component in proportion to its weight, which moments alone do not show
    cdf = lambda t: stats.norm.cdf(np.asarray(t)[:, None], mean[:, 0], stddev[:, 0]) @ weight  # noqa: E731
    assert stats.kstest(z[:20_000, 0], cdf).pvalue > 1e-5


def test_mixture_starts_with_a_variance_of_about_one():
    prior = MixturePrior(8, components=200)
    z = prior.sample(20_000, 8, SEED).numpy()
    np.testing.assert_allclose(z.var(0), 1, atol=0.25)
    np.testing.assert_allclose(prior.parts()["stddev"], math.sqrt(0.5), rtol=1e-5)
    np.testing.assert_array_equal(prior.means, MixturePrior(8, components=200).means)
    assert not np.array_equal(prior.means, MixturePrior(8, components=200, seed=1).means)


# --- VampPrior ----------------------------------------------------------------------------------------------------


def test_vamp_density_and_gradient_by_hand():
    posterior = NormalPosterior(floor=0.1)
    context, matrix, offset = linear_context(posterior, 4, 2)
    prior = VampPrior((4,), pseudo_inputs=3, seed=1)
    z = codes(2, 5, 2)

    def formula(images):
        parameters = images @ matrix + offset
        mean, stddev = parameters[:, :2], 0.1 + softplus(parameters[:, 2:])
        each = stats.norm.logpdf(z.astype("f8")[:, :, None], mean, stddev).sum(-1)
        return special.logsumexp(each, axis=-1) - np.log(3)

    np.testing.assert_allclose(prior.log_prob(z, context), formula(prior.images.numpy().astype("f8")), rtol=2e-5)
    check_gradients(prior, lambda: prior.log_prob(z, context), formula)


def test_vamp_takes_correlated_posteriors_and_images():
    posterior = FullNormalPosterior()
    context, *_ = linear_context(posterior, 6, 2)
    flat = Context(posterior=posterior, encode=lambda image: context.encode(tf.reshape(image, (-1, 6))))
    prior = VampPrior((2, 3), pseudo_inputs=4, seed=1)
    outputs = posterior.deterministic(flat.encode(tf.convert_to_tensor(prior.images)))
    mean, scale = (outputs[name].numpy().astype("f8") for name in ("mean", "scale_tril"))
    z = codes(3, 2, 2)
    each = [stats.multivariate_normal.logpdf(z, m, s @ s.T) for m, s in zip(mean, scale, strict=True)]
    np.testing.assert_allclose(prior.log_prob(z, flat), special.logsumexp(each, axis=0) - np.log(4), rtol=1e-4)


def test_vamp_draws_have_the_moments_of_the_mixture():
    posterior = NormalPosterior()
    context, matrix, offset = linear_context(posterior, 4, 2)
    prior = VampPrior((4,), pseudo_inputs=3, seed=1)
    parameters = prior.images.numpy().astype("f8") @ matrix + offset
    mean, stddev = parameters[:, :2], 1e-4 + softplus(parameters[:, 2:])
    z = prior.sample(60_000, 2, SEED, context).numpy()
    variance = mean.var(0) + (stddev**2).mean(0)
    np.testing.assert_allclose(z.mean(0), mean.mean(0), atol=5 * np.sqrt(variance.max() / 6e4))
    np.testing.assert_allclose(z.var(0), variance, rtol=0.03)


def test_vamp_pseudo_inputs_start_as_asked():
    images = VampPrior((20, 20), pseudo_inputs=30, mean=3.0, stddev=0.5).images.numpy()
    assert images.shape == (30, 20, 20)
    assert images.mean() == pytest.approx(3, abs=0.03)
    assert images.std() == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("context", [Context(), Context(posterior=NormalPosterior())])
def test_vamp_without_an_encoder_is_one_sentence(context):
    prior = VampPrior((4,))
    with pytest.raises(ModelError, match="VampPrior must have a posterior and an encoder"):
        prior.log_prob(codes(1, 2, 2), context)
    with pytest.raises(ModelError, match="encoder"):
        prior.sample(3, 2, SEED, context)


# --- flow ---------------------------------------------------------------------------------------------------------


def test_flow_starts_as_the_standard_normal():
    z = codes(2, 5, 3)
    prior = FlowPrior(3, flows=3, units=8)
    np.testing.assert_allclose(prior.log_prob(z), stats.norm.logpdf(z.astype("f8")).sum(-1), rtol=1e-5)


def test_flow_density_is_that_of_its_draws():
    prior = shake(FlowPrior(2, flows=3, units=8), 0.15)
    total, grid, mass = integral(prior.log_prob)
    assert total == pytest.approx(1, abs=1e-4)
    z = prior.sample(100_000, 2, SEED).numpy()
    mean = mass @ grid
    covariance = (grid - mean).T @ ((grid - mean) * mass[:, None])
    assert np.abs(covariance - np.eye(2)).max() > 0.05  # the flow does something
    np.testing.assert_allclose(z.mean(0), mean, atol=5 * np.sqrt(covariance.max() / 1e5))
    np.testing.assert_allclose(np.cov(z.T), covariance, atol=0.05 * covariance.max())
    # shares of the four quadrants and of a disc: more than two moments
    for inside in (lambda p: (p > 0).all(1), lambda p: p[:, 0] > 0, lambda p: (p**2).sum(1) < 1):
        assert inside(z).mean() == pytest.approx(mass[inside(grid)].sum(), abs=0.02)


def test_flow_density_by_the_change_of_variables():
    """At draws z = f(u), log p(z) = log N(u) − log |det df/du|, the Jacobian by finite differences."""
    prior = shake(FlowPrior(3, flows=4, units=8), 0.2)
    base = codes(6, 3)
    step = 1e-2
    corners = base[:, None] + step * np.concatenate([np.eye(3), -np.eye(3)])[None].astype("f4")
    moved = prior.flow.forward(tf.constant(corners))[0].numpy().astype("f8")
    jacobian = (moved[:, :3] - moved[:, 3:]) / (2 * step)
    expected = stats.norm.logpdf(base.astype("f8")).sum(1) - np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(prior.log_prob(prior.flow.forward(tf.constant(base))[0][None])[0], expected, atol=5e-3)


# --- sphere -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "area"), [(2, 2 * np.pi), (3, 4 * np.pi), (4, 2 * np.pi**2), (5, 8 / 3 * np.pi**2)])
def test_sphere_density_is_one_over_the_area(size, area):
    z = UniformSpherePrior().sample(6, size, SEED)
    log_prob = UniformSpherePrior().log_prob(tf.reshape(z, (2, 3, size)))
    np.testing.assert_allclose(log_prob, np.full((2, 3), -np.log(area)), rtol=1e-6)


@pytest.mark.parametrize("size", [2, 5, 64])
def test_sphere_density_integrates_to_one(size):
    """Cut into parallels: area of S^{k−1} = area of S^{k−2} · ∫ sin^{k−2} θ dθ, from the circle's 2π."""
    log_area = np.log(2 * np.pi)
    for k in range(3, size + 1):
        log_area += np.log(integrate.quad(lambda angle, power: np.sin(angle) ** power, 0, np.pi, args=(k - 2,))[0])
    np.testing.assert_allclose(UniformSpherePrior()(codes(3, size)), np.full(3, -log_area), rtol=1e-5)


def test_sphere_draws_are_uniform_and_of_length_one():
    z = UniformSpherePrior().sample(40_000, 3, SEED).numpy()
    np.testing.assert_allclose((z**2).sum(1), 1, rtol=1e-5)
    # Archimedes: on S² every coordinate is uniform in [−1, 1]
    for axis in range(3):
        assert stats.kstest(z[:, axis], stats.uniform(-1, 2).cdf).pvalue > 1e-5
    np.testing.assert_allclose(z.T @ z / len(z), np.eye(3) / 3, atol=0.01)


# --- priors that take a condition -----------------------------------------------------------------------------------


def silu(x):
    return x / (1 + np.exp(-x))


def conditional_formula(condition, floor):
    def formula(*weights):
        x = condition.astype("f8")
        for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            x = silu(x @ kernel + bias)
        mean, raw = np.split(x @ weights[-2] + weights[-1], 2, axis=-1)
        return mean, floor + softplus(raw + np.log(np.expm1(1 - floor)))

    return formula


@pytest.mark.parametrize("units", [(), (5,), (5, 4)])
def test_conditional_normal_density_and_gradient_by_formula(units):
    prior = shake(ConditionalNormalPrior(2, 3, units=units, floor=0.05))
    z, condition = codes(4, 5, 2), codes(5, 3)
    context = Context(condition=tf.constant(condition))
    parts = conditional_formula(condition, 0.05)

    def formula(*weights):
        return stats.norm.logpdf(z.astype("f8"), *parts(*weights)).sum(-1)

    expected = formula(*(variable.numpy().astype("f8") for variable in prior.weights))
    np.testing.assert_allclose(prior.log_prob(z, context), expected, rtol=2e-5)
    check_gradients(prior, lambda: prior.log_prob(z, context), formula)


def test_conditional_normal_starts_as_the_standard_normal():
    z = codes(4, 5, 2)
    prior = ConditionalNormalPrior(2, 3)
    log_prob = prior.log_prob(z, Context(condition=tf.constant(codes(5, 3))))
    np.testing.assert_allclose(log_prob, stats.norm.logpdf(z.astype("f8")).sum(-1), rtol=1e-5)


def test_conditional_normal_can_leave_its_start():
    """Zero weights in the last layer block no learning: after two steps every weight has a gradient."""
    prior, z, condition = ConditionalNormalPrior(2, 3, units=(4,)), codes(1, 6, 2), codes(6, 3)
    for _ in range(2):
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(prior.log_prob(z, Context(condition=tf.constant(condition))))
        gradients = tape.gradient(loss, prior.trainable_variables)
        for variable, gradient in zip(prior.trainable_variables, gradients, strict=True):
            variable.assign_sub(0.1 * gradient)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)


def test_regression_density_and_gradient_by_formula():
    prior = shake(RegressionPrior(3, floor=0.05))
    z, condition = codes(4, 5, 3), codes(5, 1)
    context = Context(condition=tf.constant(condition))

    def formula(vector, raw):
        direction = vector / np.linalg.norm(vector)
        return stats.norm.logpdf(z.astype("f8"), condition * direction, 0.05 + softplus(raw)).sum(-1)

    expected = formula(*(variable.numpy().astype("f8") for variable in (prior.vector, prior.raw)))
    np.testing.assert_allclose(prior.log_prob(z, context), expected, rtol=2e-5)
    check_gradients(prior, lambda: prior.log_prob(z, context), formula)


def test_regression_direction_has_length_one_whatever_its_vector():
    prior = RegressionPrior(4)
    np.testing.assert_allclose(prior.direction(), np.full(4, 0.5), rtol=1e-6)
    assert float(prior.stddev()) == pytest.approx(1, rel=1e-6)
    prior.vector.assign([30.0, -40.0, 0.0, 0.0])
    np.testing.assert_allclose(prior.direction(), [0.6, -0.8, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["conditional_normal", "regression"])
def test_draws_are_one_a_row_of_the_condition(kind):
    prior = shake(MAKERS[kind]())
    columns = 3 if kind == "conditional_normal" else 1
    two = codes(2, columns)
    half = 20_000
    context = Context(condition=tf.constant(np.repeat(two, half, axis=0)))
    z = prior.sample(2 * half, 2, SEED, context).numpy().reshape(2, half, 2)
    if kind == "regression":
        vector = prior.vector.numpy()
        mean = two * vector / np.linalg.norm(vector)
        stddev = np.full((2, 2), 0.02 + softplus(float(prior.raw.numpy())))
    else:
        mean, stddev = conditional_formula(two, 0.02)(*(variable.numpy() for variable in prior.weights))
    assert np.abs(mean[0] - mean[1]).max() > 0.1
    np.testing.assert_allclose(z.mean(1), mean, atol=5 * stddev.max() / np.sqrt(half))
    np.testing.assert_allclose(z.std(1), stddev, rtol=0.03)
    # more draws than rows: the rows in turn
    again = prior.sample(2 * half, 2, SEED, Context(condition=tf.constant(two))).numpy().reshape(half, 2, 2)
    np.testing.assert_allclose(again.mean(0), mean, atol=5 * stddev.max() / np.sqrt(half))


@pytest.mark.parametrize("kind", ["conditional_normal", "regression"])
@pytest.mark.parametrize("condition", [None, codes(5, 2), codes(5)])
def test_a_condition_that_is_missing_or_of_another_width_is_one_sentence(kind, condition):
    prior, context = MAKERS[kind](), Context(condition=condition)
    calls = [
        lambda: prior.distribution(context),
        lambda: prior.log_prob(codes(1, 5, 2), context),
        lambda: prior.sample(5, 2, SEED, context),
    ]
    # a regression prior without a condition is the mixture over what is regressed
    for work in calls[:1] if kind == "regression" and condition is None else calls:
        with pytest.raises(ModelError, match=r"condition of the prior must have shape \(people, \d\)"):
            work()


# --- all ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_draws_depend_on_the_seed_alone(kind):
    prior, context = MAKERS[kind](), context_for(kind)
    z = prior.sample(5, 2, tf.constant([1, 2]), context)
    assert z.shape == (5, 2)
    assert z.dtype == tf.float32
    tf.random.set_seed(8)
    np.testing.assert_array_equal(z, prior.sample(5, 2, tf.constant([1, 2]), context))
    assert not np.array_equal(z, prior.sample(5, 2, tf.constant([1, 3]), context))


@pytest.mark.parametrize("kind", MAKERS)
def test_config_round_trip(kind):
    prior = MAKERS[kind]()
    assert prior.kind == kind
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(prior)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(prior)
    assert json.dumps(again.get_config()) == json.dumps(prior.get_config())
    assert len(again.weights) == len(prior.weights)
    for mine, theirs in zip(prior.weights, again.weights, strict=True):  # the seed is part of the config
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_graph_of_unknown_batch_size_gives_the_same(kind):
    prior, context = shake(MAKERS[kind](), 0.2), context_for(kind)
    z = codes(3, 5, 2)
    signature = [tf.TensorSpec((None, None, 2)), tf.TensorSpec((), tf.int32)]
    graph = tf.function(
        lambda z, count: (prior.log_prob(z, context), prior.sample(count, 2, SEED, context)), input_signature=signature
    )
    log_prob, draws = graph(z, 5)
    assert log_prob.shape == (3, 5)
    np.testing.assert_allclose(log_prob, prior.log_prob(z, context), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(draws, prior.sample(5, 2, SEED, context), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["mixture", "flow", "uniform_sphere"])
def test_mixed_precision_stays_in_float32(kind):
    prior = shake(MAKERS[kind](), 0.2)
    z = codes(6, 2)
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        low = MAKERS[kind]()
        low.set_weights(prior.get_weights())
        assert low.log_prob(z[None]).dtype == tf.float32
        np.testing.assert_allclose(low.log_prob(z[None]), prior.log_prob(z[None]), rtol=1e-6)
    finally:
        keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize(
    ("make", "arguments", "name"),
    [
        (MixturePrior, {"latent_size": 0}, "latent_size"),
        (MixturePrior, {"latent_size": 2, "components": 0}, "components"),
        (MixturePrior, {"latent_size": 2, "components": 2.5}, "components"),
        (MixturePrior, {"latent_size": 2, "floor": 0.0}, "floor"),
        (MixturePrior, {"latent_size": 2, "floor": 0.8}, "floor"),
        (VampPrior, {"data_shape": ()}, "data_shape"),
        (VampPrior, {"data_shape": (3, 0)}, "data_shape"),
        (VampPrior, {"data_shape": (3,), "pseudo_inputs": 0}, "pseudo_inputs"),
        (VampPrior, {"data_shape": (3,), "stddev": 0.0}, "stddev"),
        (FlowPrior, {"latent_size": 1}, "latent_size"),
        (FlowPrior, {"latent_size": 2, "flows": 0}, "flows"),
        (FlowPrior, {"latent_size": 2, "units": 0}, "units"),
        (ConditionalNormalPrior, {"latent_size": 0, "condition_size": 1}, "latent_size"),
        (ConditionalNormalPrior, {"latent_size": 2, "condition_size": 0}, "condition_size"),
        (ConditionalNormalPrior, {"latent_size": 2, "condition_size": 1, "units": (4, 0)}, "units"),
        (ConditionalNormalPrior, {"latent_size": 2, "condition_size": 1, "floor": 1.0}, "floor"),
        (ConditionalNormalPrior, {"latent_size": 2, "condition_size": 1, "units": (4.5,)}, "units"),
        (RegressionPrior, {"latent_size": 0}, "latent_size"),
        (RegressionPrior, {"latent_size": 2, "floor": 0.0}, "floor"),
    ],
)
def test_bad_arguments_are_one_sentence(make, arguments, name):
    with pytest.raises(ArgumentError, match=f"^{name} must"):
        make(**arguments)


@pytest.mark.parametrize("kind", ["mixture", "flow", "conditional_normal", "regression"])
def test_codes_of_another_width_are_not_broadcast(kind):
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="not compatible"):
        MAKERS[kind]().log_prob(codes(1, 5, 1), context_for(kind))


@pytest.mark.parametrize("kind", ["mixture", "vamp", "flow"])
def test_a_model_with_the_prior_trains_and_comes_back_from_its_file(kind, tmp_path):
    keras.utils.set_random_seed(1)
    x = codes(12, 4)
    model = VAE(
        dense_encoder((4,), 4, (6,)), dense_decoder((4,), 2, (6,)), prior=MAKERS[kind](), objective=ELBO(), seed=2
    )
    start = [variable.numpy() for variable in model.prior.trainable_variables]
    assert start
    model.compile(keras.optimizers.Adam(1e-2))
    history = model.fit(x, epochs=2, batch_size=6, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    moved = [np.abs(v.numpy() - s).max() for v, s in zip(model.prior.trainable_variables, start, strict=True)]
    assert max(moved) > 1e-3
    assert model.sample(3, seed=1).shape == (3, 4)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.elbo(x)["elbo"], model.elbo(x)["elbo"], rtol=1e-6)
