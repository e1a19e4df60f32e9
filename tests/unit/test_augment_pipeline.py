"""Layers one after the other, in the input pipeline and from a recipe."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

import kerasvae
from kerasvae.covariates import Covariates
from kerasvae.data.augment import (
    Augmentation,
    MixNeighbours,
    RandomAffine,
    RandomBlur,
    RandomElastic,
    RandomFlip,
    RandomGamma,
    RandomNoise,
    augmented,
    row_seeds,
)
from kerasvae.data.dataset import evaluation_dataset, training_dataset
from kerasvae.distributions import BernoulliLikelihood, CategoricalLikelihood, NormalLikelihood
from kerasvae.errors import ArgumentError, RecipeError
from kerasvae.preprocess import Pipeline
from kerasvae.training.augmentation import augmentation_of
from kerasvae.training.recipe import AugmentSection
from kerasvae.types import Grid

SPACING = (3.0, 4.0, 5.0)
SHAPE = (11, 9, 7)
MASK = ndimage.distance_transform_edt(np.pad(np.ones(np.subtract(SHAPE, 2), bool), 1)) > 1.5
IMAGES = np.where(MASK, np.random.default_rng(0).random((10, *SHAPE)), 0).astype("f4")
ROWS = np.arange(10)
SEEDS = row_seeds(3, 1, ROWS)
AFFINE, ELASTIC = RandomAffine(10, 3, 0.1, spacing_mm=SPACING), RandomElastic(2.0, 15.0, spacing_mm=SPACING)


def affine_of(drawn):
    turn = Rotation.from_euler("xyz", drawn["degrees"], degrees=True).as_matrix()
    spacing = np.array(SPACING)
    return turn @ np.diag(drawn["scale"]) * spacing / spacing[:, None], drawn["mm"] / spacing


def test_affine_and_elastic_are_one_interpolation():
    middle, spacing = (np.array(SHAPE) - 1) / 2, np.array(SPACING)
    u = ELASTIC.draw(SHAPE, ELASTIC.seeds_of(SEEDS, IMAGES)).numpy()
    changed = Augmentation([AFFINE, ELASTIC])(IMAGES, SEEDS).numpy()
    drawn = AFFINE.draw(AFFINE.seeds_of(SEEDS, IMAGES))
    for i in range(10):
        matrix, offset = affine_of({name: value[i].numpy().astype(float) for name, value in drawn.items()})
        there = np.indices(SHAPE) + u[i] / spacing.reshape(3, 1, 1, 1)
        away = (there - middle.reshape(3, 1, 1, 1)).reshape(3, -1)
        where = (matrix @ away + offset[:, None] + middle[:, None]).reshape(3, *SHAPE)
        expected = ndimage.map_coordinates(IMAGES[i].astype(float), where, order=1, mode="nearest")
        np.testing.assert_allclose(changed[i], expected, atol=2e-5)


def test_other_orders_are_one_layer_after_the_other():
    for layers in ([ELASTIC, AFFINE], [RandomBlur(8, spacing_mm=SPACING), RandomFlip(), AFFINE, RandomGamma(0.3)]):
        expected = IMAGES
        for layer in layers:
            expected = layer(expected, SEEDS)
        np.testing.assert_allclose(Augmentation(layers)(IMAGES, SEEDS), expected, atol=2e-6)


def test_two_layers_of_a_class_draw_for_themselves():
    noise = RandomNoise(1.0)
    once, twice = (Augmentation([noise] * n)(IMAGES, SEEDS).numpy() - IMAGES for n in (1, 2))
    assert abs(np.corrcoef(once.ravel(), (twice - once).ravel())[0, 1]) < 4 / np.sqrt(once.size)


def test_outside_of_the_mask_nothing_changes_and_nothing_comes_in():
    outside = np.where(MASK, IMAGES, np.nan).astype("f4")
    chain = Augmentation([AFFINE, ELASTIC, RandomBlur(8, spacing_mm=SPACING)], MASK)
    changed = chain(outside, SEEDS).numpy()
    assert np.isnan(changed[:, ~MASK]).all()
    inside = changed[:, MASK]
    assert (inside >= IMAGES[:, MASK].min(axis=1, keepdims=True) - 1e-6).all()
    assert (inside <= IMAGES[:, MASK].max(axis=1, keepdims=True) + 1e-6).all()
    assert np.abs(inside - IMAGES[:, MASK]).max() > 0.1
    # a shift beyond the mask meets the value of the nearest voxel in it
    slab = np.zeros((9, 3), bool)
    slab[2:5] = True
    ramp = np.where(slab, np.arange(9.0)[:, None], -99)[None].astype("f4")
    shift = RandomAffine(mm=3.0, spacing_mm=(1, 1))
    mm = shift.draw(shift.seeds_of([0, 1], ramp))["mm"].numpy()[0, 0]
    expected = np.where(slab, np.clip(np.arange(9) + mm, 2, 4)[:, None], -99)[None]
    np.testing.assert_allclose(Augmentation([shift], slab)(ramp, [0, 1]), expected, atol=1e-5)


def test_beyond_the_mask_of_a_skull_stripped_image_values_fade_to_black():
    slab = np.zeros((9, 3), bool)
    slab[2:5] = True
    image = np.where(slab, [[0], [0], [5], [2], [8], [0], [0], [0], [0]], -99)[None].astype("f4")
    shift = RandomAffine(mm=6.0, spacing_mm=(2, 1))
    steps = shift.draw(shift.seeds_of([0, 3], image))["mm"].numpy()[0, 0] / 2
    assert abs(steps) > 1  # so that something comes in from outside
    faded = [2 + 3 * np.exp(-4 / 3), 2 + 3 * np.exp(-2 / 3), 5, 2, 8, *(2 + 6 * np.exp(-2 * np.arange(1, 5) / 3))]
    expected = np.interp(np.arange(9) + steps, np.arange(9), faded)[:, None]
    chain = Augmentation([shift], slab, fade_mm=3.0, spacing_mm=(2, 1))
    np.testing.assert_allclose(chain(image, [0, 3])[0], np.where(slab, expected, -99), atol=1e-5)
    with pytest.raises(ArgumentError, match="spacing_mm must be given with fade_mm"):
        Augmentation([shift], slab, fade_mm=3.0)


def test_moments_and_range_are_kept():
    chain = Augmentation([AFFINE, RandomGamma(1.0), RandomNoise(0.3)], MASK, keep_moments=True)
    changed = chain(IMAGES, SEEDS).numpy()[:, MASK]
    np.testing.assert_allclose(changed.mean(axis=1), IMAGES[:, MASK].mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(changed.std(axis=1), IMAGES[:, MASK].std(axis=1), atol=1e-5)
    noisy, likelihood = RandomNoise(0.5), BernoulliLikelihood(MASK)
    likelihood.check(Augmentation([AFFINE, noisy], MASK, 0.0, 1.0)(IMAGES, SEEDS).numpy())
    with pytest.raises(ArgumentError):
        likelihood.check(Augmentation([AFFINE, noisy], MASK)(IMAGES, SEEDS).numpy())


def test_configuration_of_a_chain():
    chain = Augmentation(
        [MixNeighbours(0.5, 3), AFFINE, RandomNoise(0.1)],
        MASK,
        low=0.0,
        keep_moments=True,
        fade_mm=3,
        spacing_mm=SPACING,
    )
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(chain))
    assert again.get_config() == chain.get_config()
    with pytest.raises(ArgumentError, match="layers must begin with MixNeighbours"):
        Augmentation([AFFINE, MixNeighbours(0.5)])
    with pytest.raises(ArgumentError, match="low must be below high"):
        Augmentation([], low=1.0, high=0.0)
    with pytest.raises(ArgumentError, match="seed must be given"):
        Augmentation([AFFINE])(IMAGES)
    np.testing.assert_array_equal(Augmentation([RandomNoise()], MASK, 0.2, 0.3)(IMAGES), IMAGES)
    np.testing.assert_array_equal(Augmentation([AFFINE], MASK, 0.2, 0.3)(IMAGES, training=False), IMAGES)


def epochs_of(batch_size, first=0, seed=4, **more):
    """Images of each epoch by row, from a data set."""
    data = training_dataset(
        {"image": IMAGES, **more}, ROWS + 50, batch_size=batch_size, epochs=3, first_epoch=first, seed=seed,
        augmentation=CHAIN,
    )  # fmt: skip
    batches = list(data)
    image = np.concatenate([b["image"] for b in batches]).reshape(3 - first, *IMAGES.shape)
    row = np.concatenate([b["row"] for b in batches]).reshape(3 - first, 10) - 50
    return np.stack([e[np.argsort(r)] for e, r in zip(image, row, strict=True)])


MIX = MixNeighbours(0.5, 3)
MIX.adapt(IMAGES, MASK)
CHAIN = Augmentation([MIX, RandomFlip(), AFFINE, ELASTIC, RandomNoise(0.1)], MASK, 0.0, 1.0)


def test_training_sees_other_images_in_each_epoch_whenever_it_begins():
    whole = epochs_of(4)
    np.testing.assert_array_equal(epochs_of(4, first=1), whole[1:])
    np.testing.assert_allclose(epochs_of(3), whole, atol=2e-6)  # in other batches; the rounding may be another
    for epoch in whole:
        assert (np.abs(epoch - IMAGES)[:, MASK].max(axis=1) > 0.05).all()
    assert (np.abs(whole[0] - whole[1])[:, MASK].max(axis=1) > 0.05).all()
    assert np.abs(epochs_of(4, seed=5) - whole).max() > 0.05
    held_out = np.concatenate([b["image"] for b in evaluation_dataset({"image": IMAGES}, ROWS, batch_size=4)])
    np.testing.assert_array_equal(held_out, IMAGES)


def test_augmented_copies_are_the_epochs_of_a_training():
    copies = augmented(IMAGES, CHAIN, 3, seed=4, batch_size=7)
    np.testing.assert_allclose(copies.reshape(3, *IMAGES.shape), epochs_of(4), atol=2e-6)
    np.testing.assert_array_equal(kerasvae.augmented(IMAGES, RandomFlip(1), 1), IMAGES[:, ::-1])
    with pytest.raises(ArgumentError, match="copies must be 1 or more"):
        augmented(IMAGES, CHAIN, 0)


GRID = Grid.of(SHAPE, np.array([[3, 0, 0, -15], [0, 4, 0, -16], [0, 0, 5, -15], [0, 0, 0, 1]]), "native")
PIPELINE = Pipeline(grid=GRID, mask=MASK, intensity={"kind": "range"})
EVERYTHING = AugmentSection(
    mix={"share": 0.5}, flip=True, affine={"degrees": 5, "mm": 2, "scale": 0.05}, elastic={"mm": 1}, gamma=0.2,
    bias_field={"strength": 0.1}, blur_fwhm_mm=4, noise=0.1,
)  # fmt: skip


def recipe_with(section=None, skull_stripped=True):
    return SimpleNamespace(augment=section or AugmentSection(), pipeline=SimpleNamespace(skull_stripped=skull_stripped))


def model_with(likelihood, covariates=None):
    return SimpleNamespace(likelihood=likelihood, covariates=covariates)


def test_a_recipe_s_layers():
    names = [f"sub-{n}" for n in range(10)]
    model = model_with(BernoulliLikelihood(MASK))
    assert augmentation_of(recipe_with(), PIPELINE, model, {"image": IMAGES}, names) is None
    chain = augmentation_of(recipe_with(EVERYTHING), PIPELINE, model, {"image": IMAGES}, names)
    assert [type(layer).__name__ for layer in chain.layers] == [
        "MixNeighbours", "RandomFlip", "RandomAffine", "RandomElastic", "RandomGamma", "RandomBiasField", "RandomBlur",
        "RandomNoise",
    ]  # fmt: skip
    assert chain.layers[2].get_config()["spacing_mm"] == [3, 4, 5]
    assert chain.layers[7].stddev == pytest.approx(IMAGES[:, MASK].std(), rel=1e-5)
    changed = chain(IMAGES, SEEDS, rows=ROWS).numpy()
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert (changed[:, ~MASK] == 0).all()
    noisy = augmentation_of(recipe_with(AugmentSection(noise=1)), PIPELINE, model, {"image": IMAGES}, names)
    extremes = noisy(IMAGES, SEEDS).numpy()[:, MASK]
    assert (extremes.min(), extremes.max()) == (IMAGES[:, MASK].min(), IMAGES[:, MASK].max())
    one = augmentation_of(
        recipe_with(AugmentSection(flip=True), skull_stripped=False), PIPELINE, model, {"image": IMAGES}, names
    )
    assert [type(layer) for layer in one.layers] == [RandomFlip]
    assert (one.keep_moments, one.fade_mm, chain.fade_mm) == (False, None, 3)
    zscore = Pipeline(grid=GRID, mask=MASK, intensity={"kind": "zscore"})
    model = model_with(NormalLikelihood(mask=MASK))
    assert augmentation_of(recipe_with(EVERYTHING), zscore, model, {"image": IMAGES}, names).keep_moments


def test_people_are_mixed_within_categories_and_never_with_themselves():
    table = {"sex": ["f"] * 5 + ["m"] * 5, "age": [str(20 + 3 * n) for n in range(10)]}
    covariates = Covariates.fit(table)
    inputs = {"image": IMAGES, "covariates": covariates.matrix(table)}
    model, people = model_with(NormalLikelihood(mask=MASK), covariates), np.arange(10) // 2
    chain = augmentation_of(recipe_with(AugmentSection(mix={"share": 0.5})), PIPELINE, model, inputs, people)
    for row, others in enumerate(chain.layers[0].nearest):
        assert set(others) - {row} == {o for o in range(10) if o // 5 == row // 5 and o // 2 != row // 2}
    batch = next(iter(training_dataset(inputs, ROWS, batch_size=10, epochs=1, seed=0, augmentation=chain)))
    sex, age = batch["covariates"].numpy().T
    np.testing.assert_array_equal(sex, inputs["covariates"][batch["row"].numpy(), 0])
    assert (age != inputs["covariates"][batch["row"].numpy(), 1]).sum() >= 9


def test_what_a_grid_or_a_likelihood_does_not_allow():
    names = [f"sub-{n}" for n in range(10)]
    beside = Pipeline(grid=Grid.of(SHAPE, np.diag([3.0, 4, 5, 1]), "native"), intensity={"kind": "range"})
    flip = AugmentSection(flip=True)
    with pytest.raises(RecipeError, match=r"augment\.flip must be false on a grid .* its middle at 15 mm"):
        augmentation_of(recipe_with(flip), beside, model_with(NormalLikelihood()), {"image": IMAGES}, names)
    labels = model_with(CategoricalLikelihood(3))
    images = {"image": np.random.default_rng(0).integers(0, 3, IMAGES.shape).astype("f4")}
    assert augmentation_of(recipe_with(flip), PIPELINE, labels, images, names) is not None
    with pytest.raises(RecipeError, match="augment must leave values that the likelihood 'categorical' takes"):
        augmentation_of(recipe_with(EVERYTHING), PIPELINE, labels, images, names)
