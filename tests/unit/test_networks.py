"""Shapes of any size, and the linear start against probabilistic PCA's closed form."""

import keras
import numpy as np
import pytest
from scipy import stats

from kerasvae.distributions import NormalLikelihood
from kerasvae.errors import ArgumentError
from kerasvae.models import VAE
from kerasvae.networks import (
    GroupNorm,
    conv_decoder,
    conv_encoder,
    dense_decoder,
    dense_encoder,
    fit_core,
    linear_start,
)

RNG = np.random.default_rng(2)


@pytest.mark.parametrize("shape", [(9, 11, 7), (16, 16, 16), (1, 5, 3), (13, 10), (17,)])
@pytest.mark.parametrize("norm", ["group", "none"])
def test_convolutional_networks_take_any_size(shape, norm):
    encoder = conv_encoder(shape, 6, filters=(4, 8), norm=norm)
    decoder = conv_decoder(shape, 3, filters=(4, 8), norm=norm)
    assert encoder(np.zeros((2, *shape), "f4")).shape == (2, 6)
    assert decoder(np.zeros((2, 3), "f4")).shape == (2, *shape)


def test_dense_networks_take_any_shape():
    assert dense_encoder((4, 5), 6)(np.zeros((2, 4, 5), "f4")).shape == (2, 6)
    assert dense_decoder((20,), 3)(np.zeros((2, 3), "f4")).shape == (2, 20)


@pytest.mark.parametrize("arguments", [((4, 4, 4, 1), 6), ((0, 3), 6)])
def test_bad_shapes_are_refused(arguments):
    with pytest.raises(ArgumentError, match="one to three positive axes"):
        conv_encoder(*arguments)
    with pytest.raises(ArgumentError, match="norm"):
        conv_encoder((4, 4), 6, norm="batch")


def ppca_data(people=60, voxels=(5, 4, 3), rank=3):
    loadings = RNG.standard_normal((rank, *voxels))
    z = RNG.standard_normal((people, rank))
    return (np.einsum("nr,rxyz->nxyz", z, loadings) + 0.3 * RNG.standard_normal((people, *voxels)) + 2).astype("f4")


