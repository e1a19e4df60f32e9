"""Every likelihood against scipy, numeric integration or a closed form written here, in float64."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from kerasvae.distributions.bernoulli import BernoulliLikelihood
from kerasvae.distributions.categorical import CategoricalLikelihood
from kerasvae.distributions.continuous_bernoulli import ContinuousBernoulliLikelihood
from kerasvae.distributions.discretised_logistic import DiscretisedLogisticLikelihood
from kerasvae.distributions.laplace import LaplaceLikelihood
from kerasvae.distributions.normal_likelihood import NormalLikelihood
from kerasvae.distributions.student_t import StudentTLikelihood
from kerasvae.errors import ArgumentError
from kerasvae.types import unpack_mask

SEED = tf.constant([3, 4])
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2


def softplus(x):
    return np.logaddexp(0.0, x)


def f4(values):
    """float64 numbers that float32 can hold."""
    return np.asarray(values, "f4").astype("f8")


def continuous_bernoulli(eta):
    """log normaliser, mean and variance of the density that is proportional to exp(ηx) on [0, 1], by Gauss-Legendre."""
    eta = np.asarray(eta, "f8")[..., None]
    high = np.maximum(eta, 0)[..., 0]
    mass = WEIGHTS * np.exp(eta * NODES - high[..., None])
    total = mass.sum(-1)
    mean = (mass * NODES).sum(-1) / total
    return high + np.log(total), mean, (mass * NODES**2).sum(-1) / total - mean**2


def continuous_bernoulli_closed(x, eta):
    """As the paper writes it, in λ."""
    lam = special.expit(eta)
    normaliser = 2 * np.arctanh(1 - 2 * lam) / (1 - 2 * lam)
    return np.log(normaliser) + x * np.log(lam) + (1 - x) * np.log1p(-lam)


def discretised_logistic(x, mu, s, levels, low=0.0, high=1.0):
    """Differences of scipy's distribution function; upper tails by symmetry, so that they keep their digits."""
    half = 0.5 * (high - low) / (levels - 1)
    x, mu = np.broadcast_arrays(x, mu)
    below = np.where(np.isclose(x, low), -np.inf, (x - half - mu) / s)
    above = np.where(np.isclose(x, high), np.inf, (x + half - mu) / s)
    flip = below > 0
    below, above = np.where(flip, -above, below), np.where(flip, -below, above)
    logcdf = stats.logistic.logcdf
    return logcdf(above) + np.log1p(-np.exp(logcdf(below) - logcdf(above)))


def categorical(x, logits):
    logits = logits - special.logsumexp(logits, axis=-1, keepdims=True)
    x, logits = np.broadcast_arrays(x[..., None], logits)
    return np.take_along_axis(logits, x[..., :1].astype(int), axis=-1)[..., 0]


def sigma_map(shape):
    return f4(0.3 + np.random.default_rng(11).random(shape))


def per_voxel(shape, mask, stddev=0.7):
    likelihood = NormalLikelihood("per_voxel", stddev=stddev, floor=0.01, mask=mask, data_shape=shape)
    likelihood.raw_scale.assign(np.log(np.expm1(sigma_map(shape) - 0.01)))
    return likelihood


def decoder_sigma(raw):
    """floor + softplus(raw + r₀), which is 0.7 where raw = 0."""
    return 0.01 + softplus(raw + np.log(np.expm1(0.7 - 0.01)))


def real(rng, shape):
    return f4(rng.standard_normal(shape))


def unit(rng, shape):
    return f4(rng.random(shape))


@dataclass(frozen=True)
class Case:
    """A likelihood, made for a data shape and a mask; images; what its voxel log-probability is in float64."""

    name: str
    make: Callable
    images: Callable
    oracle: Callable
    channels: int = 1

    def decoded(self, rng, shape):
        return f4(rng.standard_normal((*shape, self.channels) if self.channels > 1 else shape))


