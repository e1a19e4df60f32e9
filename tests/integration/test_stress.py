"""The shipped recipe on cohorts that it was not tuned on: few people and many, few latents and many, other images.

People are made by numpy on a small grid and written as NIfTI; whole runs read them. What a run must keep to: it ends,
warns of nothing (a warning is an error here), has finite figures, explains of its test people at least what
scikit-learn's PCA with as many components explains, with no allowance for few people, and recognises them.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.distance import cdist
from scipy.stats import binomtest
from sklearn.decomposition import PCA

from kerasvae import load_recipe
from kerasvae.training.train import train
from tests.conftest import write_image

SHAPE = (12, 14, 12)
AFFINE = np.diag([8.0, 8.0, 8.0, 1.0])
AFFINE[:3, 3] = -44, -52, -44
PLACES = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
BRAIN = np.square(PLACES).sum(axis=0) < 0.85


def waves(rng, sigma):
    """A smooth random field of unit variance."""
    field = gaussian_filter(rng.standard_normal(SHAPE), sigma, mode="wrap")
    return field / field.std()


def moved(rng, image, voxels=0.35):
    """The image under a smooth random displacement."""
    return map_coordinates(image, np.indices(SHAPE) + voxels * np.stack([waves(rng, 2) for _ in SHAPE]), order=1)


ANATOMY = np.random.default_rng(1)
CORTEX = np.exp(-np.square((np.sqrt(np.square(PLACES).sum(axis=0)) - 0.7) / 0.15)) + 0.4 * waves(ANATOMY, 1)
STRIATUM = sum(np.exp(-((PLACES[0] - side) ** 2 + PLACES[1] ** 2 + PLACES[2] ** 2) / 0.03) for side in (-0.3, 0.3))


def t1(rng):
    """Tissue contrast, moved; a gain field; noise. Around 100. Left and right differ more than a brain's."""
    contrast = 1 + 0.25 * moved(rng, CORTEX) + 0.04 * waves(rng, 3)
    return 100 * contrast + rng.standard_normal(SHAPE)


def grey_matter(rng):
    """Fractions, with a person's own atrophy."""
    amount = 2.5 * moved(rng, CORTEX) - 1.2 + 0.5 * waves(rng, 2) + 0.3 * rng.standard_normal()
    return 1 / (1 + np.exp(-amount)) * (1 + 0.03 * rng.standard_normal(SHAPE)).clip(0.8, 1.2)


def smoothed_grey_matter(rng):
    return gaussian_filter(grey_matter(rng), 1)


def spect(rng):
    """Counts: few everywhere but in one region, ten times as many, on each side with an uptake of its own."""
    uptake = 1 + 0.1 * waves(rng, 2)
    for side in (PLACES[0] < 0, PLACES[0] >= 0):
        uptake = uptake + 10 * rng.gamma(8, 1 / 8) * moved(rng, STRIATUM) * side
    return rng.poisson(60 * uptake.clip(0.05)).astype(float)


@dataclass(frozen=True)
class Case:
    """A cohort, and what is odd about it."""

    kind: object
    people: int
    latents: int
    intensity: str = '{ kind = "zscore" }'
    mask: str = "signal"
    background: float = 0.0
    gain: float = 1.0
    outlier: float = 1.0
    epochs: int = 4


RAW = '{ kind = "range", low = 0.0, high = 1.0, clip = false }'
"""Intensities as they are."""


