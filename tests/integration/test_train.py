"""From a folder to a run folder: what it holds, what is refused, and that an interruption changes nothing."""

import csv
import gzip
import json
import shutil

import numpy as np
import pytest

from kerasvae import load_recipe, load_run
from kerasvae.data.dataset import training_dataset
from kerasvae.errors import CohortError, RunError, VolumeError
from kerasvae.training.train import train
from tests.conftest import make_blob_cohort

METRICS = {
    "explained_variance", "explained_variance_pca", "identification", "identification_pca", "variance_ratio",
    "active_units", "kl_nats", "kl_per_dimension", "elbo_nats", "elbo_nats_per_voxel", "n_train", "n_validation",
    "n_calibration", "n_test", "n_scans", "latent_size", "seconds",
}  # fmt: skip


class Interrupted(Exception):
    pass


def interrupt_in(name, steps):
    def progress(stage, done, total, text):
        if stage == name and done >= steps:
            raise Interrupted

    return progress


def interrupt_after(steps):
    return interrupt_in("train", steps)


def test_run_folder(blob_cohort, blob_recipe, tmp_path):
    out = tmp_path / "run"
    train(load_recipe(blob_recipe), blob_cohort, out)
    run = load_run(out)
    assert METRICS <= set(run.metrics)
    assert run.metrics["n_train"] == 10
    assert run.metrics["n_test"] == 4
    assert len(run.metrics["kl_per_dimension"]) == run.metrics["latent_size"] == 3
    assert run.metrics["elbo_nats_per_voxel"] == pytest.approx(run.metrics["elbo_nats"] / run.metrics["n_voxels"])
    volume = run.pipeline.apply(run.cohort.scans[0].path)
    assert volume.dtype == np.float32
    assert volume.shape == run.pipeline.grid.shape
    assert run.model.reconstruct(volume[None]).shape == (1, *volume.shape)
    assert run.recipe == load_recipe(out / "recipe.toml") == load_recipe(blob_recipe)
    assert run.split.counts()["calibration"] == 2
    assert json.loads((out / "run.json").read_text())["start"].startswith("Linear core: principal axes of the images")

    with (out / "latents.tsv").open() as stream:
        latents = list(csv.DictReader(stream, delimiter="\t"))
    assert len(latents) == 20
    code = run.model.encode(volume[None])["mean"][0]
    np.testing.assert_allclose([float(latents[0][f"mean_{d}"]) for d in range(3)], code, rtol=1e-4, atol=1e-6)
    assert set(latents[0]) == set(json.loads((out / "latents.json").read_text())) | {"participant_id", "session_id"}
    with (out / "history.csv").open() as stream:
        history = list(csv.DictReader(stream))
    assert [float(row["epoch"]) for row in history] == list(range(len(history)))
    # the weights that were kept are those of the best epoch
    with np.load(out / "examples.npz", allow_pickle=False) as examples:
        assert examples["image"].shape == examples["reconstruction"].shape == examples["pca"].shape


def test_reported_explained_variance_is_that_of_the_saved_model(blob_cohort, blob_recipe, tmp_path):
    run = train(load_recipe(blob_recipe), blob_cohort, tmp_path / "run")
    role = dict(run.split.roles)
    volumes = {scan.person: run.pipeline.apply(scan.path) for scan in run.cohort.scans}
    x = np.stack([volumes[p] for p in sorted(role) if role[p] == "test"])
    mean = np.mean([volumes[p] for p in role if role[p] == "train"], axis=0)
    r = run.model.reconstruct(x)
    inside = run.pipeline.mask
    expected = 1 - ((x - r)[:, inside] ** 2).sum() / ((x - mean)[:, inside] ** 2).sum()
    assert run.metrics["explained_variance"] == pytest.approx(expected, rel=1e-4)


def test_training_people_alone_are_augmented(blob_cohort, blob_recipe, tmp_path, monkeypatch):
    seen = []

    def kept(inputs, rows, **options):
        seen.append((len(rows), options["augmentation"], inputs["image"].copy(), inputs["image"]))
        return training_dataset(inputs, rows, **options)

    monkeypatch.setattr("kerasvae.training.train.training_dataset", kept)
    train(load_recipe(blob_recipe, [*RANDOM, "augment.noise=0.1"]), blob_cohort, tmp_path / "run")
    assert [count for count, *_ in seen] == [10, 14]  # training people, and at last validation people with them
    for count, augmentation, before, after in seen:
        inside = load_run(tmp_path / "run").pipeline.mask
        assert augmentation.layers[0].stddev == pytest.approx(before[:, inside].std(), rel=1e-4)
        assert len(before) == count
        np.testing.assert_array_equal(before, after)


