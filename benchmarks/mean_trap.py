"""Is it out of the mean-brain trap? The shipped recipes against PCA on people whom neither has seen, five folds.

Peers are fitted to the same people (training and validation people of the fold), in the same mask, with as many
components: PCA (scikit-learn, full SVD), PCA on images and mirror images, which is the augmentation of the recipe's
start, and the trained model itself with its refinements set to zero, which is its linear start. Intervals are those of
a bootstrap over people, paired. Test people of a fold are read once; each person is a test person once a seed.
"""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rows import Row, as_row
from scipy.optimize import minimize_scalar
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import kerasvae
from kerasvae.data import Cohort
from kerasvae.metrics import stability
from kerasvae.networks.covariance_map import mirror_index
from kerasvae.training.run import Run, model_inputs
from kerasvae.training.textbook import textbook

RECIPES = {"T1": "t1-4mm", "GM": "gm-4mm"}
TEXTBOOK = "textbook"
FOLDS = 5
SEEDS = 3
DRAWS = 50
"""Importance samples of the evidence."""
RESAMPLES = 10_000
LEAST = {
    "T1": {"ratio": (1.06, 1.12), "identification": (0.97, 1.0)},
    "GM": {"ratio": (1.08, 1.15), "identification": (0.93, 1.0)},
}
PACKAGES = ("kerasvae", "tensorflow", "keras", "scikit-learn", "numpy")
ROLES = ["cohort.exclude={}", 'split.column="role"', "split.stratify=[]"]
"""The benchmark's own table says who is in which role."""
NO_MEAN = ("people", "codes", "codes_pca")
Errors = dict[str, NDArray[np.float64]]


def run(
    folder: Path, *, work: Path, epochs: int | None = None, seeds: int = SEEDS, only: str | None = None
) -> list[Row]:
    """Train what is not there yet and judge it; the rows of the benchmark.

    Args:
        folder: The IXI derivative.
        work: Where run folders and figures are kept, to go on from after an interruption.
        epochs: In the place of the recipes'; rows are then not those of the recipes.
        seeds: Trainings of each fold.
        only: T1, GM, or the textbook's recipe alone.
    """
    if only not in (None, *RECIPES, TEXTBOOK):
        raise ValueError(f"--only must be one of {', '.join((*RECIPES, TEXTBOOK))}; got {only!r}")
    rows: list[Row] = []
    for name, recipe in RECIPES.items():
        settings = [] if epochs is None else [f"training.epochs={epochs}"]
        if only in (None, name):
            rows += _rows(name, [people_of(folder, work, recipe, seed, settings=settings) for seed in range(seeds)])
        if only in (None, TEXTBOOK):
            rows += _textbook_rows(folder, work, name, recipe)
    versions = {package: version(package) for package in PACKAGES}
    return [row | {"versions": versions} for row in rows]


def people_of(
    folder: Path,
    work: Path,
    recipe: str,
    seed: int,
    folds: int = FOLDS,
    settings: Sequence[str] = (),
    new: str = "test",
) -> Errors:
    """Figures of every person who is new to the model of one of the first folds.

    Args:
        folder: The IXI derivative.
        work: Where run folders and figures are kept.
        recipe: Name of a shipped recipe.
        seed: Of the training; the folds are the same for all.
        folds: How many of the five.
        settings: What differs from the recipe.
        new: The role of these people; "validation" needs `training.refit=false`, without which the model knows them.
    """
    found: list[Errors] = []
    for fold in range(folds):
        place = work / "-".join([recipe, f"fold{fold}", f"seed{seed}", *(re.sub(r"[^\w.]+", "_", s) for s in settings)])
        figures = place / "figures.npz"
        if not figures.is_file():
            print(f"{place.name}: training", flush=True)
            table = _table(folder, place, recipe, fold)
            chosen = kerasvae.load_recipe(recipe, [*ROLES, f"training.seed={seed}", *settings])
            trained = kerasvae.train(chosen, table, place / "run", resume=True)
            begun = time.perf_counter()
            judged = _judge(trained, new, evidence=seed == 0 and not settings)
            temporary = place / "temporary.npz"
            np.savez(temporary, **judged)
            temporary.replace(figures)
            print(f"  {_line(judged)}; judged in {time.perf_counter() - begun:.0f} s", flush=True)
        with np.load(figures, allow_pickle=False) as content:
            found.append({key: np.atleast_1d(content[key]) for key in content.files})
    return {key: np.concatenate([each[key] for each in found]) for key in found[0]}


