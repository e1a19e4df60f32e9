"""From a run to a bundle to latents; and every check of `verify` is seen to fail on a bundle broken for it."""

import csv
import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from kerasvae import VAE, Pipeline, dense_decoder, dense_encoder, load_recipe
from kerasvae.bundle import read_bundle
from kerasvae.errors import AlignmentError, ArgumentError, BundleError, VolumeError
from kerasvae.scoring import SCORES, distance, normal_surprise, percentiles
from kerasvae.training.train import train
from kerasvae.types import Grid
from kerasvae_export import export, export_run, verify
from kerasvae_export.golden import distance_from_training, golden_case, made_up
from kerasvae_export.write import _summary
from kerasvae_serving import Engine, encode_files
from tests.broken import BREAKS, Source, change_manifest, failed
from tests.conftest import BLOB_RECIPE, make_blob_cohort


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    recipe = folder / "blobs.toml"
    recipe.write_text(BLOB_RECIPE.replace("check_alignment = false", "check_alignment = true"))
    make_blob_cohort(folder / "cohort", 20)
    about = {"Name": "Blobs", "License": "CC0-1.0", "HowToAcknowledge": "Kindly", "Authors": ["A. Nobody"]}
    (folder / "cohort" / "dataset_description.json").write_text(json.dumps(about))
    return train(
        load_recipe(recipe, ["training.epochs=2", "cohort.bad_images=skip"]), folder / "cohort", folder / "run"
    )


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export_run(run, tmp_path_factory.mktemp("bundle") / "blobs", name="blobs", version=3)


@pytest.fixture
def bundle(exported, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def test_bundle_holds_what_it_says(run, exported):
    checks = verify(exported)
    assert [check.name for check in checks if check.ok is not True] == ["signature", "fewer bits"]  # has neither
    bundle = read_bundle(exported)
    manifest = bundle.manifest
    assert (manifest.name, manifest.version) == ("blobs", 3)
    assert manifest.pipeline_digest == run.pipeline.digest
    assert [output.name for output in manifest.outputs] == ["mean", "stddev"]
    assert manifest.metrics == run.metrics
    assert manifest.cohort["people"] == run.split.counts()
    assert manifest.reference.people == run.metrics["n_calibration"]
    assert {"MODEL_CARD.md", "encoder.onnx", "decoder.onnx", "golden.npz", "saved_model/3/saved_model.pb"} <= set(
        manifest.sha256
    )
    signatures = {
        "encode": ["mean", "stddev"], "encode_nifti": ["mean", "stddev"], "decode": ["reconstruction"],
        "reconstruct": ["reconstruction"], "score": [*SCORES, *(f"{name}_percentile" for name in SCORES)],
    }  # fmt: skip
    assert set(manifest.parity) == {"onnx/mean", "onnx/stddev", "onnx/reconstruction"} | {
        f"saved_model/{signature}/{name}" for signature, names in signatures.items() for name in names
    }
    card = (exported / "MODEL_CARD.md").read_text()
    assert f"{run.metrics['explained_variance_pca']:.3f}" in card
    assert "Trained on Blobs. Licence of the data: CC0-1.0. Acknowledge: Kindly." in card
    assert f"among {manifest.reference.people} calibration people" in card
    assert "Not a medical device" in card


def test_nothing_in_a_bundle_points_to_a_person(run, exported):
    # the golden case is no training image, and neither names nor paths of people are in any file
    assert read_bundle(exported).manifest.golden_distance > 0.2
    everything = b"".join(path.read_bytes() for path in exported.rglob("*") if path.is_file())
    assert b"sub-0" not in everything
    assert str(run.path.parent).encode() not in everything


def test_onnx_latents_of_files_are_keras_latents(run, exported, tmp_path):
    files = [scan.path for scan in run.cohort.scans[:5]]
    left_out = encode_files(Engine(exported), files, tmp_path / "latents.tsv")
    assert left_out == {}
    with (tmp_path / "latents.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    expected = run.model.encode(np.stack([run.pipeline.apply(file) for file in files]))
    for name in ("mean", "stddev"):
        found = np.array([[float(row[f"{name}_{d}"]) for d in range(3)] for row in rows])
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-5)
    assert [row["participant_id"] for row in rows] == [scan.person for scan in run.cohort.scans[:5]]
    assert rows[0]["session_id"] == "n/a"


def test_engine_reconstructs_as_the_model(run, exported):
    volumes = np.stack([run.pipeline.apply(scan.path) for scan in run.cohort.scans[:3]])
    engine = Engine(exported)
    np.testing.assert_allclose(engine.reconstruct(volumes), run.model.reconstruct(volumes), atol=1e-4)
    with pytest.raises(ArgumentError, match="image must have shape"):
        engine.encode(volumes[0])


def test_saved_model_signatures_have_names(exported):
    import tensorflow as tf

    signatures = tf.saved_model.load(str(exported / "saved_model" / "3")).signatures
    assert set(signatures) == {"encode", "decode", "encode_nifti", "reconstruct", "score", "serving_default"}
    assert set(signatures["serving_default"].structured_outputs) == {"mean", "stddev"}
    assert set(signatures["decode"].structured_input_signature[1]) == {"z"}
    assert signatures["encode"].structured_input_signature[1]["image"].shape[0] is None


def test_files_are_encoded_and_scans_scored_by_the_saved_model(run, exported):
    import tensorflow as tf

    signatures = tf.saved_model.load(str(exported / "saved_model" / "3")).signatures
    scans = run.cohort.scans[:3]
    volumes = np.stack([run.pipeline.apply(scan.path) for scan in scans])
    expected = run.model.encode(volumes)
    files = tf.constant([Path(scan.path).read_bytes() for scan in scans])
    for name, value in signatures["encode_nifti"](nifti=files).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-4)
    reference = read_bundle(exported).manifest.reference
    found = {name: value.numpy() for name, value in signatures["score"](image=tf.constant(volumes)).items()}
    surprise = normal_surprise(
        volumes, run.model.reconstruct(volumes), **expected, sigma=reference.sigma, mask=run.pipeline.mask
    )
    np.testing.assert_allclose(found["surprise"], surprise, rtol=1e-4)
    np.testing.assert_allclose(
        found["distance"], distance(expected["mean"], reference.center, reference.precision), rtol=1e-4
    )
    for name in SCORES:
        places = percentiles(found[name], getattr(reference, name))
        np.testing.assert_allclose(found[f"{name}_percentile"], places, atol=1e-3)
    strange = found["surprise"].max() < signatures["score"](image=tf.constant(volumes[:1, ::-1] * 2))["surprise"]
    assert bool(strange)


