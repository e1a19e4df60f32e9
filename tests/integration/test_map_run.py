"""`kerasvae maps`: from a run folder, whose decoder is known, to files that say what they hold; what it refuses."""

from __future__ import annotations

import json
import sys

import nibabel
import numpy as np
import pytest
import statsmodels.api as sm

from kerasvae.analysis.maps.folder import read_traversals
from kerasvae.cli import main
from kerasvae.preprocess import Pipeline, write_volume
from kerasvae.types import Grid
from tests.conftest import BLOB_RECIPE, blob_affine
from tests.tables import read_rows, write_rows

PEOPLE, SHAPE, D = 30, (7, 8, 6), 3
ROLES = ["train"] * 16 + ["validation"] * 4 + ["calibration"] * 4 + ["test"] * 6
MASK = np.random.default_rng(8).random(SHAPE) < 0.7


def linear_vae(covariates=None):
    """A VAE whose decoder is a dense layer, and its weights, (d + c, x, y, z), and bias."""
    import keras

    from kerasvae import VAE

    rng = np.random.default_rng(0)
    width = covariates.width if covariates else 0

    def network(size, *layers):
        main = keras.Input(size)
        inputs = [main, keras.Input((width,))] if width else main
        out = layers[0](main)
        if width:
            out = keras.layers.Concatenate()([out, inputs[1]])
        for layer in layers[1:]:
            out = layer(out)
        return keras.Model(inputs, out)

    dense = keras.layers.Dense(int(np.prod(SHAPE)))
    decoder = network((D,), keras.layers.Identity(), dense, keras.layers.Reshape(SHAPE))
    encoder = network(SHAPE, keras.layers.Flatten(), keras.layers.Dense(2 * D))
    weights, bias = rng.normal(size=(D + width, *SHAPE)), rng.normal(size=SHAPE)
    dense.set_weights([weights.reshape(D + width, -1), bias.ravel()])
    return VAE(encoder, decoder, covariates=covariates), weights, bias


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What training leaves that maps need, images with a step in one corner of men's; and codes and weights."""
    rng = np.random.default_rng(1)
    run = tmp_path_factory.mktemp("maps") / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(BLOB_RECIPE)
    (run / "metrics.json").write_text(json.dumps({"latent_size": D}))
    (run / "run.json").write_text(json.dumps({"data": str(run)}))
    grid = Grid.of(SHAPE, blob_affine(), "MNI152NLin6Asym")
    pipeline = Pipeline(grid=grid, intensity={"kind": "range", "low": 0, "high": 1, "clip": False}, mask=MASK)
    (run / "pipeline.json").write_text(json.dumps(pipeline.to_config()))
    model, weights, bias = linear_vae()
    model.save(run / "model.keras")
    latents, scans, codes = [], [], []
    for person, role in enumerate(ROLES):
        who = {"participant_id": f"sub-{person:02d}", "session_id": "", "role": role}
        age, sex = rng.uniform(20, 80), "MF"[person % 2]
        codes.append(rng.normal(size=D) + np.array([1.5 * (sex == "M"), 0.08 * age, 0]))
        image = rng.normal(0.5, 0.1, SHAPE)
        image[:3, :3, :3] += 0.5 * (sex == "M")
        path = write_volume(run / "images" / f"{person}.nii", image, grid.matrix, space=grid.space)
        code = {f"mean_{i}": repr(float(each)) for i, each in enumerate(codes[-1])}
        latents.append(who | {"session_id": "n/a"} | code | {f"stddev_{i}": "0.5" for i in range(D)})
        scans.append(who | {"age": repr(float(age)), "sex": sex, "reason": "", "path": str(path)})
    write_rows(run / "latents.tsv", latents)
    write_rows(run / "scans.tsv", scans)
    return run, np.array(codes), weights, bias


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["kerasvae", "maps", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def load(path):
    return np.asarray(nibabel.load(path).dataobj)


def test_what_is_written_is_what_the_decoder_does(folder, monkeypatch, capsys, tmp_path):
    run, codes, weights, bias = folder
    labels = np.zeros(SHAPE)
    labels[:3], labels[3:] = 1, 2
    write_volume(tmp_path / "labels.nii.gz", labels, blob_affine(), space="MNI152NLin6Asym")
    (tmp_path / "names.tsv").write_text("index\tname\n1\tleft\n2\tright\n")
    native = blob_affine() * [[1, 1, 1, 1], [1, 0.5, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    write_volume(tmp_path / "scan.nii", np.random.default_rng(0).random((7, 16, 6)), native)
    assert command(
        monkeypatch, run, "--variables", "age,sex", "--covariates", "sex,age", "--dimensions", "2",
        "--bootstraps", "99",
        "--labels", tmp_path / "labels.nii.gz", "--label-names", tmp_path / "names.tsv", "--native",
        tmp_path / "scan.nii", "--voxelwise", "images,reconstructions", "--permutations", "99", "--cluster-p", "0.01",
    ) == 0  # fmt: skip
    said = capsys.readouterr().out
    maps = run / "maps"
    stddev = codes.std(axis=0, ddof=1)
    np.testing.assert_allclose(load(maps / "dimension-02_jacobian.nii.gz"), stddev[2] * weights[2] * MASK, atol=1e-4)
    walk = load(maps / "dimension-02_traversal.nii.gz")
    assert walk.shape == (*SHAPE, 7)
    centre = np.tensordot(codes.mean(axis=0), weights, 1) + bias
    np.testing.assert_allclose(walk[..., 3], centre * MASK, atol=1e-4)
    np.testing.assert_allclose(walk[..., 6], (centre + 3 * stddev[2] * weights[2]) * MASK, atol=1e-4)
    rows = read_rows(run / "scans.tsv")
    age, male = np.array([float(row["age"]) for row in rows]), np.array([row["sex"] == "M" for row in rows])
    slopes = np.linalg.lstsq(np.c_[np.ones(PEOPLE), age, male], codes, rcond=None)[0]
    for name, slope in (("age", slopes[1]), ("sex-M", slopes[2])):
        expected = np.tensordot(slope, weights, 1) * MASK
        np.testing.assert_allclose(load(maps / f"{name}_slope.nii.gz"), expected, atol=1e-5)
    images = np.stack([load(row["path"]) for row in rows])
    t = load(maps / "sex-M_images_t.nii.gz")
    full = sm.add_constant(np.c_[age, male])
    for place in np.argwhere(MASK)[::20]:
        assert t[tuple(place)] == pytest.approx(sm.OLS(images[:, *place], full).fit().tvalues[2], rel=1e-4)
    corner = np.zeros(SHAPE, bool)
    corner[:3, :3, :3] = True
    clear = load(maps / "sex-M_images_logp.nii.gz") > -np.log10(0.05)
    assert clear[corner & MASK].mean() > 0.9
    assert clear[~corner].sum() <= 1
    t, slope = (load(maps / f"age_{each}.nii.gz") for each in ("reconstructions_t", "slope"))
    np.testing.assert_array_equal(np.sign(t), np.sign(slope))
    regions = {(row["map"], row["name"]): row for row in read_rows(maps / "regions.tsv")}
    row, here = regions["age_slope", "left"], (labels == 1) & MASK
    assert float(row["mean"]) == pytest.approx(slope[here].mean(), rel=1e-5)
    assert float(row["low"]) < float(row["mean"]) < float(row["high"])
    assert regions["sex-M_images_t", "right"]["low"] == "n/a"
    assert set(json.loads((maps / "regions.json").read_text())) == {*row, "Settings"}
    own = nibabel.load(maps / "native" / "age_slope.nii.gz")
    assert own.shape == (7, 16, 6)
    np.testing.assert_allclose(own.dataobj[:, ::2], slope, atol=1e-5)  # whose voxels are those of the grid and between
    on_grid = nibabel.load(maps / "age_slope.nii.gz")
    np.testing.assert_array_equal(on_grid.affine, blob_affine())
    assert (on_grid.get_data_dtype(), int(on_grid.header["sform_code"])) == (np.float32, 4)
    for path in [*maps.glob("*.nii.gz"), *maps.glob("native/*.nii.gz")]:
        about = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        assert about["Description"]
        assert about["Unit"]
        assert about["Command"].startswith("kerasvae maps ")
        assert about["People"] == about["Scans"] == PEOPLE
        assert about["Space"] == ("of scan.nii" if path.parent.name == "native" else "MNI152NLin6Asym")
    about = json.loads((maps / "sex-M_slope.json").read_text())
    assert (about["Unit"], about["Covariates"]) == ("model units for M against F", ["age"])
    assert about["Bend"] < 1e-3
    assert {path.name for path in maps.glob("*.png")} == {
        "age_images_t.png", "age_reconstructions_t.png", "age_slope.png", "age_traversal.png", "age_z.png",
        "dimension-02_jacobian.png", "dimension-02_traversal.png", "sex-M_images_t.png", "sex-M_reconstructions_t.png",
        "sex-M_slope.png", "sex-M_traversal.png", "sex-M_z.png",
    }  # fmt: skip
    walks = {walk.name: walk for walk in read_traversals(maps)}
    assert list(walks) == ["age_traversal", "dimension-02_traversal", "sex-M_traversal"]
    walk, step = walks["age_traversal"], age.std(ddof=1) * np.tensordot(slopes[1], weights, 1)
    assert walk.positions == [-3, -2, -1, 0, 1, 2, 3]
    np.testing.assert_allclose(walk.images[4], (centre + step) * MASK, atol=1e-4)
    assert walk.about["Step"] == f"{age.std(ddof=1):.4g} of age"
    assert read_traversals(run / "absent") == []
    assert "age, 30 people (sex held the same): " in said
    assert f"sex-M on images, 30 people (age held the same): {clear.sum()} of {MASK.sum()} voxels" in said


def test_names_that_files_cannot_bear_stay_apart(folder, monkeypatch, capsys, tmp_path):
    """Levels that differ by signs alone, and a level and a variable of one name: each has its own files, again, too."""
    from kerasvae.analysis.report.maps import maps_view

    run, out = tmp_path / "run", tmp_path / "run" / "maps"
    run.mkdir()
    for path in folder[0].glob("*.*"):
        (run / path.name).write_bytes(path.read_bytes())
    rows = read_rows(run / "scans.tsv")
    for index, row in enumerate(rows):
        row |= {"blood": ("0", "A+", "A-")[index % 3], "blood A": row["age"]}
    write_rows(run / "scans.tsv", rows)
    codes, cells = folder[1], np.array([row["blood"] for row in rows])
    for _ in range(2):
        options = ("--voxelwise", "images", "--permutations", "99", "--bootstraps", "99")
        assert command(monkeypatch, run, "--variables", "blood,blood A", *options) == 0
        capsys.readouterr()
        found = {path.name.removesuffix("_slope.nii.gz") for path in out.glob("*_slope.nii.gz")}
        assert found == {"blood-A", "blood-A-2", "blood-A-3"}
    about = {name: json.loads((out / f"{name}_slope.json").read_text()) for name in found}
    files = {told["Contrast"]: name for name, told in about.items()}
    assert set(files) == {"blood-A+", "blood-A-", "blood A"}
    images = np.stack([load(row["path"]) for row in rows])
    for level in ("A+", "A-"):
        name = files[f"blood-{level}"]
        moved = codes[cells == level].mean(axis=0) - codes[cells == "0"].mean(axis=0)
        expected = np.tensordot(moved, folder[2], 1) * MASK
        np.testing.assert_allclose(load(out / f"{name}_slope.nii.gz"), expected, atol=1e-4)
        higher = images[cells == level].mean(axis=0) > images[cells == "0"].mean(axis=0)
        t = load(out / f"{name}_images_t.nii.gz")
        np.testing.assert_array_equal(t[MASK] > 0, higher[MASK])
        assert json.loads((out / f"{name}_images_t.json").read_text())["Contrast"] == f"blood-{level}"
    content = maps_view(run).content
    levels = ["A+ against 0", "A- against 0"]
    assert sorted(each["meaning"] for each in content["maps"]) == [*levels, "a unit more of blood A"]
    assert sorted(step.title for step, *_ in content["strips"]) == [*levels, "blood A"]


def test_some_people_another_folder_and_json(folder, monkeypatch, capsys, tmp_path):
    run, codes, weights, _ = folder
    out = tmp_path / "elsewhere"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    options = ("--dimensions", "0", "--roles", "test", "--out", out, "--json")
    assert command(monkeypatch, run, *options) == 0
    assert json.loads(capsys.readouterr().out)["maps"] == [
        str(out / f"dimension-00_{name}.nii.gz") for name in ("jacobian", "traversal")
    ]
    stddev = codes[-6:, 0].std(ddof=1)
    np.testing.assert_allclose(load(out / "dimension-00_jacobian.nii.gz"), stddev * weights[0] * MASK, atol=1e-4)
    assert json.loads((out / "dimension-00_jacobian.json").read_text())["People"] == 6
    assert (out / "mine.txt").read_text() == "kept"


def test_enhancing_several_visits_is_refused_before_a_map_is_written(folder, monkeypatch, capsys, tmp_path):
    run, out = tmp_path / "run", tmp_path / "maps"
    run.mkdir()
    for path in folder[0].glob("*.*"):
        (run / path.name).write_bytes(path.read_bytes())
    for table in ("latents.tsv", "scans.tsv"):
        rows = read_rows(run / table)
        write_rows(run / table, [*rows, rows[0] | {"session_id": "ses-2"}])
    options = ("--variables", "age", "--voxelwise", "images", "--tfce", "--bootstraps", "99", "--out", out)
    assert command(monkeypatch, run, *options) == 2
    assert "--tfce must be asked for where each person has one scan, but received 31 scans" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "The maps must have something to show"),
        (("--dimensions", "0,3"), "--dimensions must be whole numbers from 0 to 2, but received 3"),
        (("--dimensions", "first"), "--dimensions must be whole numbers between commas"),
        (("--variables", "agee"), "Did you mean age?"),
        (("--variables", "age", "--voxelwise", "codes"), "--voxelwise must be images or reconstructions"),
        (("--dimensions", "0", "--voxelwise", "images"), "--voxelwise must come with --variables"),
        (("--variables", "age", "--tfce"), "--tfce must come with --voxelwise"),
        (("--dimensions", "0", "--label-names", "x.tsv"), "--label-names must come with --labels"),
        (("--variables", "age", "--roles", "tset"), "--roles must be train, validation"),
    ],
)
def test_wrong_calls(folder, monkeypatch, capsys, options, words, tmp_path):
    assert command(monkeypatch, folder[0], *options, "--out", tmp_path / "maps") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()


