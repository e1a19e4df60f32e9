"""Refinement by a voxel's surroundings, cores of people left out, and training on them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy.signal import correlate

from kerasvae import VAE, NormalLikelihood
from kerasvae.errors import ArgumentError, RecipeError
from kerasvae.networks import Refine, SmoothPrior, fit_core, linear_start, use_core
from kerasvae.training.build import build_model
from kerasvae.training.callbacks import Schedules
from kerasvae.training.cross_fit import CrossFit
from kerasvae.training.recipe import parse_recipe

RNG = np.random.default_rng(3)
SHAPE = (6, 7, 5)
MASK = np.zeros(SHAPE, bool)
MASK[1:5, 2:6, 1:4] = True
MASK[1, 2, 1] = False
BOXED = MASK[:, 1:7]


def people(count=24, shape=SHAPE, rank=4, seed=0):
    rng = np.random.default_rng(seed)
    axes = rng.standard_normal((rank, *shape))
    return (1 + np.tensordot(rng.standard_normal((count, rank)), axes, 1)).astype("f4") + 0.1 * rng.standard_normal(
        (count, *shape)
    ).astype("f4")


def bias_of(decoder):
    """The mean image of the decoder's line, in the mask; the line ends in the mask's box and a voxel around it."""
    return decoder.get_layer("linear_decoder").get_weights()[1].reshape(BOXED.shape)[BOXED]


def made(filters=(4, 3), seed=1):
    layer = Refine(SHAPE, filters, activation="relu")
    layer.build((None, *SHAPE))
    rng = np.random.default_rng(seed)
    mean, stddev = rng.standard_normal(SHAPE).astype("f4"), rng.uniform(0.5, 2, SHAPE).astype("f4")
    layer.set_maps(mean, stddev, MASK)
    for weight in layer.trainable_variables:
        weight.assign(rng.standard_normal(weight.shape))
    return layer, mean, stddev


def by_hand(layer, mean, stddev, x):
    """The same by scipy, voxel by voxel sums over the whole grid, zeros around it."""
    unit = stddev[MASK].mean()
    deviation = np.where(MASK, (x - mean) / unit, 0)
    relative = np.where(MASK, stddev / unit, 0)
    contrast = np.where(MASK, (mean - mean[MASK].mean()) / mean[MASK].std(), 0)
    maps = np.stack([deviation, deviation / (relative + 0.05), contrast, relative, MASK])
    layers = (layer.first, *layer.hidden, layer.last)
    (w, b), (w2, b2), (w3, b3) = ([np.asarray(v) for v in each.weights] for each in layers)
    hidden = [
        sum(correlate(maps[i], w[..., i, o], mode="same", method="direct") for i in range(5)) + b[o] for o in range(4)
    ]
    hidden = np.maximum(hidden, 0)
    hidden = np.maximum(np.einsum("ixyz,io->oxyz", hidden, w2) + b2[:, None, None, None], 0)
    correction = np.einsum("ixyz,io->xyz", hidden, w3) + b3
    return x + correction * MASK * unit


def test_a_correction_is_that_of_two_layers_by_hand():
    layer, mean, stddev = made()
    x = RNG.standard_normal((2, *SHAPE)).astype("f4")
    expected = np.stack([by_hand(layer, mean, stddev, image) for image in x])
    got = np.asarray(layer(x))
    assert abs(expected - x)[:, MASK].max() > 1
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got[:, ~MASK], x[:, ~MASK])


@pytest.mark.parametrize("shape", [(9,), (6, 5), (4, 5, 6)])
def test_at_first_nothing_is_corrected_whatever_the_number_of_axes(shape):
    layer = Refine(shape)
    x = RNG.standard_normal((3, *shape)).astype("f4")
    np.testing.assert_array_equal(np.asarray(layer(x)), x)


def test_a_refinement_is_restored_from_its_file(tmp_path):
    layer, *_ = made()
    image = keras.Input(SHAPE)
    model = keras.Model(image, layer(image))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    x = RNG.standard_normal((2, *SHAPE)).astype("f4")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    assert abs(model.predict(x, verbose=0) - x).max() > 0


@pytest.mark.parametrize(
    ("arguments", "says"), [(((2, 2, 2, 2),), "one to three axes"), (((4, 4), None, ()), "at least one positive")]
)
def test_a_refinement_that_cannot_be(arguments, says):
    with pytest.raises(ArgumentError, match=says):
        Refine(*arguments)


@pytest.mark.parametrize("mirror", [False, True])
def test_the_core_without_a_fold_is_pca_of_the_others(mirror):
    images = people()
    found = fit_core(images, 3, MASK, mirror=mirror, cross_fit=True).left_out
    rows = np.concatenate([fold.rows for fold in found])
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(images)))
    assert len(found) == 5
    for fold in found:
        others = np.delete(images, fold.rows, axis=0)
        centred = others - others.mean(0)
        if mirror:  # a mirrored voxel from outside the mask keeps its own value
            turned = np.where(MASK & MASK[::-1], centred[:, ::-1], centred)
            centred = np.concatenate([centred, turned])
        expected = np.linalg.svd(centred[:, MASK].astype(float))[2][:3]
        np.testing.assert_allclose(fold.core.mean, others[:, MASK].mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(abs(fold.core.axes @ expected.T), np.eye(3), atol=1e-3)


def test_a_core_that_knows_everyone_cannot_cross_fit():
    with pytest.raises(ArgumentError, match="cross_fit=True"):
        CrossFit(fit_core(people(), 2, MASK), MASK, 8)


def test_a_group_is_left_out_as_a_whole():
    images, names = people(), np.repeat([f"sub-{i}" for i in range(12)], 2)
    for fold in fit_core(images, 2, MASK, groups=names, cross_fit=True).left_out:
        assert not set(names[fold.rows]) & set(np.delete(names, fold.rows))


def test_codes_of_a_fold_are_turned_towards_those_of_all():
    images = people()
    core = fit_core(images, 4, MASK, cross_fit=True)
    scale = np.sqrt(core.eigenvalues - core.noise_variance)[:, None]
    for fold in core.left_out:
        turn = fold.core.rotation
        np.testing.assert_allclose(turn @ turn.T, np.eye(4), atol=1e-5)
        distance = np.linalg.norm(turn @ (scale * fold.core.axes) - scale * core.axes)
        for other in (np.eye(4), -np.eye(4), np.linalg.qr(RNG.standard_normal((4, 4)))[0]):
            assert distance <= np.linalg.norm(other @ (scale * fold.core.axes) - scale * core.axes) + 1e-6


def test_another_core_is_put_in_and_the_first_put_back():
    images = people()
    core = fit_core(images, 3, MASK, cross_fit=True)
    encoder, decoder = linear_start(None, None, core, MASK, refine=(4,))
    model = VAE(encoder, decoder, likelihood=NormalLikelihood(mask=MASK))
    before = model.reconstruct(images)
    fold = core.left_out[0]
    use_core(encoder, decoder, fold.core, MASK)
    x = images[:, MASK]
    axes = fold.core.axes.astype(float)
    shrunk = (1 - core.noise_variance / core.eigenvalues)[:, None] * axes
    expected = fold.core.mean + (x - fold.core.mean) @ axes.T @ shrunk
    np.testing.assert_allclose(model.reconstruct(images)[:, MASK], expected, atol=1e-3)
    assert abs(expected - before[:, MASK]).max() > 0.01
    use_core(encoder, decoder, core, MASK)
    np.testing.assert_array_equal(model.reconstruct(images), before)


def test_a_start_without_networks_needs_a_shape():
    core = fit_core(people(), 2)
    with pytest.raises(ArgumentError, match="data_shape"):
        linear_start(None, None, core)


def test_each_person_is_met_with_a_core_that_does_not_know_them():
    images = people(17)
    core = fit_core(images, 2, MASK, cross_fit=True)
    encoder, decoder = linear_start(None, None, core, MASK, refine=(4,))
    model = VAE(encoder, decoder, likelihood=NormalLikelihood(mask=MASK))
    model.compile(keras.optimizers.Adam(1e-2))
    cross_fit = CrossFit(core, MASK, batch_size=3)
    means = {fold.core.mean.tobytes(): set(fold.rows) for fold in core.left_out}
    data = cross_fit.dataset(images, epochs=2, seed=5)
    batches = [set(batch["row"].numpy().tolist()) for batch in data]
    assert len(batches) == 2 * len(cross_fit.fold_of_batch)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            bias = bias_of(self.model.decoder)
            seen.append(means[bias.tobytes()])

        def on_test_begin(self, logs=None):
            bias = bias_of(self.model.decoder)
            np.testing.assert_array_equal(bias, core.mean)

    model.fit(
        data,
        epochs=2,
        steps_per_epoch=len(cross_fit.fold_of_batch),
        validation_data=images,
        callbacks=[cross_fit, Watch()],
        shuffle=False,
        verbose=0,
    )
    assert len(seen) == len(batches)
    for batch, known_to_be_left_out in zip(batches, seen, strict=True):
        assert batch <= known_to_be_left_out
    for epoch in np.split(np.array([len(batch) for batch in batches]), 2):
        assert epoch.sum() == 17
    np.testing.assert_array_equal(bias_of(decoder), core.mean)


def test_a_correction_that_is_there_is_learned_and_helps_new_people():
    """Voxels of people are bent, x = l + l² / 4, which no line expresses; few are enough to learn it."""
    rng = np.random.default_rng(0)
    axes = rng.standard_normal((2, *SHAPE))
    line = np.tensordot(rng.standard_normal((90, 2)), axes, 1)
    images = (line + line**2 / 4 + 0.05 * rng.standard_normal(line.shape)).astype("f4")
    learn, new = images[:60], images[60:]
    core = fit_core(learn, 2, MASK, cross_fit=True)
    encoder, decoder = linear_start(None, None, core, MASK, refine=(8, 8))
    likelihood = NormalLikelihood(mask=MASK)
    likelihood.set_sigma(core.noise_variance**0.5)
    model = VAE(encoder, decoder, likelihood=likelihood)
    model.compile(keras.optimizers.Adam(1e-2))
    error = lambda: np.square(model.reconstruct(new) - new)[:, MASK].mean()  # noqa: E731
    before = error()
    cross_fit = CrossFit(core, MASK, 8)
    steps = len(cross_fit.fold_of_batch)
    data = cross_fit.dataset(learn, epochs=20)
    keras.utils.set_random_seed(0)
    model.fit(data, epochs=20, steps_per_epoch=steps, callbacks=[cross_fit], shuffle=False, verbose=0)
    assert error() < 0.7 * before


def test_the_learning_rate_follows_its_schedule():
    recipe = parse_recipe(
        {"pipeline": {"intensity": {"kind": "zscore"}}, "training": {"decay": "cosine", "learning_rate": 0.5}}, "here"
    )
    images = people(6)
    model = VAE(*linear_start(None, None, fit_core(images, 2), data_shape=SHAPE, refine=(2,)))
    model.compile(keras.optimizers.Adam(0.5))
    rates = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            rates.append(float(self.model.optimizer.learning_rate))

    model.fit(images, batch_size=3, epochs=2, callbacks=[Schedules(4, recipe.schedules()), Watch()], verbose=0)
    np.testing.assert_allclose(rates, 0.25 * (1 + np.cos(np.pi * np.arange(4) / 4)), rtol=1e-5)
    assert recipe.first_candidate() == 0


def test_nothing_is_refined_without_a_linear_start():
    content = {"pipeline": {"intensity": {"kind": "zscore"}}, "model": {"network": "refine", "start": "random"}}
    with pytest.raises(RecipeError, match="nothing to refine"):
        build_model(parse_recipe(content, "here"), people(4), None)


def test_a_core_with_a_belief_leaves_people_out_too():
    images = people(20)
    options = {"prior": SmoothPrior("variance", 8.0, 0.5), "spacing_mm": (4.0, 4.0, 4.0)}
    core, plain = (fit_core(images, 3, MASK, cross_fit=True, **each) for each in (options, {}))
    for fold, other in zip(core.left_out, plain.left_out, strict=True):
        np.testing.assert_allclose(fold.core.axes @ fold.core.axes.T, np.eye(3), atol=1e-3)
        angle = np.linalg.svd(fold.core.axes @ other.core.axes.T)[1]
        assert angle.min() < 0.999  # the belief has a say
        assert fold.core.eigenvalues is core.eigenvalues