def test_an_altered_file_is_found_and_refused(bundle):
    card = bundle / "MODEL_CARD.md"
    card.write_text(card.read_text() + "trust me")
    assert failed(bundle) == ["files"]
    with pytest.raises(BundleError, match=r"MODEL_CARD\.md was changed"):
        Engine(bundle)
    (bundle / "decoder.onnx").unlink()
    assert set(failed(bundle)) == {"files", "digests", "graphs", "nobody", "ONNX parity"}
    (bundle / "extra.bin").write_bytes(b"x")
    assert "extra.bin is not in the manifest" in read_bundle(bundle, check=False).altered()


@pytest.fixture(scope="module")
def source(run):
    return Source(run.model, run.pipeline, run.cohort.scans_of(run.split, "train")[0].path)


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_found(bundle, source, name):
    BREAKS[name].how(bundle, source)
    assert failed(bundle) == list(BREAKS[name].failed)


def test_an_engine_refuses_other_weights(bundle, source):
    BREAKS["parity"].how(bundle, source)
    with pytest.raises(BundleError, match="golden case"):
        Engine(bundle)


def test_what_is_wrong_is_said(bundle, source):
    BREAKS["py_function"].how(bundle, source)
    details = {check.name: check.detail for check in verify(bundle)}
    assert "calls Python" in details["TensorFlow graph"]
    assert failed(bundle, "onnx") == []
    BREAKS["leaked training image"].how(bundle, source)
    details = {check.name: check.detail for check in verify(bundle, "onnx")}
    assert "not what the decoder makes" in details["nobody"]


def test_an_engine_that_is_none(bundle):
    with pytest.raises(ArgumentError, match="--engine must be all, onnx, saved_model, tf_serving"):
        verify(bundle, "abacus")


def test_schema_of_the_future(bundle):
    def newer(content):
        content["schema_version"] = "1.9.0"
        content["an_addition"] = {"of": "a newer version"}

    change_manifest(bundle, newer, rehash=False)
    assert read_bundle(bundle).manifest.name == "blobs"
    change_manifest(bundle, lambda content: content.update(schema_version="2.0.0"), rehash=False)
    with pytest.raises(BundleError, match=r"schema_version 1\.x\.x"):
        read_bundle(bundle)