CASES = (
    Case(
        "normal fixed",
        lambda shape, mask: NormalLikelihood("fixed", stddev=0.7, mask=mask),
        real,
        lambda x, d: stats.norm.logpdf(x, d, 0.7),
    ),
    Case(
        "normal learned",
        lambda shape, mask: NormalLikelihood("learned", stddev=0.7, mask=mask),
        real,
        lambda x, d: stats.norm.logpdf(x, d, 0.7),
    ),
    Case("normal per voxel", per_voxel, real, lambda x, d: stats.norm.logpdf(x, d, sigma_map(x.shape[1:]))),
    Case(
        "normal decoder",
        lambda shape, mask: NormalLikelihood("decoder", stddev=0.7, floor=0.01, mask=mask),
        real,
        lambda x, d: stats.norm.logpdf(x, d[..., 0], decoder_sigma(d[..., 1])),
        channels=2,
    ),
    Case(
        "laplace fixed",
        lambda shape, mask: LaplaceLikelihood("fixed", scale_value=0.4, mask=mask),
        real,
        lambda x, d: stats.laplace.logpdf(x, d, 0.4),
    ),
    Case(
        "laplace learned",
        lambda shape, mask: LaplaceLikelihood("learned", scale_value=0.4, mask=mask),
        real,
        lambda x, d: stats.laplace.logpdf(x, d, 0.4),
    ),
    Case(
        "student t",
        lambda shape, mask: StudentTLikelihood(scale_value=0.4, degrees_of_freedom=3.5, mask=mask),
        real,
        lambda x, d: stats.t.logpdf(x, 3.5, d, 0.4),
    ),
    Case(
        "bernoulli",
        lambda shape, mask: BernoulliLikelihood(mask=mask),
        lambda rng, shape: (rng.random(shape) < 0.5).astype("f8"),
        lambda x, d: stats.bernoulli.logpmf(x, special.expit(d)),
    ),
    Case(
        "bernoulli grey",
        lambda shape, mask: BernoulliLikelihood(mask=mask),
        unit,
        lambda x, d: x * np.log(special.expit(d)) + (1 - x) * np.log(special.expit(-d)),
    ),
    Case(
        "continuous bernoulli",
        lambda shape, mask: ContinuousBernoulliLikelihood(mask=mask),
        unit,
        continuous_bernoulli_closed,
    ),
    Case(
        "discretised logistic",
        lambda shape, mask: DiscretisedLogisticLikelihood(mask=mask),
        lambda rng, shape: rng.integers(0, 256, shape) / 255,
        lambda x, d: discretised_logistic(x, d, 0.05, 256),
    ),
    Case(
        "categorical",
        lambda shape, mask: CategoricalLikelihood(3, mask=mask),
        lambda rng, shape: rng.integers(0, 3, shape).astype("f8"),
        categorical,
        channels=3,
    ),
)
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def data(case, shape, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    return case.images(rng, (batch, *shape)), case.decoded(rng, (batch, *shape))


@every
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 4, 5)], ids=len)
def test_log_prob_against_scipy_whatever_the_rank(case, shape, masked):
    x, decoded = data(case, shape)
    mask = np.random.default_rng(1).random(shape) < 0.6 if masked else None
    inside = np.ones(shape, bool) if mask is None else mask
    likelihood = case.make(shape, mask)
    got = likelihood.log_prob(x.astype("f4"), decoded.astype("f4"), dtype=tf.float64)
    assert got.dtype == tf.float64
    np.testing.assert_allclose(got, case.oracle(x, decoded)[:, inside].sum(1), rtol=1e-6, atol=1e-6)
    assert likelihood.log_prob(x.astype("f4"), decoded.astype("f4")).dtype == tf.float32
    assert likelihood.count(x) == inside.sum()
    assert likelihood.channels == case.channels
    image = likelihood.mean(decoded.astype("f4"))
    assert image.dtype == tf.float32
    assert image.shape == x.shape
    assert likelihood.draw(decoded.astype("f4"), SEED).shape == x.shape


@every
def test_leading_axes_broadcast(case):
    x, decoded = data(case, (4, 3), batch=5)
    likelihood = case.make((4, 3), None)
    got = likelihood.log_prob(x[:1].astype("f4"), decoded.astype("f4"))
    expected = case.oracle(np.repeat(x[:1], 5, axis=0), decoded)
    np.testing.assert_allclose(got, expected.sum((1, 2)), rtol=1e-5)
    every_pair = likelihood.voxel_log_prob(x[:2, None].astype("f4"), decoded[None].astype("f4"))
    assert every_pair.shape == (2, 5, 4, 3)
    np.testing.assert_allclose(every_pair[0], expected, rtol=1e-5, atol=1e-6)


@every
def test_million_voxels_keep_their_digits(case):
    x, decoded = data(case, (100, 100, 100), batch=1)
    likelihood = case.make((100, 100, 100), None)
    got = likelihood.log_prob(x.astype("f4"), decoded.astype("f4"), dtype=tf.float64)
    np.testing.assert_allclose(got, [case.oracle(x, decoded).sum()], rtol=1e-6)


@every
def test_repeating_voxels_doubles_the_log_prob(case):
    x, decoded = (np.repeat(part, 2, axis=1).astype("f4") for part in data(case, (4, 5)))
    likelihood, twice = case.make((4, 5), None), case.make((8, 5), None)
    if case.name == "normal per voxel":
        twice.raw_scale.assign(np.repeat(likelihood.raw_scale, 2, axis=0))
    np.testing.assert_allclose(
        twice.log_prob(x, decoded), 2 * likelihood.log_prob(x[:, ::2], decoded[:, ::2]), rtol=1e-6
    )


