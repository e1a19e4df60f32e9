"""The importance-weighted evidence against linear models, whose evidence is known."""

import time
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from kerasvae.distributions import FullNormalPosterior, MixturePrior, NormalLikelihood, NormalPosterior, PointPosterior
from kerasvae.errors import ArgumentError, ModelError
from kerasvae.models import VAE
from kerasvae.networks import dense_decoder, dense_encoder, fit_core, linear_start
from kerasvae.objectives import IWAE, Reconstruction, StickingTheLanding

VOXELS, LATENT, SIGMA = 7, 3, 0.6
ROUNDING = 2.0**-24
"""Half a unit in the last place of float32: what rounding a voxel's log-density may move it by, as a part of it."""


def raw(stddev):
    """The raw value of which floor + softplus makes the standard deviation, in float64."""
    return np.log(np.expm1(stddev - 1e-4))


class Linear:
    """x = W z + b + σ ε with z, ε ~ N(0, I): its evidence and its exact posterior, in float64.

    N(b, W Wᵀ + σ² I), and N(M⁻¹ Wᵀ (x − b), σ² M⁻¹) with M = Wᵀ W + σ² I (Tipping & Bishop 1999, equations 4 and 6).
    """

    def __init__(self, loadings, offset, sigma, inside=None):
        self.loadings, self.offset, self.sigma = loadings, offset, sigma
        self.inside = np.ones(len(offset), bool) if inside is None else inside
        used = np.where(self.inside[:, None], loadings, 0)
        self.m = used.T @ used + sigma**2 * np.eye(used.shape[1])
        self.to_mean = np.linalg.solve(self.m, used.T)
        self.covariance = sigma**2 * np.linalg.inv(self.m)

    def images(self, people, seed=0):
        rng = np.random.default_rng([seed, 3])
        z, noise = (
            rng.standard_normal((people, self.loadings.shape[1])),
            rng.standard_normal((people, len(self.offset))),
        )
        return (z @ self.loadings.T + self.offset + self.sigma * noise).astype("f4")

    def log_evidence(self, x):
        w, b = self.loadings[self.inside], self.offset[self.inside]
        covariance = w @ w.T + self.sigma**2 * np.eye(len(b))
        return np.atleast_1d(stats.multivariate_normal.logpdf(x[:, self.inside].astype("f8"), b, covariance))

    def model(self, posterior=None, shift=0.0, widen=1.0, **options):
        """The VAE that is this model; its posterior is exact, or moved by `shift` stddevs and widened."""
        posterior = posterior or NormalPosterior()
        if posterior.kind == "normal":
            stddev = np.sqrt(np.diag(self.covariance))
            scale = raw(widen * stddev)
        else:
            root = np.linalg.cholesky(self.covariance)
            stddev = np.zeros(len(root))
            scale = np.concatenate([raw(np.diag(root)), root[np.tril_indices(len(root), -1)]])
        size, latent = self.loadings.shape
        dense = keras.layers.Dense
        encoder = keras.Sequential([keras.Input((size,)), dense(posterior.parameter_size(latent))])
        decoder = keras.Sequential([keras.Input((latent,)), dense(size)])
        kernel = np.concatenate([self.to_mean.T, np.zeros((size, len(scale)))], axis=1)
        encoder.set_weights([kernel, np.concatenate([shift * stddev - self.to_mean @ self.offset, scale])])
        decoder.set_weights([self.loadings.T, self.offset])
        mask = None if self.inside.all() else self.inside
        likelihood = NormalLikelihood(scale="fixed", stddev=self.sigma, mask=mask)
        return VAE(encoder, decoder, posterior=posterior, likelihood=likelihood, **options)


def random_linear(inside=None, rotated=True, seed=1):
    """Random loadings; rotated such that the posterior has independent dimensions, which leaves the evidence alone."""
    rng = np.random.default_rng([seed, 8])
    loadings, offset = rng.standard_normal((VOXELS, LATENT)), rng.standard_normal(VOXELS)
    if rotated:
        used = loadings if inside is None else loadings[inside]
        loadings = loadings @ np.linalg.svd(used, full_matrices=False)[2].T
    return Linear(loadings, offset, SIGMA, inside)


