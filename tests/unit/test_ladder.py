"""The ladder against the paper's equations in float64, scipy, and models whose evidence is known."""

import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from kerasvae import VAE, ladder_encoder
from kerasvae.distributions import (
    ConditionalNormalPrior,
    Context,
    LadderPosterior,
    LadderPrior,
    NormalLikelihood,
    NormalPosterior,
    RegressionPrior,
    StandardNormalPrior,
    VampPrior,
    closed_kl,
)
from kerasvae.distributions.divergence import CLOSED_GIVEN_DRAWS
from kerasvae.errors import ArgumentError, KerasVAEError, ModelError, RecipeError
from kerasvae.metrics import level_kl
from kerasvae.models.compatibility import check_combination
from kerasvae.networks import conv_decoder
from kerasvae.objectives import ELBO, DReG, FreeBits
from kerasvae.training.build import build_model
from kerasvae.training.recipe import parse_recipe

SEED = tf.constant([3, 4])
LEVELS, SIZE, PEOPLE, FLOOR = (2, 1, 3), 6, 4, 1e-2
ENDS = np.cumsum(LEVELS)[:-1]


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def shaken(layer, size=0.6, seed=0):
    """The layer with weights as if trained."""
    rng = np.random.default_rng(seed)
    for weight in layer.trainable_variables:
        weight.assign(weight.numpy() + size * rng.standard_normal(weight.shape))
    return layer


def ladder(size=0.6):
    return shaken(LadderPosterior(SIZE, LEVELS, units=(5,), floor=FLOOR), size)


def parameters_of(people=PEOPLE, seed=1):
    return numbers(people, 2 * SIZE, seed=seed).astype("f4")


# --- the paper's equations in float64 ------------------------------------------------------------


def softplus(x):
    return np.logaddexp(0, x)


def inverse_softplus(x):
    return np.log(np.expm1(x))


def top_down(posterior, z):
    """μ_p and σ_p of every level at a code."""
    parts = np.split(z, np.cumsum(posterior.levels)[:-1], axis=-1)
    means, stddevs = [np.zeros_like(parts[0])], [np.ones_like(parts[0])]
    for network, above in zip(posterior.networks, parts[:-1], strict=True):
        x = above
        kernels, biases = ([w.numpy().astype("f8") for w in each] for each in (network.kernels, network.biases))
        for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
            x = x @ kernel + bias
            x = x * special.expit(x)
        mean, raw = np.split(x @ kernels[-1] + biases[-1], 2, axis=-1)
        means.append(mean)
        stddevs.append(posterior.floor + softplus(raw + inverse_softplus(1 - posterior.floor)))
    return np.concatenate(means, -1), np.concatenate(stddevs, -1)


def inferred(posterior, parameters, z):
    """μ_q and σ_q of every level at a code (S, B, d): the two estimates weighted by their precisions."""
    own_mean, raw = np.split(parameters.astype("f8"), 2, axis=-1)
    own_stddev, top = posterior.floor + softplus(raw), posterior.levels[0]
    mean, stddev = top_down(posterior, z)
    variance = 1 / (own_stddev**-2 + stddev**-2)
    together = variance * (own_mean * own_stddev**-2 + mean * stddev**-2)
    mean[..., top:], stddev[..., top:] = together[..., top:], np.sqrt(variance)[..., top:]
    mean[..., :top], stddev[..., :top] = own_mean[:, :top], own_stddev[:, :top]
    return mean, stddev


def normal_kl(mean, stddev, prior_mean, prior_stddev):
    """KL of two normals, dimension by dimension."""
    square = (stddev**2 + (mean - prior_mean) ** 2) / prior_stddev**2
    return 0.5 * (square - 1) + np.log(prior_stddev / stddev)


# --- the posterior -------------------------------------------------------------------------------


def linear(above, width, kernel, mean_bias, stddev, floor=1e-4):
    """A ladder of two levels with μ_p = kernelᵀ z_2 + mean_bias and a fixed σ_p."""
    posterior = LadderPosterior(above + width, (above, width), units=(), floor=floor)
    (network,) = posterior.networks
    network.kernels[0].assign(np.concatenate([kernel, np.zeros((above, width))], axis=1))
    raw = inverse_softplus(np.asarray(stddev) - floor) - inverse_softplus(1 - floor)
    network.biases[0].assign(np.concatenate([mean_bias, raw]))
    return posterior


