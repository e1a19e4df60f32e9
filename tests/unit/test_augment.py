"""Each random layer beside scipy or numpy, and what all of them promise."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation
from sklearn.neighbors import NearestNeighbors

import kerasvae
from kerasvae.data.augment import (
    MixNeighbours,
    RandomAffine,
    RandomBiasField,
    RandomBlur,
    RandomElastic,
    RandomFlip,
    RandomGamma,
    RandomNoise,
    row_seeds,
)
from kerasvae.data.augment.fields import correlation_factor
from kerasvae.errors import ArgumentError

SPACING = (3.0, 4.0, 5.0)
IMAGES = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((4, 11, 9, 7)), (0, 1, 1, 1)).astype("f4")
SEEDS = row_seeds(5, 2, np.arange(4))
MANY = row_seeds(1, 0, np.arange(3000))

LAYERS = {
    "affine": RandomAffine(10, 3, 0.1, spacing_mm=SPACING),
    "flip": RandomFlip(0.5),
    "elastic": RandomElastic(2.0, 15.0, spacing_mm=SPACING),
    "bias field": RandomBiasField(0.3, 20.0, spacing_mm=SPACING),
    "gamma": RandomGamma(0.5),
    "noise": RandomNoise(0.5, 2.0),
    "blur": RandomBlur(12.0, spacing_mm=SPACING),
}
OFF = {
    "affine": RandomAffine(spacing_mm=SPACING),
    "flip": RandomFlip(0),
    "elastic": RandomElastic(spacing_mm=SPACING),
    "bias field": RandomBiasField(spacing_mm=SPACING),
    "gamma": RandomGamma(),
    "noise": RandomNoise(),
    "blur": RandomBlur(spacing_mm=SPACING),
    "mix": MixNeighbours(),
}
each = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def drawn_by(layer, *given):
    """What the layer draws, in a graph, where many rows take less time."""
    return tf.nest.map_structure(lambda value: value.numpy(), tf.function(layer.draw)(*given))


def seeds_of(layer, count=4):
    """The layer's own seeds, as `call` makes them."""
    return layer.seeds_of(SEEDS[:count], IMAGES[:count])


@each
def test_what_is_drawn_depends_on_the_image_s_own_seeds_alone(layer):
    once = layer(IMAGES, SEEDS).numpy()
    assert once.shape == IMAGES.shape
    assert once.dtype == np.float32
    assert np.isfinite(once).all()
    assert (once != IMAGES).any()
    np.testing.assert_array_equal(layer(IMAGES, SEEDS), once)
    order = np.array([3, 1])  # elsewhere in memory exp and the like may round otherwise
    np.testing.assert_allclose(layer(IMAGES[order], tf.gather(SEEDS, order)), once[order], atol=2e-6)
    graph = tf.data.Dataset.from_tensors(IMAGES).map(lambda x: layer(x, SEEDS))
    np.testing.assert_allclose(next(iter(graph)), once, atol=2e-6)
    others = [layer(IMAGES, row_seeds(*seed, np.arange(4))).numpy() for seed in ((5, 3), (6, 2))]
    assert all((other != once).any() for other in others)


@each
def test_one_pair_of_seeds_for_a_batch_gives_each_image_its_own(layer):
    same = np.repeat(IMAGES[:1], 8, axis=0)
    changed = layer(same, [1, 2]).numpy()
    assert len(np.unique(changed, axis=0)) == (2 if isinstance(layer, RandomFlip) else 8)
    np.testing.assert_allclose(layer(same[:5], [1, 2]), changed[:5], atol=2e-6)


@pytest.mark.parametrize("layer", OFF.values(), ids=OFF)
def test_strength_0_changes_nothing(layer):
    np.testing.assert_array_equal(layer(IMAGES, SEEDS), IMAGES)


@each
def test_not_in_inference_and_never_without_a_seed(layer):
    np.testing.assert_array_equal(layer(IMAGES, SEEDS, training=False), IMAGES)
    with pytest.raises(ArgumentError, match="seed must be given"):
        layer(IMAGES)


@each
def test_configuration(layer):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again is not layer
    assert again.get_config() == layer.get_config()
    np.testing.assert_array_equal(again(IMAGES, SEEDS), layer(IMAGES, SEEDS))
    assert getattr(kerasvae, type(layer).__name__) is type(layer)