def second_moment(shift, widen):
    """E w² / (E w)² for a posterior moved by `shift` and widened, in one dimension: ∫ p² / q of two normals."""
    spread = 2 * widen**2 - 1
    return widen**2 / np.sqrt(spread) * np.exp(shift**2 / spread)


def kl(shift, widen):
    """KL(N(shift, widen²) ‖ N(0, 1))."""
    return 0.5 * (widen**2 + shift**2 - 1) - np.log(widen)


@pytest.mark.parametrize("kind", ["normal", "full normal", "masked"])
def test_with_the_exact_posterior_every_weight_is_the_evidence(kind):
    inside = np.arange(VOXELS) != 2 if kind == "masked" else None
    linear = random_linear(inside, rotated=kind != "full normal")
    x = linear.images(5)
    x[4] = linear.offset + 6  # nobody the model has seen
    if kind == "masked":
        x[:, 2] = 1e3
    model = linear.model(FullNormalPosterior() if kind == "full normal" else None)
    found = model.log_evidence(x, samples=10, chunk=4)
    assert found.log_evidence.dtype == found.effective_samples.dtype == np.float64
    np.testing.assert_allclose(found.log_evidence, linear.log_evidence(x), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(found.effective_samples, 10, rtol=1e-9)


def test_with_a_wrong_posterior_it_is_a_bound_that_rises_with_the_draws():
    shift, widen, repeats = 0.5, 1.25, 80
    linear = random_linear()
    x = linear.images(1)
    truth = linear.log_evidence(x)[0]
    model = linear.model(shift=shift, widen=widen)
    same = np.repeat(x, repeats, axis=0)  # every row has draws of its own
    means, errors = [], []
    for samples in (1, 4, 16):
        found = model.log_evidence(same, samples, chunk=16)
        means.append(found.log_evidence.mean())
        errors.append(found.log_evidence.std(ddof=1) / np.sqrt(repeats))
        assert (found.effective_samples >= 1 - 1e-12).all()
        assert samples == 1 or (found.effective_samples < samples).all()
    assert abs(means[0] - (truth - LATENT * kl(shift, widen))) < 4 * errors[0]
    assert means[0] < means[1] < means[2] < truth + 4 * errors[2]


def test_many_draws_find_the_evidence_and_their_effective_number():
    shift, widen, samples = 0.5, 1.25, 20_000
    linear = random_linear()
    x = linear.images(3)
    found = linear.model(shift=shift, widen=widen).log_evidence(x, samples, chunk=5000)
    moment = second_moment(shift, widen) ** LATENT
    np.testing.assert_allclose(found.log_evidence, linear.log_evidence(x), atol=4 * np.sqrt((moment - 1) / samples))
    np.testing.assert_allclose(found.effective_samples / samples, 1 / moment, rtol=0.05)


def test_a_prior_of_several_normals():
    linear = random_linear()
    x = linear.images(3)
    prior = MixturePrior(LATENT, components=3, seed=4)
    prior.logits.assign([0.5, -0.5, 0.2])
    weight, mean, stddev = (np.asarray(prior.parts()[name], "f8") for name in ("weight", "mean", "stddev"))
    w, noise = linear.loadings, SIGMA**2 * np.eye(VOXELS)
    each = [
        np.log(weight[k])
        + stats.multivariate_normal.logpdf(
            x.astype("f8"), w @ mean[k] + linear.offset, (w * stddev[k] ** 2) @ w.T + noise
        )
        for k in range(3)
    ]
    found = linear.model(widen=1.4, prior=prior).log_evidence(x, 20_000, chunk=5000)
    error = np.sqrt(1 / found.effective_samples - 1 / 20_000)
    assert (error < 0.05).all()
    assert (np.abs(found.log_evidence - logsumexp(each, axis=0)) < 4 * error).all()


def test_a_linear_start_has_the_evidence_of_probabilistic_pca():
    x = random_linear(rotated=False).images(60)
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T.astype("f8"), bias=True))[::-1]
    noise = eigenvalues[LATENT:].mean()
    logs = np.log(eigenvalues[:LATENT]).sum() + (VOXELS - LATENT) * np.log(noise)
    maximum = -0.5 * (VOXELS * np.log(2 * np.pi) + logs + VOXELS)
    core = fit_core(x, LATENT)
    assert core.noise_variance == pytest.approx(noise, rel=1e-5)
    encoder, decoder = linear_start(
        dense_encoder((VOXELS,), 2 * LATENT, (8,)), dense_decoder((VOXELS,), LATENT, (8,)), core
    )
    model = VAE(encoder, decoder, likelihood=NormalLikelihood(scale="fixed", stddev=core.noise_variance**0.5))
    found = model.log_evidence(x, samples=4, chunk=4)
    assert found.log_evidence.mean() == pytest.approx(maximum, rel=1e-5)
    np.testing.assert_allclose(found.effective_samples, 4, rtol=1e-6)