@every
def test_gradients_are_the_finite_differences_of_the_oracle_and_zero_outside_the_mask(case):
    x, decoded = data(case, (9,))
    mask = np.arange(9) % 3 != 0
    likelihood = case.make((9,), mask)
    variable = tf.Variable(decoded.astype("f4"))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(likelihood.log_prob(x.astype("f4"), variable))
    h, expected = 1e-6, np.zeros_like(decoded)
    for index in np.ndindex(decoded.shape):
        step = np.zeros_like(decoded)
        step[index] = h
        difference = case.oracle(x, decoded + step) - case.oracle(x, decoded - step)
        expected[index] = (difference * mask).sum() / (2 * h)
    np.testing.assert_allclose(tape.gradient(total, variable), expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_learned_scales():
    rng = np.random.default_rng(2)
    x, mu = real(rng, (3, 8)), real(rng, (3, 8))
    levels = rng.integers(0, 256, (3, 8)) / 255

    def check(likelihood, image, density, **starts):
        names = list(starts)
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(likelihood.log_prob(image.astype("f4"), mu.astype("f4")))
        variables = [getattr(likelihood, name) for name in names]
        assert {id(v) for v in variables} == {id(v) for v in likelihood.trainable_variables}
        gradients = tape.gradient(total, [variable.value for variable in variables])
        raws = [np.asarray(variable, "f8") for variable in variables]
        for i, (name, gradient) in enumerate(zip(names, gradients, strict=True)):
            assert np.allclose(starts[name] + softplus(raws[i]), likelihood_values(likelihood)[i], rtol=1e-6)
            ends = []
            for h in (1e-6, -1e-6):
                moved = [raw + h * (i == j) for j, raw in enumerate(raws)]
                ends.append(density(image, *[starts[n] + softplus(raw) for n, raw in zip(names, moved, strict=True)]))
            slope = (ends[0] - ends[1]) / 2e-6
            expected = slope.sum(0) if np.ndim(gradient) else slope.sum()
            np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)

    def likelihood_values(likelihood):
        return [likelihood.current_scale(), getattr(likelihood, "degrees", lambda: None)()]

    check(NormalLikelihood("learned", stddev=0.7), x, lambda x, s: stats.norm.logpdf(x, mu, s), raw_scale=1e-3)
    check(per_voxel((8,), None), x, lambda x, s: stats.norm.logpdf(x, mu, s), raw_scale=0.01)
    check(LaplaceLikelihood("learned", 0.4), x, lambda x, s: stats.laplace.logpdf(x, mu, s), raw_scale=1e-3)
    check(
        StudentTLikelihood(scale_value=0.4, degrees_of_freedom=3.5),
        x,
        lambda x, s, nu: stats.t.logpdf(x, nu, mu, s),
        raw_scale=1e-3,
        raw_degrees=2.01,
    )
    check(
        DiscretisedLogisticLikelihood(),
        levels,
        lambda x, s: discretised_logistic(x, mu, s, 256),
        raw_scale=0.1 / 255,
    )


# --- densities add up to one -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name.startswith(("normal", "laplace", "student"))], ids=lambda case: case.name
)
def test_densities_on_the_line_integrate_to_one(case):
    decoded = case.decoded(np.random.default_rng(0), (1, 1))
    middle = decoded[0, 0, 0] if case.channels > 1 else decoded[0, 0]
    t = np.linspace(-9, 9, 4001)
    x = (middle + np.sinh(t)).astype("f4")[:, None]  # far into the tails
    log_density = case.make((1,), None).voxel_log_prob(x, decoded.astype("f4")).numpy()[:, 0].astype("f8")
    assert np.trapezoid(np.exp(log_density) * np.cosh(t), t) == pytest.approx(1, abs=2e-4)


ETAS = np.array([0, 1e-8, -1e-8, 1e-4, -1e-4, 0.03, 0.5, 0.9999, 1.0, 1.0001, -1.0, 3, -3, 12, -12, 80, -80])


def test_continuous_bernoulli_integrates_to_one_whatever_the_logit():
    x = NODES.astype("f4")[:, None]
    density = np.exp(ContinuousBernoulliLikelihood().voxel_log_prob(x, ETAS.astype("f4")[None]).numpy().astype("f8"))
    np.testing.assert_allclose(WEIGHTS @ density, 1, rtol=3e-6)


@pytest.mark.parametrize("levels", [2, 7, 256])
@pytest.mark.parametrize("scale", [0.02, 0.4, 30.0])
def test_discretised_logistic_sums_to_one_over_its_levels(levels, scale):
    likelihood = DiscretisedLogisticLikelihood(levels, -1.0, 3.0, scale="fixed", scale_value=scale, floor=1e-3)
    x = np.linspace(-1, 3, levels)[:, None]
    mu = f4([[-40, -1, 0.3, 1.7, 3, 80]])
    likelihood.check(x.astype("f4"))
    log_prob = likelihood.voxel_log_prob(x.astype("f4"), mu.astype("f4")).numpy().astype("f8")
    np.testing.assert_allclose(np.exp(log_prob).sum(0), 1, rtol=1e-5)
    np.testing.assert_allclose(log_prob, discretised_logistic(x, mu, scale, levels, -1, 3), rtol=2e-5, atol=1e-6)


