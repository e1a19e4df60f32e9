"""From a recipe and a folder of images to a run folder; interrupted, it goes on where it stopped."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.data import Cohort, Split
from kerasvae.data.augment import Augmentation
from kerasvae.data.cohort import table_of
from kerasvae.data.dataset import evaluation_dataset, steps_per_epoch, training_dataset
from kerasvae.errors import RunError
from kerasvae.models import VAE
from kerasvae.preprocess import Pipeline, fit_pipeline, grid_of
from kerasvae.storage import atomic_path, is_vacant, recover
from kerasvae.training.augmentation import augmentation_of
from kerasvae.training.build import build_model
from kerasvae.training.callbacks import Checkpoint, EpochProgress, Schedules
from kerasvae.training.cross_fit import CrossFit
from kerasvae.training.evaluate import evaluate
from kerasvae.training.guard import CollapseGuard
from kerasvae.training.recipe import Recipe
from kerasvae.training.remedied import Remedied
from kerasvae.training.remedy import Remedy, replayed
from kerasvae.training.run import Run, load_run, model_inputs, write_json, write_scans, write_table

__all__ = ["Progress", "train"]

Progress = Callable[[str, int, int, str], None]
"""Called with a stage, steps done, steps in all, and a short text."""

PACKAGES = ("kerasvae", "tensorflow", "keras", "tensorflow-probability", "numpy", "scipy", "nibabel", "scikit-learn")


def _silent(stage: str, done: int, total: int, text: str) -> None:
    """Report nothing."""


def train(
    recipe: Recipe,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    progress: Progress = _silent,
) -> Run:
    """Train, evaluate on the test people and write the run folder.

    On one machine and version, with ``training.deterministic``, a run that was interrupted and resumed ends bit-equal
    to one that was not.

    Args:
        recipe: What to do.
        data: A BIDS derivative folder, or a table with a `path` column.
        out: The run folder. It must be new or empty, unless `resume`.
        resume: Go on with an interrupted run of the same recipe and data; a finished one is returned as it is.
        progress: Told about each stage.

    Raises:
        RunError: If `out` is in use, or cannot be resumed with this recipe.
        KerasVAEError: What the cohort, images, split or training raise; nothing that was finished is lost.
    """
    begun = time.perf_counter()
    run = Run(Path(out))
    _open(run, recipe, data, resume)
    if resume and (run.path / "metrics.json").is_file():
        return load_run(run.path)
    keras.utils.set_random_seed(recipe.training.seed)
    if recipe.training.deterministic:
        tf.config.experimental.enable_op_determinism()
    _prepare(run, recipe, data, progress)
    earlier = _fit(run, recipe, progress)
    progress("evaluate", 0, 1, "test people, PCA")
    evaluate(run, seconds=earlier + time.perf_counter() - begun)
    progress("evaluate", 1, 1, "")
    return load_run(run.path)


def _open(run: Run, recipe: Recipe, data: str | os.PathLike[str], resume: bool) -> None:
    """Make the folder, or check that it is the one to resume."""
    source = str(Path(data).resolve())
    stored = run.path / "recipe.toml"
    if stored.is_file() and resume:
        if run.recipe != recipe:
            raise RunError(
                stored, rule="be the recipe of the run to resume", got="a different one", fix="Train into a new folder"
            )
        if run.source != source:
            raise RunError(
                "--data", rule=f"be that of the run to resume, {run.source}", got=source, fix="Train into a new folder"
            )
        recover(run.path / "checkpoint")
        return
    if not is_vacant(run.path):
        raise RunError(
            run.path,
            rule="be a new or empty folder",
            got="one that holds files",
            fix="Choose another, or add --resume to go on with an interrupted run",
        )
    with atomic_path(run.path, seal="recipe.toml") as folder:
        folder.mkdir()
        (folder / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
        write_json(folder / "run.json", {"data": source})
        write_json(folder / "environment.json", _environment(recipe))


def _environment(recipe: Recipe) -> dict[str, Any]:
    return {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [device.device_type for device in tf.config.list_physical_devices()],
        "command": " ".join(["kerasvae", *sys.argv[1:]]),
        "seed": recipe.training.seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _prepare(run: Run, recipe: Recipe, data: str | os.PathLike[str], progress: Progress) -> None:
    """Cohort, split, pipeline and volumes; what an interrupted run has done already is kept."""
    if (run.path / "scans.tsv").is_file():
        run.store.prepare(run.cohort)
        return
    cohort, split = _plan(run, recipe, data)
    total = len(cohort)
    progress("preprocess", 0, total, f"fitting on {len(split.people('train'))} people")
    if not (run.path / "pipeline.json").is_file():
        write_json(run.path / "pipeline.json", _fit_pipeline(cohort, split, recipe).to_config())
    count = iter(range(1, total + 1))
    cohort, _bad = run.store.prepare(
        cohort,
        skip_bad=recipe.cohort.bad_images == "skip",
        progress=lambda: progress("preprocess", next(count), total, "to the model grid"),
    )
    write_scans(run.path / "scans.tsv", cohort, split)


def _needed(recipe: Recipe) -> tuple[str, ...]:
    """Covariates that every scan must have: those of the cohort, and those that the model may not do without."""
    given = recipe.model.condition if recipe.model.missing == "refuse" else ()
    return tuple(dict.fromkeys((*recipe.cohort.covariates, *given)))


def _plan(run: Run, recipe: Recipe, data: str | os.PathLike[str]) -> tuple[Cohort, Split]:
    """Scans and roles: drawn once, before anything is fitted to anyone, and kept.

    Raises:
        RunError: If the folder has changed since the run was interrupted; another draw would let people whom the
            pipeline knows into the test.
    """
    section, roles, kept = recipe.cohort, recipe.split, run.path / "split.json"
    cohort = Cohort.read(
        data,
        select=section.select,
        covariates=_needed(recipe),
        exclude=section.exclude,
        incomplete=section.incomplete,
    )
    scans = sorted(scan.name for scan in cohort.scans)
    if kept.is_file():
        plan = json.loads(kept.read_text(encoding="utf-8"))
        changed = sorted(set(plan["scans"]) ^ set(scans))
        if changed:
            raise RunError(
                data,
                rule="hold the scans that the interrupted run began with",
                got=f"{len(changed)} more or fewer, the first {changed[0]}",
                fix="Restore them, or train into a new folder",
            )
        return cohort, Split(plan["roles"])
    split = cohort.split(
        roles.fractions(),
        seed=roles.seed,
        stratify=roles.stratify,
        column=roles.column or None,
        fold=roles.fold,
        folds=roles.folds,
    )
    write_json(kept, {"scans": scans, "roles": dict(split.roles)})
    return cohort, split


def _fit_pipeline(cohort: Cohort, split: Split, recipe: Recipe) -> Pipeline:
    """Mask and alignment limits from training people only."""
    section, people = recipe.pipeline, set(split.people("train"))
    template = section.grid != "native" and section.grid.endswith((".nii", ".nii.gz", ".mgz"))
    skip = recipe.cohort.bad_images == "skip"
    return fit_pipeline(
        [scan.path for scan in cohort.scans if scan.person in people],
        grid=grid_of(section.grid) if template else section.grid,
        intensity=section.intensity,
        smooth_fwhm_mm=section.smooth_fwhm_mm,
        mask_rule=None if section.mask == "none" else section.mask,
        modality=section.modality,
        skull_stripped=section.skull_stripped,
        registration=section.registration,
        alignment=section.check_alignment,
        # an image left out here is met again, and recorded, when the volumes are prepared
        on_error=(lambda path, error: None) if skip else None,
    )


class _Learners(NamedTuple):
    """A new model and the people it is to learn from: what it takes of them, their rows in the cohort, and changes."""

    model: VAE
    inputs: dict[str, Any]
    rows: NDArray[np.int64]
    augmentation: Augmentation | None
    cross_fit: CrossFit | None
    batch_size: int

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        whole = steps_per_epoch(len(self.rows), self.batch_size)
        return whole if self.cross_fit is None else self.cross_fit.steps

    @property
    def callbacks(self) -> list[keras.callbacks.Callback]:
        """Those that must come first."""
        return [] if self.cross_fit is None else [self.cross_fit]

    def dataset(self, epochs: int, seed: int, first_epoch: int = 0) -> tf.data.Dataset:
        """Their batches."""
        return training_dataset(
            self.inputs,
            self.rows,
            batch_size=self.batch_size,
            epochs=epochs,
            first_epoch=first_epoch,
            seed=seed,
            groups=None if self.cross_fit is None else self.cross_fit.groups,
            augmentation=self.augmentation,
        )


def _learners(run: Run, recipe: Recipe, progress: Progress, *roles: str) -> _Learners:
    """Build the recipe's model for the people of these roles."""
    cohort, scans = run.cohort, run.cohort.scans_of(run.split, *roles)
    images = run.store.load(scans)
    known = dict.fromkeys(name for scan in cohort.scans for name in scan.covariates)
    table, everyone = table_of(scans, known), table_of(cohort.scans, known)

    def say(sentence: str) -> None:
        progress("start", 1, 1, sentence)
        write_json(run.path / "run.json", {"data": run.source, "start": sentence})

    progress("start", 0, 1, "")
    people = [scan.person for scan in scans]
    built = build_model(recipe, images, run.pipeline, table, cohort.units(), everyone, people, say)
    model, size = built.model, recipe.training.batch_size
    model.likelihood.check(images)
    model.people.assign(len(images))
    cross_fit = None
    if built.core is not None and built.core.left_out:
        cross_fit = CrossFit(built.core, run.pipeline.mask, size)
    inputs = model_inputs(model, scans, images)
    augmentation = augmentation_of(recipe, run.pipeline, model, inputs, people)
    return _Learners(model, inputs, _rows(run, *roles), augmentation, cross_fit, size)