# --- what the draws depend on --------------------------------------------------------------------


def test_draws_depend_on_seed_row_and_chunk_and_are_not_shared():
    linear = random_linear()
    x = np.repeat(linear.images(1), 2, axis=0)
    model = linear.model(shift=1.0, widen=1.5)

    def found(samples, chunk, seed):
        return model.log_evidence(x, samples, chunk=chunk, seed=seed).log_evidence

    np.testing.assert_array_equal(found(6, 4, 3), found(6, 4, 3))
    first = {seed: found(1, 1, seed) for seed in (0, 1)}
    assert len({*first[0], *first[1]}) == 4  # seeds differ, rows differ
    # log w of the second draw of seed 0; it is neither the first draw again nor the first of the next seed
    second = np.log(2 * np.exp(found(2, 1, 0)) - np.exp(first[0]))
    for other in first.values():
        assert (np.abs(second - other) > 1e-3).all()


def test_chunks_move_it_within_monte_carlo_error_alone():
    shift, widen, samples = 0.5, 1.25, 1000
    linear = random_linear()
    model, x = linear.model(shift=shift, widen=widen), linear.images(2)
    error = np.sqrt(2 * (second_moment(shift, widen) ** LATENT - 1) / samples)
    whole, parts = model.log_evidence(x, samples, chunk=samples), model.log_evidence(x, samples, chunk=334)
    np.testing.assert_allclose(whole.log_evidence, parts.log_evidence, atol=4 * error)
    assert (whole.effective_samples != parts.effective_samples).all()


def test_the_objective_has_no_part_in_it():
    linear = random_linear()
    x = linear.images(2)
    expected = linear.model(widen=1.3).log_evidence(x, 6, chunk=3)
    for objective in (IWAE(samples=2), StickingTheLanding()):
        found = linear.model(widen=1.3, objective=objective).log_evidence(x, 6, chunk=3)
        np.testing.assert_array_equal(found.log_evidence, expected.log_evidence)


@pytest.mark.parametrize("arguments", [{"samples": 0}, {"samples": 2.5}, {"chunk": 0}, {"chunk": -3}])
def test_bad_arguments_are_one_sentence(arguments):
    linear = random_linear()
    with pytest.raises(ArgumentError, match=f"{next(iter(arguments))} must be a whole number, 1 or more"):
        linear.model().log_evidence(linear.images(1), **arguments)


def test_an_autoencoder_has_no_evidence():
    networks = dense_encoder((VOXELS,), LATENT, ()), dense_decoder((VOXELS,), LATENT, ())
    model = VAE(*networks, posterior=PointPosterior(), objective=Reconstruction())
    with pytest.raises(ModelError, match="must have a density"):
        model.log_evidence(np.zeros((1, VOXELS), "f4"))


# --- a million voxels ----------------------------------------------------------------------------

SIDE = 100
BIG_SIGMA, BIG_LATENT = 2.0, 2
BIG_SHIFT, BIG_WIDEN = 0.5, 1.25