def test_bernoulli_and_categorical_sum_to_one():
    ones = BernoulliLikelihood().voxel_log_prob(np.array([[0.0], [1.0]], "f4"), ETAS.astype("f4")[None])
    np.testing.assert_allclose(np.exp(ones).sum(0), 1, rtol=1e-6)
    logits = 30 * np.random.default_rng(0).standard_normal((1, 6, 4)).astype("f4")
    labels = np.arange(4, dtype="f4")[:, None] * np.ones((1, 6), "f4")
    likelihood = CategoricalLikelihood(4)
    np.testing.assert_allclose(np.exp(likelihood.voxel_log_prob(labels, logits)).sum(0), 1, rtol=1e-6)
    np.testing.assert_allclose(likelihood.probabilities(logits), special.softmax(logits, axis=-1), rtol=1e-5)
    whole = likelihood.voxel_log_prob(labels.astype("i4"), logits)
    np.testing.assert_array_equal(whole, likelihood.voxel_log_prob(labels, logits))


# --- means and draws ---------------------------------------------------------------------------------

DRAWS = 40_000


def moments_agree(likelihood, decoded, mean, variance, **tolerance):
    """Draws against moments; the same seed gives the same image, another seed another one."""
    many = np.repeat(np.asarray(decoded, "f4")[None], DRAWS, axis=0)
    draws = likelihood.draw(many, SEED).numpy().astype("f8")
    error = 5 * np.sqrt(np.asarray(variance) / DRAWS)
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean), error + 1e-6)
    np.testing.assert_allclose(draws.var(0), variance, **({"rtol": 0.05} | tolerance))
    np.testing.assert_array_equal(draws, likelihood.draw(many, SEED))
    assert not np.array_equal(draws, likelihood.draw(many, tf.constant([3, 5])))
    return draws


def test_draws_and_means_of_densities_on_the_line():
    mu = f4([-2.0, 0.5])
    for likelihood, deviation in (
        (NormalLikelihood("fixed", stddev=0.7), 0.7),
        (NormalLikelihood("learned", stddev=0.7), 0.7),
        (per_voxel((2,), None), sigma_map((2,))),
        (LaplaceLikelihood("fixed", 0.4), stats.laplace.std(scale=0.4)),
        (StudentTLikelihood(scale_value=0.4, degrees_of_freedom=8.0), stats.t.std(8, scale=0.4)),
    ):
        moments_agree(likelihood, mu, mu, deviation**2 * np.ones(2))
        np.testing.assert_array_equal(likelihood.mean(mu.astype("f4")), mu)
    two = NormalLikelihood("decoder", stddev=0.7, floor=0.01)
    decoded = np.stack([mu, [0.0, 1.5]], axis=-1)
    moments_agree(two, decoded, mu, decoder_sigma(decoded[:, 1]) ** 2)
    np.testing.assert_array_equal(two.mean(decoded.astype("f4")), mu)
    np.testing.assert_allclose(two.voxel_sigma(decoded.astype("f4")), decoder_sigma(decoded[:, 1]), rtol=1e-6)


def test_draws_and_means_of_bernoulli_and_continuous_bernoulli():
    eta = f4([-3.0, 0.0, 1e-5, 0.7, 25.0])
    p = special.expit(eta)
    inner = eta[:-1]  # at 25 hardly a zero is drawn
    draws = moments_agree(BernoulliLikelihood(), inner, p[:-1], (p * (1 - p))[:-1])
    assert set(np.unique(draws)) == {0.0, 1.0}
    np.testing.assert_allclose(BernoulliLikelihood().mean(eta.astype("f4")), p, rtol=1e-6)
    _, mean, variance = continuous_bernoulli(eta)
    draws = moments_agree(ContinuousBernoulliLikelihood(), eta, mean, variance)
    assert draws.min() >= 0
    assert draws.max() <= 1
    assert stats.kstest(draws[:, 3], lambda x: np.expm1(eta[3] * x) / np.expm1(eta[3])).pvalue > 1e-3
    assert stats.kstest(draws[:, 0], lambda x: np.expm1(eta[0] * x) / np.expm1(eta[0])).pvalue > 1e-3


def test_draws_and_means_of_the_discretised_logistic():
    levels, s = 11, 0.15
    x = np.linspace(0, 1, levels)
    likelihood = DiscretisedLogisticLikelihood(levels, scale="fixed", scale_value=s)
    mu = f4([-0.5, 0.0, 0.37, 1.2])
    p = np.exp(discretised_logistic(x[:, None], mu[None], s, levels))
    mean = x @ p
    draws = moments_agree(likelihood, mu, mean, x**2 @ p - mean**2)
    likelihood.check(draws.astype("f4"))
    np.testing.assert_allclose(likelihood.mean(mu.astype("f4")), mean, atol=0.03 * 0.1)
    assert np.abs(np.clip(mu, 0, 1) - mean).max() > 0.05  # the location, cut off, would not pass
    sharp = DiscretisedLogisticLikelihood(levels, scale="fixed", scale_value=0.01)
    mu = f4(np.linspace(-0.3, 1.3, 200))
    mean = x @ np.exp(discretised_logistic(x[:, None], mu[None], 0.01, levels))
    assert np.abs(sharp.mean(mu.astype("f4")) - mean).max() <= 0.5 * 0.1


