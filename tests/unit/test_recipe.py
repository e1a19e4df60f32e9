"""Recipes: what is accepted, and the sentence that meets what is not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasvae import load_recipe
from kerasvae.errors import RecipeError
from kerasvae.training import shipped_recipes
from kerasvae.training.recipe import AugmentSection, parse_recipe


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid_and_survive_writing(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name
    (tmp_path / "again.toml").write_text(recipe.to_toml())
    assert load_recipe(tmp_path / "again.toml") == recipe


text = st.text(
    st.one_of(st.sampled_from("\\\"'\r\n\t\0\x7f\x85\u2028#=.é😀 "), st.characters(exclude_categories=["Cs"]))
)
number = st.floats(0, allow_nan=False) | st.integers(0)


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes") / "again.toml"


@settings(max_examples=200, deadline=None)
@given(name=text, select=st.dictionaries(text, text), exclude=st.dictionaries(text, st.lists(text)), beta=number)
def test_any_text_survives_writing(again, name, select, exclude, beta):
    recipe = parse_recipe(
        {
            "name": name,
            "cohort": {"select": select, "exclude": exclude},
            "pipeline": {"intensity": {"kind": "zscore"}, "registration": name},
            "training": {"beta": beta},
        },
        "here",
    )
    again.write_text(recipe.to_toml(), encoding="utf-8")
    assert load_recipe(again) == recipe


def test_the_promised_recipes_are_shipped():
    assert {"demo", "t1-4mm", "gm-4mm"} <= set(shipped_recipes())


def test_settings_override():
    recipe = load_recipe("demo", ["training.epochs=3", "model.filters=[4, 8]", "cohort.bad_images=skip", 'name="x"'])
    assert (recipe.training.epochs, recipe.model.filters, recipe.cohort.bad_images) == (3, (4, 8), "skip")
    assert recipe.name == "x"
    smoother = load_recipe("demo", ["pipeline.intensity={kind='range', low=0, high=2}"])
    assert smoother.pipeline.intensity.high == 2


def test_augmentation_is_off_unless_asked_for_and_survives_writing(tmp_path):
    assert all(load_recipe(name).augment == AugmentSection() for name in shipped_recipes())
    recipe = load_recipe("demo", ["augment.affine={degrees=3, mm=2.0}", "augment.elastic.mm=1.5", "augment.flip=true"])
    assert (recipe.augment.affine.degrees, recipe.augment.affine.scale) == (3, 0)
    assert recipe.augment.elastic.smoothness_mm == 24
    (tmp_path / "again.toml").write_text(recipe.to_toml())
    assert load_recipe(tmp_path / "again.toml") == recipe


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("model.latent_sise=8", r"'model\.latent_sise' of demo .* Did you mean 'latent_size'\?"),
        ("trainig.epochs=8", r"Did you mean 'training'\?"),
        ("pipeline.intensity.kinds=1", r"Did you mean 'kind'\?"),
        ("training.epochs=0", r"'training\.epochs' of demo must be greater than or equal to 1, but received 0"),
        ("training.epochs=many", "valid integer"),
        ("model.network=transformer", "'conv', 'dense' or 'refine'"),
        ("training.epochs", r"--set must look like section\.key=value"),
        ("name.x=1", "--set must name a key of a table"),
        ("training.learning_rate=nan", "learning_rate"),
        (
            "pipeline.intensity.kind=zscor",
            r"'pipeline\.intensity\.kind' of demo must be one of 'percentile', 'zscore', 'range', "
            r"but received 'zscor'\. Did you mean 'zscore'\?",
        ),
        ("pipeline.intensity={knd='zscore'}", r"'pipeline\.intensity\.knd' of demo .* Did you mean 'kind'\?"),
        ("pipeline.intensity={}", r"'pipeline\.intensity\.kind' of demo must be one of .* but received nothing"),
        ("pipeline.intensity=zscore", r"'pipeline\.intensity' of demo must be a table, but received 'zscore'"),
        ("pipeline.intensity={kind='range', lo=1}", r"'pipeline\.intensity\.lo' of demo .* Did you mean 'low'\?"),
        (
            "pipeline.intensity={kind='range', low=3}",
            r"'pipeline\.intensity\.low' of demo must be below high, but received 3 and 1\. Swap",
        ),
        ("cohort.exclude.qc=fail", r"'cohort\.exclude\.qc' of demo must be a list, but received 'fail'"),
        ("augment.affine.degres=3", r"'augment\.affine\.degres' of demo .* Did you mean 'degrees'\?"),
        ("augment.elastic={mm=5, smoothness_mm=20}", r"'augment\.elastic\.mm' of demo must be at most a fifth"),
        ("cohort=3", "'cohort' of demo must be a table, but received 3"),
    ],
)
def test_one_sentence_for_each_mistake(setting, sentence):
    with pytest.raises(RecipeError, match=sentence) as caught:
        load_recipe("demo", [setting])
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[pipelin]\nintensity = { kind = 'zscore' }", r"The key 'pipelin' of .* Did you mean 'pipeline'\?"),
        ("[pipeline]\nintensty = { kind = 'zscore' }", r"'pipeline\.intensty' of .* Did you mean 'intensity'\?"),
        ("[pipeline]\ngrid = 'native'", r"'pipeline\.intensity' of .* must be given, but received nothing"),
    ],
)
def test_a_misspelt_key_is_not_called_missing(tmp_path, content, sentence):
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(RecipeError, match=sentence):
        load_recipe(tmp_path / "mine.toml")


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
    (tmp_path / "latin.toml").write_bytes('name = "Gehirnmaß"'.encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin\.toml must be UTF-8 text, but received the byte 0xdf at position 16"):
        load_recipe(tmp_path / "latin.toml")
