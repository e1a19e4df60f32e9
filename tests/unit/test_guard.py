"""The guard on tiny models that are really trained: each ailment is provoked, named once, and treated."""

import json
import warnings
from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasvae import VAE, CollapseGuard, NormalLikelihood, dense_decoder, dense_encoder, fit_core, linear_start
from kerasvae.errors import ArgumentError, CollapseWarning
from kerasvae.objectives import ELBO, FreeBits
from kerasvae.training.callbacks import Checkpoint, EpochProgress, Schedules
from kerasvae.training.remedied import Remedied
from kerasvae.training.remedy import Condition, Remedy, prescribe, replayed
from kerasvae.training.schedules import Constant, Linear

SHAPE, VOXELS = (6, 5), 30


def people(n, seed, spread=(2.0, 1.0, 1.0, 0.7), noise=0.1):
    """Images that differ from a common mean along four patterns."""
    rng, patterns = np.random.default_rng(seed), np.random.default_rng(99).standard_normal((4, *SHAPE))
    codes = rng.standard_normal((n, 4)) * spread
    images = 0.2 + 0.25 * np.einsum("nk,kxy->nxy", codes, patterns) + noise * rng.standard_normal((n, *SHAPE))
    return images.astype("f4")


TRAIN, HELD_OUT = people(64, 0), people(16, 1)


def vae(size=4, rate=1e-2, objective=None, scale="optimal", stddev=1.0, units=(32,)):
    keras.utils.set_random_seed(1)
    encoder, decoder = dense_encoder(SHAPE, 2 * size, units), dense_decoder(SHAPE, size, units)
    likelihood = NormalLikelihood(scale=scale, stddev=stddev)
    model = VAE(encoder, decoder, likelihood=likelihood, objective=objective or ELBO())
    model.compile(keras.optimizers.Adam(rate))
    return model


def textbook(**options):
    return vae(scale="fixed", stddev=np.sqrt(VOXELS / 2), **options)


def fit(model, guard, epochs, *others, x=TRAIN, batch=16, **options):
    return model.fit(x, epochs=epochs, batch_size=batch, verbose=0, callbacks=[guard, *others], **options).history