def test_draws_and_means_of_label_maps():
    logits = f4([[0.0, 1.0, -1.0, 0.5], [2.0, 0.0, 0.0, -3.0]])
    p = special.softmax(logits, axis=-1)
    mean = p @ np.arange(4)
    draws = moments_agree(CategoricalLikelihood(4), logits, mean, p @ np.arange(4) ** 2 - mean**2)
    counts = np.stack([(draws == label).mean(0) for label in range(4)], axis=-1)
    np.testing.assert_allclose(counts, p, atol=5 * 0.5 / np.sqrt(DRAWS))
    np.testing.assert_array_equal(CategoricalLikelihood(4).mean(logits.astype("f4")), [1, 0])


# --- near zero and far out ---------------------------------------------------------------------------


def gradient_of_voxels(likelihood, x, decoded):
    variable = tf.Variable(np.asarray(decoded, "f4"))
    with tf.GradientTape() as tape:
        values = likelihood.voxel_log_prob(np.asarray(x, "f4"), variable)
    return values.numpy(), tape.gradient(values, variable).numpy()


@pytest.mark.parametrize("x", [0.0, 0.3, 1.0])
def test_continuous_bernoulli_is_exact_near_zero_and_far_out(x):
    values, gradients = gradient_of_voxels(ContinuousBernoulliLikelihood(), f4(x), ETAS)
    log_normaliser, mean, _ = continuous_bernoulli(f4(ETAS))
    np.testing.assert_allclose(values, f4(x) * f4(ETAS) - log_normaliser, rtol=2e-6, atol=2e-7)
    np.testing.assert_allclose(gradients, f4(x) - mean, rtol=2e-5, atol=2e-7)
    np.testing.assert_allclose(ContinuousBernoulliLikelihood().mean(ETAS.astype("f4")), mean, rtol=1e-5)
    curved = tf.Variable(ETAS.astype("f4"))
    with tf.GradientTape() as tape:
        out = ContinuousBernoulliLikelihood().mean(curved)
    assert np.isfinite(tape.gradient(out, curved)).all()