RANDOM = ["model.start=random", "training.epochs=3"]
STATEFUL = {
    "warm-up, covariates and target": [
        "training.epochs=3", "training.warm_up=0.5", "model.condition=['sex']", "model.target=age",
    ],
    "codebook": [
        *RANDOM, "model.posterior=vector_quantised", "model.posterior_options={positions=3, codebook_size=4}",
        "model.prior=uniform_codes", "objective.kind=commitment",
    ],
    "temperature": [
        *RANDOM, "model.posterior=relaxed_categorical", "model.posterior_options={positions=3, codebook_size=4}",
        "model.prior=uniform_codes", "objective.schedules.temperature={kind='linear', start=1.0, stop=0.5}",
    ],
    "augmentation and critic": [
        *RANDOM, "augment.affine={degrees=5, mm=4}", "augment.flip=true", "augment.noise=0.1",
        "augment.mix.share=0.5", "augment.gamma=0.2", "model.condition=['age', 'sex']",
        "objective.kind=factor_vae", "objective.options={units=[4]}",
    ],
    "refinement": ["model.network=refine", "training.decay=cosine", "training.epochs=3", "augment.flip=true"],
}  # fmt: skip
"""Recipes whose training has a state of its own beside weights and moments."""


@pytest.mark.parametrize("state", STATEFUL)
def test_interrupted_and_resumed_is_bit_equal(blob_cohort, blob_recipe, tmp_path, state):
    recipe = load_recipe(blob_recipe, STATEFUL[state])
    whole = train(recipe, blob_cohort, tmp_path / "whole")
    if "warm-up" in state:  # before anything was kept; one does for all
        with pytest.raises(Interrupted):
            train(recipe, blob_cohort, tmp_path / "cut", progress=interrupt_after(1))
    with pytest.raises(Interrupted):
        train(recipe, blob_cohort, tmp_path / "cut", resume="warm-up" in state, progress=interrupt_after(8))
    assert not (tmp_path / "cut" / "metrics.json").exists()
    resumed = train(recipe, blob_cohort, tmp_path / "cut", resume=True)
    for a, b in zip(whole.model.variables, resumed.model.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=a.path)
    for name in METRICS - {"seconds"}:
        assert whole.metrics[name] == resumed.metrics[name]
    states = [np.load(tmp_path / name / "checkpoint" / "state.npz") for name in ("whole", "cut")]
    for key in states[0].files:
        np.testing.assert_array_equal(states[0][key], states[1][key])
    again = train(recipe, blob_cohort, tmp_path / "cut", resume=True)
    assert again.metrics == resumed.metrics


def test_another_folder_or_other_people_cannot_be_resumed(blob_cohort, blob_recipe, tmp_path):
    recipe = load_recipe(blob_recipe)
    with pytest.raises(Interrupted):
        train(recipe, blob_cohort, tmp_path / "run", progress=interrupt_in("preprocess", 3))
    other = make_blob_cohort(tmp_path / "other", 20)
    with pytest.raises(RunError, match="--data must be that of the run to resume"):
        train(recipe, other, tmp_path / "run", resume=True)
    # a newcomer would change the draw of roles under a pipeline that is fitted already
    newcomer = blob_cohort / "sub-77" / "anat" / "sub-77_desc-brain_T1w.nii.gz"
    newcomer.parent.mkdir(parents=True)
    newcomer.write_bytes((blob_cohort / "sub-07" / "anat" / "sub-07_desc-brain_T1w.nii.gz").read_bytes())
    table = blob_cohort / "participants.tsv"
    rows = table.read_text()
    table.write_text(rows + "sub-77\t50\tM\tpass\n")
    with pytest.raises(RunError, match="1 more or fewer, the first sub-77"):
        train(recipe, blob_cohort, tmp_path / "run", resume=True)
    shutil.rmtree(newcomer.parent.parent)
    table.write_text(rows)
    assert train(recipe, blob_cohort, tmp_path / "run", resume=True).metrics["n_train"] == 10


def test_metrics_are_written_last(blob_cohort, blob_recipe, tmp_path, monkeypatch):
    from kerasvae.training import evaluate

    def stop(run):
        raise Interrupted

    recipe = load_recipe(blob_recipe)
    monkeypatch.setattr(evaluate, "_write_latents", stop)
    with pytest.raises(Interrupted):
        train(recipe, blob_cohort, tmp_path / "run")
    monkeypatch.undo()
    run = train(recipe, blob_cohort, tmp_path / "run", resume=True)
    assert all((run.path / name).is_file() for name in ("metrics.json", "latents.tsv", "examples.npz"))


def test_without_test_and_validation_people_the_figures_say_train(blob_cohort, blob_recipe, tmp_path):
    shares = ["split.train=1.0", "split.validation=0.0", "split.calibration=0.0", "split.test=0.0"]
    run = train(load_recipe(blob_recipe, [*shares, "training.epochs=1"]), blob_cohort, tmp_path / "run")
    assert run.metrics["role"] == "train"
    assert run.metrics["n_train"] == 20


def test_folders_in_use_are_refused(blob_cohort, blob_recipe, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "precious.txt").write_text("x")
    with pytest.raises(RunError, match="new or empty"):
        train(load_recipe(blob_recipe), blob_cohort, out)
    assert (out / "precious.txt").read_text() == "x"
    with pytest.raises(RunError, match="new or empty"):
        train(load_recipe(blob_recipe), blob_cohort, out, resume=True)
    with pytest.raises(RunError, match=r"recipe\.toml"):
        load_run(tmp_path / "absent")