def _table(folder: Path, place: Path, recipe: str, fold: int) -> Path:
    """The cohort as a table that says who is in which role."""
    section = kerasvae.load_recipe(recipe).cohort
    cohort = Cohort.read(
        folder,
        select=section.select,
        covariates=section.covariates,
        exclude=section.exclude,
        incomplete=section.incomplete,
    )
    people = np.random.default_rng(0).permutation(sorted(set(cohort.people)))
    test = set(people[fold::FOLDS])
    others = [person for person in people if person not in test]
    role = dict.fromkeys(others, "train") | dict.fromkeys(others[::8], "validation") | dict.fromkeys(test, "test")
    place.mkdir(parents=True, exist_ok=True)
    path = place / "people.tsv"
    columns = ["path", "participant_id", "session_id", "role", *section.covariates]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t")
        writer.writeheader()
        for scan in cohort.scans:
            known = {name: scan.covariates[name] for name in section.covariates}
            writer.writerow(
                {
                    "path": str(Path(scan.path).resolve()),
                    "participant_id": scan.person,
                    "session_id": scan.session or "n/a",
                    "role": role[scan.person],
                    **known,
                }
            )
    return path


def _judge(trained: Run, role_of_new: str, *, evidence: bool) -> Errors:
    """Of each new person: squared errors, whom the reconstruction resembles most, evidence, age read from codes."""
    model, mask = trained.model, trained.pipeline.mask
    if mask is None:
        raise RuntimeError("the recipes have a mask")
    everyone = sorted(trained.cohort.scans, key=lambda scan: scan.name)
    images = trained.store.load(everyone)
    role = np.array([trained.split.roles[scan.person] for scan in everyone])
    learned = {"test": ["train", "validation"], "validation": ["train"]}[role_of_new]
    known, new = np.isin(role, learned), role == role_of_new
    test = [scan for scan, chosen in zip(everyone, new, strict=True) if chosen]
    fit, x = images[known], images[new]
    mean_image = images[role == "train"].mean(axis=0)[mask]
    mirrored = fit[:, mask][:, mirror_index(mask)]
    size = model.latent_size
    plain = PCA(size, svd_solver="full").fit(fit[:, mask])
    twice = PCA(size, svd_solver="full").fit(np.concatenate([fit[:, mask], mirrored]))
    inputs = model_inputs(model, test, x)
    codes = {"ours": model.encode(model_inputs(model, everyone, images))["mean"]}
    codes["pca"] = plain.transform(images[:, mask])
    ours = model.log_evidence(inputs, DRAWS).log_evidence if evidence else np.full(len(test), np.nan)
    bound = model.elbo(inputs)["elbo"]
    made = {
        "ours": model.reconstruct(inputs)[:, mask],
        "pca": plain.inverse_transform(codes["pca"][new]),
        "mirrored": twice.inverse_transform(twice.transform(x[:, mask])),
        "mean": np.broadcast_to(mean_image, (len(x), int(mask.sum()))),
    }
    for network in (model.encoder, model.decoder):
        for layer in network.layers:
            if layer.name.endswith("_refine"):
                layer.last.set_weights([np.zeros_like(w) for w in layer.last.get_weights()])
    made["start"] = model.reconstruct(inputs)[:, mask]
    found: Errors = {"people": np.array([scan.person for scan in test])}
    found |= {"codes": codes["ours"][None], "codes_pca": codes["pca"][None]}
    for name, image in made.items():
        found[f"error_{name}"] = np.square(x[:, mask] - image, dtype=np.float64).sum(axis=1)
        distance = np.square(image[:, None] - x[:, mask][None]).sum(axis=2, dtype=np.float64)
        found[f"found_{name}"] = (distance.argmin(axis=1) == np.arange(len(x))).astype(float)
    found["evidence_ours"] = np.asarray(ours) / mask.sum()
    found["elbo"] = np.asarray(bound)
    if role_of_new == "test":
        decide = images[role == "validation"][:, mask]
        found["evidence_pca"] = _ppca_evidence(images[role == "train"][:, mask], decide, plain, x[:, mask])
    age = np.array([float(scan.covariates["age"]) for scan in everyone])
    found["age"] = age[new]
    for name, z in codes.items():
        ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 5, 29))).fit(z[known], age[known])
        found[f"age_{name}"] = ridge.predict(z[new])
    found["seconds"] = np.array([trained.metrics["seconds"]])
    found["voxels"] = np.array([float(mask.sum())])
    return found


