"""Whether deviations of healthy people keep their rates, and whether lesions put into their scans are found.

A lesion is an ellipsoid of 1 to 10 cm³ with an edge of 2 mm, somewhere in the tissue of the scan as it came, whose
intensities are multiplied by 0.7; the scan then goes through the pipeline. Every test person of every fold gets one of
each volume, the same for all methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from analysis_folds import GROUPS, atlas_of, runs_of
from numpy.typing import NDArray
from rows import Row, as_row
from scipy.ndimage import gaussian_filter
from scipy.stats import binom, rankdata
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score

from kerasvae.analysis.design import columns_of
from kerasvae.analysis.deviation.norm import Norm
from kerasvae.analysis.deviation.normative import calibrate
from kerasvae.analysis.deviation.residuals import Residuals, residuals_of
from kerasvae.analysis.latents import Latents, read_latents
from kerasvae.training.run import Run

VOLUMES_CM3 = (1, 2, 5, 10)
LEAST = {1: 0.0, 2: 0.0, 5: 0.90, 10: 0.95}
CONTRAST = 0.3
SMOOTH_MM = 8.0
"""Of the peers' z, full width at half maximum: the best of 0, 6, 8, 12 and 16 mm for PCA's when it was tried."""
ALPHAS = (0.05, 0.1, 0.2)
SPLITS, NEW = 200, 4
"""Random splits into calibration and new people, and how many new ones of each are judged."""
RESAMPLES = 2000
Numbers = NDArray[np.float64]
COVARIATES = ("age", "sex")
SAME_SCORE = "PCA, scored as ours"


@dataclass
class Held:
    """A fold's people, before and after."""

    run: Run
    latents: Latents
    inside: NDArray[np.bool_]
    learned: list[int]
    calibration: list[int]
    test: list[int]
    residuals: dict[str, Residuals]
    lesions: dict[int, NDArray[np.float32]]
    places: dict[int, NDArray[np.bool_]]
    rebuilt: dict[int, NDArray[np.float32]]

    @property
    def given(self) -> Numbers:
        return columns_of([self.latents.term(name) for name in COVARIATES], len(self.latents.people))


def deviation_rows(folder: Path, work: Path) -> list[Row]:
    """The rows.

    Args:
        folder: The IXI derivative.
        work: Where runs and what takes long are kept.
    """
    held = [_held(run, work / "lesions") for run in runs_of(folder, work)]
    return [*_rates(held, folder), *_guarantees(held), *_lesions(held)]


def _held(run: Run, place: Path) -> Held:
    """Reconstructions of everyone, and of everyone tested with each lesion."""
    latents = read_latents(run)
    inside = np.asarray(run.pipeline.mask)
    rows = {
        name: [row for row, role in enumerate(latents.roles) if role in roles]
        for name, roles in (
            ("learned", run.recipe.training.learned_from), ("calibration", ("calibration",)), ("test", ("test",)),
        )
    }  # fmt: skip
    residuals = {
        name: residuals_of(run, latents, own, inside, uncertain=name != "learned") for name, own in rows.items()
    }
    kept = place / f"{run.path.name}.npz"
    if not kept.is_file():
        print(f"{run.path.name}: lesions", flush=True)
        place.mkdir(parents=True, exist_ok=True)
        made = {}
        without = _with_lesion(run, rows["test"][0], VOLUMES_CM3[0], inside, contrast=0.0)[0]
        if not np.array_equal(without, run.store.volume(run.cohort.scans[rows["test"][0]])):
            raise ValueError("a lesion of no contrast must change nothing")
        for cm3 in VOLUMES_CM3:
            images, spots = zip(*(_with_lesion(run, row, cm3, inside) for row in rows["test"]), strict=True)
            volumes = np.stack(images)
            made[f"image{cm3}"], made[f"place{cm3}"] = volumes[:, inside], np.stack(spots)
            made[f"rebuilt{cm3}"] = run.model.reconstruct(volumes)[:, inside]
        np.savez(kept.with_suffix(".tmp.npz"), **made)
        kept.with_suffix(".tmp.npz").replace(kept)
    with np.load(kept) as content:
        parts = [{cm3: content[f"{name}{cm3}"] for cm3 in VOLUMES_CM3} for name in ("image", "place", "rebuilt")]
    return Held(run, latents, inside, rows["learned"], rows["calibration"], rows["test"], residuals, *parts)


