"""The page that a run folder becomes: complete, self-contained, safe, and made without TensorFlow."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from kerasvae import load_recipe
from kerasvae.analysis.contents import age_of, figures_of, groups_of, read_examples, without_folders
from kerasvae.analysis.report.page import write_report
from kerasvae.errors import RunError
from tests.pages import SHOWN, Page, make_run, page_of


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "run")
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_page_needs_nothing_from_outside_and_runs_nothing(source, page):
    assert not re.search(r"https?://", source)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)\)", source))
    assert "default-src 'none'" in source


def test_page_is_accessible(page):
    assert page.all("html") == [{"lang": "en"}]
    assert "synthetic" in page.text
    assert len(page.all("title")) == len(page.all("h1")) == 1
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    drawings = page.all("svg")
    assert len(drawings) == 4 + SHOWN  # ages, curves, KL, map; people
    assert all(attributes["role"] == "img" and len(attributes["aria-label"]) > 20 for attributes in drawings)
    assert all(attributes.get("alt") for attributes in page.all("img"))


def test_ids_are_unique_and_references_meet_them(source, page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = [
        a[name][1:] for _, a in page.tags for name in ("href", "xlink:href") if a.get(name, "").startswith("#")
    ]
    references += re.findall(r"url\(#([^)]*)\)", source)
    references += [word for _, a in page.tags for word in a.get("aria-labelledby", "").split()]
    assert references
    assert set(references) <= set(ids)


def test_order_and_content(page):
    titles = ["Verdict", "Figures", "Cohort", "Learning", "Mean-brain panel", "Latents", "How to reproduce"]
    body = page.text[page.text.index("PCA won") - 200 :]
    places = [body.index(title) for title in titles]
    assert places == sorted(places)
    for words in (
        "0.371", "0.442*", "1.000*", "chance 0.250", "−1631.0", "epoch 2, whose weights were kept", "42 seconds",
        "kerasvae train t.toml", "tensorflow 2.21.0", "latent_size = 3", "neurological",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.text.index("PCA won") < page.text.index("What it is")


def test_people_paths_are_not_told(source, page):
    assert "/home/someone" not in source
    assert "sub-99_T1w.nii.gz must be a 3-D image" in page.text
    assert 'grid = "mine.nii.gz"' in page.text


def test_names_are_text_and_never_markup(tmp_path):
    evil = ["<script>alert(1)</script> $\\frac{1}$ & <b>", '"><img src=x onerror=alert(1)></svg><script>']
    names = [f"sub-{index}" for index in range(12)] + evil
    folder = make_run(tmp_path / "run", names=names)
    recipe = (folder / "recipe.toml").read_text().replace('"synthetic"', '"<script>alert(2)</script>"')
    (folder / "recipe.toml").write_text(recipe)
    scans = (folder / "scans.tsv").read_text().replace("4 dimensions", "<iframe src=x>").replace("ses-1", "<i>1</i>")
    (folder / "scans.tsv").write_text(scans)
    environment = json.loads((folder / "environment.json").read_text())
    environment |= {"command": "kerasvae train <script>", "devices": ["<u>"], "versions": {"<s>": "</pre><em>"}}
    (folder / "environment.json").write_text(json.dumps(environment))
    page = page_of(folder)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img", "iframe", "b", "i", "u", "s", "em"})
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    for name in evil:
        assert name in page.text
    assert any(evil[1] in attributes["aria-label"] for attributes in page.all("svg"))


def test_no_tensorflow_and_no_pyplot(tmp_path):
    folder = make_run(tmp_path / "run")
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'keras', 'tensorflow_probability', 'tf_keras'): sys.modules[name] = None\n"
        "from kerasvae.analysis.report.page import write_report\n"
        f"write_report({str(folder)!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (folder / "report.html").stat().st_size > 10_000


def test_bound_of_the_information_counts_scans():
    rows = {row.name: row for row in figures_of({"n_test": 12, "n_scans": 24, "mutual_information": math.log(24)})}
    information = rows["Mutual information, nats"]
    assert (information.ours, information.reference) == ("3.18", "at most 3.18, the logarithm of 24 scans")


def test_without_covariates_calibration_or_test_people(tmp_path):
    roles = ["train"] * 6 + ["validation"] * 3
    metrics = {"role": "validation", "identification_chance": 1 / 3}
    page = page_of(make_run(tmp_path / "run", roles=roles, ages=False, metrics=metrics))
    assert "There are no test people" in page.text
    assert "no calibration people" in page.text
    assert "has no ages" in page.text
    assert "nobody has this role" in page.text


@pytest.mark.parametrize("shape", [(9, 11, 1), (1, 1, 1), (3, 4, 2)])
def test_few_slices_and_two_people(tmp_path, shape):
    metrics = {"identification_chance": 0.5, "variance_ratio": float("nan")}
    folder = make_run(tmp_path / "run", roles=["train"] * 2 + ["test"] * 2, shape=shape, metrics=metrics)
    with np.load(folder / "examples.npz") as content:
        arrays = dict(content)
    np.savez_compressed(folder / "examples.npz", **{**arrays, "mask": np.ones(shape, bool)})
    page = page_of(folder)
    assert len(page.all("svg")) == 4 + 2
    assert "too few" in page.text


def test_page_says_what_cannot_be_shown(tmp_path):
    folder = make_run(tmp_path / "run")
    missing = {
        "examples.npz": "No three-dimensional examples", "history.csv": "no history", "latents.tsv": "no two latent",
        "environment.json": "started from Python", "pipeline.json": "Duration", "run.json": "Duration",
    }  # fmt: skip
    for name in missing:
        (folder / name).unlink()
    page = page_of(folder)
    for words in missing.values():
        assert words in page.text


def test_two_dimensional_examples_are_left_out(tmp_path):
    folder = make_run(tmp_path / "run")
    with np.load(folder / "examples.npz") as content:
        arrays = {name: value[..., 0] if value.ndim == 4 else value for name, value in content.items()}
    np.savez_compressed(folder / "examples.npz", **arrays)
    assert read_examples(folder / "examples.npz") is None


def test_unfinished_run_is_refused_and_the_old_page_stands(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "report.html").write_text("the old page")
    (folder / "metrics.json").unlink()
    with pytest.raises(RunError, match=r"metrics\.json"):
        write_report(folder)
    assert (folder / "report.html").read_text() == "the old page"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_page_is_the_same_when_written_again(tmp_path):
    folder = make_run(tmp_path / "run")
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


def rewrite(folder, **changed):
    """Exchange arrays of the examples of a run folder."""
    with np.load(folder / "examples.npz") as content:
        arrays = dict(content)
    np.savez_compressed(folder / "examples.npz", **(arrays | {name: f(arrays[name]) for name, f in changed.items()}))
    return folder


@pytest.fixture
def trapped(tmp_path):
    """A run on the same people, whose reconstructions are all one image, but for a trace; people in reverse order."""
    folder = make_run(tmp_path / "trapped", metrics={"explained_variance": -0.0123})
    recipe = (folder / "recipe.toml").read_text().replace('"synthetic"', '"textbook <b>"')
    (folder / "recipe.toml").write_text(recipe)
    trace = 0.001 * np.array([-1, 1], "f4")[:, None, None, None]
    flipped = {name: lambda a: a[::-1] for name in ("participant_id", "image", "pca")}
    return rewrite(folder, reconstruction=lambda a: a[:1] + trace, **flipped)


def test_another_run_stands_beside(tmp_path, trapped):
    run = make_run(tmp_path / "run")
    source = write_report(run, beside=trapped).read_text(encoding="utf-8")
    page = Page(source)
    assert len(page.all("svg")) == 4 + SHOWN + 1
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<b>" not in source
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    alt = next(a["aria-label"] for a in page.all("svg") if "textbook <b>" in a["aria-label"])
    with np.load(run / "examples.npz") as own, np.load(trapped / "examples.npz") as others:
        x, r, inside = own["image"], own["reconstruction"], own["mask"]
        their = others["reconstruction"][::-1]
    ratio = [a[:, inside].astype(float).var(0).sum() / x[:, inside].astype(float).var(0).sum() for a in (r, their)]
    alike = [np.corrcoef(a[:, inside])[0, 1] for a in (x, r, their)]
    said = (
        "The other run's reconstructions of different people are all but identical. Variance between these people's "
        f"reconstructions, as a share of the images': ours {ratio[0]:.3f}, other {ratio[1]:.4f}. Mean correlation "
        f"between two people: images {alike[0]:.4f}, ours {alike[1]:.4f}, other {alike[2]:.4f}."
    ).replace("-", "−")
    assert said in alt
    assert said in page.text
    assert "Our reconstructions of different people" not in page.text
    assert "explains 0.371 of the variance between people and identifies 1.00" in page.text
    assert "textbook <b> explains −0.012" in page.text
    rows = [
        [1 - np.square(x[i] - a[i])[inside].sum() / np.square(x[i])[inside].sum() for a in (r, their)] for i in (0, 1)
    ]
    shares = "; ".join(" and ".join(f"{share:.2f}" for share in row) for row in rows).replace("-", "−")
    assert f"ours and other: {shares}." in alt
    assert "Several people" not in page_of(run).text  # written again without the other


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"participant_id": lambda a: np.array(["sub-12", "sub-77"])}, "have the example people .* sub-13 in one"),
        ({"image": lambda a: a + 0.1}, "have the images .* other intensities"),
        ({"affine": lambda a: a * 2}, "have the grid .* another affine"),
        ({"mask": lambda a: np.ones_like(a)}, "have the mask .* 693 voxels in the place of 441"),
        ({"image": lambda a: a[..., 0]}, "hold three-dimensional examples"),
    ],
)
def test_a_run_on_other_people_or_images_is_refused(tmp_path, changed, says):
    run, other = make_run(tmp_path / "run"), rewrite(make_run(tmp_path / "other"), **changed)
    with pytest.raises(RunError, match=says):
        write_report(run, beside=other)
    assert not (run / "report.html").exists()


def test_a_run_on_another_grid_or_unfinished_is_refused(tmp_path):
    run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other", shape=(8, 11, 7))
    with pytest.raises(RunError, match=r"have the grid, 9 × 11 × 7 voxels, .* received 8 × 11 × 7 voxels"):
        write_report(run, beside=other)
    (other / "metrics.json").unlink()
    with pytest.raises(RunError, match=r"metrics\.json"):
        write_report(run, beside=other)


def test_better_figure_is_marked_and_variance_ratio_is_not_a_contest():
    names = ("explained_variance", "variance_ratio", "identification")
    metrics = {"role": "test", **dict.fromkeys(names, 0.3), **{f"{name}_pca": 0.4 for name in names[:2]}}
    rows = {row.name: row for row in figures_of({**metrics, "identification_pca": 0.3})}
    assert rows["Explained variance between people"].better == "pca"
    assert rows["Identification"].better == rows["Variance ratio"].better == ""


def test_people_with_several_scans_count_once():
    scans = [
        {"participant_id": "a", "role": "train", "AGE": "20", "Gender": "F"},
        {"participant_id": "a", "role": "train", "AGE": "30", "Gender": "F"},
        {"participant_id": "b", "role": "train", "AGE": "40", "Gender": "n/a"},
    ]
    train = groups_of(scans)[0]
    assert (train.people, train.scans) == (2, 3)
    assert train.age.startswith("30.0")
    assert train.sex == "1 F, 1 unknown"
    assert np.isnan(age_of({"age": "unknown"}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a/b/c.nii must be", "c.nii must be"),
        ("C:\\data\\x\\c.nii is", "c.nii is"),
        ("('/a/b.nii')", "('b.nii')"),
        ("M/F = 1/2", "M/F = 1/2"),
    ],
)
def test_folders_are_cut(text, expected):
    assert without_folders(text) == expected


def test_fixture_recipe_is_one_that_recipes_allow(tmp_path):
    assert load_recipe(make_run(tmp_path / "run") / "recipe.toml").name == "synthetic"


def test_what_the_guard_found_is_told_with_its_remedy(tmp_path):
    from dataclasses import replace

    from kerasvae.metrics import Diagnosis, Figures
    from kerasvae.training.entry import Entry
    from kerasvae.training.remedy import Remedy
    from kerasvae.training.run import write_json

    folder = make_run(tmp_path / "run")
    assert "The guard of the training" not in page_of(folder).text
    trap = Diagnosis("mean-brain trap", "problem", "Trap with <b>2</b>.", "Do this.")
    entry = Entry(0, Figures(8, 3), (trap,))
    entries = [entry, *(replace(entry, epoch=e, lasting=(trap.name,)) for e in (1, 2)), replace(entry, epoch=3)]
    entries[2] = replace(entries[2], remedy=Remedy(2, trap.name, True, {"beta": (0.0, 0.5)}))
    write_json(folder / "guard.json", {"stopped": "", "epochs": [each.to_config() for each in entries]})
    text = page_of(folder).text
    assert "1 to 2 mean-brain trap Trap with <b>2</b>. Do this. Began again from the first weights; beta rose" in text
    write_json(folder / "guard.json", {"stopped": "Stopped after epoch 3", "epochs": [entry.to_config()]})
    text = page_of(folder).text
    assert "The guard of the training found no lasting collapse" in text
    assert "Stopped after epoch 3" in text
