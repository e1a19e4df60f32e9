"""Every closed KL against float64 linear algebra or quadrature, against draws, and by finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import integrate, special, stats

from kerasvae.distributions import (
    Context,
    NormalPosterior,
    RelaxedCategoricalPosterior,
    StandardNormalPrior,
    UniformCodesPrior,
    VectorQuantisedPosterior,
    closed_kl,
)
from kerasvae.distributions.conditional_prior import ConditionalNormalPrior
from kerasvae.distributions.divergence import CLOSED_FORMS
from kerasvae.distributions.full_normal import FullNormalPosterior
from kerasvae.distributions.low_rank_normal import LowRankNormalPosterior
from kerasvae.distributions.mixture_prior import MixturePrior
from kerasvae.distributions.regression_prior import RegressionPrior
from kerasvae.distributions.sphere_prior import UniformSpherePrior
from kerasvae.distributions.spherical import PowerSphericalPosterior, VonMisesFisherPosterior

SIZE, PEOPLE = 3, 4
POSTERIORS = {
    "normal": NormalPosterior,
    "full_normal": FullNormalPosterior,
    "low_rank_normal": LowRankNormalPosterior,
    "power_spherical": PowerSphericalPosterior,
    "von_mises_fisher": VonMisesFisherPosterior,
    "vector_quantised": lambda: VectorQuantisedPosterior(SIZE, positions=3, codebook_size=4),
    "relaxed_categorical": lambda: RelaxedCategoricalPosterior(SIZE, positions=3, codebook_size=4),
}
PRIORS = {
    "standard_normal": StandardNormalPrior,
    "conditional_normal": lambda: shaken(ConditionalNormalPrior(SIZE, 2, units=(4,))),
    "regression": lambda: shaken(RegressionPrior(SIZE)),
    "uniform_sphere": UniformSpherePrior,
    "uniform_codes": UniformCodesPrior,
}
NORMAL_PAIRS = [pair for pair in CLOSED_FORMS if pair[1] not in ("uniform_sphere", "uniform_codes")]
# one of each posterior and of each prior
GRAPH_PAIRS = [("normal", "conditional_normal"), ("full_normal", "standard_normal"), ("low_rank_normal", "regression")]
SPHERE_PAIRS = [pair for pair in CLOSED_FORMS if pair[1] == "uniform_sphere"]
GRAPH_PAIRS += SPHERE_PAIRS


def shaken(prior):
    rng = np.random.default_rng(1)
    for variable in prior.weights:
        variable.assign(variable.numpy() + 0.5 * rng.standard_normal(variable.shape).astype("f4"))
    return prior


def parts(pair, size=SIZE, people=PEOPLE):
    """Posterior, its parameters, prior and context of a pair."""
    rng = np.random.default_rng(2)
    posterior = POSTERIORS[pair[0]]()
    parameters = rng.standard_normal((people, posterior.parameter_size(size))).astype("f4")
    columns = {"conditional_normal": 2, "regression": 1}.get(pair[1])
    condition = None if columns is None else tf.constant(rng.standard_normal((people, columns)), tf.float32)
    return posterior, tf.constant(parameters), PRIORS[pair[1]](), Context(condition, posterior)


def posterior_moments(posterior, parameters):
    """Mean (B, d) and covariance (B, d, d) of a normal posterior, float64."""
    q = {name: value.numpy().astype("f8") for name, value in posterior.deterministic(parameters).items()}
    if posterior.kind == "normal":
        return q["mean"], np.stack([np.diag(s**2) for s in q["stddev"]])
    if posterior.kind == "full_normal":
        return q["mean"], np.stack([s @ s.T for s in q["scale_tril"]])
    return q["mean"], np.stack([np.diag(s**2) + u @ u.T for s, u in zip(q["diagonal"], q["factor"], strict=True)])


def prior_moments(prior, context):
    """Mean (B, d) and covariance (B, d, d) of a normal prior, float64, from its weights by the stated formula."""
    if prior.kind == "standard_normal":
        return np.zeros((PEOPLE, SIZE)), np.stack([np.eye(SIZE)] * PEOPLE)
    condition = context.condition.numpy().astype("f8")
    softplus = lambda x: np.log1p(np.exp(x))  # noqa: E731
    if prior.kind == "regression":
        vector, raw = (variable.numpy().astype("f8") for variable in (prior.vector, prior.raw))
        mean, stddev = condition * vector / np.linalg.norm(vector), np.full((PEOPLE, SIZE), 1e-3 + softplus(raw))
    else:
        kernel, bias, last, last_bias = (variable.numpy().astype("f8") for variable in prior.weights)
        hidden = condition @ kernel + bias
        mean, raw = np.split(hidden / (1 + np.exp(-hidden)) @ last + last_bias, 2, axis=1)
        stddev = 1e-3 + softplus(raw + np.log(np.expm1(1 - 1e-3)))
    return mean, np.stack([np.diag(s**2) for s in stddev])


def normal_kl(mean, covariance, prior_mean, prior_covariance):
    """KL of two normals, any covariances."""
    inverse, offset = np.linalg.inv(prior_covariance), prior_mean - mean
    logs = np.linalg.slogdet(prior_covariance)[1] - np.linalg.slogdet(covariance)[1]
    trace = np.trace(inverse @ covariance, axis1=1, axis2=2)
    return 0.5 * (trace + np.einsum("bi,bij,bj->b", offset, inverse, offset) - mean.shape[1] + logs)


def test_every_closed_form_is_tested_here():
    assert {pair[0] for pair in CLOSED_FORMS} == set(POSTERIORS)
    assert {pair[1] for pair in CLOSED_FORMS} == set(PRIORS)
    assert all(form is not None for form in CLOSED_FORMS.values())
    for pair in CLOSED_FORMS:
        posterior, _, prior, _ = parts(pair)
        assert (posterior.kind, prior.kind) == pair


@pytest.mark.parametrize("pair", NORMAL_PAIRS, ids=" ".join)
def test_normal_pairs_against_linear_algebra(pair):
    posterior, parameters, prior, context = parts(pair)
    kl, per_dimension = closed_kl(posterior, parameters, prior, context)
    q, p = posterior_moments(posterior, parameters), prior_moments(prior, context)
    np.testing.assert_allclose(kl, normal_kl(*q, *p), rtol=2e-5)
    if posterior.kind != "normal":
        assert per_dimension is None
        return
    for i in range(SIZE):
        one = [(mean[:, [i]], covariance[:, [i]][:, :, [i]]) for mean, covariance in (q, p)]
        np.testing.assert_allclose(per_dimension[:, i], normal_kl(*one[0], *one[1]), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("prior_kind", ["standard_normal", "regression"])
def test_low_rank_keeps_its_digits_where_the_diagonal_is_at_its_floor(prior_kind):
    """Two nearly parallel directions with D = 1e-4: the small determinant is about 1e12, and ill-conditioned."""
    posterior, parameters, prior, context = parts(("low_rank_normal", prior_kind))
    values = parameters.numpy()
    values[:, SIZE : 2 * SIZE] = -40
    values[:, 2 * SIZE + 1 :: 2] = values[:, 2 * SIZE :: 2] * (1 + 1e-3 * np.arange(SIZE, dtype="f4"))
    q = {name: value.numpy().astype("f8") for name, value in posterior.deterministic(values).items()}
    white = q["factor"] / q["diagonal"][..., None]
    covariance = posterior_moments(posterior, values)[1]
    # singular values, not a determinant, in the oracle
    log_determinant = 2 * np.log(q["diagonal"]).sum(1)
    log_determinant += np.log1p(np.linalg.svd(white, compute_uv=False) ** 2).sum(1)
    prior_mean, prior_covariance = prior_moments(prior, context)
    variance = np.diagonal(prior_covariance, axis1=1, axis2=2)
    square = (np.diagonal(covariance, axis1=1, axis2=2) + (q["mean"] - prior_mean) ** 2) / variance
    expected = 0.5 * ((square - 1 + np.log(variance)).sum(1) - log_determinant)
    np.testing.assert_allclose(closed_kl(posterior, values, prior, context)[0], expected, rtol=1e-5)


def sphere_kl(kind, concentration, size):
    """KL to the uniform density, in the angle to the mean direction: the area of the other angles cancels."""

    def log_fall(angle):
        if kind == "power_spherical":
            return concentration * np.log((1 + np.cos(angle)) / 2 + 1e-300)
        return concentration * (np.cos(angle) - 1)

    def mean(function):
        return integrate.quad(
            lambda angle: function(angle) * np.sin(angle) ** (size - 2), 0, np.pi, epsabs=0, limit=200
        )[0]

    total = mean(lambda angle: np.exp(log_fall(angle)))
    expected = mean(lambda angle: np.exp(log_fall(angle)) * log_fall(angle)) / total
    return expected - np.log(total) + np.log(mean(np.ones_like))


@pytest.mark.parametrize("size", [2, 3, 10])
@pytest.mark.parametrize("pair", SPHERE_PAIRS, ids=" ".join)
def test_sphere_pairs_against_quadrature(pair, size):
    posterior, parameters, prior, _ = parts(pair, size)
    values = parameters.numpy()
    values[:, -1] = [-2.0, 1.0, 8.0, 60.0]
    kl, per_dimension = closed_kl(posterior, values, prior)
    assert per_dimension is None
    concentrations = posterior.deterministic(values)["concentration"].numpy().astype("f8").ravel()
    expected = [sphere_kl(pair[0], concentration, size) for concentration in concentrations]
    np.testing.assert_allclose(kl, expected, rtol=2e-4, atol=3e-6)


def test_von_mises_fisher_against_scipy():
    posterior, parameters, prior, _ = parts(("von_mises_fisher", "uniform_sphere"), 5)
    outputs = posterior.deterministic(parameters)
    entropy = [
        stats.vonmises_fisher(direction / np.linalg.norm(direction), concentration).entropy()
        for direction, concentration in zip(
            outputs["mean_direction"].numpy().astype("f8"),
            outputs["concentration"].numpy().astype("f8").ravel(),
            strict=True,
        )
    ]
    np.testing.assert_allclose(
        closed_kl(posterior, parameters, prior)[0], np.log(8 / 3 * np.pi**2) - entropy, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("pair", [pair for pair in CLOSED_FORMS if pair[1] == "uniform_codes"], ids=" ".join)
def test_codes_against_scipy(pair):
    posterior, parameters, prior, context = parts(pair)
    logits = parameters.numpy().astype("f8").reshape(PEOPLE, 3, -1)
    q = np.eye(4)[np.zeros((PEOPLE, 3), int)] if pair[0] == "vector_quantised" else special.softmax(logits, axis=-1)
    expected = stats.entropy(q, np.full((1, 1, 4), 1 / 4), axis=-1).sum(axis=-1)
    np.testing.assert_allclose(closed_kl(posterior, parameters, prior, context)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("pair", CLOSED_FORMS, ids=" ".join)
def test_closed_form_is_the_mean_over_draws(pair):
    posterior, parameters, prior, context = parts(pair)
    z, log_posterior = posterior.draw(parameters, 20_000, tf.constant([5, 6]))
    difference = (log_posterior - prior.log_prob(z, context)).numpy().astype("f8")
    error = difference.std(0) / np.sqrt(len(difference))
    closed = closed_kl(posterior, parameters, prior, context)[0].numpy()
    assert (np.abs(difference.mean(0) - closed) < 5 * error + 1e-5).all()
    assert (error < 0.02 * (1 + closed)).all()


def softplus_inverse(x):
    return np.log(np.expm1(x))


def parameters_at(posterior, mean, stddev):
    """Parameters (B, p) with which a normal posterior is N(mean, diag stddev²), or nearly so."""
    raw = softplus_inverse(stddev - 1e-4)
    width = posterior.parameter_size(SIZE) - 2 * SIZE
    return np.concatenate([mean, raw, np.zeros((len(mean), width))], axis=1).astype("f4")


@pytest.mark.parametrize("pair", NORMAL_PAIRS, ids=" ".join)
def test_kl_is_zero_with_zero_gradient_where_the_two_are_equal(pair):
    posterior, _, prior, context = parts(pair)
    mean, covariance = prior_moments(prior, context)
    parameters = tf.constant(parameters_at(posterior, mean, np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))))
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        kl, _ = closed_kl(posterior, parameters, prior, context)
    np.testing.assert_allclose(kl, 0, atol=2e-6)
    np.testing.assert_allclose(tape.gradient(kl, parameters), 0, atol=1e-5)


@pytest.mark.parametrize("pair", SPHERE_PAIRS, ids=" ".join)
def test_kl_on_the_sphere_vanishes_with_the_concentration(pair):
    posterior, parameters, prior, context = parts(pair)
    values = parameters.numpy()
    values[:, -1] = [-30.0, -1.0, 3.0, 30.0]
    kl = closed_kl(posterior, values, prior, context)[0].numpy()
    assert abs(kl[0]) < 1e-4
    assert (np.diff(kl) > 0).all()


@pytest.mark.parametrize("pair", CLOSED_FORMS, ids=" ".join)
def test_kl_is_never_negative(pair):
    posterior, _, prior, context = parts(pair, people=PEOPLE)
    rng = np.random.default_rng(4)
    for scale in (0.01, 0.3, 3.0):
        parameters = scale * rng.standard_normal((PEOPLE, posterior.parameter_size(SIZE))).astype("f4")
        assert (closed_kl(posterior, parameters, prior, context)[0].numpy() > -1e-5).all()


@pytest.mark.parametrize("pair", [pair for pair in CLOSED_FORMS if pair[0] != "vector_quantised"], ids=" ".join)
def test_gradients_by_finite_differences(pair):
    """In the encoder's parameters and in the prior's weights."""
    posterior, parameters, prior, context = parts(pair)
    variables = [tf.Variable(parameters), *prior.trainable_variables]

    def total():
        return tf.reduce_sum(closed_kl(posterior, tf.convert_to_tensor(variables[0]), prior, context)[0])

    with tf.GradientTape() as tape:
        value = total()
    step = 1e-2
    for variable, gradient in zip(variables, tape.gradient(value, variables), strict=True):
        start = np.array(variable.numpy())
        expected = np.zeros_like(start)
        for place in list(np.ndindex(start.shape))[:12]:
            ends = []
            for sign in (1, -1):
                moved = start.copy()
                moved[place] += sign * step
                variable.assign(moved)
                ends.append(float(total()))
            expected[place] = (ends[0] - ends[1]) / (2 * step)
            variable.assign(start)
            assert gradient.numpy()[place] == pytest.approx(expected[place], rel=2e-2, abs=5e-3)
        assert np.abs(gradient.numpy()).max() > 0


@pytest.mark.parametrize("pair", GRAPH_PAIRS, ids=" ".join)
def test_a_graph_of_unknown_batch_size_gives_the_same(pair):
    posterior, parameters, prior, context = parts(pair)
    signature = [tf.TensorSpec((None, parameters.shape[1]))]
    graph = tf.function(lambda values: closed_kl(posterior, values, prior, context)[0], input_signature=signature)
    kl = graph(parameters)
    assert kl.dtype == tf.float32
    np.testing.assert_allclose(kl, closed_kl(posterior, parameters, prior, context)[0], rtol=1e-5, atol=1e-6)


def test_pairs_without_a_closed_form_say_so():
    posterior = NormalPosterior()
    assert closed_kl(posterior, np.zeros((2, 6), "f4"), MixturePrior(3)) is None
    assert closed_kl(posterior, np.zeros((2, 6), "f4"), UniformSpherePrior()) is None


def test_mixed_precision_keeps_the_kl_in_float32():
    pair = ("normal", "conditional_normal")
    expected = closed_kl(*parts(pair))[0]
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        posterior, parameters, prior, context = parts(pair)
        kl = closed_kl(posterior, parameters, prior, context)[0]
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert kl.dtype == tf.float32
    np.testing.assert_allclose(kl, expected, rtol=1e-6)