def test_the_two_estimates_meet_as_the_product_of_their_densities():
    """By quadrature: N(z; μ̂, σ̂²) N(z; μ_p, σ_p²), normalised, has the moments of q."""
    posterior = linear(1, 1, [[1.5]], [0.4], [0.7])
    stddev = np.array([0.3, 0.5])
    parameters = np.array([[0.8, -1.0, *inverse_softplus(stddev - 1e-4)]], "f4")
    mean, spread = (value.numpy()[0, 0] for value in posterior.conditional(parameters, tf.constant([[[0.6, 9.0]]])))
    np.testing.assert_allclose([mean[0], spread[0]], [0.8, 0.3], rtol=1e-5)  # the top: the image alone
    z = np.linspace(-8, 8, 40_001)
    product = stats.norm(-1.0, 0.5).pdf(z) * stats.norm(1.5 * 0.6 + 0.4, 0.7).pdf(z)
    product /= product.sum()
    expected = product @ z
    np.testing.assert_allclose([mean[1], spread[1] ** 2], [expected, product @ (z - expected) ** 2], rtol=1e-5)


@pytest.mark.parametrize(("raw", "own"), [(-30.0, True), (60.0, False)])
def test_the_surer_estimate_wins(raw, own):
    posterior = linear(1, 1, [[1.0]], [0.0], [1.0])
    parameters = np.array([[0.5, 7.0, 0.0, raw]], "f4")
    outputs = posterior.deterministic(parameters)
    np.testing.assert_allclose(outputs["mean"][0, 1], 7.0 if own else 0.5, atol=2e-2)
    np.testing.assert_allclose(outputs["stddev"][0, 1], 1e-4 if own else 1.0, rtol=1e-3)


def test_draws_and_their_density_are_scipys_along_the_path():
    posterior, parameters = ladder(), parameters_of()
    z, log_q = posterior.draw(parameters, 7, SEED)
    assert (z.shape, log_q.shape, z.dtype, log_q.dtype) == ((7, PEOPLE, SIZE), (7, PEOPLE), tf.float32, tf.float32)
    np.testing.assert_allclose(log_q, posterior.log_prob(parameters, z), rtol=1e-5)
    path = stats.norm(*inferred(posterior, parameters, z.numpy().astype("f8")))
    np.testing.assert_allclose(log_q, path.logpdf(z.numpy().astype("f8")).sum(-1), rtol=1e-4, atol=1e-4)
    elsewhere = numbers(3, PEOPLE, SIZE, seed=8)
    expected = stats.norm(*inferred(posterior, parameters, elsewhere)).logpdf(elsewhere).sum(-1)
    np.testing.assert_allclose(posterior.log_prob(parameters, elsewhere), expected, rtol=1e-4)
    np.testing.assert_allclose(
        posterior.log_prob(parameters, elsewhere[:, :1])[:, 2],
        stats.norm(*inferred(posterior, parameters[2:3], elsewhere[:, :1])).logpdf(elsewhere[:, :1]).sum(-1)[:, 0],
        rtol=1e-4,
    )


def test_what_drives_each_level_is_standard_normal_noise_of_its_own():
    # levels of one width, which would share their noise if they shared their seed
    posterior, parameters = shaken(LadderPosterior(SIZE, (2, 2, 2), units=(5,))), parameters_of(2)
    z = posterior.draw(parameters, 20_000, SEED)[0].numpy().astype("f8")
    mean, stddev = inferred(posterior, parameters, z)
    noise = ((z - mean) / stddev).transpose(1, 2, 0).reshape(2 * SIZE, -1)
    np.testing.assert_allclose(np.corrcoef(noise), np.eye(2 * SIZE), atol=5 / np.sqrt(20_000))
    for each in noise:
        assert stats.kstest(each, "norm").pvalue > 1e-5


