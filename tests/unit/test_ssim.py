"""Structural similarity against scipy's Gaussian filter in float64, and the objective that adds it."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from kerasvae.errors import ArgumentError
from kerasvae.models import VAE
from kerasvae.networks import dense_decoder, dense_encoder
from kerasvae.objectives import ELBO, Draws
from kerasvae.objectives.factor_vae import FactorVAE
from kerasvae.objectives.ssim import WEIGHTS, WithMSSSIM, ms_ssim, scale_weights, ssim, ssim_maps

SHAPES = [(37,), (25, 18), (12, 17, 13)]


def pair(shape, seed=0, people=3):
    rng = np.random.default_rng(seed)
    a = ndimage.gaussian_filter(rng.standard_normal((people, *shape)), (0, *[1] * len(shape)))
    b = a + 0.3 * rng.standard_normal((people, *shape))
    return a, b


def wang_maps(a, b, data_range, sigma=1.5, radius=5):
    """Wang et al. 2004, equations 6 and 13, for one pair in float64; eleven taps, mirrored borders."""

    def blur(x):
        return ndimage.gaussian_filter(x, sigma, mode="reflect", truncate=radius / sigma)

    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    return (2 * ma * mb + c1) / (ma**2 + mb**2 + c1), (2 * cov + c2) / (va + vb + c2)


def halve(x):
    """Means of two neighbours along each axis; the last of an odd number alone."""
    for axis in range(x.ndim):
        x = np.moveaxis(x, axis, 0)
        x = np.stack([x[i : i + 2].mean(0) for i in range(0, len(x), 2)])
        x = np.moveaxis(x, 0, axis)
    return x


@pytest.mark.parametrize("shape", SHAPES)
def test_maps_against_scipy_at_every_voxel(shape):
    a, b = pair(shape)
    luminance, structure = ssim_maps(a.astype("f4"), b.astype("f4"), 4.0)
    assert luminance.shape == a.shape
    for person in range(len(a)):
        expected = wang_maps(a[person], b[person], 4.0)
        np.testing.assert_allclose(luminance[person], expected[0], atol=2e-5)
        np.testing.assert_allclose(structure[person], expected[1], atol=2e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_mean_runs_over_the_mask(shape, masked):
    a, b = pair(shape, 1)
    mask = np.random.default_rng(2).random(shape) < 0.4 if masked else None
    inside = np.ones(shape, bool) if mask is None else mask
    expected = [np.prod(wang_maps(x, y, 4.0), axis=0)[inside].mean() for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(a.astype("f4"), b.astype("f4"), 4.0, mask=mask), expected, atol=1e-5)


def test_a_small_contrast_on_a_bright_image_survives_float32():
    a, b = pair((25, 18), 3)
    expected = [np.prod(wang_maps(x + 1000, y + 1000, 4.0), axis=0).mean() for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim((a + 1000).astype("f4"), (b + 1000).astype("f4"), 4.0), expected, atol=1e-3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("shape", "scales"), [((60,), 3), ((45, 23), 2), ((23, 21, 24), 2)])
def test_scales_against_the_formula(shape, scales, masked):
    a, b = pair(shape, 4)
    mask = ndimage.binary_dilation(np.random.default_rng(5).random(shape) < 0.05) if masked else np.ones(shape, bool)
    powers = np.array(WEIGHTS[:scales]) / np.sum(WEIGHTS[:scales])
    expected = []
    for x, y in zip(a, b, strict=True):
        inside, product = mask.astype(float), 1.0
        for scale, power in enumerate(powers, 1):
            luminance, structure = wang_maps(x, y, 4.0)
            values = luminance * structure if scale == scales else structure
            product *= np.average(values, weights=inside) ** power
            x, y, inside = halve(x), halve(y), halve(inside)
        expected.append(product)
    result = ms_ssim(a.astype("f4"), b.astype("f4"), 4.0, mask=mask if masked else None)
    np.testing.assert_allclose(result, expected, atol=2e-5)


def test_scales_that_do_not_fit_are_left_out_and_weights_sum_to_one():
    assert scale_weights((200, 180)) == pytest.approx(np.array(WEIGHTS) / np.sum(WEIGHTS))
    assert scale_weights((48, 44, 46)) == pytest.approx(np.array(WEIGHTS[:3]) / np.sum(WEIGHTS[:3]))  # 44 22 11 | 6
    assert len(scale_weights((22, 22))) == 2
    assert len(scale_weights((21, 22))) == 2  # ⌈21/2⌉ = 11
    assert scale_weights((20, 22)) == (1.0,)
    assert scale_weights((7, 7)) == (1.0,)
    assert len(scale_weights((20, 22), taps=5)) == 3


@pytest.mark.parametrize("measure", [ssim, ms_ssim])
@pytest.mark.parametrize("shape", SHAPES)
def test_identical_images_give_one_and_worse_ones_less(measure, shape):
    a, b = (x.astype("f4") for x in pair(shape, 6))
    np.testing.assert_allclose(measure(a, a, 4.0), 1.0, atol=1e-6)
    near, far = measure(a, a + 0.3 * (b - a), 4.0).numpy(), measure(a, b, 4.0).numpy()
    assert (near > far).all()
    assert (near < 1).all()
    np.testing.assert_allclose(far, measure(b, a, 4.0), atol=1e-5)  # symmetric


@pytest.mark.parametrize("measure", [ssim, ms_ssim])
def test_gradient_is_finite_where_nothing_varies_or_all_is_opposite(measure):
    checker = (np.indices((24, 24)).sum(0) % 2 * 2.0 - 1)[None].astype("f4")
    for a, b in [(np.zeros((1, 24, 24)),) * 2, (np.ones((1, 24, 24)), np.zeros((1, 24, 24))), (checker, -checker)]:
        b = tf.constant(b, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(b)
            value = measure(tf.constant(a, tf.float32), b, 1.0)
        assert np.isfinite(value).all()
        assert np.isfinite(tape.gradient(value, b)).all()


def test_gradient_against_finite_differences():
    a, b = pair((24, 23), 7, people=1)
    direction = np.random.default_rng(8).standard_normal(b.shape)

    def value(step):
        x, y, product = a[0], (b + step * direction)[0], 1.0
        powers = np.array(WEIGHTS[:2]) / np.sum(WEIGHTS[:2])
        product = wang_maps(x, y, 4.0)[1].mean() ** powers[0]
        return product * np.prod(wang_maps(halve(x), halve(y), 4.0), axis=0).mean() ** powers[1]

    image = tf.constant(b, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(image)
        similarity = ms_ssim(a.astype("f4"), image, 4.0)
    slope = (tape.gradient(similarity, image).numpy() * direction).sum()
    assert slope == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=1e-3)


def test_unknown_batch_size_inside_a_function():
    @tf.function(input_signature=[tf.TensorSpec((None, 24, 23)), tf.TensorSpec((None, 24, 23))])
    def compiled(x, y):
        return ms_ssim(x, y, 4.0)

    a, b = (x.astype("f4") for x in pair((24, 23), 9))
    np.testing.assert_allclose(compiled(a, b), ms_ssim(a, b, 4.0), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data_range": 0.0}, "data_range"),
        ({"data_range": float("nan")}, "data_range"),
        ({"b": np.zeros((2, 24, 22), "f4")}, "b"),
        ({"a": np.zeros((2,), "f4"), "b": np.zeros((2,), "f4")}, "a"),
        ({"a": np.zeros((2, 3, 3, 3, 3), "f4"), "b": np.zeros((2, 3, 3, 3, 3), "f4")}, "a"),
        ({"taps": 10}, "taps"),
        ({"sigma": -1.0}, "sigma"),
        ({"k1": 0.0}, "k1"),
        ({"k2": 0.0}, "k2"),
        ({"mask": np.ones((24, 22), bool)}, "mask"),
        ({"mask": np.zeros((24, 23), bool)}, "mask"),
        ({"weights": ()}, "weights"),
        ({"weights": (0.5, -0.5)}, "weights"),
    ],
)
def test_bad_arguments_are_one_sentence(change, named):
    zeros = np.zeros((2, 24, 23), "f4")
    arguments = {"a": zeros, "b": zeros, "data_range": 1.0} | change
    with pytest.raises(ArgumentError, match=f"^{named} must"):
        ms_ssim(**arguments)


# --- as an addition to an objective ------------------------------------------------------------------


def pictured(samples=2, people=3):
    """Draws with the images that they decode to."""
    a, b = pair((24, 23), 10, people)
    rng = np.random.default_rng(11)
    reconstruction = np.stack([b, *[a + rng.standard_normal(a.shape) for _ in range(samples - 1)]])
    parts = {
        "z": tf.zeros((samples, people, 2)),
        "log_likelihood": tf.constant(rng.standard_normal((samples, people)), tf.float32),
        "kl": tf.constant(rng.random(people), tf.float32),
        "scheduled": {"beta": tf.constant(0.5)},
        "image": lambda: tf.constant(a, tf.float32),
        "reconstruction": lambda: tf.constant(reconstruction, tf.float32),
    }
    return Draws(**{name: parts.get(name) for name in Draws._fields}), a, reconstruction.astype("f4")


def test_similarity_is_added_per_subject_and_averaged_over_draws():
    draws, image, reconstruction = pictured()
    mask = np.random.default_rng(12).random((24, 23)) < 0.5
    terms = WithMSSSIM(ELBO(beta=0.5), weight=30.0, data_range=4.0, mask=mask).terms(draws)
    inner = draws.kl.numpy() * 0.5 - draws.log_likelihood.numpy().mean(0)
    similarity = np.mean([ms_ssim(image.astype("f4"), one, 4.0, mask=mask) for one in reconstruction], axis=0)
    np.testing.assert_allclose(terms.per_subject["ms_ssim"], similarity, rtol=1e-5)
    np.testing.assert_allclose(terms.loss, inner + 30 * (1 - similarity), rtol=1e-5)
    np.testing.assert_allclose(terms.per_subject["kl"], draws.kl)


def test_everything_else_is_that_of_the_objective_within():
    inner = ELBO(beta=0.5, samples=3)
    objective = WithMSSSIM(inner, weight=1.0, data_range=1.0)
    assert (objective.samples, objective.memory, objective.scheduled) == (3, 0, ("beta",))
    assert objective.constants["beta"] == 0.5
    assert objective.extras == ("ms_ssim",)
    assert objective.build_critic(2) is None
    assert ELBO.extras == ()  # the class within is as it was


def test_config_round_trip_with_the_objective_within_and_the_mask():
    mask = np.random.default_rng(13).random((5, 6)) < 0.5
    objective = WithMSSSIM(ELBO(beta=0.5), weight=2.0, data_range=3.0, mask=mask)
    written = json.dumps(keras.saving.serialize_keras_object(objective))
    again = keras.saving.deserialize_keras_object(json.loads(written))
    assert json.dumps(keras.saving.serialize_keras_object(again)) == written
    assert isinstance(again.objective, ELBO)
    np.testing.assert_array_equal(again.mask, mask)


@pytest.mark.parametrize("inner", [ELBO(beta=0.5, samples=2), FactorVAE(units=(4,))])
def test_trains_a_model_towards_similar_reconstructions(tmp_path, inner):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(14)
    x = (rng.standard_normal((8, 2)) @ rng.standard_normal((2, 15))).astype("f4")
    objective = WithMSSSIM(inner, weight=1e4, data_range=6.0, mask=np.arange(15) > 1)
    model = VAE(dense_encoder((15,), 4, (16,)), dense_decoder((15,), 2, (16,)), objective=objective)
    model.compile(keras.optimizers.Adam(1e-2))
    history = model.fit(x, epochs=2, batch_size=8, verbose=0).history
    reported = {"loss", "elbo", "log_likelihood", "kl", "sigma", "ms_ssim", *inner.scheduled, *inner.aggregates}
    assert set(history) == reported
    assert all(np.isfinite(column).all() for column in history.values())
    model.fit(np.tile(x, (60, 1)), epochs=1, batch_size=8, verbose=0)
    assert model.evaluate(x, verbose=0, return_dict=True)["ms_ssim"] > history["ms_ssim"][0] + 0.1
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.objective.get_config() == objective.get_config()
    np.testing.assert_array_equal(again.reconstruct(x), model.reconstruct(x))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"objective": "elbo"}, "objective"),
        ({"objective": WithMSSSIM(ELBO(), 1.0, 1.0)}, "objective"),
        ({"weight": 0.0}, "weight"),
        ({"data_range": -1.0}, "data_range"),
        ({"mask": np.zeros((2, 2), bool)}, "mask"),
    ],
)
def test_bad_constants_are_one_sentence(change, named):
    with pytest.raises(ArgumentError, match=f"^{named} must"):
        WithMSSSIM(**({"objective": ELBO(), "weight": 1.0, "data_range": 1.0} | change))