def test_a_model_with_covariates_is_asked_at_typical_ones(folder, tmp_path):
    from kerasvae import load_run
    from kerasvae.analysis.maps.run import decoder_of, map_run
    from kerasvae.covariates import Covariates

    run = tmp_path / "run"
    run.mkdir()
    for path in folder[0].glob("*.*"):
        (run / path.name).write_bytes(path.read_bytes())
    recipe = BLOB_RECIPE.replace("latent_size = 3", 'latent_size = 3\ncondition = ["sex"]')
    (run / "recipe.toml").write_text(recipe)
    known = Covariates.fit({"sex": ["F"] * 12 + ["M"] * 18})
    model, weights, bias = linear_vae(known)
    model.save(run / "model.keras")
    opened = load_run(run)
    codes = folder[1]
    images = decoder_of(opened, MASK)(codes)
    coded = 1 - 18 / 30  # men, who are more, less their share
    expected = (np.tensordot(codes, weights[:D], 1) + coded * weights[D] + bias) * MASK
    np.testing.assert_allclose(images, expected, atol=1e-4)
    found = map_run(opened, ["age"], voxelwise=["reconstructions"], permutations=99, bootstraps=99)
    own = np.array([[1 - 18 / 30] if row["sex"] == "M" else [-18 / 30] for row in opened.scans])
    decoded = np.tensordot(np.c_[codes, own], weights, 1) + bias
    t = load(found.folder / "age_reconstructions_t.nii.gz")
    ages = sm.add_constant(np.array([float(row["age"]) for row in opened.scans]))
    for place in np.argwhere(MASK)[::25]:
        assert t[tuple(place)] == pytest.approx(sm.OLS(decoded[:, *place], ages).fit().tvalues[1], rel=1e-3, abs=1e-3)