def closed_form(images, mask, q):
    """Maximum-likelihood probabilistic PCA by the covariance matrix (Tipping & Bishop 1999, equations 7 and 8)."""
    x = images[:, mask].astype("f8")
    covariance = np.cov(x.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    noise = values[q:].mean()
    w = vectors[:, :q] * np.sqrt(values[:q] - noise)
    return x.mean(0), w, noise


def test_linear_start_is_probabilistic_pca():
    images = ppca_data()
    mask = RNG.random(images.shape[1:]) < 0.8
    q = 3
    mean, w, noise = closed_form(images, mask, q)
    core = fit_core(images, q, mask)
    assert core.noise_variance == pytest.approx(noise, rel=1e-5)

    shape = images.shape[1:]
    encoder, decoder = linear_start(dense_encoder(shape, 2 * q), dense_decoder(shape, q), core, mask)
    likelihood = NormalLikelihood(mask=mask)
    likelihood.set_sigma(noise**0.5)
    model = VAE(encoder, decoder, likelihood=likelihood)

    m = w.T @ w + noise * np.eye(q)
    posterior_mean = np.linalg.solve(m, w.T @ (images[:, mask] - mean).T).T
    codes = model.encode(images)
    signs = np.sign((codes["mean"] * posterior_mean).sum(0))
    np.testing.assert_allclose(codes["mean"] * signs, posterior_mean, atol=2e-4)
    np.testing.assert_allclose(codes["stddev"][0], np.sqrt(np.diag(noise * np.linalg.inv(m))), rtol=1e-4)
    np.testing.assert_allclose(model.reconstruct(images)[:, mask], posterior_mean @ w.T + mean, atol=2e-3)
    assert np.all(model.reconstruct(images)[:, ~mask] == 0)

    # the exact posterior makes the bound tight: ELBO = log p(x), the Gaussian marginal
    marginal = stats.multivariate_normal(mean, w @ w.T + noise * np.eye(mask.sum())).logpdf(images[:, mask])
    elbo = model.elbo(images, samples=400)["elbo"]
    assert np.mean(elbo) == pytest.approx(np.mean(marginal), rel=2e-3)


@pytest.mark.parametrize("refine", [(), (4,)])
def test_what_lies_outside_the_box_of_the_mask_costs_nothing_and_counts_for_nothing(refine, tmp_path):
    images = np.zeros((30, 9, 8, 7), "f4")
    images[:, 3:6, 0:4, 2:5] = RNG.standard_normal((30, 3, 4, 3))
    mask = images[0] != 0
    core = fit_core(images, 2, mask)
    networks = linear_start(None, None, core, mask, refine=refine)
    # the box and a voxel around it, within the grid: 5 × 5 × 5
    assert networks[0].get_layer("linear_encoder").get_weights()[0].shape == (125, 2)
    assert networks[1].get_layer("linear_decoder").get_weights()[0].shape == (2, 125)
    model = VAE(*networks, likelihood=NormalLikelihood(mask=mask))
    expected = core.mean + (images[:, mask] - core.mean) @ core.axes.T @ (
        (1 - core.noise_variance / core.eigenvalues)[:, None] * core.axes
    )
    made = model.reconstruct(images)
    np.testing.assert_allclose(made[:, mask], expected, atol=1e-5)
    np.testing.assert_array_equal(made[:, ~mask], 0)
    noisy = np.where(mask, images, 1e3).astype("f4")
    np.testing.assert_array_equal(model.reconstruct(noisy), made)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras").reconstruct(images), made)


def test_components_beyond_the_people_stay_inactive():
    images = ppca_data(people=6)
    core = fit_core(images, 10)
    shape = images.shape[1:]
    encoder, decoder = linear_start(dense_encoder(shape, 20), dense_decoder(shape, 10), core)
    codes = VAE(encoder, decoder).encode(images)
    assert np.all(np.isfinite(codes["mean"]))
    np.testing.assert_allclose(codes["mean"][:, 4:], 0, atol=1e-5)
    np.testing.assert_allclose(codes["stddev"][:, 4:], 1, rtol=1e-3)


@pytest.mark.parametrize("images", [np.zeros((2, 3, 3), "f4"), np.ones((5, 3, 3), "f4")])
def test_no_core_without_variation(images):
    with pytest.raises(ArgumentError):
        fit_core(images, 2)


def test_gates_learn_and_the_core_does_not():
    images = ppca_data(people=16)
    shape = images.shape[1:]
    core = fit_core(images, 2)
    encoder, decoder = linear_start(conv_encoder(shape, 4, (4,)), conv_decoder(shape, 2, (4,)), core)
    before = decoder.get_layer("linear_decoder").get_weights()[0].copy()
    model = VAE(encoder, decoder)
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(images, epochs=3, batch_size=8, verbose=0)
    np.testing.assert_array_equal(decoder.get_layer("linear_decoder").get_weights()[0], before)
    assert abs(decoder.get_layer("decoder_gate").get_weights()[0]).max() > 0


def test_dense_networks_begin_as_their_seed_says_whatever_the_global_one():
    def weights(seed, everyone):
        keras.utils.set_random_seed(everyone)
        networks = dense_encoder((4,), 6, (5, 5), seed=seed), dense_decoder((4,), 3, (5, 5), seed=seed)
        return [kernel for network in networks for kernel in network.get_weights() if kernel.ndim == 2]

    for same, other, unseeded in zip(weights(3, 0), weights(3, 1), weights(None, 0), strict=True):
        np.testing.assert_array_equal(same, other)
        assert not np.array_equal(same, unseeded)
        assert 0.1 < same.std() < 1
    encoder = weights(3, 0)
    assert not np.array_equal(encoder[1], weights(4, 0)[1])


@pytest.mark.parametrize("shape", [(6, 8), (5, 4, 8), (3, 4, 5, 8)])
def test_group_norm_is_kerass(shape):
    x = np.random.default_rng(0).normal(3, 2, (4, *shape)).astype("f4")
    ours, peer = GroupNorm(4, epsilon=0.01), keras.layers.GroupNormalization(4, epsilon=0.01)
    for layer in (ours, peer):
        layer.build(x.shape)
        layer.set_weights([np.arange(8) - 3.0, np.arange(8) / 5])
    np.testing.assert_allclose(ours(x), peer(x), atol=2e-5)
    again = GroupNorm.from_config(ours.get_config())
    assert (again.groups, again.epsilon) == (4, 0.01)


def test_group_norm_keeps_the_digits_of_a_large_volume():
    x = np.random.default_rng(0).normal(0.3, 1, (1, 48, 48, 48, 8)).astype("f4")
    exact = (x - x.mean(dtype="f8")) / np.sqrt(x.var(dtype="f8") + 1e-3)
    assert np.abs(GroupNorm(1)(x) - exact).max() < 2e-6
    both = GroupNorm(1)(np.concatenate([x, x + 1]))
    assert np.abs(both[0] - exact[0]).max() < 2e-6


def test_groups_divide_the_channels():
    with pytest.raises(ArgumentError, match="groups must divide the 6 channels"):
        GroupNorm(4)(np.zeros((2, 3, 6), "f4"))