def _rows(run: Run, *roles: str) -> NDArray[np.int64]:
    """Rows in the cohort of the scans of these roles, in the order of `Cohort.scans_of`."""
    return np.array([row for row, scan in enumerate(run.cohort.scans) if run.split.roles[scan.person] in roles])


def _fit(run: Run, recipe: Recipe, progress: Progress) -> float:
    """Train and save the model; returns the seconds that earlier, interrupted attempts had spent."""
    section, split = recipe.training, run.split
    learners = _learners(run, recipe, progress, "train")
    model, learned = learners.model, learners.inputs

    def load(of: VAE, role: str) -> dict[str, Any]:
        scans = run.cohort.scans_of(split, role)
        return model_inputs(of, scans, run.store.load(scans))

    decide = "validation" if split.people("validation") else "train"
    held_out = learned if decide == "train" else load(model, decide)
    steps = learners.steps
    total = steps * section.epochs
    decided_by = evaluation_dataset(held_out, _rows(run, decide), batch_size=section.batch_size)
    people = [scan.person for scan in run.cohort.scans_of(split, decide)]
    guard = CollapseGuard(
        held_out,
        learned,
        people=people,
        mask=run.pipeline.mask,
        action=section.guard,
        path=run.path / "guard.json",
        tensorboard=run.path / "tensorboard" if section.tensorboard else None,
    )
    schedules, warm = recipe.schedules(), recipe.first_candidate()
    checkpoint = Checkpoint(
        run.path / "checkpoint", patience=section.patience, first_candidate=warm, settled=lambda: guard.settled
    )
    callbacks: list[keras.callbacks.Callback] = [guard, checkpoint]
    for callback in callbacks:
        callback.set_model(model)
    guard.keep_first()
    if checkpoint.folder.is_dir():
        done = checkpoint.restore()
        guard.restore(done)
    else:
        done = 0
        before = model.evaluate(decided_by, verbose=0, return_dict=True)
        checkpoint.record(0, {**{f"val_{k}": v for k, v in before.items()}, **guard.observe(0)})
    callbacks.insert(0, Schedules(total, schedules))
    callbacks.append(
        EpochProgress(lambda n, text: progress("train", n, total, text), steps, done * steps, lambda: guard.ailments)
    )
    seconds = float(checkpoint.history[-1].get("seconds", 0.0))
    callbacks = [*learners.callbacks, _Clock(seconds), *callbacks]
    if done < section.epochs and not checkpoint.finished:
        model.fit(
            learners.dataset(section.epochs, section.seed, done),
            epochs=section.epochs,
            initial_epoch=done,
            steps_per_epoch=steps,
            validation_data=decided_by,
            callbacks=callbacks,
            shuffle=False,  # the data set has its own order
            verbose=0,
        )
    progress("train", total, total, f"best: epoch {checkpoint.best_epoch}")
    checkpoint.use_best()
    refit = section.refit and decide == "validation"
    final = _refit(run, recipe, checkpoint.best_epoch, guard.remedies, progress) if refit else model
    for each in (model, final):  # the best weights came with the values of their epoch
        for name, schedule in schedules.items():
            if name in each.scheduled:
                each.scheduled[name].assign(schedule(1.0))
        guard.settle(each)
    # Residuals of people who were learned from are smaller than those of new people, to whom a scale of theirs would
    # not do: without calibration people the model judges that has not seen those who decide.
    judge, judged = (final, load(final, "calibration")) if split.people("calibration") else (model, held_out)
    final.likelihood.calibrate(judge.residual_terms(judged)[2])
    columns = list(dict.fromkeys(name for row in checkpoint.history for name in row))
    write_table(run.path / "history.csv", checkpoint.history, columns)
    with atomic_path(run.path / "model.keras") as temporary:
        final.save(temporary)
    run.__dict__.pop("model", None)
    return seconds if done else 0.0


def _refit(run: Run, recipe: Recipe, best: int, remedies: Sequence[Remedy], progress: Progress) -> VAE:
    """The recipe's model, learned from training and validation people together for the number of epochs found best.

    What happened before a remedy began again from the first weights is left out.
    """
    section = recipe.training
    epochs, again = replayed(remedies, best)
    learners = _learners(run, recipe, progress, "train", "validation")
    model, steps = learners.model, learners.steps
    if epochs:
        report = EpochProgress(lambda n, text: progress("refit", n, steps * epochs, ""), steps)
        moved = Schedules(steps * section.epochs, recipe.schedules())
        model.fit(
            learners.dataset(epochs, section.seed),
            epochs=epochs,
            steps_per_epoch=steps,
            callbacks=[*learners.callbacks, moved, Remedied(again), report],
            shuffle=False,
            verbose=0,
        )
    return model


class _Clock(keras.callbacks.Callback):
    """Seconds of training so far, interruptions left out."""

    def __init__(self, before: float) -> None:
        super().__init__()
        self.before = before

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.begun = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs["seconds"] = self.before + time.perf_counter() - self.begun
