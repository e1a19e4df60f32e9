"""Posteriors against scipy, closed forms and numeric integrals in float64."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from kerasvae.distributions.flows import (
    AutoregressiveFlow,
    CouplingFlow,
    InverseAutoregressiveFlowPosterior,
    RealNVPPosterior,
)
from kerasvae.distributions.full_normal import FullNormalPosterior
from kerasvae.distributions.low_rank_normal import LowRankNormalPosterior
from kerasvae.distributions.point import PointPosterior
from kerasvae.distributions.spherical import PowerSphericalPosterior, VonMisesFisherPosterior
from kerasvae.errors import ArgumentError

SEED = tf.constant([3, 4])
SPHERES = (PowerSphericalPosterior, VonMisesFisherPosterior)
FLOWS = (InverseAutoregressiveFlowPosterior, RealNVPPosterior)
NORMALS = (FullNormalPosterior, lambda: LowRankNormalPosterior(2))
WIDTHS = {"full_normal": 9, "low_rank_normal": 12, "point": 3, "power_spherical": 4, "von_mises_fisher": 4}


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def shaken(layer, size=0.4, seed=0):
    """The layer with weights as if trained."""
    rng = np.random.default_rng(seed)
    for weight in layer.trainable_variables:
        weight.assign(size * rng.standard_normal(weight.shape))
    return layer


def flow_posterior(kind, latent_size=3, **options):
    return shaken(kind(latent_size, units=8, context_size=2, **options))


def softplus(x):
    return np.logaddexp(0, x)


def raw(positive):
    """What softplus turns into `positive`."""
    return positive + np.log(-np.expm1(-positive))


@pytest.fixture(
    params=[*NORMALS, *SPHERES, *(lambda kind=kind: flow_posterior(kind) for kind in FLOWS), PointPosterior],
    ids=["full", "low_rank", "power_spherical", "von_mises_fisher", "iaf", "real_nvp", "point"],
)
def posterior(request):
    """Each posterior, in three dimensions."""
    return request.param()


# --- what all must do ----------------------------------------------------------------------------


def test_draws_carry_their_density_and_depend_on_the_seed_alone(posterior):
    parameters = numbers(4, posterior.parameter_size(3)).astype("f4")
    z, log_q = posterior.draw(parameters, 5, SEED)
    assert z.shape == (5, 4, 3)
    assert log_q.shape == (5, 4)
    assert z.dtype == log_q.dtype == tf.float32
    np.testing.assert_allclose(log_q, posterior.log_prob(parameters, z), rtol=1e-4, atol=1e-4)
    one_for_all = posterior.log_prob(parameters, z[:, 2:3])
    assert one_for_all.shape == (5, 4)
    np.testing.assert_allclose(one_for_all[:, 2], log_q[:, 2], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(z, posterior.draw(parameters, 5, SEED)[0])
    np.testing.assert_array_equal(posterior.sample(parameters, SEED), posterior.draw(parameters, 1, SEED)[0][0])
    if posterior.kind != "point":
        assert np.unique(z, axis=0).shape == z.shape
        assert not np.any(np.isclose(z, posterior.draw(parameters, 5, SEED + 1)[0]).all(axis=-1))


def test_deterministic_outputs_in_a_graph_of_unknown_batch(posterior):
    width = posterior.parameter_size(3)
    assert width == WIDTHS.get(posterior.kind, 8)
    parameters = numbers(4, width).astype("f4")
    graph = tf.function(posterior.deterministic, input_signature=[tf.TensorSpec((None, width), tf.float32)])
    outputs, eager = graph(parameters), posterior.deterministic(parameters)
    assert list(outputs) == [output.name for output in posterior.outputs]
    for name, value in outputs.items():
        np.testing.assert_allclose(value, eager[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(value[1:2], posterior.deterministic(parameters[1:2])[name], rtol=1e-5, atol=1e-6)
    assert posterior.center(outputs).shape == (4, 3)
    np.testing.assert_array_equal(posterior(parameters), posterior.center(eager))

    draws = tf.function(lambda p: posterior.draw(p, 2, SEED)).get_concrete_function(graph.input_signature[0])
    assert [tuple(t.shape) for t in draws.structured_outputs] == [(2, None, 3), (2, None)]
    for inside, outside in zip(draws(parameters), posterior.draw(parameters, 2, SEED), strict=True):
        np.testing.assert_allclose(inside, outside, rtol=1e-4, atol=1e-4)


def test_low_precision_is_cast_first(posterior):
    low = tf.cast(numbers(4, posterior.parameter_size(3)), tf.bfloat16)
    for name, value in posterior.deterministic(low).items():
        np.testing.assert_array_equal(value, posterior.deterministic(tf.cast(low, tf.float32))[name])
        assert value.dtype == tf.float32
    z, log_q = posterior.draw(low, 2, SEED)
    assert z.dtype == log_q.dtype == posterior.log_prob(low, z).dtype == tf.float32
    np.testing.assert_array_equal(z, posterior.draw(tf.cast(low, tf.float32), 2, SEED)[0])


def test_config_describes_the_posterior(posterior):
    config = json.loads(json.dumps(posterior.get_config()))
    again = type(posterior).from_config(config)
    assert again.get_config() == posterior.get_config()
    assert [w.shape for w in again.weights] == [w.shape for w in posterior.weights]
    serialised = keras.saving.serialize_keras_object(posterior)
    assert keras.saving.deserialize_keras_object(serialised).get_config() == posterior.get_config()


@pytest.mark.parametrize(
    "kind", [*NORMALS, *(lambda kind=kind: flow_posterior(kind) for kind in FLOWS), PointPosterior]
)
def test_gradients_are_those_of_finite_differences(kind):
    posterior = kind()
    parameters = numbers(1, posterior.parameter_size(3), seed=1).astype("f4")

    def value(parameters):
        z, log_q = posterior.draw(parameters, 3, SEED)
        return tf.reduce_sum(tf.sin(z) * [1.0, 2.0, -1.0]) + 0.3 * tf.reduce_sum(log_q)

    width = parameters.shape[1]
    step = 1e-2 * np.eye(width, dtype="f4")[:, None]
    numeric = [(float(value(parameters + s)) - float(value(parameters - s))) / 2e-2 for s in step]
    watched = tf.constant(parameters)
    with tf.GradientTape() as tape:
        tape.watch(watched)
        target = value(watched)
    np.testing.assert_allclose(tape.gradient(target, watched)[0], numeric, rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: FullNormalPosterior(floor=0.0), 3),
        (lambda: LowRankNormalPosterior(0), 3),
        (lambda: LowRankNormalPosterior(1.5), 3),
        (lambda: LowRankNormalPosterior(floor=-1.0), 3),
        (lambda: LowRankNormalPosterior(4), 3),
        (lambda: PowerSphericalPosterior(floor=0.0), 3),
        (lambda: VonMisesFisherPosterior(floor=float("nan")), 3),
        (lambda: VonMisesFisherPosterior(), 1),
        (lambda: InverseAutoregressiveFlowPosterior(3, flows=0), 3),
        (lambda: InverseAutoregressiveFlowPosterior(3, floor=0.0), 3),
        (lambda: InverseAutoregressiveFlowPosterior(3), 4),
        (lambda: RealNVPPosterior(1), 1),
        (lambda: RealNVPPosterior(3, units=0), 3),
        (lambda: RealNVPPosterior(3, seed=-1), 3),
        (lambda: RealNVPPosterior(3, context_size=-1), 3),
        (lambda: CouplingFlow(2.5), 3),
    ],
)
def test_bad_arguments_are_one_sentence(make, size):
    with pytest.raises(ArgumentError, match="must"):
        make().parameter_size(size)


# --- normal posteriors ---------------------------------------------------------------------------


def full_moments(parameters, d, floor=1e-4):
    scale = np.zeros((d, d))
    scale[np.tril_indices(d, -1)] = parameters[2 * d :]
    scale[np.diag_indices(d)] = floor + softplus(parameters[d : 2 * d])
    return parameters[:d], scale @ scale.T


def low_rank_moments(parameters, d, floor=1e-4):
    factor = parameters[2 * d :].reshape(d, -1)
    return parameters[:d], np.diag((floor + softplus(parameters[d : 2 * d])) ** 2) + factor @ factor.T


@pytest.mark.parametrize(
    ("posterior", "moments"),
    [(FullNormalPosterior(), full_moments), (LowRankNormalPosterior(2), low_rank_moments)],
    ids=["full", "low_rank"],
)
def test_normal_posteriors_against_scipy(posterior, moments):
    d = 4
    parameters = numbers(3, posterior.parameter_size(d), seed=2).astype("f4")
    z = numbers(5, 3, d, seed=3).astype("f4")
    log_q, entropy, outputs = (
        posterior.log_prob(parameters, z),
        posterior.entropy(parameters),
        posterior.deterministic(parameters),
    )
    for i, row in enumerate(parameters.astype("f8")):
        mean, covariance = moments(row, d)
        normal = stats.multivariate_normal(mean, covariance)
        np.testing.assert_allclose(log_q[:, i], normal.logpdf(z[:, i].astype("f8")), rtol=2e-5)
        np.testing.assert_allclose(entropy[i], normal.entropy(), rtol=1e-5)
        np.testing.assert_allclose(outputs["stddev"][i], np.sqrt(np.diag(covariance)), rtol=1e-5)
        if posterior.kind == "full_normal":
            np.testing.assert_allclose(outputs["scale_tril"][i], np.linalg.cholesky(covariance), atol=1e-5)
        else:
            diagonal, factor = outputs["diagonal"][i].numpy(), outputs["factor"][i].numpy()
            np.testing.assert_allclose(np.diag(diagonal**2) + factor @ factor.T, covariance, atol=1e-5)
    draws = posterior.draw(parameters[:1], 20_000, SEED)[0][:, 0].numpy()
    mean, covariance = moments(parameters[0].astype("f8"), d)
    size = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((draws.mean(0) - mean) / size, 0, atol=4 / np.sqrt(20_000))
    np.testing.assert_allclose(np.cov(draws.T) / np.outer(size, size), covariance / np.outer(size, size), atol=0.04)


def test_low_rank_density_where_the_diagonal_is_small_and_the_columns_are_parallel():
    d, posterior = 6, LowRankNormalPosterior(2, floor=1e-4)
    column = numbers(d, seed=4)
    factor = np.stack([column, column * (1 + 1e-7)], axis=1)
    parameters = np.concatenate([np.zeros(d), np.full(d, -30.0), factor.ravel()])[None].astype("f4")
    covariance = low_rank_moments(parameters[0].astype("f8"), d)[1]
    z, log_q = posterior.draw(parameters, 200, SEED)
    scaled = np.linalg.solve(np.linalg.cholesky(covariance), z[:, 0].numpy().astype("f8").T)
    volume = 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    np.testing.assert_allclose(log_q[:, 0], -0.5 * (scaled**2).sum(0) - volume, atol=0.05)  # z itself is rounded
    assert float(posterior.entropy(parameters)[0]) == pytest.approx(d / 2 + volume, rel=1e-5)


# --- the sphere ----------------------------------------------------------------------------------


def parameters_of(direction, concentration, floor=1e-2, length=2.0):
    return np.concatenate([length * np.asarray(direction), [raw(concentration - floor)]])[None].astype("f4")


class Angle:
    """The density of the angle θ to the mean direction by numeric integrals in float64, from the papers' densities.

    Power Spherical: (1 + cos θ)^κ; von Mises–Fisher: exp(κ cos θ); both by the surface sin^(d−2) θ.
    """

    def __init__(self, kind, d, concentration):
        self.kind, self.d, self.concentration = kind, d, concentration
        self.grid = np.linspace(0, np.pi, 4001)[1:-1]
        self.peak = self.logs(self.grid).max()
        bulk = self.grid[self.logs(self.grid) > self.peak - 50]
        self.low, self.high = max(bulk[0] - 1e-3, 0), min(bulk[-1] + 1e-3, np.pi)
        self.total = self.integral(lambda angle: 1.0)

    def fall(self, angle):
        """log density less that at the mean direction."""
        t = 2 * np.sin(angle / 2) ** 2
        if self.kind == "power_spherical":
            return self.concentration * np.log1p(-t / 2)
        return -self.concentration * t

    def logs(self, angle):
        return self.fall(angle) + (self.d - 2) * np.log(np.sin(angle))

    def integral(self, function, low=None, high=None):
        low, high = self.low if low is None else low, self.high if high is None else high
        nodes, weights = np.polynomial.legendre.leggauss(40)
        edges = low + (high - low) * np.linspace(0, 1, 61) ** 2  # finer towards small angles
        half = np.diff(edges)[:, None] / 2
        angle = edges[:-1, None] + half * (1 + nodes)
        return float((function(angle) * np.exp(self.logs(angle) - self.peak) * half * weights).sum())

    def mean(self, function):
        return self.integral(function) / self.total

    @property
    def log_normaliser(self):
        """log of the integral over the sphere of exp(fall)."""
        area = math.log(2) + (self.d - 1) / 2 * math.log(math.pi) - math.lgamma((self.d - 1) / 2)
        return area + math.log(self.total) + self.peak

    @property
    def entropy(self):
        return self.log_normaliser - self.mean(self.fall)

    def below(self, angle):
        """Distribution function, of one angle."""
        return self.integral(lambda _: 1.0, high=min(angle, self.high)) / self.total

    def distribution(self, angles):
        """Distribution function, of many angles, to about 1e-4."""
        middle = self.low + (self.high - self.low) * (np.arange(5000) + 0.5) / 5000
        cumulated = np.cumsum(np.exp(self.logs(middle) - self.peak))
        return np.interp(angles, middle, cumulated / cumulated[-1])


def unit(d, seed=0):
    vector = numbers(d, seed=seed)
    return vector / np.linalg.norm(vector)


def at_angles(direction, angles, seed=1):
    other = numbers(len(direction), seed=seed)
    other -= other @ direction * direction
    other /= np.linalg.norm(other)
    return np.cos(angles)[:, None] * direction + np.sin(angles)[:, None] * other


REGIMES = [(2, 0.02), (2, 30.0), (2, 1e5), (3, 0.5), (3, 1e3), (16, 5.0), (16, 1e5), (128, 1.0), (128, 1e3), (512, 4e3)]


@pytest.mark.parametrize(("d", "concentration"), REGIMES)
@pytest.mark.parametrize("kind", SPHERES)
def test_density_and_entropy_on_the_sphere_against_numeric_integrals(kind, d, concentration):
    posterior, direction = kind(), unit(d)
    parameters = parameters_of(direction, concentration)
    concentration = float(posterior.deterministic(parameters)["concentration"][0, 0])
    exact = Angle(kind.kind, d, concentration)
    bulk = exact.grid[exact.logs(exact.grid) > exact.peak - 20] if concentration < 1e4 else [1e-3, 5e-3, 1e-2]
    angles = np.quantile(bulk, [0, 0.3, 0.6, 1])
    z = at_angles(direction, angles).astype("f4")[:, None]
    log_q = posterior.log_prob(parameters, z)[:, 0]
    tolerance = 2e-6 * max(1, abs(exact.log_normaliser))
    np.testing.assert_allclose(log_q, exact.fall(angles) - exact.log_normaliser, rtol=1e-5, atol=2 * tolerance)
    np.testing.assert_allclose(posterior.entropy(parameters)[0], exact.entropy, atol=tolerance)

    watched = tf.constant(parameters)
    with tf.GradientTape() as tape:
        tape.watch(watched)
        entropy = posterior.entropy(watched)
    h = 1e-3 * concentration
    numeric = (Angle(kind.kind, d, concentration + h).entropy - Angle(kind.kind, d, concentration - h).entropy) / (
        2 * h
    )
    slope = special.expit(float(parameters[0, -1]))
    np.testing.assert_allclose(tape.gradient(entropy, watched)[0, -1], numeric * slope, rtol=1e-3)


@pytest.mark.parametrize(("d", "concentration"), [(2, 0.3), (3, 40.0), (16, 5.0)])
def test_von_mises_fisher_against_scipy(d, concentration):
    posterior, direction = VonMisesFisherPosterior(), unit(d)
    parameters, z = parameters_of(direction, concentration), numbers(6, d, seed=5)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    exact = stats.vonmises_fisher(direction, concentration)
    np.testing.assert_allclose(posterior.log_prob(parameters, z[:, None])[:, 0], exact.logpdf(z), rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(posterior.entropy(parameters)[0], exact.entropy(), rtol=1e-5)


@pytest.mark.parametrize("kind", SPHERES)
def test_density_integrates_to_one_over_circle_and_sphere(kind):
    posterior = kind()
    angles = np.linspace(-np.pi, np.pi, 400, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype("f4")
    density = np.exp(posterior.log_prob(parameters_of(unit(2), 3.0), circle[:, None]))
    assert density.sum() * 2 * np.pi / 400 == pytest.approx(1, rel=1e-5)
    height, weights = np.polynomial.legendre.leggauss(60)  # the area of a sphere in R³ is uniform in height
    ring = np.sqrt(1 - height**2)[:, None] * circle[None, ::4].transpose(2, 0, 1)
    points = np.stack([*ring, np.repeat(height[:, None], 100, axis=1)], axis=-1).astype("f4")
    density = np.exp(posterior.log_prob(parameters_of(unit(3), 3.0), points.reshape(-1, 1, 3))).reshape(60, 100)
    assert (density.mean(1) * weights).sum() * 2 * np.pi == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(("d", "concentration"), [(2, 0.05), (2, 40.0), (3, 1e4), (16, 5.0), (64, 300.0)])
@pytest.mark.parametrize("kind", SPHERES)
def test_draws_on_the_sphere_have_the_right_angles_and_no_other_direction(kind, d, concentration):
    posterior, direction = kind(), unit(d)
    z = posterior.draw(parameters_of(direction, concentration), 4000, SEED)[0][:, 0].numpy().astype("f8")
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)
    direction = direction.astype("f4").astype("f8")
    angle = 2 * np.arcsin(np.minimum(np.linalg.norm(z - direction, axis=1) / 2, 1))
    exact = Angle(kind.kind, d, concentration)
    assert stats.kstest(exact.distribution(angle), "uniform").pvalue > 1e-3
    np.testing.assert_allclose(z.mean(0) - exact.mean(np.cos) * direction, 0, atol=5 * z.std() / np.sqrt(4000))
    across = z - z @ direction[:, None] * direction
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    expected = (np.eye(d) - np.outer(direction, direction)) / (d - 1)
    np.testing.assert_allclose(across.T @ across / 4000, expected, atol=5 * np.sqrt(2) / (d - 1) / np.sqrt(4000))


@pytest.mark.parametrize(("d", "concentration"), [(2, 0.05), (2, 1.0), (3, 1e5), (16, 20.0), (128, 1e3)])
@pytest.mark.parametrize("kind", SPHERES)
def test_each_draw_moves_with_its_concentration_at_a_fixed_probability(kind, d, concentration):
    posterior, direction = kind(), unit(d)
    parameters = tf.constant(np.repeat(parameters_of(direction, concentration), 8, axis=0))
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        z = posterior.draw(parameters, 1, SEED)[0][0]
        distance = tf.reduce_sum((z - tf.stop_gradient(posterior(parameters))) ** 2, axis=-1)
    gradient = tape.gradient(distance, parameters)[:, -1].numpy() / special.expit(float(parameters[0, -1]))
    h = 1e-3 * concentration
    exact, more, less = (Angle(kind.kind, d, concentration + shift) for shift in (0, h, -h))
    for slope, value in zip(gradient, distance.numpy().astype("f8"), strict=True):
        angle = 2 * np.arcsin(np.sqrt(value) / 2)
        density = np.exp(exact.logs(angle) - exact.peak) / exact.total
        moved = -(more.below(angle) - less.below(angle)) / (2 * h) / density
        assert slope == pytest.approx(2 * np.sin(angle) * moved, rel=1e-3, abs=1e-3 * abs(gradient).max())


@pytest.mark.parametrize(("d", "concentration"), [(2, 2.0), (3, 4.0), (6, 12.0)])
@pytest.mark.parametrize("kind", SPHERES)
def test_gradients_through_draws_on_the_sphere_are_unbiased(kind, d, concentration):
    """Of E (aᵀz) + E (aᵀz)², whose value follows from E cos θ and E cos² θ."""
    posterior, a = kind(), numbers(d, seed=7)
    row = parameters_of(unit(d), concentration, length=0.7)[0].astype("f8")

    def expected(row):
        exact = Angle(kind.kind, d, 1e-2 + softplus(row[-1]))
        along = a @ row[:-1] / np.linalg.norm(row[:-1])
        square = exact.mean(lambda angle: np.cos(angle) ** 2)
        return along * exact.mean(np.cos) + square * along**2 + (1 - square) * (a @ a - along**2) / (d - 1)

    steps = 1e-4 * np.eye(d + 1)
    numeric = np.array([(expected(row + step) - expected(row - step)) / 2e-4 for step in steps])
    parameters = tf.constant(np.repeat(row[None], 1000, axis=0), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        along = tf.linalg.matvec(posterior.draw(parameters, 40, SEED)[0], tf.constant(a, tf.float32))
        value = tf.reduce_mean(along + along**2, axis=0)
    assert value.numpy().mean() == pytest.approx(expected(row), abs=4 * value.numpy().std() / np.sqrt(1000))
    gradients = tape.gradient(value, parameters).numpy()
    error = gradients.std(0) / np.sqrt(1000)
    np.testing.assert_array_less(np.abs(gradients.mean(0) - numeric), 4 * error + 1e-5)
    assert error.max() < 0.03 * np.abs(numeric).max()  # small enough to see a bias


@pytest.mark.parametrize("kind", SPHERES)
def test_a_zero_vector_has_a_direction_and_a_gradient(kind):
    parameters = tf.zeros((2, 5))
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        z, log_q = kind().draw(parameters, 3, SEED)
        value = tf.reduce_sum(z * [1.0, 2.0, 3.0, 4.0]) + tf.reduce_sum(log_q)
    np.testing.assert_allclose(kind()(parameters), [[1, 0, 0, 0]] * 2, atol=1e-6)
    gradient = tape.gradient(value, parameters).numpy()
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[:, 1:4]).max() > 0


@pytest.mark.parametrize("kind", SPHERES)
def test_a_nan_reaches_the_density(kind):
    assert np.isnan(kind().draw(tf.constant([[1.0, 2.0, 3.0, float("nan")]]), 2, SEED)[1]).all()


# --- flows ---------------------------------------------------------------------------------------

GRID = np.linspace(-9, 9, 301)
CELL = (GRID[1] - GRID[0]) ** 2


@pytest.mark.parametrize("kind", FLOWS)
def test_flow_density_integrates_to_one_and_has_the_moments_of_draws(kind):
    posterior = flow_posterior(kind, 2)
    parameters = np.array([[0.3, -0.4, 0.9, 0.2, 1.0, -0.5]], "f4")
    points = np.stack(np.meshgrid(GRID, GRID, indexing="ij"), axis=-1).reshape(-1, 1, 2).astype("f4")
    density = np.exp(posterior.log_prob(parameters, points)[:, 0].numpy().astype("f8")) * CELL
    assert density.sum() == pytest.approx(1, abs=2e-3)
    points = points[:, 0].astype("f8")
    mean = density @ points
    covariance = (points - mean).T @ ((points - mean) * density[:, None])
    draws, log_q = posterior.draw(parameters, 20_000, SEED)
    draws = draws[:, 0].numpy()
    size = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((draws.mean(0) - mean) / size, 0, atol=4 / np.sqrt(20_000))
    np.testing.assert_allclose(np.cov(draws.T) / np.outer(size, size), covariance / np.outer(size, size), atol=0.06)
    entropy = -(density * np.log(density / CELL + 1e-300)).sum()
    assert -np.mean(log_q) == pytest.approx(entropy, abs=4 * np.std(log_q) / np.sqrt(20_000))


@pytest.mark.parametrize("make", [lambda d: AutoregressiveFlow(d, 3, 7, 2), lambda d: CouplingFlow(d, 3, 7, 2)])
@pytest.mark.parametrize("d", [2, 5])
def test_flow_and_inverse_undo_each_other_and_know_their_volume(make, d):
    flow = shaken(make(d))
    z, context = numbers(3, 4, d).astype("f4"), numbers(4, 2, seed=1).astype("f4")
    there, log_det = flow.forward(z, context)
    back, log_det_back = flow.inverse(there, context)
    np.testing.assert_allclose(back, z, atol=2e-4)
    np.testing.assert_allclose(log_det_back, -log_det, atol=2e-4)
    np.testing.assert_array_equal(flow(z, context), there)
    point = tf.constant(z[0])
    with tf.GradientTape() as tape:
        tape.watch(point)
        pushed = flow.forward(point, context)[0]
    jacobian = tape.batch_jacobian(pushed, point)
    np.testing.assert_allclose(np.linalg.slogdet(jacobian.numpy().astype("f8"))[1], log_det[0], atol=1e-4)
    assert not np.allclose(flow.forward(z, context + 1)[0], there)


def test_autoregressive_step_sees_only_what_comes_before():
    flow, z = shaken(AutoregressiveFlow(5, 2, 9), seed=2), tf.constant(numbers(1, 5), tf.float32)

    def jacobian(flows):
        flow.flows = flows
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = flow.forward(z)[0]
        return tape.batch_jacobian(value, z)[0].numpy()

    first, both = jacobian(1), jacobian(2)
    np.testing.assert_array_equal(np.triu(first, 1), 0)
    assert (first[np.tril_indices(5)] != 0).all()
    second = both @ np.linalg.inv(first)
    np.testing.assert_allclose(np.tril(second, -1), 0, atol=1e-5)
    assert (np.abs(second[np.triu_indices(5)]) > 1e-5).all()


def test_autoregressive_flow_of_one_dimension_is_a_gate_set_by_the_context():
    flow = shaken(AutoregressiveFlow(1, 1, 4, 2))
    z, context = numbers(6, 1).astype("f4"), numbers(1, 2, seed=1).astype("f4")
    slope, offset = np.polyfit(z[:, 0], flow.forward(z, context)[0][:, 0], 1)
    np.testing.assert_allclose(flow.forward(z, context)[0], slope * z + offset, atol=1e-5)
    assert 0 < slope < 1
    assert not np.allclose(flow.forward(z, context + 1)[0], slope * z + offset, atol=1e-3)


def test_flows_start_near_the_identity():
    z = numbers(4, 3).astype("f4")
    np.testing.assert_array_equal(CouplingFlow(3).forward(z)[0], z)
    np.testing.assert_array_equal(CouplingFlow(3).inverse(z)[1], 0)
    pushed, log_det = AutoregressiveFlow(3, 2).forward(z)
    np.testing.assert_allclose(pushed, z * special.expit(2) ** 2, rtol=1e-6)
    np.testing.assert_allclose(log_det, 6 * np.log(special.expit(2)), rtol=1e-6)
    parameters = numbers(4, 6, seed=1).astype("f4")
    log_q = RealNVPPosterior(3, context_size=0).log_prob(parameters, z[:, None])
    normal = stats.norm(parameters[:, :3].astype("f8"), 1e-4 + softplus(parameters[:, 3:].astype("f8")))
    np.testing.assert_allclose(log_q, normal.logpdf(z[:, None].astype("f8")).sum(-1), rtol=1e-4)


@pytest.mark.parametrize("kind", FLOWS)
def test_flow_weights_are_trained_saved_and_float32(kind, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        posterior = flow_posterior(kind)
        width = posterior.parameter_size(3)
        parameters = numbers(4, width).astype("f4")
        inputs = keras.Input((width,), dtype="float32")
        keras.Model(inputs, posterior(inputs)).save(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    assert {str(weight.dtype) for weight in posterior.weights} == {"float32"}
    again = keras.saving.load_model(tmp_path / "model.keras").layers[-1]
    for old, new in zip(posterior.draw(parameters, 2, SEED), again.draw(parameters, 2, SEED), strict=True):
        np.testing.assert_array_equal(old, new)

    def value():
        z, log_q = posterior.draw(parameters, 2, SEED)
        return tf.reduce_sum(z**2) + tf.reduce_sum(log_q) + tf.reduce_sum(posterior.log_prob(parameters, z + 0.5))

    weights = posterior.trainable_variables
    with tf.GradientTape() as tape:
        target = value()
    gradients = tape.gradient(target, [weight.value for weight in weights])
    along = 0.0
    moves = [5e-4 * numbers(*weight.shape, seed=i).astype("f4") for i, weight in enumerate(weights)]
    for weight, gradient, move in zip(weights, gradients, moves, strict=True):
        assert np.abs(gradient).max() > 0, weight.path
        along += float(tf.reduce_sum(gradient * move))
        weight.assign_add(move)
    above = float(value())
    for weight, move in zip(weights, moves, strict=True):
        weight.assign_sub(2 * move)
    assert 2 * along == pytest.approx(above - float(value()), rel=0.02, abs=0.002)


def test_initial_weights_depend_on_the_seed_alone():
    first, same, other = (RealNVPPosterior(3, units=4, seed=seed).flow.networks[0].kernels[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(np.asarray(first), np.asarray(same))
    assert not np.array_equal(np.asarray(first), np.asarray(other))


# --- the point -----------------------------------------------------------------------------------


def test_point_posterior_is_its_parameters():
    codes = numbers(4, 3).astype("f4")
    z, log_q = PointPosterior().draw(codes, 2, SEED)
    np.testing.assert_array_equal(z, [codes, codes])
    np.testing.assert_array_equal(log_q, 0)
    np.testing.assert_array_equal(PointPosterior().log_prob(codes, z + tf.constant([1e-3, 0, 0])), -np.inf)