def _with_lesion(
    run: Run, row: int, cm3: int, inside: NDArray[np.bool_], contrast: float = CONTRAST
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The preprocessed scan of a person with a lesion, and the voxels of the mask that are mostly in it."""
    rng = np.random.default_rng((row, cm3))
    image = nibabel.load(run.cohort.scans[row].path)
    data = np.asarray(image.dataobj, np.float32)
    spacing = np.array([2.0, 2.0, 2.0])  # of the scan itself; its affine, which goes to MNI space, stretches
    tissue = gaussian_filter((data > np.percentile(data[data > 0], 25)).astype(np.float32), 1) > 0.6
    centres = np.argwhere(tissue)
    centre = centres[rng.integers(len(centres))]
    radius = (3000 * cm3 / (4 * np.pi)) ** (1 / 3)
    axes = np.exp(rng.normal(0, 0.2, 3))
    axes *= radius / axes.prod() ** (1 / 3)
    away = (np.stack(np.indices(data.shape), axis=-1) - centre) * spacing / axes
    share = np.clip((1 - np.sqrt(np.square(away).sum(axis=-1))) * radius / 2 + 0.5, 0, 1).astype(np.float32)

    def like(values: NDArray[np.float32]) -> Any:
        made = nibabel.Nifti1Image(values, image.affine)
        made.set_sform(image.affine, int(image.header["sform_code"]))
        return made

    spot = run.pipeline.place(like(share))
    return run.pipeline.apply(like(data * (1 - contrast * share))), spot[inside] > 0.5


def _rates(held: list[Held], folder: Path) -> list[Row]:
    """Share of voxels with |z| > 1.96 of test people, by age, sex and lobe."""
    shares, ages, sexes, groups = [], [], [], []
    for fold in held:
        norm = _norm(fold)
        atlas = atlas_of(fold.run, [fold.latents.people[row] for row in fold.learned], folder, fold.inside)
        for index, row in enumerate(fold.test):
            own = fold.residuals["test"]
            z = norm.of(own.missed[index], own.open[index], fold.given[row]).z
            beyond = np.abs(z) > 1.959964
            shares.append([beyond.mean(), *(beyond[atlas == group].mean() for group in GROUPS)])
            ages.append(float(fold.latents.columns["age"][row]))
            sexes.append(fold.latents.columns["sex"][row])
    table, tercile = np.array(shares), np.digitize(ages, np.quantile(ages, [1 / 3, 2 / 3]))
    groups = [(f"age tercile {k + 1}", table[tercile == k, 0]) for k in range(3)]
    groups += [(f"sex {sex}", table[np.array(sexes) == sex, 0]) for sex in sorted(set(sexes))]
    groups += [(f"{group}, everyone", table[:, 1 + k]) for k, group in enumerate(GROUPS)]
    rows = []
    for name, values in [("everyone", table[:, 0]), *groups]:
        value = float(values.mean())
        ok = 0.03 <= value <= 0.07
        rows.append(
            as_row(f"healthy test people, |z| > 1.96: {name}", value, "share", "0.05", "0.03 to 0.07", None, ok)
        )
    return rows


def _norm(fold: Held, residuals: dict[str, Residuals] | None = None) -> Norm:
    found = residuals or fold.residuals
    codes = (fold.latents.codes[fold.learned], fold.latents.codes[fold.calibration])
    given = (fold.given[fold.learned], fold.given[fold.calibration])
    spacing = fold.run.pipeline.grid.spacing
    return Norm.fit(found["learned"], found["calibration"], codes, given, fold.inside, spacing)


def _guarantees(held: list[Held]) -> list[Row]:
    """P(p ≤ α) over random splits of the people no weight was fitted to."""
    found: dict[str, list[list[float]]] = {}
    known_people = len(held[0].calibration)
    for number in range(SPLITS):
        fold = held[number % len(held)]
        rng = np.random.default_rng((7, number))
        both = [*fold.calibration, *fold.test]
        order = rng.permutation(len(both))
        cut = len(fold.calibration)
        missed, open_ = (
            np.concatenate([getattr(fold.residuals[name], part) for name in ("calibration", "test")])
            for part in ("missed", "open")
        )
        known = order[:cut]
        calibration = Residuals(missed[known], missed[known], open_[known])
        rows = np.array(both)
        norm = Norm.fit(
            fold.residuals["learned"], calibration,
            (fold.latents.codes[fold.learned], fold.latents.codes[rows[known]]),
            (fold.given[fold.learned], fold.given[rows[known]]),
            fold.inside, fold.run.pipeline.grid.spacing,
        )  # fmt: skip
        own: dict[str, list[float]] = {}
        for index in order[cut : cut + NEW]:
            given = fold.given[rows[index]]
            one = norm.of(missed[index], open_[index], given)
            p = {**one.p, "distance": norm.distance_of(fold.latents.codes[rows[index]], given)[1]}
            for score, value in p.items():
                own.setdefault(score, []).append(value)
        for score, values in own.items():
            found.setdefault(score, []).append(values)
        if number % 20 == 19:
            print(f"  {number + 1} of {SPLITS} splits", flush=True)
    rows_ = []
    for score, values in found.items():
        for alpha in ALPHAS:
            possible = np.floor(alpha * (known_people + 1) + 1e-9) / (known_people + 1)
            of_splits = (np.array(values) <= alpha).mean(axis=1)
            rate, error = float(of_splits.mean()), float(of_splits.std(ddof=1) / np.sqrt(SPLITS))
            name = f"conformal p of {score}: P(p ≤ {alpha}) over {SPLITS} splits (standard error {error:.4f})"
            ok = rate <= alpha + 2 * error
            peer = f"{alpha}; of {known_people + 1} ranks {possible:.4f}"
            rows_.append(as_row(name, rate, "rate", peer, f"≤ {alpha + 2 * error:.4f}", None, ok))
    return [*rows_, *_as_they_are(held)]


def _as_they_are(held: list[Held]) -> list[Row]:
    """The same of the people who are calibration and test people in fact, which a model that knew some would spoil."""
    found: dict[str, list[float]] = {}
    for fold in held:
        norm, own = _norm(fold), fold.residuals["test"]
        for index, row in enumerate(fold.test):
            p = dict(norm.of(own.missed[index], own.open[index], fold.given[row]).p)
            p["distance"] = norm.distance_of(fold.latents.codes[row], fold.given[row])[1]
            for score, value in p.items():
                found.setdefault(score, []).append(value)
    rows = []
    for score, values in found.items():
        for alpha in ALPHAS:
            count, n = int((np.array(values) <= alpha).sum()), len(values)
            most = float(binom.ppf(0.999, n, alpha))  # people of a fold share their calibration people: wider in truth
            name = f"conformal p of {score}, roles as they are, {n} people: p ≤ {alpha}"
            rows.append(as_row(name, count / n, "rate", f"{alpha}", f"≤ {most / n:.4f}", None, count <= most))
    return rows


Score = Callable[[NDArray[Any], NDArray[Any] | None, Numbers], tuple[float, NDArray[Any]]]
"""From a person's residual, its variance and covariates: a score of the person, and one of each voxel."""


def _methods(fold: Held) -> Iterator[tuple[str, Score, dict[str, Any]]]:
    """Methods by name, with the residuals of test people healthy and with each lesion."""
    images = {name: each.images for name, each in fold.residuals.items()}
    test = {0: images["test"], **fold.lesions}
    ours = {0: fold.residuals["test"].missed}
    ours |= {cm3: image - fold.rebuilt[cm3] for cm3, image in fold.lesions.items()}
    yield "ours", _judged(_norm(fold)), ours
    pca = PCA(fold.latents.codes.shape[1], svd_solver="full").fit(images["learned"])

    def missed(image: NDArray[Any]) -> NDArray[np.float32]:
        return (image - pca.inverse_transform(pca.transform(image))).astype(np.float32)

    of_pca = {name: Residuals(image, missed(image), None) for name, image in images.items()}
    theirs = {cm3: missed(image) for cm3, image in test.items()}
    yield SAME_SCORE, _judged(_norm(fold, of_pca)), theirs
    yield "PCA residual", _plain(of_pca["calibration"].missed, fold), theirs
    mean = images["learned"].mean(axis=0)
    yield "plain z-maps", _plain(images["calibration"] - mean, fold), {k: image - mean for k, image in test.items()}


def _judged(norm: Norm) -> Score:
    def score(missed: NDArray[Any], open_: NDArray[Any] | None, given: Numbers) -> tuple[float, NDArray[Any]]:
        one = norm.of(missed, open_, given)
        return one.focus, np.abs(one.focus_map)

    return score


def _plain(calibration: NDArray[Any], fold: Held) -> Score:
    """The largest |z| of the smoothed residual."""
    sigma = SMOOTH_MM / np.sqrt(8 * np.log(2)) / np.array(fold.run.pipeline.grid.spacing)
    weight = gaussian_filter(fold.inside.astype(float), sigma)[fold.inside]

    def smooth(rows: NDArray[Any]) -> Numbers:
        grid = np.zeros(fold.inside.shape)
        found = []
        for row in rows:
            grid[fold.inside] = row
            found.append(gaussian_filter(grid, sigma)[fold.inside] / weight)
        return np.stack(found)

    scale = calibrate(smooth(calibration))

    def score(missed: NDArray[Any], open_: NDArray[Any] | None, given: Numbers) -> tuple[float, NDArray[Any]]:
        z = np.abs(scale.t(smooth(missed[None]))[0])
        return float(z.max()), z

    return score


def _lesions(held: list[Held]) -> list[Row]:
    """AUROC of people with against people without, and average precision of voxels."""
    scores: dict[str, dict[int, list[float]]] = {}
    precision: dict[str, dict[int, list[float]]] = {}
    for fold in held:
        for name, score, residuals in _methods(fold):
            print(f"  {fold.run.path.name}: {name}", flush=True)
            for cm3, missed in residuals.items():
                for index, row in enumerate(fold.test):
                    open_ = fold.residuals["test"].open[index] if name == "ours" else None
                    value, voxels = score(missed[index], open_, fold.given[row])
                    scores.setdefault(name, {}).setdefault(cm3, []).append(value)
                    if cm3 and fold.places[cm3][index].any():
                        found = average_precision_score(fold.places[cm3][index], voxels)
                        precision.setdefault(name, {}).setdefault(cm3, []).append(float(found))
    table = {name: {cm3: np.array(values) for cm3, values in own.items()} for name, own in scores.items()}
    rows = []
    for cm3 in VOLUMES_CM3:
        values = {name: auroc(own[0], own[cm3]) for name, own in table.items()}
        low, high = _interval(table["ours"], table["PCA residual"], cm3)
        same = "less PCA's scored as ours {:+.3f} to {:+.3f}".format(*_interval(table["ours"], table[SAME_SCORE], cm3))
        peers = ", ".join(f"{name} {value:.3f}" for name, value in values.items() if name != "ours")
        words = f"lesions of {cm3} cm³: AUROC (95 % less PCA residual's {low:+.3f} to {high:+.3f}, {same})"
        least = max(values["PCA residual"], LEAST[cm3])
        ok = values["ours"] >= least
        rows.append(as_row(words, values["ours"], "AUROC", peers, f"{least:.3f}", None, ok))
    for cm3 in VOLUMES_CM3:
        means = {name: float(np.mean(own[cm3])) for name, own in precision.items()}
        peers = ", ".join(f"{name} {value:.3f}" for name, value in means.items() if name != "ours")
        chance = float(np.mean([fold.places[cm3].mean() for fold in held]))
        outside = sum(not spot.any() for fold in held for spot in fold.places[cm3])
        aside = f"chance {chance:.5f}; {outside} beyond the mask are left out"
        words = f"lesions of {cm3} cm³: average precision of voxels ({aside})"
        rows.append(as_row(words, means["ours"], "AUPRC", peers))
    return rows


def auroc(without: Numbers, with_: Numbers) -> float:
    """Mann and Whitney's."""
    ranks = rankdata(np.r_[without, with_])
    n, m = len(without), len(with_)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def _interval(ours: dict[int, Numbers], theirs: dict[int, Numbers], cm3: int) -> tuple[float, float]:
    """Of the difference, over people, each with and without."""
    rng, n = np.random.default_rng(1), len(ours[0])
    found = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, n, n)
        found.append(auroc(ours[0][drawn], ours[cm3][drawn]) - auroc(theirs[0][drawn], theirs[cm3][drawn]))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
