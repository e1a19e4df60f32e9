"""How real simulated people are: healthy ones beside IXI, the same measurements on both, within stated bounds.

`docs/simulator.md` has these bounds and the figures of one run.
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kerasvae import Cohort, fit_pipeline, load_recipe
from kerasvae.data.simulate import simulate
from kerasvae.metrics import explained_variance, identification, pca_reconstruct

pytestmark = pytest.mark.heavy

PEOPLE = 139
FOLDS = KFold(5, shuffle=True, random_state=0)
VENTRICLES, HIPPOCAMPI = ["4", "51", "52"], ["47", "48"]
"""DLMUSE: third and both lateral ventricles; both hippocampi."""

BOUNDS = {
    "explained variance, PCA-32": 0.06,
    "identification, PCA-32": 0.05,
    "variance between people, a voxel": 0.25,  # of IXI's
    "share of the first component": 0.03,
    "correlation of age with its prediction": 0.15,
    "ventricles, growth a decade, log": 0.05,
    "ventricles, spread about it, log": 0.06,
    "ventricles, mean, log mm³": 0.15,
    "hippocampi, change a decade, log": 0.02,
    "hippocampi, spread about it, log": 0.02,
    "grey matter, change a decade, log": 0.012,
    "grey matter, spread about it, log": 0.012,
}
"""Largest accepted distance from IXI, absolute but for the variance, which is relative."""


@dataclass(frozen=True)
class Sample:
    root: Path
    exclude: dict
    ventricles: np.ndarray  # mm³ in MNI space
    hippocampi: np.ndarray
    age: np.ndarray


@pytest.fixture(scope="module")
def samples(data_folder, tmp_path_factory):
    ixi = data_folder / "ixi"
    people = pd.read_csv(ixi / "participants.tsv", sep="\t").query("qc == 'pass'")
    people = people.merge(pd.read_csv(ixi / "desc-DLMUSE_volumes.tsv", sep="\t"), on="participant_id")
    to_mni = people["head_size_ratio"].to_numpy()
    real = Sample(
        ixi,
        {"qc": ["fail"]},
        people[VENTRICLES].sum(axis=1).to_numpy() * to_mni,
        people[HIPPOCAMPI].sum(axis=1).to_numpy() * to_mni,
        people["age"].to_numpy(),
    )
    root = simulate(tmp_path_factory.mktemp("realism") / "cohort", people=PEOPLE, patients=0.0, seed=7)
    truth = pd.read_csv(root / "ground_truth.tsv", sep="\t")
    own = Sample(
        root, {}, truth["ventricles_mm3"].to_numpy(), truth["hippocampi_mm3"].to_numpy(), truth["age"].to_numpy()
    )
    return real, own


def preprocessed(sample, name):
    """Images in the mask as the shipped recipe prepares them, (n, v)."""
    recipe = load_recipe(name)
    cohort = Cohort.read(sample.root, select=recipe.cohort.select, exclude=sample.exclude)
    paths = [scan.path for scan in cohort.scans]
    section = recipe.pipeline
    pipeline = fit_pipeline(
        paths,
        grid=section.grid,
        smooth_fwhm_mm=section.smooth_fwhm_mm,
        intensity=section.intensity,
        mask_rule=section.mask,
        alignment=False,
    )
    return np.stack([pipeline.apply(path)[pipeline.mask] for path in paths]), np.array(cohort.numbers("age"))


def grey_volume(sample):
    """Of the grey-matter masks, mm³ in MNI space, and the ages."""
    cohort = Cohort.read(sample.root, select={"suffix": "mask", "label": "GM"}, exclude=sample.exclude)
    volumes = []
    for scan in cohort.scans:
        image = nibabel.load(scan.path)
        volumes.append((np.asarray(image.dataobj) > 0).sum() * abs(np.linalg.det(image.affine[:3, :3])))
    return np.array(volumes), np.array(cohort.numbers("age"))


def growth(volume, age):
    """Change of the log volume in ten years, by least squares, and the spread about the line."""
    decades = (age - 50) / 10
    line = np.polyfit(decades, np.log(volume), 1)
    return line[0], (np.log(volume) - np.polyval(line, decades)).std()


def image_figures(x, age):
    folds = []
    for train, test in FOLDS.split(x):
        r = pca_reconstruct(x[train], x[test], 32)
        folds.append((explained_variance(x[test], r, x[train].mean(axis=0)), identification(x[test], r)))
    ridge = make_pipeline(PCA(32, random_state=0), StandardScaler(), RidgeCV(np.logspace(-2, 4, 13)))
    predicted = cross_val_predict(ridge, x, age, cv=FOLDS)
    explained, identified = np.mean(folds, axis=0)
    return {
        "explained variance, PCA-32": explained,
        "identification, PCA-32": identified,
        "variance between people, a voxel": x.var(axis=0).mean(),
        "share of the first component": PCA(1, random_state=0).fit(x).explained_variance_ratio_[0],
        "correlation of age with its prediction": np.corrcoef(predicted, age)[0, 1],
    }


def volume_figures(sample):
    figures = {}
    for name, volume, age in (
        ("ventricles", sample.ventricles, sample.age),
        ("hippocampi", sample.hippocampi, sample.age),
        ("grey matter", *grey_volume(sample)),
    ):
        rate, spread = growth(volume, age)
        verb = "growth" if name == "ventricles" else "change"
        figures |= {f"{name}, {verb} a decade, log": rate, f"{name}, spread about it, log": spread}
    return figures | {"ventricles, mean, log mm³": np.log(sample.ventricles).mean()}


def compare(title, real, own):
    print(f"\n{title}\n| | IXI | simulated | bound |\n|---|---|---|---|")
    far = []
    for name, theirs in real.items():
        relative = name.startswith("variance")
        distance = abs(own[name] / theirs - 1) if relative else abs(own[name] - theirs)
        print(f"| {name} | {theirs:.3f} | {own[name]:.3f} | ± {BOUNDS[name]:g}{' of it' if relative else ''} |")
        if distance > BOUNDS[name]:
            far.append(name)
    assert far == []


@pytest.mark.parametrize("recipe", ["t1-4mm", "gm-4mm"])
def test_images_vary_as_real_ones_do(samples, recipe):
    real, own = (image_figures(*preprocessed(sample, recipe)) for sample in samples)
    compare(recipe, real, own)


def test_volumes_change_with_age_as_real_ones_do(samples):
    real, own = map(volume_figures, samples)
    compare("volumes", real, own)