def test_half_precision_leaves_images_alone():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        assert RandomNoise(0.1)(IMAGES, SEEDS).dtype == tf.float32
    finally:
        keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: RandomAffine(degrees=50, spacing_mm=SPACING),
            "degrees must be a number from 0 to 45, but received 50",
        ),
        (lambda: RandomAffine(mm=-1, spacing_mm=SPACING), "mm must be a finite number, at least 0, but received -1"),
        (lambda: RandomAffine(spacing_mm=(1,)), "spacing_mm must be two or three positive numbers"),
        (lambda: RandomAffine(spacing_mm=(1, 0, 1)), "spacing_mm must be two or three positive numbers"),
        (lambda: RandomElastic(5, 20, spacing_mm=SPACING), "mm must be at most a fifth of smoothness_mm, 4"),
        (lambda: RandomFlip(1.5), "probability must be a number from 0 to 1"),
        (lambda: RandomGamma(True), "strength must be a number from 0 to 2, but received True"),
        (lambda: RandomNoise(float("nan")), "strength must be a finite number"),
        (lambda: RandomBlur(99, spacing_mm=SPACING), "fwhm_mm must be a number from 0 to 50"),
        (lambda: MixNeighbours(0.6), r"share must be a number from 0 to 0\.5"),
        (lambda: MixNeighbours(0.5, 0), "neighbours must be a whole number, 1 or more"),
        (lambda: LAYERS["affine"](IMAGES[..., None], SEEDS), r"images must have shape \(batch, x, y, z\)"),
        (lambda: LAYERS["blur"](IMAGES[:, 0], SEEDS), r"images must have shape \(batch, x, y, z\)"),
        (lambda: MixNeighbours(0.5)(IMAGES, SEEDS), "MixNeighbours must know the training people"),
    ],
)
def test_one_sentence_for_each_mistake(make, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        make()


def evenly(values, low, high):
    """The p-value of values being evenly spread."""
    return stats.kstest(np.ravel(values), "uniform", args=(low, high - low)).pvalue


def test_affine_as_scipy_does():
    layer = LAYERS["affine"]
    drawn = {name: value.numpy().astype(float) for name, value in layer.draw(seeds_of(layer)).items()}
    changed, middle, spacing = layer(IMAGES, SEEDS).numpy(), (np.array(IMAGES.shape[1:]) - 1) / 2, np.array(SPACING)
    for i, image in enumerate(IMAGES):
        turn = Rotation.from_euler("xyz", drawn["degrees"][i], degrees=True).as_matrix()  # about x first, axes fixed
        matrix = turn @ np.diag(drawn["scale"][i]) * spacing / spacing[:, None]
        offset = middle - matrix @ middle + drawn["mm"][i] / spacing
        expected = ndimage.affine_transform(image.astype(float), matrix, offset, order=1, mode="nearest")
        np.testing.assert_allclose(changed[i], expected, atol=5e-6)


def test_affine_of_slices_as_scipy_does():
    slices, layer = IMAGES[:, :, :, 3], RandomAffine(20, 3, 0.1, spacing_mm=SPACING[:2])
    drawn = {name: value.numpy().astype(float) for name, value in layer.draw(layer.seeds_of(SEEDS, slices)).items()}
    changed, middle, spacing = layer(slices, SEEDS).numpy(), np.array([5.0, 4.0]), np.array(SPACING[:2])
    for i, image in enumerate(slices):
        turn = Rotation.from_euler("z", drawn["degrees"][i, 0], degrees=True).as_matrix()[:2, :2]
        matrix = turn @ np.diag(drawn["scale"][i]) * spacing / spacing[:, None]
        offset = middle - matrix @ middle + drawn["mm"][i] / spacing
        expected = ndimage.affine_transform(image.astype(float), matrix, offset, order=1, mode="nearest")
        np.testing.assert_allclose(changed[i], expected, atol=5e-6)


def test_affine_draws_evenly():
    drawn = drawn_by(RandomAffine(4, 3, 0.25, spacing_mm=SPACING), MANY)
    assert [drawn[name].shape for name in ("degrees", "mm", "scale")] == [(3000, 3)] * 3
    for axis in range(3):
        assert evenly(drawn["degrees"][:, axis], -4, 4) > 0.01
        assert evenly(drawn["mm"][:, axis], -3, 3) > 0.01
        assert evenly(np.log(drawn["scale"][:, axis]), -np.log(1.25), np.log(1.25)) > 0.01
    together = np.corrcoef(np.concatenate(list(drawn.values()), axis=1).T)
    assert np.abs(together - np.eye(9)).max() < 4 / np.sqrt(3000)


def test_flip_as_numpy_does():
    layer = LAYERS["flip"]
    chosen = layer.draw(seeds_of(layer)).numpy()
    expected = np.where(chosen[:, None, None, None], IMAGES[:, ::-1], IMAGES)
    np.testing.assert_array_equal(layer(IMAGES, SEEDS), expected)
    np.testing.assert_array_equal(RandomFlip(1)(IMAGES, SEEDS), IMAGES[:, ::-1])
    count = int(drawn_by(RandomFlip(0.3), MANY).sum())
    assert stats.binomtest(count, 3000, 0.3).pvalue > 0.01


@pytest.mark.parametrize("shape", [(11, 9, 7), (11, 9)], ids=["volumes", "slices"])
def test_elastic_as_scipy_does(shape):
    rank = len(shape)
    images, layer = IMAGES[..., 2] if rank == 2 else IMAGES, RandomElastic(2.0, 15.0, spacing_mm=SPACING[:rank])
    moved = layer.draw(shape, layer.seeds_of(SEEDS, images)).numpy()
    changed = layer(images, SEEDS).numpy()
    for i, image in enumerate(images):
        where = np.indices(shape) + moved[i] / np.reshape(SPACING[:rank], (-1, *[1] * rank))
        expected = ndimage.map_coordinates(image.astype(float), where, order=1, mode="nearest")
        np.testing.assert_allclose(changed[i], expected, atol=5e-6)


def test_smooth_fields_have_the_stated_covariance():
    for count, spacing, width in ((20, 4.0, 24.0), (13, 5.0, 2.0), (1, 1.0, 5.0)):
        away = spacing * (np.arange(count)[:, None] - np.arange(count))
        factor = correlation_factor(count, spacing, width).astype(float)
        np.testing.assert_allclose(factor @ factor.T, np.exp(-(away**2) / (2 * width**2)), atol=2e-3)
        assert factor.shape[1] <= count
    layer = RandomElastic(2.0, 15.0, spacing_mm=SPACING)
    drawn = drawn_by(layer, (11, 9, 7), MANY[:1500])
    here = drawn[:, :, 5, 4, 3]
    for component in range(3):
        assert stats.kstest(here[:, component], "norm", args=(0, 2)).pvalue > 0.01
    distance = np.sqrt((2 * SPACING[0]) ** 2 + SPACING[1] ** 2 + SPACING[2] ** 2)
    there = drawn[:, :, 7, 3, 4]
    expected = np.exp(-(distance**2) / (2 * 15.0**2))
    assert (here * there).mean() / 4 == pytest.approx(expected, abs=4 * np.sqrt(2 / 4500))
    assert np.abs(np.corrcoef(here.T) - np.eye(3)).max() < 4 / np.sqrt(1500)


def test_bias_field_as_numpy_does():
    layer = LAYERS["bias field"]
    log_gain = layer.draw(IMAGES.shape[1:], seeds_of(layer)).numpy().astype(float)
    black = IMAGES.min(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(layer(IMAGES, SEEDS), black + (IMAGES - black) * np.exp(log_gain), atol=2e-6)
    at = drawn_by(layer, (11, 9, 7), MANY[:1000])[:, 2, 6, 1]
    assert stats.kstest(at, "norm", args=(0, 0.3)).pvalue > 0.01


def test_gamma_as_numpy_does():
    layer = LAYERS["gamma"]
    gamma = layer.draw(seeds_of(layer)).numpy().astype(float)[:, None, None, None]
    x = IMAGES.astype(float)
    black, white = x.min(axis=(1, 2, 3), keepdims=True), x.max(axis=(1, 2, 3), keepdims=True)
    expected = black + (white - black) * ((x - black) / (white - black)) ** gamma
    np.testing.assert_allclose(layer(IMAGES, SEEDS), expected, atol=2e-6)
    assert evenly(np.log(drawn_by(layer, MANY)), -0.5, 0.5) > 0.01
    flat = np.full((2, 3, 3, 3), 7.0, np.float32)
    np.testing.assert_array_equal(layer(flat, SEEDS[:2]), flat)


def test_noise_is_white_normal_and_in_units_of_the_training_images():
    layer = RandomNoise(0.1)
    images = np.random.default_rng(3).normal(5, 3, (6, 10, 10, 10)).astype("f4")
    mask = np.zeros((10, 10, 10), bool)
    mask[2:8, 3:7] = True
    layer.adapt(images, mask)
    assert layer.stddev == pytest.approx(images[:, mask].std(), rel=1e-5)
    assert RandomNoise.from_config(layer.get_config()).stddev == layer.stddev
    noise = layer(images, [0, 1]).numpy() - images
    assert stats.kstest(noise.ravel(), "norm", args=(0, 0.1 * layer.stddev)).pvalue > 0.01
    for first, second in ((noise[:, :-1], noise[:, 1:]), (noise[:-1], noise[1:])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 4 / np.sqrt(first.size)


def test_blur_as_scipy_does():
    layer = LAYERS["blur"]
    fwhm = layer.draw(seeds_of(layer)).numpy().astype(float)
    changed = layer(IMAGES, SEEDS).numpy()
    for i, image in enumerate(IMAGES):
        sigma = fwhm[i] / np.sqrt(8 * np.log(2)) / np.array(SPACING)
        expected = ndimage.gaussian_filter(image.astype(float), sigma, mode="nearest", truncate=4.0)
        np.testing.assert_allclose(changed[i], expected, atol=2e-6)
    assert evenly(drawn_by(layer, MANY), 0, 12) > 0.01


PEOPLE = np.random.default_rng(8).standard_normal((12, 4, 3, 2)).astype("f4")


def test_nearest_others_as_scikit_learn_finds_them():
    mask = np.random.default_rng(1).random((4, 3, 2)) < 0.6
    layer = MixNeighbours(0.5, 4)
    layer.adapt(PEOPLE, mask)
    expected = NearestNeighbors(n_neighbors=4).fit(PEOPLE[:, mask]).kneighbors(return_distance=False)
    np.testing.assert_array_equal(layer.nearest, expected)


def test_mixing_is_a_convex_combination_of_a_person_and_a_near_one():
    layer, rows = MixNeighbours(0.4, 3), np.array([7, 0, 11])
    layer.adapt(PEOPLE)
    seeds = row_seeds(2, 0, rows)
    changed = layer(PEOPLE[rows], seeds, rows=rows).numpy()
    other, weight = (v.numpy() for v in layer.draw(rows, layer.seeds_of(seeds, PEOPLE[rows])))
    w = weight[:, None, None, None].astype(float)
    np.testing.assert_allclose(changed, (1 - w) * PEOPLE[rows] + w * PEOPLE[other], atol=1e-6)
    assert all(o in layer.nearest[row] for o, row in zip(other, rows, strict=True))
    other, weight = drawn_by(layer, np.full(3000, 5), MANY)
    assert evenly(weight, 0, 0.4) > 0.01
    assert stats.chisquare([(other == row).sum() for row in layer.nearest[5]]).pvalue > 0.01


def test_what_is_known_beside_the_image_is_mixed_alike():
    ages = np.linspace(20, 75, 12, dtype=np.float32)[:, None]
    target = np.where(np.arange(12) == 3, np.nan, np.arange(12.0))[:, None].astype("f4")
    layer, rows = MixNeighbours(0.5, 11), np.arange(12)
    layer.adapt({"image": PEOPLE, "covariates": ages, "target": target})
    given = {"image": PEOPLE, "covariates": ages, "target": target}
    mixed = layer(given, row_seeds(0, 0, rows), rows=rows)
    other, w = (v.numpy() for v in layer.draw(rows, layer.seeds_of(row_seeds(0, 0, rows), PEOPLE)))
    w = w[:, None].astype(float)
    for name, values in (("covariates", ages), ("target", target)):
        np.testing.assert_allclose(mixed[name], (1 - w) * values + w * values[other], rtol=1e-5)
    assert np.isnan(mixed["target"].numpy()[[3]]).all()  # an unknown value does not become a known one
    with pytest.raises(ArgumentError, match="images must hold image, covariates, target, as adapt did"):
        layer(PEOPLE, row_seeds(0, 0, rows), rows=rows)


def test_scans_of_one_person_and_other_categories_are_not_mixed():
    person, sex = np.arange(12) // 2, [*list("mffmmmffffm"), "x"]
    layer = MixNeighbours(0.5, 5)
    layer.adapt(PEOPLE, groups=person, strata=sex)
    for row, others in enumerate(layer.nearest):
        found = [other for other in others if other != row]
        assert all(person[other] != person[row] and sex[other] == sex[row] for other in found)
        allowed = [o for o in range(12) if person[o] != person[row] and sex[o] == sex[row]]
        assert len(found) == min(5, len(allowed))
    alone = np.array([11])
    np.testing.assert_array_equal(layer(PEOPLE[alone], [0, 0], rows=alone), PEOPLE[alone])
    with pytest.raises(ArgumentError, match="groups must have a label for each of the 12 images"):
        layer.adapt(PEOPLE, groups=person[:3])