def test_codes_on_a_sphere_are_refused(folder):
    from types import SimpleNamespace

    from kerasvae.analysis.maps.run import decoder_of
    from kerasvae.distributions import PowerSphericalPosterior
    from kerasvae.errors import RunError

    run = SimpleNamespace(path=folder[0], model=SimpleNamespace(posterior=PowerSphericalPosterior()))
    with pytest.raises(RunError, match="must have codes that can be moved along a line, but received a posterior of"):
        decoder_of(run, MASK)


def test_the_jacobian_of_a_network_beside_forward_mode():
    """A convolutional decoder's derivative by TensorFlow's own forward mode."""
    import tensorflow as tf

    from kerasvae import VAE, conv_decoder, conv_encoder
    from kerasvae.analysis.maps.decoded import jacobian

    shape = (8, 8, 8)
    model = VAE(conv_encoder(shape, 2 * D, filters=(4, 8)), conv_decoder(shape, D, filters=(4, 8)))
    centre, direction = np.array([0.4, -0.3, 0.1]), np.array([0.5, 1.0, -2.0])
    found = jacobian(model.decode, centre, direction[None])[0]
    z, tangent = (tf.constant(each[None], tf.float32) for each in (centre, direction))
    with tf.autodiff.ForwardAccumulator(z, tangent) as forward:
        image = model.decode_tensors(z)
    expected = forward.jvp(image).numpy()[0]
    np.testing.assert_allclose(found, expected, atol=0.005 * np.abs(expected).max())
