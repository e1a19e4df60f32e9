"""The textbook recipe says in nats what textbooks write, and leaves everything else as it was."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from kerasvae import load_recipe, textbook
from kerasvae.errors import RecipeError
from kerasvae.training.build import build_model


@pytest.mark.parametrize("masked", [True, False])
def test_the_loss_is_the_voxel_mean_squared_error_and_the_kl(masked):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 5, 4, 3)).astype("f4")
    mask = rng.random((5, 4, 3)) > 0.5 if masked else None
    recipe = textbook(load_recipe("demo", ["model.latent_size=2", "model.filters=[2]", "model.core_prior=none"]))
    model = build_model(recipe, x, SimpleNamespace(mask=mask)).model
    losses, errors = [], []
    inside = np.ones(x.shape[1:], bool) if mask is None else mask
    for seed in (1, 2):
        draws, decoded = model.draws(x, tf.constant([seed, 0]), samples=1)
        losses.append(model.objective.terms(draws).loss.numpy())
        errors.append(np.square(x - decoded.numpy())[:, inside].mean(axis=1) + draws.kl.numpy())
    assert np.abs(errors[1] - errors[0]).min() > 1e-4
    np.testing.assert_allclose(losses[1] - losses[0], errors[1] - errors[0], atol=2e-4)


def test_everything_else_is_equal():
    recipe = load_recipe("t1-4mm", ["training.guard=remedy", "training.warm_up=0.2", "objective.kind=free_bits"])
    made = textbook(recipe)
    for section in ("cohort", "pipeline", "split"):
        assert getattr(made, section) == getattr(recipe, section)
    changed = {
        f"{section}.{key}"
        for section in ("model", "training", "objective")
        for key, value in getattr(made, section).model_dump().items()
        if value != getattr(recipe, section).model_dump()[key]
    }
    expected = {"model.start", "model.scale", "model.network", "training.decay", "objective.kind"}
    expected |= {f"training.{key}" for key in ("epochs", "patience", "learning_rate", "warm_up")}
    assert changed == expected
    assert (made.model.network, made.training.decay) == ("conv", "none")
    assert made.training.learning_rate == 1e-3
    assert made.training.guard == "remedy"


def test_voxel_means_have_no_linear_start():
    recipe = load_recipe("demo", ["model.scale=voxel_mean", "model.latent_size=2", "model.filters=[2]"])
    with pytest.raises(RecipeError, match=r"model\.scale must be one number"):
        build_model(recipe, np.zeros((3, 4, 4, 4), "f4"), SimpleNamespace(mask=None))