@pytest.mark.parametrize("x", [0.0, 0.3, 1.0])
def test_bernoulli_is_exact_at_zero_and_far_out(x):
    values, gradients = gradient_of_voxels(BernoulliLikelihood(), f4(x), ETAS)
    eta = f4(ETAS)
    np.testing.assert_allclose(values, -f4(x) * softplus(-eta) - (1 - f4(x)) * softplus(eta), rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(gradients, f4(x) - special.expit(eta), rtol=1e-5, atol=1e-7)


def test_extreme_labels_logits_are_finite():
    logits = np.array([[80.0, -80.0, 0.0]], "f4")
    values, gradients = gradient_of_voxels(CategoricalLikelihood(3), [[0.0], [1.0], [2.0]], logits)
    np.testing.assert_allclose(values[:, 0], [0, -160, -80], atol=1e-4)
    assert np.isfinite(gradients).all()


@pytest.mark.parametrize("residual", [0.0, 1e3, -1e6])
@pytest.mark.parametrize(
    "likelihood",
    [
        NormalLikelihood("learned", stddev=1.01e-3),
        NormalLikelihood("per_voxel", stddev=1.01e-3, data_shape=(1,)),
        LaplaceLikelihood("learned", scale_value=1.01e-3),
        StudentTLikelihood(scale_value=1.01e-3, degrees_of_freedom=2.1),
        DiscretisedLogisticLikelihood(scale_value=1e-3, floor=9e-4),
    ],
    ids=lambda likelihood: likelihood.kind + " " + likelihood.scale,
)
def test_extreme_residuals_are_finite_with_finite_gradients(likelihood, residual):
    decoded = tf.Variable([[np.float32(1.0 + residual)]])
    variables = [variable.value for variable in likelihood.trainable_variables]
    with tf.GradientTape() as tape:
        value = likelihood.log_prob(np.ones((1, 1), "f4"), decoded)
    assert np.isfinite(value).all()
    for gradient in tape.gradient(value, [decoded, *variables]):
        assert np.isfinite(gradient).all()


def test_decoder_scale_at_extreme_raw_values():
    likelihood = NormalLikelihood("decoder")
    decoded = np.array([[[0.0, -80.0], [1e3, -80.0], [1e3, 80.0]]])
    values, gradients = gradient_of_voxels(likelihood, np.zeros((1, 3)), decoded)
    sigma = 1e-3 + softplus(decoded[..., 1] + np.log(np.expm1(1 - 1e-3)))
    np.testing.assert_allclose(values, stats.norm.logpdf(0, decoded[..., 0], sigma), rtol=1e-5)
    assert np.isfinite(gradients).all()


def test_normal_keeps_its_digits_where_the_scale_is_small_beside_the_image():
    x, mu = f4([[1000.0, 1000.0]]), f4([[1000.0009765625, 999.9990234375]])
    got = NormalLikelihood("fixed", stddev=1e-3).log_prob(x.astype("f4"), mu.astype("f4"))
    np.testing.assert_allclose(got, stats.norm.logpdf(x, mu, 1e-3).sum(1), rtol=1e-5)


# --- scales ------------------------------------------------------------------------------------------


def test_optimal_laplace_scale_is_the_maximum_of_the_likelihood():
    rng = np.random.default_rng(0)
    x, mu = real(rng, (6, 5, 5)), real(rng, (6, 5, 5))
    mask = rng.random((5, 5)) < 0.6
    likelihood = LaplaceLikelihood(momentum=0.5, mask=mask)
    for _ in range(3):
        likelihood.update(x.astype("f4"), mu.astype("f4"))
    best = float(likelihood.current_scale())

    def total(b):
        return stats.laplace.logpdf(x, mu, b)[:, mask].sum()

    assert best == pytest.approx(np.abs(x - mu)[:, mask].mean(), rel=1e-6)
    assert total(best) > max(total(best * 0.99), total(best * 1.01))
    residual = likelihood.residual(x.astype("f4"), mu.astype("f4")).numpy()
    assert likelihood.calibrated_log_prob(residual, x) == pytest.approx(total(best) / 6, rel=1e-5)


@pytest.mark.parametrize(("kind", "power"), [(NormalLikelihood, 2), (LaplaceLikelihood, 1)])
def test_running_scale_weighs_the_past_by_momentum(kind, power):
    likelihood = kind(momentum=0.75, mask=np.array([True, True, False]))
    assert float(likelihood.current_scale()) == 1.0
    residuals = [3.0, 5.0, 0.5]
    for residual in residuals:
        likelihood.update(np.full((2, 3), residual, "f4") * np.array([1, 1, 100], "f4"), np.zeros((2, 3), "f4"))
    weights = 0.75 ** np.arange(3)[::-1]
    expected = (weights @ np.power(residuals, power) / weights.sum()) ** (1 / power)
    assert float(likelihood.current_scale()) == pytest.approx(expected, rel=1e-6)
    for _ in range(80):
        likelihood.update(np.zeros((2, 3), "f4"), np.zeros((2, 3), "f4"))
    assert float(likelihood.current_scale()) == pytest.approx(1e-3)


@pytest.mark.parametrize("scale", ["fixed", "learned", "per_voxel", "decoder"])
def test_update_leaves_other_scales_alone(scale):
    likelihood = NormalLikelihood(scale, data_shape=(3,))
    before = [np.array(variable) for variable in likelihood.variables]
    likelihood.update(np.ones((2, 3), "f4"), np.zeros((2, 3, 2) if scale == "decoder" else (2, 3), "f4"))
    assert all(np.array_equal(a, b) for a, b in zip(before, likelihood.variables, strict=True))


def test_sigma_is_set_where_there_is_one_and_not_fixed():
    for scale in ("optimal", "learned"):
        likelihood = NormalLikelihood(scale)
        for sigma, stored in ((0.25, 0.25), (40.0, 40.0), (1e-5, 1e-3)):
            likelihood.set_sigma(sigma)
            assert float(likelihood.sigma()) == pytest.approx(stored, rel=2e-3 if sigma < 1e-3 else 1e-6)
    fixed = NormalLikelihood("fixed", stddev=0.5)
    fixed.set_sigma(0.25)
    assert float(fixed.sigma()) == 0.5
    for scale in ("per_voxel", "decoder"):
        with pytest.raises(ArgumentError, match="one number for all voxels"):
            NormalLikelihood(scale, data_shape=(3,)).set_sigma(0.5)
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ArgumentError, match="positive and finite"):
            NormalLikelihood().set_sigma(bad)


@pytest.mark.parametrize("scale", ["fixed", "learned", "per_voxel", "decoder"])
def test_calibrated_log_prob_is_for_optimal_scales(scale):
    with pytest.raises(ArgumentError, match="optimal"):
        NormalLikelihood(scale, data_shape=(3,)).calibrated_log_prob(np.ones(2), np.zeros((2, 3)))