def test_another_recipe_cannot_be_resumed(blob_cohort, blob_recipe, tmp_path):
    with pytest.raises(Interrupted):
        train(load_recipe(blob_recipe), blob_cohort, tmp_path / "run", progress=interrupt_after(1))
    with pytest.raises(RunError, match="different one"):
        train(load_recipe(blob_recipe, ["training.epochs=9"]), blob_cohort, tmp_path / "run", resume=True)


def test_one_bad_image_is_named_and_skipped_only_if_the_recipe_says_so(blob_cohort, blob_recipe, tmp_path):
    bad = blob_cohort / "sub-07" / "anat" / "sub-07_desc-brain_T1w.nii.gz"
    bad.write_bytes(bad.read_bytes()[:2000])
    with pytest.raises(VolumeError, match="sub-07_desc-brain"):
        train(load_recipe(blob_recipe), blob_cohort, tmp_path / "refused")
    run = train(load_recipe(blob_recipe, ["cohort.bad_images=skip"]), blob_cohort, tmp_path / "skipped")
    excluded = [row for row in run.scans if row["role"] == "excluded"]
    assert [row["participant_id"] for row in excluded] == ["sub-07"]
    assert "sub-07_desc-brain" in excluded[0]["reason"]
    assert len(run.cohort) == 19


def test_mended_image_is_all_that_is_done_again(blob_cohort, blob_recipe, tmp_path):
    path = blob_cohort / "sub-07" / "anat" / "sub-07_desc-brain_T1w.nii.gz"
    content = path.read_bytes()
    path.write_bytes(gzip.compress(b"not an image"))
    with pytest.raises(VolumeError):
        train(load_recipe(blob_recipe), blob_cohort, tmp_path / "run")
    path.write_bytes(content)
    assert train(load_recipe(blob_recipe), blob_cohort, tmp_path / "run", resume=True).metrics["n_train"] == 10


def test_scans_of_one_person_in_two_roles_are_refused(blob_cohort, blob_recipe, tmp_path):
    table = blob_cohort / "scans.tsv"
    image = "sub-{0:02d}/anat/sub-{0:02d}_desc-brain_T1w.nii.gz"
    rows = ["participant_id\tsession_id\tage\tsex\trole\tpath"]
    rows += [
        f"sub-{p // 2:02d}\tses-{p % 2}\t30\tM\t{'train' if p < 15 else 'test'}\t{image.format(p)}" for p in range(20)
    ]
    table.write_text("\n".join(rows) + "\n")
    with pytest.raises(CohortError, match="All scans of sub-07 must have one role"):
        train(load_recipe(blob_recipe, ["split.column=role"]), table, tmp_path / "run")


def test_refit_learns_from_validation_people_too(blob_cohort, blob_recipe, tmp_path):
    """With no epoch better than the start, the model is probabilistic PCA of both roles; else trained on both."""
    from kerasvae.networks import fit_core

    options = ["training.epochs=1", "model.core_prior=none", "model.core_mirror=false"]
    run = train(load_recipe(blob_recipe, [*options, "training.learning_rate=1e-9"]), blob_cohort, tmp_path / "run")
    images = run.store.load(run.cohort.scans_of(run.split, "train", "validation"))
    axes = fit_core(images, 3, run.pipeline.mask).axes
    kernel = run.model.encoder.get_layer("linear_encoder").get_weights()[0]
    learned = kernel[run.pipeline.mask.ravel()].T
    cosines = np.abs(np.sum(learned * axes, axis=1)) / np.linalg.norm(learned, axis=1)
    np.testing.assert_allclose(cosines, 1, atol=1e-4)
    alone = train(load_recipe(blob_recipe, [*options, "training.refit=false"]), blob_cohort, tmp_path / "alone")
    assert int(alone.model.people) == 10
    assert int(run.model.people) == 14


def test_guard_of_a_run_treats_it_and_the_refit_follows(blob_cohort, blob_recipe, tmp_path):
    """The textbook's loss: after the remedy the model that was saved has the guard's beta, and learned from it."""
    import warnings

    from kerasvae import textbook

    options = ["training.guard=remedy", "model.network=dense", "training.tensorboard=true"]
    recipe = textbook(load_recipe(blob_recipe, options))
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": 24})})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = train(recipe, blob_cohort, tmp_path / "run")
    watch = json.loads((tmp_path / "run" / "guard.json").read_text())
    (remedy,) = [each["remedy"] for each in watch["epochs"] if each["remedy"]][:1]
    beta = remedy["numbers"]["beta"][1]
    assert 0 < beta < 0.1
    assert run.metrics["beta"] == pytest.approx(beta, rel=1e-5)
    assert float(run.model.scheduled["beta"]) == pytest.approx(beta, rel=1e-5)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    with (tmp_path / "run" / "history.csv").open() as stream:
        row = list(csv.DictReader(stream))[-1]
    assert {"val_kl_00", "val_explained_variance_pca", "val_mutual_information", "val_effective_beta"} <= set(row)