def test_draws_depend_on_the_seed_alone():
    posterior, parameters = ladder(), parameters_of()
    z = posterior.draw(parameters, 5, SEED)[0]
    np.testing.assert_array_equal(z, posterior.draw(parameters, 5, SEED)[0])
    assert not np.any(np.isclose(z, posterior.draw(parameters, 5, SEED + 1)[0]).all(axis=-1))
    first, same, other = (LadderPosterior(3, (1, 2), seed=seed).networks[0].kernels[0].numpy() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    deeper = LadderPosterior(3, (1, 1, 1), units=(4,)).networks
    assert not np.array_equal(deeper[0].kernels[0].numpy(), deeper[1].kernels[0].numpy())


def test_deterministic_outputs_are_the_path_of_the_means():
    posterior, parameters = ladder(), parameters_of()
    outputs = posterior.deterministic(parameters)
    assert list(outputs) == [output.name for output in posterior.outputs]
    path = np.zeros((1, PEOPLE, SIZE))
    for _ in LEVELS:  # each round settles one more level
        path = inferred(posterior, parameters, path)[0]
    np.testing.assert_allclose(outputs["mean"], path[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["stddev"], inferred(posterior, parameters, path)[1][0], rtol=1e-4)
    np.testing.assert_array_equal(posterior(parameters), outputs["mean"])


def test_graphs_of_unknown_batch_and_low_precision():
    posterior, parameters = ladder(), parameters_of()
    spec = tf.TensorSpec((None, 2 * SIZE), tf.float32)
    graph = tf.function(lambda p: posterior.draw(p, 2, SEED)).get_concrete_function(spec)
    assert [tuple(t.shape) for t in graph.structured_outputs] == [(2, None, SIZE), (2, None)]
    for inside, outside in zip(graph(tf.constant(parameters)), posterior.draw(parameters, 2, SEED), strict=True):
        np.testing.assert_allclose(inside, outside, rtol=1e-4, atol=1e-4)
    low = tf.cast(parameters, tf.bfloat16)
    exact = tf.cast(low, tf.float32)
    for name, value in posterior.deterministic(low).items():
        assert value.dtype == tf.float32
        np.testing.assert_array_equal(value, posterior.deterministic(exact)[name])
    np.testing.assert_array_equal(posterior.draw(low, 2, SEED)[0], posterior.draw(exact, 2, SEED)[0])


def test_one_level_is_a_normal_posterior():
    posterior, parameters = LadderPosterior(3, (3,)), numbers(4, 6).astype("f4")
    assert posterior.weights == []
    mean, raw = np.split(parameters.astype("f8"), 2, axis=1)
    outputs = posterior.deterministic(parameters)
    np.testing.assert_allclose(outputs["mean"], mean)
    np.testing.assert_allclose(outputs["stddev"], 1e-4 + softplus(raw), rtol=1e-6)
    z = posterior.draw(parameters, 2, SEED)[0]
    assert np.isfinite(LadderPrior().log_prob(z, Context(posterior=posterior))).all()


def test_config_describes_the_posterior():
    posterior = LadderPosterior(3, (1, 2), units=(4, 5), floor=0.01, seed=7)
    config = json.loads(json.dumps(posterior.get_config()))
    assert {name: config[name] for name in ("latent_size", "levels", "units", "floor", "seed")} == {
        "latent_size": 3,
        "levels": [1, 2],
        "units": [4, 5],
        "floor": 0.01,
        "seed": 7,
    }
    again = LadderPosterior.from_config(config)
    assert again.get_config() == posterior.get_config()
    for a, b in zip(again.weights, posterior.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_weights_are_saved_and_float32(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        posterior = ladder()
        inputs = keras.Input((2 * SIZE,), dtype="float32")
        keras.Model(inputs, posterior(inputs)).save(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    assert {str(weight.dtype) for weight in posterior.weights} == {"float32"}
    again = keras.saving.load_model(tmp_path / "model.keras").layers[-1]
    drawn = zip(posterior.draw(parameters_of(), 2, SEED), again.draw(parameters_of(), 2, SEED), strict=True)
    for old, new in drawn:
        np.testing.assert_array_equal(old, new)


# --- the prior -----------------------------------------------------------------------------------


def test_prior_density_is_scipys():
    posterior, z = ladder(), numbers(3, PEOPLE, SIZE, seed=5)
    log_p = LadderPrior().log_prob(z, Context(posterior=posterior))
    assert log_p.dtype == tf.float32
    np.testing.assert_allclose(log_p, stats.norm(*top_down(posterior, z)).logpdf(z).sum(-1), rtol=1e-4)


def test_prior_starts_as_the_standard_normal():
    context, z = Context(posterior=LadderPosterior(SIZE, LEVELS)), numbers(3, PEOPLE, SIZE, seed=5)
    np.testing.assert_allclose(LadderPrior().log_prob(z, context), stats.norm.logpdf(z).sum(-1), rtol=1e-5)


def test_ancestral_draws_have_the_moments_of_a_linear_ladder():
    """Of z_1 = Aᵀ z_2 + b + s ε: mean (0, b), covariance [[I, A], [Aᵀ, AᵀA + diag s²]]."""
    kernel, bias, stddev = np.array([[1.0, -0.5], [0.3, 0.8]]), np.array([2.0, -1.0]), np.array([0.5, 0.2])
    context, count = Context(posterior=linear(2, 2, kernel, bias, stddev)), 40_000
    z = LadderPrior().sample(count, 4, SEED, context).numpy()
    assert z.shape == (count, 4)
    covariance = np.block([[np.eye(2), kernel], [kernel.T, kernel.T @ kernel + np.diag(stddev**2)]])
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(z.mean(0) / spread, np.r_[0, 0, bias] / spread, atol=5 / np.sqrt(count))
    np.testing.assert_allclose(
        np.cov(z.T) / np.outer(spread, spread), covariance / np.outer(spread, spread), atol=5 * np.sqrt(2 / count)
    )
    np.testing.assert_array_equal(z, LadderPrior().sample(count, 4, SEED, context))
    assert not np.isclose(z, LadderPrior().sample(count, 4, SEED + 1, context)).all(axis=1).any()


@pytest.mark.parametrize("context", [Context(), Context(posterior=NormalPosterior())])
def test_a_prior_beside_another_posterior_says_so(context):
    for call in (
        lambda: LadderPrior().log_prob(tf.zeros((1, 1, 2)), context),
        lambda: LadderPrior().sample(1, 2, SEED, context),
    ):
        with pytest.raises(ModelError, match="must be a LadderPosterior"):
            call()


def test_a_vamp_prior_is_made_of_ladders():
    posterior, encoded, z = ladder(), parameters_of(3, seed=6), numbers(2, PEOPLE, SIZE)
    context = Context(posterior=posterior, encode=lambda images: tf.constant(encoded))
    each = [stats.norm(*inferred(posterior, np.repeat(row[None], PEOPLE, 0), z)).logpdf(z).sum(-1) for row in encoded]
    log_p = VampPrior((5,), pseudo_inputs=3).log_prob(tf.constant(z, tf.float32), context)
    np.testing.assert_allclose(log_p, special.logsumexp(each, axis=0) - np.log(3), rtol=1e-4)


# --- the KL --------------------------------------------------------------------------------------

PRIORS = {
    "ladder": LadderPrior,
    "standard_normal": StandardNormalPrior,
    "conditional_normal": lambda: shaken(ConditionalNormalPrior(SIZE, 2, units=(4,)), 0.3),
    "regression": lambda: shaken(RegressionPrior(SIZE), 0.3),
}
COLUMNS = {"conditional_normal": 2, "regression": 1}


def pair(kind):
    condition = tf.constant(numbers(PEOPLE, COLUMNS[kind]), tf.float32) if kind in COLUMNS else None
    posterior = ladder(0.4)
    return posterior, PRIORS[kind](), Context(condition=condition, posterior=posterior)


def test_every_kl_given_draws_is_tested_here():
    assert set(CLOSED_GIVEN_DRAWS) == {("ladder", kind) for kind in PRIORS}


@pytest.mark.parametrize("kind", ["ladder", "standard_normal"])
def test_kl_given_draws_is_the_sum_of_normal_ones(kind):
    posterior, prior, context = pair(kind)
    parameters, z = parameters_of(), numbers(5, PEOPLE, SIZE, seed=3)
    kl, per_dimension = closed_kl(posterior, parameters, prior, context, tf.constant(z, tf.float32))
    p = top_down(posterior, z) if kind == "ladder" else (0.0, np.ones(()))
    expected = normal_kl(*inferred(posterior, parameters, z), *p).mean(0)
    assert (kl.shape, per_dimension.shape, kl.dtype) == ((PEOPLE,), (PEOPLE, SIZE), tf.float32)
    np.testing.assert_allclose(per_dimension, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kl, expected.sum(1), rtol=1e-4)
    assert closed_kl(posterior, parameters, prior, context) is None


@pytest.mark.parametrize("kind", PRIORS)
def test_kl_given_draws_has_the_mean_of_log_q_less_log_p(kind):
    posterior, prior, context = pair(kind)
    parameters, count = parameters_of(), 20_000
    z, log_q = posterior.draw(parameters, count, SEED)
    difference = (log_q - prior.log_prob(z, context)).numpy().astype("f8")
    parts = tf.split(posterior.draw(parameters, count, SEED + 9)[0], 50)
    closed = np.stack([closed_kl(posterior, parameters, prior, context, part)[0] for part in parts]).astype("f8")
    kl, variance = closed.mean(0), closed.var(0, ddof=1) * count / 50
    error = np.sqrt((difference.var(0) + variance) / count)
    assert (np.abs(difference.mean(0) - kl) < 5 * error).all()
    assert (error < 0.02 * (1 + kl)).all()
    assert (variance < difference.var(0)).all()  # what the closed form is for


def test_kl_at_the_start_by_hand():
    """Zero networks: above, N(μ̂, σ̂²); below, variance v = σ̂²/(1 + σ̂²), mean v μ̂/σ̂²; both against N(0, 1)."""
    posterior = LadderPosterior(3, (1, 2))
    stddev = np.array([0.5, 1.0, 2.0])
    parameters = np.array([[1.0, 2.0, -3.0, *inverse_softplus(stddev - 1e-4)]], "f4")
    z, context = tf.constant(numbers(4, 1, 3), tf.float32), Context(posterior=posterior)
    expected = [
        0.5 * (0.25 + 1 - 1) - np.log(0.5),
        0.5 * (0.5 + 1.0**2 - 1 - np.log(0.5)),
        0.5 * (0.8 + 0.6**2 - 1 - np.log(0.8)),
    ]
    np.testing.assert_allclose(closed_kl(posterior, parameters, LadderPrior(), context, z)[1], [expected], rtol=1e-5)


def slopes(value, variables, step):
    """Derivatives by central differences of a few entries of each variable, and by the tape."""
    with tf.GradientTape() as tape:
        target = value()
    for variable, gradient in zip(variables, tape.gradient(target, variables), strict=True):
        start = variable.numpy().copy()
        for place in list(np.ndindex(start.shape))[:10]:
            ends = []
            for sign in (1, -1):
                moved = start.copy()
                moved[place] += sign * step
                variable.assign(moved)
                ends.append(float(value()))
            variable.assign(start)
            yield (ends[0] - ends[1]) / (2 * step), float(gradient.numpy()[place])


def test_gradients_are_those_of_finite_differences():
    """Of draws, both densities and the KL along the draws, in the encoder's output and in the networks' weights."""
    posterior, prior = ladder(), LadderPrior()
    context, parameters = Context(posterior=posterior), tf.Variable(parameters_of(2))

    def value():
        z, log_q = posterior.draw(tf.convert_to_tensor(parameters), 3, SEED)
        kl = closed_kl(posterior, tf.convert_to_tensor(parameters), prior, context, z)[0]
        total = tf.reduce_sum(tf.sin(z) * tf.range(1.0, SIZE + 1)) + 0.3 * tf.reduce_sum(log_q)
        return total + 0.2 * tf.reduce_sum(prior.log_prob(z, context)) + tf.reduce_sum(kl)

    variables = [parameters, *(weight.value for weight in posterior.trainable_variables)]
    numeric, exact = np.array(list(slopes(value, variables, 4e-3))).T
    np.testing.assert_allclose(exact, numeric, rtol=2e-2, atol=3e-2)
    assert (np.abs(exact) > 0.1).mean() > 0.8


# --- models --------------------------------------------------------------------------------------


def matrix_network(inputs, kernel, bias, name):
    """y = x @ kernel + bias as a Keras model."""
    x = keras.Input((inputs,))
    dense = keras.layers.Dense(len(bias), name=name)
    model = keras.Model(x, dense(x))
    dense.set_weights([np.asarray(kernel, "f4"), np.asarray(bias, "f4")])
    return model


def gaussian_model(nudge=0.0):
    """Two levels (1, 2), all Gaussian: x = C z_1 + e + σ ε, z_1 = a z_2 + b + s ε'. And its marginal N(m, Σ) of x.

    The columns of C are orthogonal and the decoder sees the bottom level alone, as in the paper. So p(x|z_1) is, as a
    function of z_1, a diagonal normal, which the encoder gives as bottom-up estimate; q is the true posterior then.
    With a `nudge` it is another one.
    """
    a, b, s, sigma = np.array([0.9, -0.6]), np.array([0.3, 0.5]), np.array([0.7, 0.4]), 0.5
    c = np.array([[1.0, 0.5], [-0.5, 1.0], [1.0, 0.5], [0.5, -1.0]])
    e = np.array([0.2, -0.1, 0.4, 0.0])
    given_top = c @ np.diag(s**2) @ c.T + sigma**2 * np.eye(4)
    covariance = given_top + np.outer(c @ a, c @ a)
    # bottom: regression of x on C; top: z_2 given x, whose mean is w·(x − Cb − e)
    pseudo = c / (c**2).sum(0)
    w = np.linalg.solve(covariance, c @ a)
    stddev = np.array([np.sqrt(1 - w @ c @ a), *(sigma / np.sqrt((c**2).sum(0)))]) * (1 + nudge)
    kernel = np.concatenate([w[:, None], pseudo, np.zeros((4, 3))], axis=1)
    bias = np.concatenate([[-w @ (c @ b + e) + nudge], -e @ pseudo, inverse_softplus(stddev - 1e-4)])
    model = VAE(
        matrix_network(4, kernel, bias, "parameters"),
        matrix_network(3, np.concatenate([np.zeros((1, 4)), c.T]), e, "mean"),
        posterior=linear(1, 2, a[None], b, s),
        prior=LadderPrior(),
        likelihood=NormalLikelihood(scale="fixed", stddev=sigma),
    )
    return model, stats.multivariate_normal(c @ b + e, covariance)


def test_evidence_of_a_gaussian_model_is_exact_where_q_is_the_true_posterior():
    model, marginal = gaussian_model()
    x = marginal.rvs(5, random_state=1).astype("f4")
    evidence = model.log_evidence(x, samples=20)
    np.testing.assert_allclose(evidence.log_evidence, marginal.logpdf(x), atol=1e-3)
    np.testing.assert_allclose(evidence.effective_samples, 20, rtol=1e-4)
    mean = model.elbo(x, samples=4000)
    np.testing.assert_allclose(mean["elbo"], marginal.logpdf(x), atol=0.15)


def test_evidence_of_a_gaussian_model_by_importance_where_q_is_another():
    model, marginal = gaussian_model(nudge=0.3)
    x = marginal.rvs(5, random_state=1).astype("f4")
    evidence = model.log_evidence(x, samples=4000, chunk=4000)
    assert (evidence.effective_samples < 3900).all()  # no longer the true one
    error = np.sqrt((1 / evidence.effective_samples - 1 / 4000).clip(0))
    assert (np.abs(evidence.log_evidence - marginal.logpdf(x)) < 5 * error + 1e-3).all()
    gap = marginal.logpdf(x) - model.elbo(x, samples=4000)["elbo"]
    assert (gap > 0.02).all()


def small_model(**options):
    posterior = LadderPosterior(5, (2, 3), units=(6,))
    return VAE(
        ladder_encoder((6, 7), (2, 3), (4, 4)),
        conv_decoder((6, 7), 5, (4, 4)),
        posterior=posterior,
        prior=LadderPrior(),
        **options,
    )


def test_training_repeats_itself_and_survives_a_file(tmp_path):
    x = numbers(8, 6, 7).astype("f4")
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        model = small_model()
        model.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
        start = [weight.numpy() for weight in model.posterior.weights]
        model.fit(x, batch_size=4, verbose=0, shuffle=False)
        models.append(model)
    for a, b in zip(models[0].variables, models[1].variables, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=a.path)
    for weight, before in zip(model.posterior.weights, start, strict=True):  # the networks learn
        assert np.abs(weight.numpy() - before).max() > 0, weight.path
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.posterior.levels == (2, 3)
    for name, value in model.elbo(x, samples=2).items():
        np.testing.assert_array_equal(again.elbo(x, samples=2)[name], value)
    np.testing.assert_array_equal(again.sample(3), model.sample(3))


def test_free_bits_by_level():
    posterior = LadderPosterior(5, (2, 3))
    assert posterior.groups == [[0, 1], [2, 3, 4]]
    x = numbers(8, 6, 7).astype("f4")
    for free in (0.0, 1.5, 1e3):
        keras.utils.set_random_seed(3)
        model = small_model(objective=FreeBits(free, groups=posterior.groups, per="group", samples=3))
        shaken(model.posterior)
        encoder = model.encoder.trainable_variables
        with tf.GradientTape() as tape:
            draws, _ = model.draws(tf.constant(x), SEED)
            terms = model.objective.terms(draws)
        parameters, z = (value.numpy().astype("f8") for value in (draws.parameters, draws.z))
        kl = normal_kl(*inferred(model.posterior, parameters, z), *top_down(model.posterior, z)).mean((0, 1))
        levels = [kl[:2].sum(), kl[2:].sum()]
        np.testing.assert_allclose(terms.penalty, np.maximum(levels, free).sum(), rtol=1e-4)
        gradients = tape.gradient(terms.penalty, encoder, unconnected_gradients="zero")
        assert (max(np.abs(g).max() for g in gradients) > 0) == (free < max(levels))
        if free == 1.5:
            assert min(levels) < free < max(levels)  # one level is held, the other is not


def test_kl_by_level_adds_up():
    kl = numbers(4, 6)
    np.testing.assert_allclose(level_kl(kl, LEVELS), np.stack([kl[:, :2].sum(1), kl[:, 2], kl[:, 3:].sum(1)], 1))
    with pytest.raises(ArgumentError, match="sum to 6"):
        level_kl(kl, (2, 3))


def test_objectives_that_hold_the_encoders_density_fixed_are_refused():
    with pytest.raises(ModelError, match="density must depend on the encoder's output alone"):
        small_model(objective=DReG(2))
    with pytest.raises(ModelError, match="without levels"):
        check_combination(NormalPosterior(), LadderPrior(), NormalLikelihood(), ELBO())


# --- the encoder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(17,), (9, 6), (5, 8, 7)])
def test_ladder_encoder_takes_any_shape_and_lays_levels_out_as_the_posterior_reads_them(shape):
    levels = (2, 1)
    encoder = ladder_encoder(shape, levels, (4, 4, 8), dropout=0.1, seed=0)
    for layer in encoder.layers:
        if isinstance(layer, keras.layers.Dense):
            kind, level = layer.name.split("_")
            kernel, bias = layer.get_weights()
            layer.set_weights([0 * kernel, np.full_like(bias, 10 * (kind == "raw") + int(level))])
    made = encoder(np.zeros((3, *shape), "f4")).numpy()
    np.testing.assert_array_equal(made, [[0, 0, 1, 10, 10, 11]] * 3)
    mean = LadderPosterior(3, levels).deterministic(made)["mean"].numpy()
    np.testing.assert_array_equal(mean[:, :2], 0)
    assert (mean[:, 2] > 0).all()


def test_each_level_is_read_from_its_own_depth():
    """A depth that is blocked silences the levels at and above it, and none below."""
    levels, images = (1, 1), numbers(6, 12, 10).astype("f4")
    varies = {}
    for blocked in range(3):
        keras.utils.set_random_seed(1)
        encoder = ladder_encoder((12, 10), levels, (4, 4, 4), norm="none")
        convolution = [layer for layer in encoder.layers if isinstance(layer, keras.layers.Conv2D)][blocked]
        convolution.set_weights([0 * weight for weight in convolution.get_weights()])
        varies[blocked] = (np.ptp(encoder(images).numpy(), axis=0) > 1e-6).tolist()
    # top, bottom of the means; then of the raw scales
    assert varies == {0: [False] * 4, 1: [False] * 4, 2: [False, True, False, True]}


# --- refusals and recipes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LadderPosterior(6, (2, 3)), r"levels must sum to latent_size, 6, but received \(2, 3\), which sum to"),
        (lambda: LadderPosterior(0, ()), "levels must sum"),
        (lambda: LadderPosterior(2, (2, 0)), "levels must be a list of whole numbers, each 1 or more"),
        (lambda: LadderPosterior(2, 2), "levels must be a list"),
        (lambda: LadderPosterior(2, "ab"), "levels must be a list"),
        (lambda: LadderPosterior(3, (1.5, 1.5)), "levels must be a list"),
        (lambda: LadderPosterior(3, (1, 2), units=(0,)), "units must be a list"),
        (lambda: LadderPosterior(3, (1, 2), floor=0.0), "floor must lie in"),
        (lambda: LadderPosterior(3, (1, 2), floor=1.0), "floor must lie in"),
        (lambda: LadderPosterior(3, (1, 2), seed=-1), "seed must be"),
        (lambda: LadderPosterior(3, (1, 2)).parameter_size(4), "latent_size must be that of the ladder, 3"),
        (lambda: ladder_encoder((8,), (1, 1, 1), (4, 4)), "levels must be one to 2 positive widths"),
        (lambda: ladder_encoder((8,), ()), "levels must be one to 3"),
        (lambda: ladder_encoder((8,), (1, 0)), "levels must be one to 3"),
        (lambda: ladder_encoder((8, 8, 8, 1), (1, 2)), "one to three positive axes"),
    ],
)
def test_bad_arguments_are_one_sentence(make, match):
    with pytest.raises(ArgumentError, match=match):
        make()


def built(**model):
    section = {"latent_size": 6, "filters": [4, 8], "posterior": "ladder", "prior": "ladder", "start": "random"}
    recipe = parse_recipe({"pipeline": {"intensity": {"kind": "zscore"}}, "model": section | model}, "here")
    return build_model(recipe, numbers(5, 7, 6, 5).astype("f4"), SimpleNamespace(mask=None)).model


def test_a_recipe_makes_a_ladder():
    model = built(posterior_options={"levels": [2, 4]})
    assert (model.posterior.kind, model.posterior.levels, model.prior.kind) == ("ladder", (2, 4), "ladder")
    x = numbers(4, 7, 6, 5).astype("f4")
    model.fit(x, epochs=1, verbose=0)
    assert model.elbo(x)["kl_per_dimension"].shape == (4, 6)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"posterior_options": {"levels": [2, 5]}}, ArgumentError, "levels must sum to latent_size, 6, but received"),
        ({"posterior_options": {"levels": ["a", "b"]}}, ArgumentError, "levels must be a list of whole numbers"),
        ({}, RecipeError, "The option 'levels' of model.posterior 'ladder' must be given"),
        ({"posterior_options": {"levels": [2, 4]}, "start": "linear"}, RecipeError, "be 'normal' with a linear start"),
        ({"posterior": "normal"}, ModelError, "without levels"),
    ],
)
def test_a_wrong_recipe_is_refused_with_one_sentence(options, error, match):
    with pytest.raises(KerasVAEError, match=match) as caught:
        built(**options)
    assert caught.type is error
    assert "\n" not in str(caught.value)