def big(shift=0.0, widen=1.0):
    """A linear model of 100³ voxels, an image of it, and the image's evidence by Woodbury's identity in float64."""
    size = SIDE**3
    rng = np.random.default_rng(21)
    # Orthogonal in float64, of length about σ, so that posterior and prior are of like width.
    loadings = np.linalg.qr(rng.standard_normal((size, BIG_LATENT)))[0] * np.array([4.0, 2.5])
    loadings = loadings.astype("f4").astype("f8")
    offset = rng.standard_normal(size, dtype="f4").astype("f8")
    m = loadings.T @ loadings + BIG_SIGMA**2 * np.eye(BIG_LATENT)
    to_mean = np.linalg.solve(m, loadings.T)
    stddev = BIG_SIGMA / np.sqrt(np.diag(m))
    x = loadings @ [1.5, -0.7] + offset + BIG_SIGMA * rng.standard_normal(size)
    x = x.astype("f4")
    residual = x.astype("f8") - offset
    along = loadings.T @ residual
    log_det = 2 * (size - BIG_LATENT) * np.log(BIG_SIGMA) + np.linalg.slogdet(m)[1]
    square = (residual @ residual - along @ np.linalg.solve(m, along)) / BIG_SIGMA**2
    truth = -0.5 * (size * np.log(2 * np.pi) + log_det + square)

    layers, shape = keras.layers, (SIDE, SIDE, SIDE)
    encoder = keras.Sequential([keras.Input(shape), layers.Reshape((size,)), layers.Dense(2 * BIG_LATENT)])
    decoder = keras.Sequential([keras.Input((BIG_LATENT,)), layers.Dense(size), layers.Reshape(shape)])
    kernel = np.concatenate([to_mean.T, np.zeros((size, BIG_LATENT))], axis=1)
    encoder.set_weights([kernel, np.concatenate([shift * stddev - to_mean @ offset, raw(widen * stddev)])])
    decoder.set_weights([loadings.T, offset])
    model = VAE(encoder, decoder, likelihood=NormalLikelihood(scale="fixed", stddev=BIG_SIGMA))
    return model, x.reshape(1, *shape), truth


@pytest.fixture(scope="module")
def exact():
    return big()


@pytest.fixture(scope="module")
def inexact():
    return big(BIG_SHIFT, BIG_WIDEN)


def test_a_million_voxels_with_the_exact_posterior(exact):
    model, x, truth = exact
    assert truth < -2e6  # its exponential is 0, and float32 has steps of 0.25 there
    found = model.log_evidence(x, samples=12, chunk=5)
    per_voxel = stats.norm.logpdf(x, model.reconstruct(x), BIG_SIGMA)
    assert found.log_evidence[0] == pytest.approx(truth, abs=ROUNDING * np.abs(per_voxel).sum())
    assert found.effective_samples[0] == pytest.approx(12, rel=1e-6)


def test_a_million_voxels_with_another_posterior(exact, inexact):
    model, x, _ = inexact
    samples = 60
    start = time.process_time()
    found = model.log_evidence(x, samples, chunk=10)
    assert time.process_time() - start < 10
    reference = exact[0].log_evidence(x, samples=1).log_evidence  # the evidence, with the same rounding
    moment = second_moment(BIG_SHIFT, BIG_WIDEN) ** BIG_LATENT
    error = np.sqrt((moment - 1) / samples)
    np.testing.assert_allclose(found.log_evidence, reference, atol=4 * error)
    assert 1 <= found.effective_samples[0] <= samples
    assert found.effective_samples[0] / samples == pytest.approx(1 / moment, rel=0.3)
    np.testing.assert_array_equal(model.log_evidence(x, samples, chunk=10), found)
    other = model.log_evidence(x, samples, chunk=25)
    np.testing.assert_allclose(other.log_evidence, reference, atol=4 * error)


def test_a_million_voxels_take_less_than_a_gigabyte(inexact):
    model, x, _ = inexact
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")  # forget the peak so far
    except OSError:
        pytest.skip("the peak of memory can be reset on Linux alone")
    before = resident("VmRSS")
    model.log_evidence(x, samples=20, chunk=10)
    assert resident("VmHWM") - before < 1e6


def resident(name):
    """Memory in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])