def roles_of(people):
    """Six test people at least, and two each to decide and to set scales."""
    test, few = max(6, people // 5), max(2, people // 10)
    return ["test"] * test + ["validation"] * few + ["calibration"] * few + ["train"] * (people - test - 2 * few)


def cohort_of(case, folder):
    """NIfTI images and a table of paths and roles; the outlier is a person to learn from, the first of them."""
    rng = np.random.default_rng(7)
    rows, roles = ["path\tparticipant_id\trole"], roles_of(case.people)
    for index, role in enumerate(roles):
        image = case.gain * np.where(BRAIN, case.kind(rng), case.background)
        if index == roles.index("train"):
            image = np.where(BRAIN & (PLACES[0] > 0), image * case.outlier, image)  # a damaged half
        write_image(folder / f"{index:04d}.nii", image, AFFINE)
        rows.append(f"{index:04d}.nii\tsub-{index:04d}\t{role}")
    (folder / "people.tsv").write_text("\n".join(rows) + "\n")
    return folder / "people.tsv"


def recipe_of(case, *more):
    sets = {
        "cohort.select": "{}", "cohort.covariates": "[]", "cohort.exclude": "{}", "split.stratify": "[]",
        "split.column": "role", "pipeline.grid": "native", "pipeline.smooth_fwhm_mm": 0.0,
        "pipeline.check_alignment": "false", "pipeline.intensity": case.intensity, "pipeline.mask": case.mask,
        "model.latent_size": case.latents, "training.epochs": case.epochs,
    }  # fmt: skip
    return load_recipe("t1-4mm", [f"{key}={value}" for key, value in sets.items()] + list(more))


def check(case, tmp_path):
    (tmp_path / "images").mkdir()
    run = train(recipe_of(case), cohort_of(case, tmp_path / "images"), tmp_path / "run")
    assert run.recipe.training.cross_fit
    assert run.recipe.training.refit
    volumes, roles = {}, dict(run.split.roles)
    for scan in run.cohort.scans:
        volumes[scan.person] = run.store.volume(scan)
    inside = np.ones(SHAPE, bool) if run.pipeline.mask is None else run.pipeline.mask
    of = lambda *wanted: np.stack([v for person, v in volumes.items() if roles[person] in wanted])  # noqa: E731
    learned, new = of("train", "validation")[:, inside].astype(float), of("test")
    x, mean = new[:, inside].astype(float), of("train")[:, inside].mean(axis=0, dtype=float)
    r = run.model.reconstruct(new)[:, inside].astype(float)
    pca = PCA(min(case.latents, len(learned) - 1), svd_solver="full").fit(learned)
    peer = pca.inverse_transform(pca.transform(x))
    ours, theirs = (1 - np.square(x - a).sum() / np.square(x - mean).sum() for a in (r, peer))
    known = int((cdist(r, x).argmin(axis=1) == np.arange(len(x))).sum())
    assert None not in run.metrics.values()
    assert np.isfinite([v for v in run.metrics.values() if isinstance(v, int | float)]).all()
    assert np.isfinite(run.metrics["kl_per_dimension"]).all()
    assert np.isfinite(r).all()
    with (run.path / "history.csv").open() as stream:
        for row in csv.DictReader(stream):
            assert np.isfinite([float(cell) for cell in row.values() if cell]).all()
    assert run.metrics["explained_variance"] == pytest.approx(ours, abs=1e-4)
    assert ours >= theirs
    assert binomtest(known, len(x), 1 / len(x), alternative="greater").pvalue < 1e-3


QUICK = {
    "t1-of-20-one-outlier": Case(t1, 20, 32, outlier=4.0, epochs=3),
    "gm-of-20-128-latents": Case(grey_matter, 20, 128, RAW, epochs=3),
    "spect-of-20-8-latents-raw-counts-constant-background": Case(
        spect, 20, 8, RAW, mask="none", background=30.0, epochs=3
    ),
}
LARGE = {
    "t1-of-141-one-outlier": Case(t1, 141, 32, outlier=4.0),
    "gm-of-141-128-latents": Case(grey_matter, 141, 128, RAW),
    "spect-of-141-8-latents-raw-counts-constant-background": Case(spect, 141, 8, RAW, mask="none", background=30.0),
    "smoothed-gm-of-141-thousands-one-outlier": Case(smoothed_grey_matter, 141, 32, RAW, gain=3000.0, outlier=4.0),
    # so many people of an asymmetric anatomy are better off without mirror images, with which PCA would win
    "t1-of-1000-thousands": Case(t1, 1000, 32, RAW, gain=30.0, epochs=2),
    "gm-of-1000-128-latents": Case(grey_matter, 1000, 128, RAW, epochs=2),
}


@pytest.mark.parametrize("name", QUICK)
def test_the_recipe_survives(name, tmp_path):
    check(QUICK[name], tmp_path)


@pytest.mark.heavy
@pytest.mark.parametrize("name", LARGE)
def test_the_recipe_survives_many_people(name, tmp_path):
    check(LARGE[name], tmp_path)