def test_sigma_and_numbers_of_each_kind():
    mask = np.array([True, True, False, True])
    likelihood = per_voxel((4,), mask)
    np.testing.assert_allclose(likelihood.sigma(), sigma_map((4,)), rtol=1e-6)
    expected = np.sqrt((sigma_map((4,))[mask] ** 2).mean())
    assert float(likelihood.numbers()["sigma"]) == pytest.approx(expected, rel=1e-6)
    assert NormalLikelihood("per_voxel", mask=mask).sigma().shape == (4,)
    decoder = NormalLikelihood("decoder")
    assert decoder.numbers() == {}
    with pytest.raises(ArgumentError, match="voxel_sigma"):
        decoder.sigma()
    for kind in ("optimal", "fixed", "learned"):
        assert NormalLikelihood(kind).sigma().shape == ()
        assert float(NormalLikelihood(kind, stddev=0.3).numbers()["sigma"]) == pytest.approx(0.3, rel=1e-6)
    numbers = StudentTLikelihood(scale_value=0.3, degrees_of_freedom=4.0).numbers()
    assert {name: round(float(value), 5) for name, value in numbers.items()} == {
        "scale": 0.3,
        "degrees_of_freedom": 4.0,
    }
    assert float(LaplaceLikelihood(scale_value=0.3).numbers()["scale"]) == pytest.approx(0.3)
    assert float(DiscretisedLogisticLikelihood().numbers()["scale"]) == pytest.approx(0.05)
    assert BernoulliLikelihood().numbers() == ContinuousBernoulliLikelihood().numbers() == {}


# --- support -----------------------------------------------------------------------------------------

BOUNDED = (
    (BernoulliLikelihood, {}, [0.0, 0.5, 1.0], [[-0.1], [1.5], [np.nan]], ()),
    (ContinuousBernoulliLikelihood, {}, [0.0, 0.5, 1.0], [[-0.1], [1.5], [np.nan]], ()),
    (DiscretisedLogisticLikelihood, {"levels": 5}, [0.0, 0.25, 1.0], [[-0.25], [1.25], [0.3], [np.nan]], ()),
    (CategoricalLikelihood, {"labels": 3}, [0.0, 2.0, 1.0], [[-1.0], [3.0], [0.5], [np.nan]], (3,)),
)


@pytest.mark.parametrize(("kind", "options", "good", "bad", "channels"), BOUNDED, ids=lambda v: getattr(v, "kind", ""))
def test_values_outside_the_support_are_refused(kind, options, good, bad, channels):
    plain, masked = kind(**options), kind(**options, mask=np.array([True, True, True, False]))
    plain.check(np.array([good], "f4"))
    decoded = tf.Variable(np.zeros((1, 4, *channels), "f4"))
    for (value,) in bad:
        x = np.array([[*good, value]], "f4")
        with pytest.raises(ArgumentError, match=r"^x must .*, but received values from .* to "):
            plain.check(x)
        masked.check(x)  # what lies outside the mask does not count
        assert plain.log_prob(x, decoded).numpy() == -np.inf
        with tf.GradientTape() as tape:
            value = masked.log_prob(x, decoded)
        assert np.isfinite(value)
        assert np.isfinite(tape.gradient(value, decoded)).all()
    with pytest.raises(ArgumentError, match=r"to 7"):
        plain.check(np.array([[*good, 7.0]], "f4"))


def test_integer_labels_pass():
    CategoricalLikelihood(3).check(np.array([[0, 1, 2]], np.uint8))
    with pytest.raises(ArgumentError, match="from 0 to 3"):
        CategoricalLikelihood(3).check(np.array([[0, 3]], np.int32))


# --- as Keras layers ---------------------------------------------------------------------------------


@every
def test_bfloat16_is_cast(case):
    x, decoded = data(case, (6,))
    likelihood = case.make((6,), None)
    half = tf.cast(decoded, tf.bfloat16)
    full = tf.cast(half, tf.float32)
    x = x.astype("f4")
    for by_half, by_full in (
        (likelihood.log_prob(x, half), likelihood.log_prob(x, full)),
        (likelihood.mean(half), likelihood.mean(full)),
        (likelihood.draw(half, SEED), likelihood.draw(full, SEED)),
    ):
        assert by_half.dtype == tf.float32
        np.testing.assert_array_equal(by_half, by_full)


def test_scales_stay_float32_under_mixed_precision():
    policy = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        likelihood = DiscretisedLogisticLikelihood(11, scale_value=0.123)
        inside = likelihood(np.array([[-0.3, 0.4]], "f4"))  # the call's own cast to bfloat16 comes first
        assert inside.dtype == tf.float32
        assert {variable.dtype for variable in likelihood.variables} == {"float32"}
        given = tf.cast(tf.cast([[-0.3, 0.4]], tf.bfloat16), tf.float32)
        np.testing.assert_array_equal(inside, likelihood.mean(given))
    finally:
        keras.mixed_precision.set_dtype_policy(policy)