def told(call):
    """What was warned of, by name of the ailment."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CollapseWarning)
        call()
    return [str(each.message) for each in caught if each.category is CollapseWarning]


def test_healthy_training_is_left_alone():
    core = fit_core(TRAIN, 4)
    encoder, decoder = linear_start(dense_encoder(SHAPE, 8, (8,)), dense_decoder(SHAPE, 4, (8,)), core)
    model = VAE(encoder, decoder)
    model.likelihood.set_sigma(core.noise_variance**0.5)
    model.compile(keras.optimizers.Adam(1e-4))
    guard = CollapseGuard(HELD_OUT, TRAIN, action="remedy", patience=2)
    fit(model, guard, 6)  # warnings are errors
    assert len(guard.diagnoses) == 7
    assert [each.level for entry in guard.diagnoses for each in entry.diagnoses if each.level != "note"] == []
    assert guard.remedies == []


def test_dimensions_that_a_linear_start_leaves_out_are_no_ailment():
    few = people(4, 0)  # they span three dimensions
    core = fit_core(few, 8)
    encoder, decoder = linear_start(dense_encoder(SHAPE, 16, (8,)), dense_decoder(SHAPE, 8, (8,)), core)
    model = VAE(encoder, decoder)
    model.likelihood.set_sigma(0.2)
    model.compile(keras.optimizers.Adam(1e-5))
    inactive = int((model.encode(HELD_OUT)["mean"].var(axis=0) <= 0.01).sum())
    assert 5 <= inactive < 8
    guard = CollapseGuard(HELD_OUT, few, patience=1)
    fit(model, guard, 2, x=few)
    (found,) = guard.diagnoses[-1].diagnoses
    assert (found.name, found.level) == ("posterior collapse", "note")
    assert f"{inactive} of 8 dimensions are inactive, which the start left out" in found.text


def test_mean_brain_trap_by_the_loss_of_the_textbooks():
    guard = CollapseGuard(HELD_OUT, TRAIN, patience=3)
    warned = told(lambda: fit(textbook(), guard, 20))
    assert guard.ailments[:2] == ("mean-brain trap", "posterior collapse")
    assert sum("Mean-brain trap" in text for text in warned) == 1
    assert sum("Over-regularised" in text for text in warned) == 1
    last = guard.diagnoses[-1].figures
    # the residual is all variance between people, the scale 30 / 2
    assert last.effective_beta == pytest.approx(15 / HELD_OUT.var(axis=0).mean(), rel=0.2)
    first = next(entry.epoch for entry in guard.diagnoses if entry.lasting)
    assert all("mean-brain trap" in entry.lasting for entry in guard.diagnoses if entry.epoch >= first)


def test_posterior_collapse_of_the_dimensions_that_the_decoder_does_not_hear():
    keras.utils.set_random_seed(1)
    z = keras.Input((4,))
    decoder = keras.Model(z, keras.layers.Reshape(SHAPE)(keras.layers.Dense(VOXELS)(z[:, :1])))
    model = VAE(dense_encoder(SHAPE, 8, (8,)), decoder)
    model.compile(keras.optimizers.Adam(2e-2))
    guard = CollapseGuard(HELD_OUT, TRAIN, patience=3)
    warned = told(lambda: fit(model, guard, 20))
    (collapse,) = [text for text in warned if "Posterior collapse in part" in text]
    assert "posterior collapse" in guard.ailments
    assert "3 of 4 dimensions are inactive" in collapse
    assert [kl > 0.1 for kl in guard.diagnoses[-1].figures.kl_per_dimension] == [True, False, False, False]


def test_over_regularised():
    guard = CollapseGuard(HELD_OUT, TRAIN, patience=3)
    warned = told(lambda: fit(vae(objective=ELBO(beta=6.0)), guard, 20))
    assert guard.ailments == ("over-regularised",)
    assert any("the effective beta is 6" in text for text in warned)


def test_under_regularised():
    guard = CollapseGuard(10 * HELD_OUT, 10 * TRAIN, patience=3)
    warned = told(lambda: fit(vae(objective=ELBO(beta=0.0)), guard, 10, x=10 * TRAIN))
    assert "under-regularised" in guard.ailments
    assert any("Under-regularised: the effective beta is 0, and the codes" in text for text in warned)


def test_a_rising_beta_is_not_judged():
    guard = CollapseGuard(HELD_OUT, TRAIN, patience=3)
    fit(vae(), guard, 8, Schedules(8 * 4, {"beta": Linear(0.0, 1.0)}))
    assert not any(each.name == "under-regularised" for entry in guard.diagnoses for each in entry.diagnoses)


def test_overfitted():
    few, others = people(4, 0, noise=0.5), people(16, 1, noise=0.5)
    guard = CollapseGuard(others, few, patience=3, action="remedy")
    model = vae(rate=2e-2)
    warned = told(lambda: fit(model, guard, 30, x=few, batch=2))
    assert any("Overfitted: since epoch" in text for text in warned)
    treated = [remedy for remedy in guard.remedies if remedy.against == "overfitted"]
    assert treated
    assert treated[0].learning_rate == (pytest.approx(2e-2), pytest.approx(6e-3))
    assert float(model.optimizer.learning_rate) <= 6e-3 * 1.0001


def test_stop():
    model, guard = textbook(), CollapseGuard(HELD_OUT, TRAIN, action="stop", patience=4)
    told(lambda: fit(model, guard, 200))
    assert len(guard.diagnoses) < 100
    assert guard.stopped.startswith(f"Stopped after epoch {guard.diagnoses[-1].epoch}: Mean-brain trap")


def test_remedy_leads_out_of_the_trap():
    model, guard = textbook(), CollapseGuard(HELD_OUT, TRAIN, action="remedy", patience=3)
    schedule = Schedules(36 * 4, {"beta": Constant(1.0)})
    logs = {}
    told(lambda: logs.update(fit(model, guard, 36, schedule)))
    (remedy,) = guard.remedies
    assert (remedy.against, remedy.restart) == ("mean-brain trap", True)
    # β such that the KL counts as in the ELBO with PCA's residual
    share = 1 - logs["val_explained_variance_pca"][-1]
    pca_residual = share * np.square(HELD_OUT - TRAIN.mean(0)).mean()
    assert remedy.numbers["beta"] == (0.0, pytest.approx(pca_residual / 15, rel=0.01))
    begun = remedy.epoch
    assert logs["beta"][begun - 1] == 1
    # the last of four steps of the fifth and last epoch of the ramp, and then for good, whatever the schedule says
    assert logs["beta"][begun + 4] == pytest.approx(remedy.numbers["beta"][1] * (4 + 3 / 4) / 5, rel=1e-4)
    np.testing.assert_allclose(logs["beta"][begun + 5 :], remedy.numbers["beta"][1], rtol=1e-6)
    assert guard.ailments == ()
    assert logs["val_identification"][-1] > 0.8
    assert logs["val_explained_variance"][-1] > 0.5 * logs["val_explained_variance_pca"][-1]


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_interrupted_and_resumed_ends_bit_equal(tmp_path, cut, whole_training):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch + 1 == cut:
                raise KeyboardInterrupt

    whole, expected, best = whole_training
    model = textbook()
    guard, checkpoint = parts(tmp_path, model)
    with pytest.raises(KeyboardInterrupt):
        told(lambda: fit(model, guard, 14, checkpoint, Stop(), shuffle=False))
    # what was written for an epoch whose checkpoint was not is forgotten
    content = json.loads((tmp_path / "guard.json").read_text())
    content["epochs"].append({**content["epochs"][-1], "epoch": cut + 1})
    (tmp_path / "guard.json").write_text(json.dumps(content))
    model = textbook()
    guard, checkpoint = parts(tmp_path, model)
    done = checkpoint.restore()
    guard.restore(done)
    assert done == cut == guard.diagnoses[-1].epoch
    told(lambda: fit(model, guard, 14, checkpoint, shuffle=False, initial_epoch=done))
    for a, b in zip(whole, model.variables, strict=True):
        np.testing.assert_array_equal(a, np.asarray(b))
    assert json.loads((tmp_path / "guard.json").read_text()) == expected
    assert checkpoint.best_epoch == best


def parts(folder, model):
    guard = CollapseGuard(HELD_OUT, TRAIN, action="remedy", patience=3, path=folder / "guard.json")
    checkpoint = Checkpoint(folder / "checkpoint", patience=8, first_candidate=0, settled=lambda: guard.settled)
    guard.set_model(model)
    checkpoint.set_model(model)
    guard.keep_first()
    return guard, checkpoint


@pytest.fixture(scope="module")
def whole_training(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("whole"), textbook()
    guard, checkpoint = parts(folder, model)
    told(lambda: fit(model, guard, 14, checkpoint, shuffle=False))
    assert 1 < guard.remedies[0].epoch <= 4 < guard.settled, guard.remedies
    variables = [np.asarray(variable) for variable in model.variables]
    return variables, json.loads((folder / "guard.json").read_text()), checkpoint.best_epoch


def test_figures_of_the_logs(tmp_path):
    mask = np.zeros(SHAPE, bool)
    mask[1:, :4] = True
    names = [f"sub-{i // 2}" for i in range(16)]
    model = vae()
    guard = CollapseGuard(HELD_OUT, TRAIN, people=names, mask=mask, tensorboard=tmp_path)
    progress = []
    history = fit(model, guard, 2, EpochProgress(lambda n, text: progress.append(text), 4, 0, lambda: ["an ailment"]))
    last = {name: values[-1] for name, values in history.items()}
    x, r, mean = (images[..., mask] for images in (HELD_OUT, model.reconstruct(HELD_OUT), TRAIN.mean(0)))
    assert last["val_explained_variance"] == pytest.approx(1 - ((x - r) ** 2).sum() / ((x - mean) ** 2).sum(), rel=1e-4)
    assert last["val_variance_ratio"] == pytest.approx(r.var(0).sum() / x.var(0).sum(), rel=1e-4)
    nearest = np.linalg.norm(r[:, None] - x[None], axis=-1).argmin(1)
    assert last["val_identification"] == np.mean(nearest // 2 == np.arange(16) // 2)
    codes = model.encode(HELD_OUT)
    kl = 0.5 * (codes["mean"] ** 2 + codes["stddev"] ** 2 - 1 - 2 * np.log(codes["stddev"]))
    for dimension in range(4):
        assert last[f"val_kl_{dimension:02d}"] == pytest.approx(kl[:, dimension].mean(), rel=1e-4)
    assert last["val_active_units"] == (codes["mean"].var(0) > 0.01).sum()
    assert 0 <= last["val_mutual_information"] <= np.log(16)
    _, _, residual = model.residual_terms(HELD_OUT)
    # all voxels: the likelihood has no mask; at the best σ² the exponent is a half a voxel
    best = -0.5 * VOXELS * (1 + np.log(2 * np.pi * residual.mean()))
    assert last["val_calibrated_elbo"] == pytest.approx(best - kl.sum(1).mean(), rel=1e-4)
    _, _, v = np.linalg.svd(TRAIN[:, mask] - mean, full_matrices=False)
    p = mean + (x - mean) @ v[:4].T @ v[:4]
    expected = 1 - ((x - p) ** 2).sum() / ((x - mean) ** 2).sum()
    assert history["val_explained_variance_pca"] == pytest.approx([expected] * 2, rel=1e-4)
    assert f"(PCA {expected:.3f})" in progress[-1]
    assert progress[-1].endswith(", an ailment")
    assert guard.count == 8
    events = {}
    for file in tmp_path.iterdir():
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "scalars"
                events[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    assert {name for name, _ in events} >= set(history)
    for name, values in history.items():
        assert [events[name, epoch] for epoch in (1, 2)] == pytest.approx(values, rel=1e-6), name


def test_people_are_examined_once_an_epoch_and_pca_is_fitted_once(monkeypatch):
    import kerasvae.training.guard as module

    calls, encoded = [], []
    real = module.pca_beside
    monkeypatch.setattr(module, "pca_beside", lambda *given: calls.append(1) or real(*given))
    model = vae()
    guard = CollapseGuard(HELD_OUT, TRAIN)
    fit(model, guard, 1)
    original = model._encoded
    monkeypatch.setattr(model, "_encoded", lambda image, *rest: encoded.append(len(image)) or original(image, *rest))
    guard.observe(2)
    assert sum(encoded) == len(HELD_OUT)
    fit(model, guard, 4, initial_epoch=2)
    assert len(calls) == 1
    assert [entry.epoch for entry in guard.diagnoses] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "level", "condition", "expected"),
    [
        # too dear: to the weight that fits, from 0; the learning rate is not to blame
        ("mean-brain trap", "problem", Condition(1.0, 1e-5, None, 1e-4), Remedy(7, "", True, {"beta": (0.0, 1e-5)})),
        ("mean-brain trap", "problem", Condition(1.0, 1.0, None, 1e-4),
         Remedy(7, "", True, {"beta": (0.0, 0.5)}, (1e-4, 1e-3))),
        ("mean-brain trap", "problem", Condition(1.0, 1.0, None, 1e-3), Remedy(7, "", True, {"beta": (0.0, 0.5)})),
        ("posterior collapse", "warning", Condition(None, 1.0, 0.1, 1e-3),
         Remedy(7, "", True, {"free_bits": (0.5, 0.5)})),
        ("posterior collapse", "warning", Condition(None, 1.0, 0.5, 1e-3),
         Remedy(7, "", True, {"free_bits": (1.0, 1.0)})),
        ("posterior collapse", "note", Condition(1.0, 1.0, None, 1e-3), None),
        ("over-regularised", "warning", Condition(6.0, 1.0, None, 1e-3), Remedy(7, "", False, {"beta": (0.0, 1.0)})),
        ("under-regularised", "warning", Condition(0.0, 0.2, None, 1e-3), Remedy(7, "", False, {"beta": (0.0, 0.2)})),
        ("overfitted", "warning", Condition(1.0, 1.0, None, 1e-3), Remedy(7, "", learning_rate=(1e-3, 3e-4))),
        ("overfitted", "warning", Condition(1.0, 1.0, None, None), None),
        ("mean-brain trap", "problem", Condition(None, 1.0, None, 1e-3), None),
    ],
)  # fmt: skip
def test_prescriptions(name, level, condition, expected):
    from dataclasses import replace

    from kerasvae.metrics import Diagnosis

    found = prescribe([Diagnosis(name, level, "", "")], condition, 7)
    if expected is not None:
        expected = replace(expected, against=name)
        if expected.learning_rate:
            expected = replace(expected, learning_rate=pytest.approx(expected.learning_rate))
        assert Remedy.from_config(json.loads(json.dumps(found.to_config()))) == found
        assert found.describe().endswith(".")
    assert found == expected


def test_free_bits_are_raised_in_training():
    guard = CollapseGuard(HELD_OUT, TRAIN, action="remedy", patience=2)
    model = textbook(objective=FreeBits(0.01))
    told(lambda: fit(model, guard, 20))
    assert guard.remedies[0].numbers == {"free_bits": (0.5, 0.5)}
    assert float(model.scheduled["free_bits"]) >= 0.5


def test_remedies_are_replayed_without_what_a_restart_threw_away():
    trap, slow = (
        Remedy(6, "mean-brain trap", True, {"beta": (0.0, 0.1)}),
        Remedy(9, "overfitted", False, {}, (1.0, 0.3)),
    )
    assert replayed([], 12) == (12, [])
    assert [each.epoch for each in replayed([trap, slow], 12)[1]] == [0, 3]
    assert replayed([trap, slow], 12)[0] == 6
    assert replayed([trap, slow], 4) == (4, [])
    model = vae(rate=1.0)
    epochs, again = replayed([trap, slow], 12)

    class Watch(keras.callbacks.Callback):
        seen: ClassVar[list] = []

        def on_train_batch_begin(self, batch, logs=None):
            self.seen.append((float(self.model.scheduled["beta"]), float(self.model.optimizer.learning_rate)))

    model.optimizer.learning_rate.assign(1e-3)
    model.fit(TRAIN, batch_size=16, epochs=epochs, verbose=0, callbacks=[Remedied(again), Watch()])
    beta, rate = np.array(Watch.seen).T
    np.testing.assert_allclose(beta, np.minimum(np.arange(24) / 4 / 5, 1) * 0.1, rtol=1e-5)
    np.testing.assert_allclose(rate, [1e-3] * 12 + [0.3] * 12, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"action": "cure"}, "action must be"),
        ({"patience": 0}, "patience and remedies must be at least 1 and 0"),
        ({"people": ["a"]}, "people must name 16 people"),
        ({"mask": np.ones((2, 2), bool)}, "mask must have shape"),
    ],
)
def test_refused(options, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        CollapseGuard(HELD_OUT, TRAIN, **options).set_model(vae())
