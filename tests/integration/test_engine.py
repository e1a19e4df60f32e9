"""The engine of ONNX users beside the Keras model and the SavedModel: scans and arrays, scores, maps of deviation."""

import nibabel
import numpy as np
import pytest
import tensorflow as tf

from kerasvae import VAE, NormalLikelihood, Pipeline, dense_decoder, dense_encoder
from kerasvae.errors import ArgumentError, BundleError, VolumeError
from kerasvae.preprocess import read_volume
from kerasvae.types import Grid
from kerasvae_export import export
from kerasvae_serving import Engine

SHAPE = (6, 7, 5)
MASK = np.random.default_rng(1).random(SHAPE) < 0.7


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Model, pipeline, paths of scans, their images, an engine; the first eight people are the reference."""
    folder, rng = tmp_path_factory.mktemp("engine"), np.random.default_rng(3)
    model = VAE(dense_encoder(SHAPE, 6), dense_decoder(SHAPE, 3), likelihood=NormalLikelihood(mask=MASK))
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    pipeline = Pipeline(grid=Grid.of(SHAPE, affine, "here"), intensity={"kind": "range", "clip": False}, mask=MASK)
    paths = [folder / f"sub-{index:02}_T1w.nii.gz" for index in range(12)]
    for path in paths:
        nibabel.save(nibabel.Nifti1Image(rng.random(SHAPE).astype("f4"), affine), path)
    images = np.stack([pipeline.apply(path) for path in paths])
    bundle = export(model, pipeline, folder / "bundle", reference=images[:8], learned_codes=rng.normal(size=(9, 3)))
    return model, pipeline, paths, images, Engine(bundle)


def test_scans_in_any_form_are_what_the_pipeline_makes_of_them(made):
    model, _, paths, images, engine = made
    expected = model.encode(images)["mean"]
    for given in (paths[0], str(paths[0]), read_volume(paths[0]), nibabel.load(paths[0]), images[:1]):
        np.testing.assert_allclose(engine.encode(given)["mean"], expected[:1], atol=1e-5)
    for given in (paths, images, [nibabel.load(path) for path in paths]):
        np.testing.assert_allclose(engine.encode(given)["mean"], expected, atol=1e-5)
    np.testing.assert_allclose(engine.reconstruct(paths), model.reconstruct(images), atol=1e-5)
    with pytest.raises(VolumeError, match="absent"):
        engine.encode("absent.nii.gz")
    for wrong in (images[0], images[:0], []):
        with pytest.raises(ArgumentError, match=r"image must have shape \(n, 6, 7, 5\) with n at least 1"):
            engine.encode(wrong)


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_stay_in_order_however_they_are_shared_out(made, monkeypatch, threads):
    model, _, _, images, engine = made
    monkeypatch.setattr("kerasvae_serving.engine.TOGETHER", 2 * images[0].size)
    shared = Engine(engine.path, threads=threads)
    for rows in (images, images[:5], images[:1]):
        np.testing.assert_allclose(shared.encode(rows)["mean"], model.encode(rows)["mean"], atol=1e-5)
        np.testing.assert_allclose(shared.reconstruct(rows), model.reconstruct(rows), atol=1e-5)
    with pytest.raises(ArgumentError, match="threads must be 1 or more"):
        Engine(engine.path, threads=0)


def test_scores_are_the_saved_models(made):
    _, _, paths, images, engine = made
    saved = tf.saved_model.load(str(engine.path / "saved_model" / "1"))
    expected = saved.signatures["score"](image=tf.constant(images[8:]))
    found = engine.score(paths[8:])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-4, atol=1e-3)
    # the reference people themselves fill the range; each is below, at or above its own rounded score
    places = np.sort(engine.score(images[:8])["residual_percentile"])
    np.testing.assert_allclose(places, 6.25 + 12.5 * np.arange(8), atol=6.25)


def test_deviations_are_measured_by_what_calibration_people_miss(made):
    model, pipeline, paths, images, engine = made
    missed = (images - model.reconstruct(images))[:8]
    plain = (images - model.reconstruct(images) - missed.mean(axis=0)) / np.where(MASK, missed.std(axis=0, ddof=1), 1)
    found = engine.deviation_map(images[8:])
    assert found.shape == (4, *SHAPE)
    assert (found[:, ~MASK] == 0).all()
    assert np.corrcoef(found[:, MASK].ravel(), plain[8:][:, MASK].ravel())[0, 1] > 0.95
    assert 0.85 < found[:, MASK].std() < 1.15  # people of the same kind as the reference
    lesion = images[8].copy()
    lesion[2:4, 2:5, 1:4] += 3
    there = np.zeros(SHAPE, bool)
    there[2:4, 2:5, 1:4] = True
    changed = engine.deviation_map(lesion[None])[0]
    assert changed[there & MASK].min() > 2
    native = pipeline.invert(engine.deviation_map(paths[8])[0], paths[8])
    assert native.shape == SHAPE


def test_a_bundle_without_people_says_so(made, tmp_path):
    model, pipeline, _, images, _ = made
    engine = Engine(export(model, pipeline, tmp_path / "nobody"))
    with pytest.raises(BundleError, match="reference people"):
        engine.score(images)
    with pytest.raises(BundleError, match="maps of calibration people"):
        engine.deviation_map(images)
    few = Engine(export(model, pipeline, tmp_path / "few", reference=images[:4]))
    assert few.score(images)["residual"].shape == (12,)
    assert not (tmp_path / "few" / "reference.npz").exists()  # a map of four would point to them
    with pytest.raises(BundleError, match="5 calibration people"):
        few.deviation_map(images)
