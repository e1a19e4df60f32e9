"""Recipes: what is accepted, and the sentence that meets what is not."""

import pytest

from kerasvae import load_recipe
from kerasvae.errors import RecipeError
from kerasvae.training import shipped_recipes


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid_and_survive_writing(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name
    (tmp_path / "again.toml").write_text(recipe.to_toml())
    assert load_recipe(tmp_path / "again.toml") == recipe


def test_the_promised_recipes_are_shipped():
    assert {"demo", "t1-4mm", "gm-4mm"} <= set(shipped_recipes())


def test_settings_override():
    recipe = load_recipe("demo", ["training.epochs=3", "model.filters=[4, 8]", "cohort.bad_images=skip", 'name="x"'])
    assert (recipe.training.epochs, recipe.model.filters, recipe.cohort.bad_images) == (3, (4, 8), "skip")
    assert recipe.name == "x"
    smoother = load_recipe("demo", ["pipeline.intensity={kind='range', low=0, high=2}"])
    assert smoother.pipeline.intensity.high == 2


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("model.latent_sise=8", r"'model\.latent_sise' of demo .* Did you mean 'latent_size'\?"),
        ("trainig.epochs=8", r"Did you mean 'training'\?"),
        ("pipeline.intensity.kinds=1", r"Did you mean 'kind'\?"),
        ("training.epochs=0", r"'training\.epochs' of demo must be greater than or equal to 1, but received 0"),
        ("training.epochs=many", "valid integer"),
        ("model.network=transformer", "'conv' or 'dense'"),
        ("training.epochs", r"--set must look like section\.key=value"),
        ("name.x=1", "--set must name a key of a table"),
        ("training.learning_rate=nan", "learning_rate"),
    ],
)
def test_one_sentence_for_each_mistake(setting, sentence):
    with pytest.raises(RecipeError, match=sentence) as caught:
        load_recipe("demo", [setting])
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_unreadable_recipes(tmp_path):
    with pytest.raises(RecipeError, match=r"Did you mean 't1-4mm'\?"):
        load_recipe("t1-4m")
    with pytest.raises(RecipeError, match="readable TOML file"):
        load_recipe(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("epochs = = 3")
    with pytest.raises(RecipeError, match="valid TOML"):
        load_recipe(tmp_path / "bad.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(RecipeError, match=r"'pipeline' of .* must be given, but received nothing"):
        load_recipe(tmp_path / "empty.toml")
