"""What 32 latents know about healthy adults, beside as many components of PCA in the same folds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from analysis_folds import atlas_of, runs_of, ventricles
from numpy.typing import NDArray
from rows import Row, as_row
from scipy.ndimage import gaussian_filter

from kerasvae.analysis.deviation.residuals import residuals_of
from kerasvae.analysis.folds import Fold, Sample, read_folds, sample_of
from kerasvae.analysis.latents import read_latents
from kerasvae.analysis.maps.decoded import association_map
from kerasvae.analysis.maps.run import decoder_of
from kerasvae.analysis.maps.slopes import contrasts_of
from kerasvae.analysis.predictors import Predictors

RESAMPLES = 10_000
LEAST = -0.05
TOP = 0.02
"""Share of voxels that change most."""


def ixi_rows(folder: Path, work: Path) -> list[Row]:
    """The rows.

    Args:
        folder: The IXI derivative.
        work: Where runs are kept.
    """
    runs = runs_of(folder, work)
    folds = read_folds(runs)
    rows = []
    for words, own in (("", folds), (", plain linear start", read_folds(runs_of(folder, work, plain=True)))):
        for name, figure in (("age", "r"), ("sex", "accuracy")):
            rows += _beside(own, sample_of(own, name, ()), f"{name} of new people{words}", figure, LEAST)
    sample = sample_of(folds, "age", ())
    volumes = ventricles(folder)
    sample = replace(sample, target=np.array([volumes[person] for person in sample.people]))
    found = _beside(folds, sample, "ventricles of new people, share of the skull", "r", None)
    found[0] |= {"at_least": 0.95, "ok": found[0]["value"] >= 0.95}
    return [*rows, *found, *_map_rows(runs[0], folder)]


def _beside(folds: list[Fold], sample: Sample, name: str, figure: str, least: float | None) -> list[Row]:
    """A figure of predictions from the codes, and its difference from PCA's with a bootstrap over people."""
    predictors = Predictors(folds, sample)
    told = {source: predictors.told(source) for source in ("latents", "pca")}
    observed = sample.target[sample.tested]
    rng, n = np.random.default_rng(1), len(observed)
    weights = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float64)
    ours, theirs = (told[source].figures(observed)[figure][0] for source in told)
    drawn = [told[source].figures(observed, weights)[figure] for source in told]
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    row = as_row(f"{name}: {figure}, {n} people", float(ours), figure, f"PCA: {theirs:.3f}")
    words = f"{name}: {figure} − PCA's, lower end of 95 % (mean {ours - theirs:+.3f}, upper end {high:+.3f})"
    ok = None if least is None else bool(low > least)
    return [row, as_row(words, float(low), figure, "PCA", least, 0.0 if least is not None else None, ok)]


def _map_rows(run: Any, folder: Path) -> list[Row]:
    """Where the map of age moves most, beside the map by least squares on the images themselves."""
    inside = np.asarray(run.pipeline.mask)
    latents = read_latents(run)
    (contrast,) = contrasts_of(latents.term("age"), [latents.term("sex")])
    people = tuple(np.asarray(latents.people)[contrast.known])
    found = association_map(decoder_of(run, inside), latents.codes[contrast.known], people, contrast, inside)
    slope = found.slope[inside]
    images = residuals_of(run, latents, np.flatnonzero(contrast.known), inside, uncertain=False).images
    full = np.c_[np.ones(len(images)), contrast.held, contrast.values]
    voxelwise = np.linalg.lstsq(full, images.astype(np.float64), rcond=None)[0][-1]
    groups = atlas_of(run, sorted(set(people)), folder, inside)
    fluid = _near(np.isin(groups, ("ventricles", "cortical CSF")), inside)
    top = np.argsort(slope)[: round(TOP * len(slope))]
    share, chance = float(fluid[top].mean()), float(fluid.mean())
    name = f"map of age: of the {TOP:.0%} of voxels that darken most, in or beside ventricles and sulci"
    return [
        as_row(name, share, "share", f"of all voxels {chance:.2f}", 0.5, None, share > 0.5),
        as_row(
            "map of age: correlation with least squares on the images",
            float(np.corrcoef(slope, voxelwise)[0, 1]), "r", None, None, None, None,
        ),
    ]  # fmt: skip


def _near(chosen: NDArray[np.bool_], inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels within about one of the chosen."""
    grid = np.zeros(inside.shape)
    grid[inside] = chosen
    return gaussian_filter(grid, 0.7)[inside] > 0.1
