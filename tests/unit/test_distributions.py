"""Every density and divergence against scipy or a closed form."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from kerasvae.distributions import NormalLikelihood, NormalPosterior, StandardNormalPrior, closed_kl
from kerasvae.errors import ArgumentError

RNG = np.random.default_rng(0)


def softplus(x):
    return np.log1p(np.exp(x))


def test_posterior_outputs_follow_the_stated_formula():
    raw = RNG.standard_normal((5, 6)).astype("f4")
    outputs = NormalPosterior(floor=0.01).deterministic(raw)
    np.testing.assert_allclose(outputs["mean"], raw[:, :3])
    np.testing.assert_allclose(outputs["stddev"], 0.01 + softplus(raw[:, 3:]), rtol=1e-6)


def test_kl_is_the_closed_form_per_dimension():
    raw = RNG.standard_normal((5, 6)).astype("f4")
    total, kl = closed_kl(NormalPosterior(), raw, StandardNormalPrior())
    np.testing.assert_allclose(total, kl.numpy().sum(1), rtol=1e-6)
    mean, stddev = raw[:, :3].astype("f8"), 1e-4 + softplus(raw[:, 3:].astype("f8"))
    np.testing.assert_allclose(kl, 0.5 * (stddev**2 + mean**2 - 1 - np.log(stddev**2)), rtol=2e-5)


def test_samples_have_the_posterior_moments_and_depend_on_the_seed_alone():
    raw = tf.repeat(tf.constant([[1.0, -2.0, 0.3, -1.0]]), 40_000, axis=0)
    posterior = NormalPosterior()
    z = posterior.sample(raw, tf.constant([1, 2])).numpy()
    stddev = 1e-4 + softplus(np.array([0.3, -1.0]))
    np.testing.assert_allclose(z.mean(0), [1, -2], atol=4 * stddev.max() / 200)
    np.testing.assert_allclose(z.std(0), stddev, rtol=0.02)
    np.testing.assert_array_equal(z, posterior.sample(raw, tf.constant([1, 2])).numpy())
    assert not np.array_equal(z, posterior.sample(raw, tf.constant([1, 3])).numpy())


def test_prior_log_density_against_scipy():
    z = RNG.standard_normal((4, 3)).astype("f4")
    np.testing.assert_allclose(StandardNormalPrior()(z), stats.norm.logpdf(z).sum(1), rtol=1e-5)


@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 4, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_log_likelihood_against_scipy_whatever_the_rank(shape, masked):
    x, mean = RNG.standard_normal((2, 3, *shape)).astype("f4")
    mask = RNG.random(shape) < 0.6 if masked else None
    likelihood = NormalLikelihood(scale="fixed", stddev=0.7, mask=mask)
    expected = stats.norm.logpdf(x.astype("f8"), mean, 0.7)
    inside = np.ones(shape, bool) if mask is None else mask
    np.testing.assert_allclose(likelihood.log_prob(x, mean), expected[:, inside].sum(1), rtol=1e-5)
    assert likelihood.count(x) == inside.sum()


def test_optimal_scale_is_the_maximum_of_the_likelihood():
    x, mean = RNG.standard_normal((2, 6, 5, 5)).astype("f4")
    likelihood = NormalLikelihood(momentum=0.5)
    for _ in range(3):
        likelihood.update(x, mean)
    best = float(likelihood.sigma())
    assert best == pytest.approx(np.sqrt(((x - mean) ** 2).mean()), rel=1e-6)

    def total(sigma):
        return stats.norm.logpdf(x.astype("f8"), mean, sigma).sum()

    assert total(best) > max(total(best * 0.99), total(best * 1.01))
    square = likelihood.residual(x, mean).numpy()
    assert likelihood.calibrated_log_prob(square, x) == pytest.approx(total(best) / 6, rel=1e-5)


def test_first_update_is_unbiased():
    x = np.full((1, 4), 3.0, "f4")
    likelihood = NormalLikelihood(momentum=0.99)
    likelihood.update(x, np.zeros_like(x))
    assert float(likelihood.sigma()) == pytest.approx(3.0, rel=1e-6)


def test_repeating_voxels_doubles_the_log_likelihood():
    x, mean = RNG.standard_normal((2, 3, 4, 5)).astype("f4")
    likelihood = NormalLikelihood(scale="fixed", stddev=0.5)
    twice = likelihood.log_prob(np.repeat(x, 2, axis=1), np.repeat(mean, 2, axis=1))
    np.testing.assert_allclose(twice, 2 * likelihood.log_prob(x, mean), rtol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [{"scale": "optimall"}, {"floor": 0.0}, {"momentum": 1.0}, {"mask": np.zeros((2, 2), bool)}, {"stddev": 1e-9}],
)
def test_bad_arguments_are_one_sentence(arguments):
    with pytest.raises(ArgumentError, match="must"):
        NormalLikelihood(**arguments)