def _ppca_evidence(
    train: NDArray[np.float32], decide: NDArray[np.float32], pca: PCA, x: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Exact log evidence a voxel under probabilistic PCA, σ² being what is best for validation people.

    Validation people judge axes that were fitted to training people alone; σ² then goes with the axes of both.
    """
    axes = PCA(pca.n_components, svd_solver="full").fit(train)
    best = minimize_scalar(
        lambda log: -_log_evidence(axes, float(np.exp(log)), decide).mean(), bounds=(-12.0, 2.0), method="bounded"
    )
    return _log_evidence(pca, float(np.exp(best.x)), x)


def _log_evidence(pca: PCA, noise: float, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """log N(x; μ, U (Λ − σ²) Uᵀ + σ² I) a voxel (Tipping & Bishop 1999), no variance along an axis below σ²."""
    values = np.maximum(pca.explained_variance_, noise).astype(np.float64)
    centred = (x - pca.mean_).astype(np.float64)
    along = np.square(centred @ pca.components_.T.astype(np.float64))
    around = np.square(centred).sum(axis=1) - along.sum(axis=1)
    voxels = x.shape[1]
    determinant = np.log(values).sum() + (voxels - len(values)) * np.log(noise)
    return -0.5 * (voxels * np.log(2 * np.pi) + determinant + (along / values).sum(axis=1) + around / noise) / voxels


def explained(people: Errors, name: str) -> float:
    return float(1 - people[f"error_{name}"].sum() / people["error_mean"].sum())


def _line(people: Errors) -> str:
    figures = ", ".join(f"{name} {explained(people, name):.4f}" for name in ("ours", "start", "mirrored", "pca"))
    return f"explained variance {figures}; {people['seconds'].mean():.0f} s"


def _resamples(count: int) -> Iterator[NDArray[np.intp]]:
    rng = np.random.default_rng(1)
    for _ in range(RESAMPLES):
        yield rng.integers(0, count, count)


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % of the bootstrap of a mean over people."""
    means = [values[rows].mean() for rows in _resamples(len(values))]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def _rows(name: str, by_seed: list[Errors]) -> list[Row]:
    """The rows; people's figures are means over seeds."""
    if any((each["people"] != by_seed[0]["people"]).any() for each in by_seed):
        raise RuntimeError("seeds must have the same people in the same folds; remove the work folder")
    people = {key: np.mean([each[key] for each in by_seed], axis=0) for key in by_seed[0] if key not in NO_MEAN}
    rows = []

    def row(what: str, value: Any, unit: str, peer: str | None = None, at_least: Any = None, aim: Any = None) -> None:
        ok = None if at_least is None else bool(value >= at_least)
        rows.append(as_row(f"{name}: {what}", value, unit, peer, at_least, aim, ok))

    least = LEAST[name]
    scale = people["error_mean"].mean()
    peers = {"pca": "PCA", "mirrored": "PCA on images and mirror images", "start": "its refinements set to zero"}
    for key, words in peers.items():
        gain = (people[f"error_{key}"] - people["error_ours"]) / scale
        low, high = interval(gain)
        judged = 0.0 if key == "pca" or name == "T1" else None
        row(f"error saved, lower end of 95 % (mean {gain.mean():.4f}, upper end {high:.4f})", low, "variance", words)
        rows[-1] |= {"at_least": judged, "aim": 0.0, "ok": None if judged is None else low > 0}
    ours = explained(people, "ours")
    row("explained variance", ours, "ratio", f"PCA: {explained(people, 'pca'):.4f}")
    row("explained variance ÷ PCA's", ours / explained(people, "pca"), "ratio", "PCA", *least["ratio"])
    against = "PCA on images and mirror images"
    row(f"explained variance ÷ that of {against}", ours / explained(people, "mirrored"), "ratio", against, 1.0, 1.06)
    row("explained variance of its linear start", explained(people, "start"), "ratio")
    for seed, each in enumerate(by_seed):
        row(f"explained variance, seed {seed}", explained(each, "ours"), "ratio")
    row(
        "identification",
        float(people["found_ours"].mean()),
        "ratio",
        f"PCA: {people['found_pca'].mean():.3f}",
        *least["identification"],
    )
    difference = by_seed[0]["evidence_ours"] - by_seed[0]["evidence_pca"]
    low, high = interval(difference)
    row(
        f"log evidence over exact probabilistic PCA's (95 % {low:.4f} to {high:.4f})",
        float(difference.mean()),
        "nats a voxel",
        "probabilistic PCA, σ² tuned on validation people",
        0.0,
        0.0,
    )
    rows += _age_rows(name, people)
    folds = stability(list(by_seed[0]["codes"]))
    peer = stability(list(by_seed[0]["codes_pca"]))
    row(
        "agreement of codes between folds, Procrustes R² of people not aligned on (chance "
        f"{np.mean([pair.procrustes_null for pair in folds]):.3f})",
        float(np.mean([pair.procrustes for pair in folds])),
        "R²",
        f"PCA: {np.mean([pair.procrustes for pair in peer]):.3f}",
    )
    if len(by_seed) > 1:
        seeds = [pair for fold in range(FOLDS) for pair in stability([each["codes"][fold] for each in by_seed])]
        row("agreement of codes between seeds, likewise", float(np.mean([pair.procrustes for pair in seeds])), "R²")
    row("time for one fold", float(people["seconds"].mean()), "s", None)
    rows[-1] |= {"at_least": 600.0, "aim": 300.0, "ok": bool(people["seconds"].mean() <= 600)}
    return rows


def _textbook_rows(folder: Path, work: Path, name: str, recipe: str) -> list[Row]:
    """What CollapseGuard says of the textbook's recipe and where remedies lead, on validation people of one fold."""
    rows = []
    for action in ("warn", "remedy"):
        place = work / f"{recipe}-textbook-{action}"
        settings = [*ROLES, f"training.guard={action}", "training.refit=false"]  # the guard watches the first fit alone
        chosen = textbook(kerasvae.load_recipe(recipe, settings))
        print(f"{place.name}: training", flush=True)
        trained = kerasvae.train(chosen, _table(folder, place, recipe, 0), place / "run", resume=True)
        entries = json.loads((trained.path / "guard.json").read_text(encoding="utf-8"))["epochs"]
        trapped = [entry["epoch"] for entry in entries if "mean-brain trap" in entry["lasting"]]
        last = entries[-1]
        free = all(each["name"] != "mean-brain trap" for each in last["diagnoses"])
        figures = f"explained variance {last['figures']['explained_variance']:.3f}, "
        figures += f"identification {last['figures']['identification']:.2f}"
        if action == "warn":
            what, value = (
                "textbook's recipe: first epoch at which CollapseGuard names the trap",
                min(trapped, default=None),
            )
        else:
            what, value = "textbook's recipe with remedy: epochs in the trap", len(trapped)
        ok = bool(trapped) and (action == "warn" or free)
        rows.append(as_row(f"{name}: {what}; at the end {figures}", value, "epochs", ok=ok))
    return rows


def _age_rows(name: str, people: Errors) -> list[Row]:
    """Correlation of age with what ridge regression reads from codes, beside PCA's scores."""
    age = people["age"]
    ours, pca = (float(np.corrcoef(age, people[f"age_{key}"])[0, 1]) for key in ("ours", "pca"))
    differences = []
    for rows in _resamples(len(age)):
        both = [np.corrcoef(age[rows], people[f"age_{key}"][rows])[0, 1] for key in ("ours", "pca")]
        differences.append(both[0] - both[1])
    low = float(np.quantile(differences, 0.025))
    errors = [float(np.abs(age - people[f"age_{key}"]).mean()) for key in ("ours", "pca")]
    words = f"{name}: age from latents, r − r(PCA), lower end of 95 % (r {ours:.3f})"
    return [
        as_row(words, low, "r", f"PCA: r {pca:.3f}", -0.05, 0.0, low > -0.05),
        as_row(f"{name}: age from latents, mean absolute error", errors[0], "years", f"PCA: {errors[1]:.2f}"),
    ]
