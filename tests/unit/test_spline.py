"""Coarse axes: splines that are what they say, cores that are principal components within them, networks of those."""

from types import SimpleNamespace

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from kerasvae import VAE, NormalLikelihood
from kerasvae.errors import ArgumentError
from kerasvae.networks import fit_core, linear_start
from kerasvae.networks.spline import Coarse, spline_basis
from kerasvae.training.build import build_model
from kerasvae.training.cross_fit import CrossFit
from kerasvae.training.recipe import Recipe
from kerasvae_export.channels_first import network_graph

RNG = np.random.default_rng(11)
SHAPE = (13, 12, 14)
MASK = np.linalg.norm((np.indices(SHAPE).T - (np.array(SHAPE) - 1) / 2) / (np.array(SHAPE) / 2), axis=-1).T < 0.95


def smooth(count, seed=0):
    """People whose images are smooth, on the mask."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((count, *SHAPE))
    for axis, size in enumerate(SHAPE, start=1):
        p = np.arange(size) / 2.5
        images = np.moveaxis(np.tensordot(images, np.exp(-np.square(p[:, None] - p)), axes=(axis, 0)), -1, axis)
    return ((3 + images / images.std() + 0.05 * rng.standard_normal(images.shape)) * MASK).astype("f4")


@pytest.mark.parametrize(("size", "step"), [(13, 2), (40, 4), (31, 3), (9, 1), (6, 5)])
def test_a_basis_is_orthonormal_reads_alike_from_both_ends_and_holds_cubics(size, step):
    basis = spline_basis(size, step).astype(float)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)
    np.testing.assert_allclose(basis[::-1, ::-1], basis, atol=1e-5)
    for power in range(4):
        line = np.linspace(-1, 1, size) ** power
        np.testing.assert_allclose(basis @ (basis.T @ line), line, atol=1e-5)
    assert basis.shape[1] == (size if step == 1 else min(size, -(-(size - 1) // step) + 3))


def dense(coarse):
    """The matrix from coefficients to voxels of the mask."""
    return coarse.up(np.eye(int(coarse.inside.sum()), dtype="f4")).T.astype(float)


def test_down_is_the_transpose_of_up():
    coarse = Coarse.of(MASK, 2)
    rows = RNG.standard_normal((3, MASK.sum())).astype("f4")
    np.testing.assert_allclose(coarse.down(rows), rows @ dense(coarse), atol=1e-4)
    assert coarse.inside.sum() < 0.6 * MASK.sum()  # of eight voxels one, but for the border of a grid this small


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("condition", [None, RNG.standard_normal((30, 1)).astype("f4")])
def test_axes_are_principal_components_within_the_splines(condition, mirror):
    images = smooth(30)
    core = fit_core(images, 4, MASK, condition, step=2, mirror=mirror)
    q = dense(Coarse.of(MASK, 2))
    x = images[:, MASK].astype(float)
    design = np.ones((30, 1)) if condition is None else np.column_stack([np.ones(30), condition])
    fitted = np.linalg.lstsq(design, x, rcond=None)[0]
    left = x - design @ fitted
    np.testing.assert_allclose(core.background, fitted[0], atol=1e-4)
    np.testing.assert_allclose(core.mean, fitted[0] @ q, rtol=1e-4, atol=1e-3)
    if mirror:
        turned = np.zeros((30, *SHAPE))
        turned[:, MASK] = left
        assert (MASK == MASK[::-1]).all()
        left = np.concatenate([left, turned[:, ::-1][:, MASK]])
    c = left @ q
    values, vectors = np.linalg.eigh(c.T @ c / len(c))
    np.testing.assert_allclose(core.eigenvalues, values[::-1][:4], rtol=1e-3)
    np.testing.assert_allclose(abs(np.sum(core.axes * vectors[:, ::-1][:, :4].T, axis=1)), 1, atol=1e-3)
    noise = (np.square(left).sum() / len(left) - values[-4:].sum()) / (MASK.sum() - 4)
    assert core.noise_variance == pytest.approx(noise, rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"prior": "variance", "spacing_mm": (2, 2, 2)}])
def test_smooth_people_lose_little_and_networks_much(options):
    few, new = smooth(30), smooth(60, seed=1)[:, MASK]
    explained, sizes = [], []
    for step in (1, 2):
        core = fit_core(few, 8, MASK, step=step, **options)
        encoder, decoder = linear_start(None, None, core, MASK)
        model = VAE(encoder, decoder, likelihood=NormalLikelihood(mask=MASK))
        made = model.reconstruct(smooth(60, seed=1))
        np.testing.assert_array_equal(made[:, ~MASK], 0)
        explained.append(1 - np.square(made[:, MASK] - new).sum() / np.square(new - few[:, MASK].mean(0)).sum())
        sizes.append(encoder.count_params())
    assert explained[1] > explained[0] - 0.03
    assert sizes[1] < 0.5 * sizes[0]


def test_the_model_is_probabilistic_pca_with_the_coarse_axes():
    images = smooth(40)
    whole = np.ones(SHAPE, bool)
    core = fit_core(images, 5, whole, step=2)
    encoder, decoder = linear_start(None, None, core, whole)
    model = VAE(encoder, decoder, likelihood=NormalLikelihood())
    w = dense(Coarse.of(whole, 2)) @ (core.axes * core.loading_scale[:, None]).T
    x = images.reshape(40, -1).astype(float)
    mean, m = x.mean(0), w.T @ w + core.noise_variance * np.eye(5)
    codes = np.linalg.solve(m, w.T @ (x - mean).T).T
    found = model.encode(images)
    np.testing.assert_allclose(found["mean"], codes, atol=2e-3)
    np.testing.assert_allclose(found["stddev"][0], np.sqrt(core.noise_variance * np.diag(np.linalg.inv(m))), rtol=1e-3)
    np.testing.assert_allclose(model.decode(found["mean"]).reshape(40, -1), mean + codes @ w.T, atol=5e-3)


def test_networks_are_saved_written_as_onnx_and_deaf_to_what_lies_outside(tmp_path):
    images = smooth(20)
    core = fit_core(images, 3, MASK, step=2)
    networks = linear_start(None, None, core, MASK, refine=(3,))
    for network, name in zip(networks, ("encoder_refine", "decoder_refine"), strict=True):
        last = network.get_layer(name).last
        last.set_weights([0.1 * RNG.standard_normal(weight.shape) for weight in last.get_weights()])
    model = VAE(*networks, likelihood=NormalLikelihood(mask=MASK))
    made = model.reconstruct(images)
    np.testing.assert_array_equal(model.reconstruct(np.where(MASK, images, 1e3).astype("f4")), made)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras").reconstruct(images), made)
    given = (images[:2], model.encode(images[:2])["mean"])
    for network, x in zip(networks, given, strict=True):
        graph = helper.make_model(network_graph(network, ["x"], "y"), opset_imports=[helper.make_opsetid("", 18)])
        graph.ir_version = 10
        onnx.checker.check_model(graph, full_check=True)
        (found,) = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": x})
        wanted = network(x).numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-5 * abs(wanted).max())


def test_cross_fitting_exchanges_the_mean_image_too():
    images = smooth(20)
    core = fit_core(images, 3, MASK, step=2, cross_fit=True)
    encoder, decoder = linear_start(None, None, core, MASK)
    model = VAE(encoder, decoder, likelihood=NormalLikelihood(mask=MASK))
    cross_fit = CrossFit(core, MASK, batch_size=4)
    cross_fit.set_model(model)
    zero = np.zeros((1, 3), "f4")
    for index, fold in enumerate(core.left_out):
        cross_fit._use(index)
        others = np.delete(images, fold.rows, axis=0)[:, MASK].mean(0)
        np.testing.assert_allclose(model.decode(zero)[0][MASK], others, atol=1e-4)
    cross_fit.on_train_end()
    np.testing.assert_allclose(model.decode(zero)[0][MASK], images[:, MASK].mean(0), atol=1e-4)


@pytest.mark.parametrize("step", [0, 1.5])
def test_a_step_is_a_number_of_voxels(step):
    with pytest.raises(ArgumentError, match="whole number of voxels"):
        fit_core(smooth(5), 2, MASK, step=step)


def test_a_recipe_asks_for_it():
    content = {
        "pipeline": {"intensity": {"kind": "zscore"}},
        "model": {"latent_size": 3, "network": "refine", "refine": [2], "core_step": 2},
    }
    images, said = smooth(16), []
    pipeline = SimpleNamespace(mask=MASK, grid=SimpleNamespace(spacing=(2.0, 2.0, 2.0)))
    built = build_model(Recipe.model_validate(content), images, pipeline, tell=said.append)
    assert "splines with a knot every 2 voxels" in said[0]
    assert "mirror images" in said[0]  # both were asked
    assert len(built.core.left_out) == 5
    assert np.isfinite(built.model.elbo(images)["elbo"]).all()
    np.testing.assert_allclose(built.model.decode(np.zeros((1, 3), "f4"))[0][MASK], images[:, MASK].mean(0), atol=1e-4)
