"""The model in Keras's hands: fit, save, refuse, resume, and a user's own networks."""

import json

import keras
import numpy as np
import pytest

from kerasvae.distributions import NormalLikelihood
from kerasvae.errors import ArgumentError, ModelError, NonFiniteError
from kerasvae.models import VAE
from kerasvae.networks import conv_decoder, conv_encoder, dense_decoder, dense_encoder
from kerasvae.objectives import ELBO

RNG = np.random.default_rng(3)
SHAPE = (8, 9, 7)


def images(people=12, shape=SHAPE):
    factors = RNG.standard_normal((people, 2))
    patterns = RNG.standard_normal((2, *shape))
    return (np.tensordot(factors, patterns, 1) + 0.1 * RNG.standard_normal((people, *shape))).astype("f4")


def small(shape=SHAPE, latent=2, **options):
    return VAE(conv_encoder(shape, 2 * latent, (4, 8)), conv_decoder(shape, latent, (4, 8)), **options)


@pytest.mark.parametrize("shape", [SHAPE, (10, 9), (15,)])
def test_fit_lowers_the_loss_for_volumes_slices_and_vectors(shape):
    keras.utils.set_random_seed(0)
    x = images(16, shape)
    model = VAE(dense_encoder(shape, 4, (16,)), dense_decoder(shape, 2, (16,))) if len(shape) == 1 else small(shape)
    model.compile(keras.optimizers.Adam(3e-3))
    history = model.fit(x, epochs=12, batch_size=8, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert set(history) == {"loss", "elbo", "log_likelihood", "kl", "beta", "sigma"}
    assert model.reconstruct(x).shape == x.shape
    assert model.predict(x, verbose=0).shape == x.shape
    np.testing.assert_allclose(model.predict(x, verbose=0), model.reconstruct(x), atol=1e-5)


def test_evaluate_agrees_with_elbo_terms_and_is_deterministic():
    x, model = images(), small()
    model.compile()
    first = model.evaluate(x, batch_size=4, verbose=0, return_dict=True)
    assert first == model.evaluate(x, batch_size=4, verbose=0, return_dict=True)
    terms = model.elbo(x)
    assert first["kl"] == pytest.approx(terms["kl"].mean(), rel=1e-5)
    np.testing.assert_allclose(terms["elbo"], terms["log_likelihood"] - terms["kl"], rtol=1e-5)
    np.testing.assert_allclose(terms["kl_per_dimension"].sum(1), terms["kl"], rtol=1e-5)


def test_batch_size_does_not_change_terms():
    x, model = images(), small()
    np.testing.assert_allclose(model.elbo(x, batch_size=3)["kl"], model.elbo(x, batch_size=12)["kl"], rtol=1e-4)
    np.testing.assert_allclose(model.encode(x, 3)["mean"], model.encode(x, 12)["mean"], atol=1e-5)


@pytest.mark.parametrize("trained", [False, True])
def test_keras_file_round_trip(tmp_path, trained):
    x = images()
    mask = RNG.random(SHAPE) < 0.5
    model = small(likelihood=NormalLikelihood(mask=mask), objective=ELBO(beta=0.5), seed=7)
    model.compile(keras.optimizers.Adam(1e-3))
    if trained:
        model.fit(x, epochs=2, batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(again, VAE)
    assert json.dumps(again.get_config()) == json.dumps(model.get_config())  # JSON has no tuples
    np.testing.assert_array_equal(again.likelihood.mask, mask)
    np.testing.assert_array_equal(again.reconstruct(x), model.reconstruct(x))
    assert float(again.likelihood.sigma()) == float(model.likelihood.sigma())
    np.testing.assert_array_equal(again.elbo(x)["elbo"], model.elbo(x)["elbo"])
    again.fit(x, epochs=1, verbose=0)


def test_config_round_trip():
    model = small(objective=ELBO(beta=0.25), seed=3)
    assert VAE.from_config(model.get_config()).get_config() == model.get_config()


def test_a_users_own_networks_work_unchanged(tmp_path):
    encoder = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(8, "relu"), keras.layers.Dense(6)])
    decoder = keras.Sequential([keras.Input((3,)), keras.layers.Dense(30), keras.layers.Reshape((5, 6))])
    model = VAE(encoder, decoder, data_shape=(5, 6))
    x = images(10, (5, 6))
    model.compile("adam")
    model.fit(x, epochs=1, verbose=0)
    model.save(tmp_path / "own.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "own.keras").reconstruct(x), model.reconstruct(x))


def test_same_seed_same_training():
    x = images()

    def trained():
        keras.utils.set_random_seed(5)
        model = small(seed=5)
        model.compile(keras.optimizers.Adam(1e-3))
        model.fit(x, epochs=2, batch_size=4, verbose=0)
        return model.encode(x)["mean"]

    np.testing.assert_allclose(trained(), trained(), atol=1e-6)


def test_draws_from_the_prior_are_seeded():
    model = small()
    np.testing.assert_array_equal(model.sample(3, seed=1), model.sample(3, seed=1))
    assert not np.array_equal(model.sample(3, seed=1), model.sample(3, seed=2))


def test_non_finite_input_stops_at_once_and_names_step_term_and_rows():
    x = images(12)
    x[7, 0, 0, 0] = np.nan
    model = small()
    model.compile(keras.optimizers.Adam(1e-3))
    with pytest.raises(NonFiniteError, match=r"step \d+ for rows \[7\] of the cohort"):
        model.fit(x, epochs=2, batch_size=4, shuffle=False, verbose=0)
    # nothing was poisoned: the bad step was not applied
    assert all(np.isfinite(variable).all() for variable in model.get_weights())
    assert int(model.optimizer.iterations) == 1
    x[7] = 0
    model.fit(x, epochs=1, verbose=0)


@pytest.mark.parametrize("term", ["log_likelihood", "kl"])
def test_the_term_that_broke_is_named_not_the_sum(term):
    model = small()
    model.compile(keras.optimizers.Adam(1e-3))
    if term == "kl":  # a posterior mean so large that its square overflows, while the image stays finite
        model.encoder.get_layer("parameters").bias.assign([1e20, 0, 0, 0])
        for weight in model.decoder.weights:
            weight.assign(0 * weight)
        x = images()
    else:
        x = images()
        x[0] = 1e30
    with pytest.raises(NonFiniteError, match=f"The loss term '{term}'"):
        model.fit(x, epochs=1, verbose=0)


def test_a_network_that_cannot_tell_its_shape_is_tried():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.flatten, self.dense = keras.layers.Flatten(), keras.layers.Dense(4)

        def call(self, x):
            return self.dense(self.flatten(x))

    model = VAE(Subclassed(), conv_decoder(SHAPE, 2, (4, 8)), data_shape=SHAPE)
    assert model.encode(images())["mean"].shape == (12, 2)


def test_mixed_precision_keeps_terms_in_float32():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = small()
        model.compile(keras.optimizers.Adam(1e-3))
        history = model.fit(images(), epochs=2, verbose=0).history
        assert np.isfinite(history["loss"]).all()
        assert model.elbo(images())["elbo"].dtype == np.float32
        assert model.encoder.compute_dtype == "bfloat16"
    finally:
        keras.mixed_precision.set_global_policy("float32")


def test_misfits_are_refused_with_the_numbers():
    with pytest.raises(ModelError, match=r"\(batch, 4\).*\(batch, 5\)"):
        VAE(conv_encoder(SHAPE, 5), conv_decoder(SHAPE, 2))
    with pytest.raises(ModelError, match="mask"):
        small(likelihood=NormalLikelihood(mask=np.ones((2, 2), bool)))
    with pytest.raises(ArgumentError, match="loss"):
        small().compile("adam", loss="mse")
    with pytest.raises(ArgumentError, match=r"n, 8, 9, 7"):
        small().reconstruct(np.zeros(SHAPE))
    with pytest.raises(ArgumentError, match="beta"):
        small(objective=ELBO(beta=-1))


def test_a_model_that_was_not_compiled_can_be_saved(tmp_path):
    model, x = small(), images()
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again.reconstruct(x), model.reconstruct(x))
    assert not again.compiled