@every
def test_inside_a_function_with_unknown_batch(case):
    x, decoded = (part.astype("f4") for part in data(case, (4, 3)))
    likelihood = case.make((4, 3), np.eye(4, 3, dtype=bool))

    @tf.function(
        input_signature=[tf.TensorSpec([None, *x.shape[1:]]), tf.TensorSpec([None, *decoded.shape[1:]])],
    )
    def compiled(x, decoded):
        return likelihood.log_prob(x, decoded), likelihood.mean(decoded), likelihood.draw(decoded, SEED)

    log_prob, mean, draw = compiled(x, decoded)
    np.testing.assert_allclose(log_prob, likelihood.log_prob(x, decoded), rtol=1e-5)
    np.testing.assert_allclose(mean, likelihood.mean(decoded), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(draw, likelihood.draw(decoded, SEED), rtol=1e-5, atol=1e-5)


ROUND_TRIPS = (
    *(NormalLikelihood(scale, 0.5, 0.01, 0.8, np.eye(3, dtype=bool)) for scale in NormalLikelihood.scales),
    NormalLikelihood("per_voxel", data_shape=(3, 3)),
    *(LaplaceLikelihood(scale, 0.5, 0.01, 0.8, np.eye(3, dtype=bool)) for scale in LaplaceLikelihood.scales),
    StudentTLikelihood("fixed", 0.5, 4.0, False, 0.01),
    StudentTLikelihood(mask=np.eye(3, dtype=bool)),
    BernoulliLikelihood(np.eye(3, dtype=bool)),
    ContinuousBernoulliLikelihood(np.eye(3, dtype=bool)),
    DiscretisedLogisticLikelihood(),
    DiscretisedLogisticLikelihood(12, -1.0, 2.0, "fixed", 0.3, 0.01, np.eye(3, dtype=bool)),
    CategoricalLikelihood(4, np.eye(3, dtype=bool)),
)


@pytest.mark.parametrize("likelihood", ROUND_TRIPS, ids=lambda likelihood: likelihood.kind)
def test_config_round_trip(likelihood):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(likelihood)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(likelihood)
    assert again.get_config() == likelihood.get_config()
    if likelihood.mask is not None:
        np.testing.assert_array_equal(again.mask, unpack_mask(likelihood.get_config()["mask"]))
    rng = np.random.default_rng(0)
    likelihood.set_weights([np.asarray(rng.random(variable.shape), "f4") for variable in likelihood.variables])
    again.set_weights(likelihood.get_weights())
    decoded = rng.random((2, 3, 3, likelihood.channels)).astype("f4")
    decoded = decoded[..., 0] if likelihood.channels == 1 else decoded
    x = rng.integers(0, 2, (2, 3, 3)).astype("f4")
    np.testing.assert_array_equal(again.log_prob(x, decoded), likelihood.log_prob(x, decoded))
    np.testing.assert_array_equal(again.draw(decoded, SEED), likelihood.draw(decoded, SEED))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: NormalLikelihood("per_voxel"), "data_shape"),
        (lambda: NormalLikelihood("per_voxel", data_shape=(2,), mask=np.ones(3, bool)), "data_shape"),
        (lambda: NormalLikelihood("learned", stddev=1e-3), "floor"),
        (lambda: NormalLikelihood("learned", stddev=np.inf), "floor"),
        (lambda: LaplaceLikelihood("decoder"), "scale"),
        (lambda: LaplaceLikelihood(floor=0.0), "floor"),
        (lambda: LaplaceLikelihood(momentum=1.0), "momentum"),
        (lambda: StudentTLikelihood("optimal"), "scale"),
        (lambda: StudentTLikelihood(degrees_of_freedom=2.0, learn_degrees_of_freedom=False), "degrees_of_freedom"),
        (lambda: StudentTLikelihood(degrees_of_freedom=np.inf), "degrees_of_freedom"),
        (lambda: DiscretisedLogisticLikelihood(1), "levels"),
        (lambda: DiscretisedLogisticLikelihood(2.5), "levels"),
        (lambda: DiscretisedLogisticLikelihood(low=1.0), "low"),
        (lambda: DiscretisedLogisticLikelihood(256, 1e6, 1e6 + 1), "levels"),
        (lambda: DiscretisedLogisticLikelihood(scale_value=-1.0), "floor"),
        (lambda: CategoricalLikelihood(1), "labels"),
        (lambda: CategoricalLikelihood(3, mask=np.zeros((2, 2), bool)), "mask"),
    ],
)
def test_bad_arguments_are_one_sentence(make, names):
    with pytest.raises(ArgumentError, match=f"^{names} must"):
        make()


@pytest.mark.parametrize(("likelihood", "power"), [(NormalLikelihood(), 2), (LaplaceLikelihood(), 1)])
def test_calibration_sets_the_maximum_likelihood_scale_of_these_people(likelihood, power):
    rng = np.random.default_rng(8)
    x, mean = rng.standard_normal((2, 7, 5)).astype("f4")
    likelihood.calibrate(likelihood.residual(x, mean).numpy())
    expected = np.mean(np.abs(x - mean) ** power) ** (1 / power)
    assert float(likelihood.current_scale()) == pytest.approx(expected, rel=1e-5)
    fixed = type(likelihood)(scale="fixed")
    fixed.calibrate(np.full(3, 9.0))
    assert float(fixed.current_scale()) == 1
