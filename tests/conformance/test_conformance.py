"""What every model must do: train, repeat itself, survive each format, and keep its terms in float32."""

import gc
import json

import keras
import numpy as np
import pytest

from kerasvae_export import export, verify
from kerasvae_serving import Engine
from tests.conformance.cases import CASES, rows


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request):
    """A case; of the module, so that all that is asked of one is asked before the next."""
    yield request.param
    keras.utils.clear_session()
    gc.collect()  # graphs hold each other: left alone they slow whatever follows


@pytest.fixture(scope="module")
def model(case):
    """A model after one epoch, which no test changes."""
    return trained(case)


def trained(case, epochs=1):
    keras.utils.clear_session()  # TensorFlow orders what it rewrites by names, and Keras counts them on
    keras.utils.set_random_seed(1)
    model = case.make(case.images())
    model.compile(keras.optimizers.Adam(3e-3))
    model.fit(case.inputs(), epochs=epochs, batch_size=4, shuffle=False, verbose=0)
    return model


def test_training_lowers_the_loss(case):
    keras.utils.set_random_seed(1)
    model = case.make(case.images())
    model.compile(keras.optimizers.Adam(3e-3))
    before = model.evaluate(case.inputs(), verbose=0, return_dict=True)["loss"]
    model.fit(case.inputs(), epochs=15, batch_size=4, verbose=0)
    assert model.evaluate(case.inputs(), verbose=0, return_dict=True)["loss"] < before


def test_same_seed_gives_the_same_model(case, model):
    for a, b in zip(model.variables, trained(case).variables, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=a.path)


def test_config_describes_the_model(model):
    again = type(model).from_config(model.get_config())
    assert json.dumps(again.get_config()) == json.dumps(model.get_config())
    assert [v.shape for v in again.variables] == [v.shape for v in model.variables]


def test_inference_is_deterministic_and_independent_of_the_batch(case, model):
    x = case.inputs(5, seed=1)
    np.testing.assert_array_equal(model.predict(x, verbose=0), model.predict(x, verbose=0))
    alone = np.concatenate([model.reconstruct(rows(x, slice(i, i + 1))) for i in range(5)])
    np.testing.assert_allclose(model.reconstruct(x), alone, atol=1e-5 * np.abs(alone).max())


def test_keras_file(case, model, tmp_path):
    x = case.inputs(5, seed=1)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.reconstruct(x), model.reconstruct(x))
    for name, value in model.elbo(x).items():
        np.testing.assert_array_equal(again.elbo(x)[name], value)
    for a, b in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=a.path)


def test_bundle(case, model, tmp_path):
    x = case.inputs(5, seed=1)
    export(model, None, tmp_path / "bundle", train_images=case.images())
    assert [check for check in verify(tmp_path / "bundle") if check.ok is False] == []
    engine = Engine(tmp_path / "bundle")
    given = x["image"], x.get("covariates")
    for name, value in model.encode(x).items():
        np.testing.assert_allclose(engine.encode(*given)[name], value, atol=1e-4 * np.abs(value).max())
    r = model.reconstruct(x)
    np.testing.assert_allclose(engine.reconstruct(*given), r, atol=1e-4 * np.abs(r).max())


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_terms_stay_float32_under_mixed_precision(case, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = case.make(case.images())
        model.compile(keras.optimizers.Adam(1e-3))
        history = model.fit(case.inputs(), epochs=2, batch_size=4, verbose=0).history
        terms = model.elbo(case.inputs())
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(history["loss"]).all()
    assert {value.dtype for value in terms.values()} == {np.dtype(np.float32)}
    assert model.reconstruct(case.inputs()).dtype == np.float32
    np.testing.assert_allclose(terms["elbo"], terms["log_likelihood"] - terms["kl"], rtol=1e-5)
    x = case.inputs()
    given = {"covariates": x["covariates"]} if "covariates" in x else {}
    again = model.decode(np.asarray(model.posterior.center(model.encode(x))), **given)
    np.testing.assert_allclose(model.reconstruct(x), again, atol=1e-2 * np.abs(again).max())