def test_no_bundle_at_all(tmp_path, bundle):
    with pytest.raises(BundleError, match="no such folder"):
        read_bundle(tmp_path / "absent")
    (bundle / "manifest.json").write_text('{"schema_version": "1.0.0", "name": "x"}')
    with pytest.raises(BundleError, match=r"version of .* must be valid, but received field required"):
        read_bundle(bundle)
    (bundle / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="readable JSON"):
        read_bundle(bundle)


def test_never_half_a_bundle(run, tmp_path, monkeypatch):
    import kerasvae_export.write as write

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_onnx", full_disk)
    with pytest.raises(Exception, match="No space left"):
        export_run(run, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_folder_in_use_and_odd_names_are_refused(run, tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(ArgumentError, match="new or empty"):
        export_run(run, tmp_path)
    for name in ("", "../up", "a b", "..", "-x"):
        with pytest.raises(ArgumentError, match="letters, digits"):
            export_run(run, tmp_path / "new", name=name)
    with pytest.raises(ArgumentError, match="1 or more"):
        export(run.model, run.pipeline, tmp_path / "new", version=0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{}")
    with pytest.raises(ArgumentError, match="lie outside other bundles"):
        export(run.model, run.pipeline, tmp_path / "other" / "new")


def test_a_memorised_person_is_not_published(run, tmp_path):
    image = run.model.sample(1, seed=152)
    golden = export(run.model, None, tmp_path / "free") and read_bundle(tmp_path / "free").golden()["image"]
    np.testing.assert_allclose(golden, image, atol=1e-6)
    others = np.stack([run.pipeline.apply(scan.path) for scan in run.cohort.scans[:4]])
    with pytest.raises(BundleError, match="memorised a person"):
        export(run.model, None, tmp_path / "bundle", train_images=np.concatenate([others, golden]))


def test_a_decoder_that_returns_a_person_is_found_whatever_the_intensity_step():
    shape = (12, 14, 11)
    people = np.random.default_rng(0).uniform(0.1, 0.9, (6, *shape)).astype("f4")
    step = {"kind": "range", "low": 0, "high": 255}
    pipeline = Pipeline(grid=Grid.of(shape, np.diag([8.0, 8, 8, 1]), "native"), intensity=step)
    honest = VAE(dense_encoder(shape, 4, (8,)), dense_decoder(shape, 2, (8,)))
    memory = VAE(dense_encoder(shape, 4, (8,)), dense_decoder(shape, 2, (8,)))
    for model, image in ((honest, people.mean(axis=0)), (memory, people[3])):
        last = model.decoder.get_layer("mean")
        last.kernel.assign(0 * last.kernel)
        last.bias.assign(image.ravel())
    # the golden case is an image such as the model knows, not a black one
    golden = golden_case(honest, pipeline)["image"]
    assert golden.mean() == pytest.approx(people.mean(), abs=0.1)
    assert distance_from_training(made_up(honest, golden), people) > 0.5
    with pytest.raises(BundleError, match="memorised"):
        distance_from_training(made_up(memory, golden_case(memory, pipeline)["image"]), people)


def test_rare_levels_of_a_covariate_are_not_published():
    assert _summary(["a"] * 6 + ["2019-03-01", "2019-03-02"]) == {"levels": {"a": 6, "other": 2}}


def test_a_folder_that_cannot_be_read_is_an_error_not_an_empty_one(exported, run, tmp_path, monkeypatch):
    (tmp_path / "scans" / "locked").mkdir(parents=True)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(VolumeError, match="locked must be readable"):
        encode_files(Engine(exported), [tmp_path / "scans"], tmp_path / "latents.tsv")


def test_scans_that_do_not_fit_are_named(exported, run, tmp_path):
    good = run.cohort.scans[0].path
    image = nibabel.load(good)
    shifted = tmp_path / "sub-99_T1w.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.roll(np.asarray(image.dataobj), 6, axis=1), image.affine), shifted)
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(good.read_bytes()[:500])
    table = tmp_path / "latents.tsv"
    table.write_text("as before")
    with pytest.raises(VolumeError, match=r"broken\.nii\.gz"):
        encode_files(Engine(exported), [good, broken], table)
    assert table.read_text() == "as before"
    left_out = encode_files(Engine(exported), [good, broken, good.parent], table, skip_bad=True)
    assert list(left_out) == [str(broken)]
    assert len(table.read_text().splitlines()) == 2
    with pytest.raises(AlignmentError):
        Engine(exported).encode(shifted)
    with pytest.raises(ArgumentError, match="exist"):
        encode_files(Engine(exported), [tmp_path / "absent.nii"], table)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArgumentError, match="hold images"):
        encode_files(Engine(exported), [tmp_path / "empty"], table)
