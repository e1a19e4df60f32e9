"""A cohort whose truth is known, beside PCA with the same predictor: drivers, their maps, stage of disease, site.

PCA has the same people to learn from (training and validation people), the same mask and as many components, and its
scores go through the very functions that our codes go through. Both models are then taken as given: intervals are of
people drawn anew, in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from analysis_folds import PLAIN
from numpy.typing import NDArray
from rows import Row, as_row
from scipy import stats
from simulated_cohort import DRIVERS, driver_map, make_cohort, others
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

import kerasvae
from kerasvae.analysis.association import JOINT, Association, associate
from kerasvae.analysis.design import Term, columns_of
from kerasvae.analysis.latents import Latents, read_latents
from kerasvae.analysis.maps.decoded import AssociationMap, Decode, association_map
from kerasvae.analysis.maps.run import decoder_of
from kerasvae.analysis.maps.slopes import contrasts_of
from kerasvae.analysis.sites.combat import ComBat
from kerasvae.analysis.sites.readings import level_chances
from kerasvae.data.anatomy import REGIONS
from kerasvae.metrics import nested_ridge
from kerasvae.networks.covariance_map import mirror_index
from kerasvae.storage import atomic_path
from kerasvae.training.run import Run

__all__ = ["simulated_rows"]

RECIPE = "t1-4mm"
EPOCHS = 6
ROLES = ["cohort.exclude={}", 'split.column="role"', "split.stratify=[]"]
"""The cohort's own table says who is in which role."""
KNOWN = ("age", "sex", "head_size_ratio", "site")
LOSSES = tuple(f"loss_{region}" for region in REGIONS)
TRUE = (*KNOWN, "stage", "log_ventricles", "log_hippocampi", *LOSSES)
"""What made the images, each asked about beside `KNOWN` and the stage."""
KEPT = ("age", "sex", "diagnosis")
NULLS = 100
LEVEL, SURE = 0.05, 0.999
PERMUTATIONS = 499
HALVES = 50
RESAMPLES = 1000
DIVISIONS = 10
"""Of people into the parts of a cross-validation, over which predictions are averaged."""
TRUTH_PEOPLE = 24
Numbers = NDArray[np.float64]
Measure = Callable[[NDArray[np.intp], Numbers], float]
"""Of rows of people and all people's predictions."""


@dataclass(frozen=True)
class Study:
    """Codes of all people, row by row, ours first.

    Args:
        run: Of our model.
        latents: Who they are.
        codes: "ours" and "PCA", (n, d) each.
        decode: The decoder of each.
        inside: (x, y, z): the mask.
        new: (n,): whom neither model has seen.
        mirrored: (n, d): scores of PCA on images and mirror images, which is the augmentation of our linear start.
    """

    run: Run
    latents: Latents
    codes: dict[str, Numbers]
    decode: dict[str, Decode]
    inside: NDArray[np.bool_]
    new: NDArray[np.bool_]
    mirrored: Numbers

    def terms(self, names: Sequence[str]) -> list[Term]:
        return [self.latents.term(name) for name in names]

    def numbers(self, name: str) -> Numbers:
        return self.latents.term(name).values[:, 0]


def simulated_rows(work: Path) -> list[Row]:
    """Make the cohort and the models unless they are there, and judge the shipped recipe; then a plain linear start.

    Args:
        work: Where they are kept.
    """
    study, plain = _study(work), _study(work, plain=True)
    rows = [*_driver_rows(study), *_map_rows(study, work), *_stage_rows(study), *_site_rows(study)]
    again = [*_driver_rows(plain), *_map_rows(plain, work), *_stage_rows(plain), *_site_rows(plain)]
    return [*rows, *(row | {"name": f"plain linear start: {row['name']}"} for row in again)]


def _study(work: Path, *, plain: bool = False) -> Study:
    table = make_cohort(work / "cohort")
    recipe = kerasvae.load_recipe(RECIPE, [*ROLES, f"training.epochs={EPOCHS}", *(PLAIN if plain else ())])
    run = kerasvae.train(recipe, table, work / ("plain" if plain else "run"), resume=True)
    latents, inside = read_latents(run), np.asarray(run.pipeline.mask)
    scans = {scan.person: scan for scan in run.cohort.scans}
    images = run.store.load([scans[person] for person in latents.people])[:, inside]
    new = np.isin(latents.roles, ["calibration", "test"])
    known, size = images[~new], latents.codes.shape[1]
    pca = PCA(size, svd_solver="full").fit(known)
    twice = PCA(size, svd_solver="full").fit(np.concatenate([known, known[:, mirror_index(inside)]]))

    def decode(codes: Numbers) -> NDArray[np.float32]:
        made = np.zeros((len(codes), *inside.shape), np.float32)
        made[:, inside] = pca.inverse_transform(codes)
        return made

    codes = {"ours": latents.codes, "PCA": pca.transform(images).astype(np.float64)}
    mirrored = twice.transform(images).astype(np.float64)
    return Study(run, latents, codes, {"ours": decoder_of(run, inside), "PCA": decode}, inside, new, mirrored)


def _driver_rows(study: Study) -> list[Row]:
    """What is found among people who are new, by joint tests: true drivers, and what only goes with age and site."""
    held, nulls = [*KNOWN, "stage"], _nulls(study)
    people, rows = np.flatnonzero(study.new), []
    for words, chosen in (("people", np.arange(len(study.new))), ("new people", people)):
        found = {kind: _found(study, kind, chosen) for kind in study.codes}
        missed = {
            kind: ", ".join(name for name in TRUE if name not in names) or "none" for kind, names in found.items()
        }
        title = f"true drivers of {len(TRUE)} found at q < {LEVEL} in {len(chosen)} {words} (missed: {missed['ours']})"
        peer, ours = f"PCA: {len(found['PCA'])} (missed: {missed['PCA']})", len(found["ours"])
        rows.append(as_row(title, ours, "drivers", peer, None, None, ours >= len(found["PCA"])))
    rng = np.random.default_rng(3)
    halves = [np.sort(rng.choice(people, len(people) // 2, replace=False)) for _ in range(HALVES)]
    counts = {kind: np.array([len(_found(study, kind, half)) for half in halves]) for kind in study.codes}
    title = f"the same in random halves of the new people, mean of {HALVES}"
    both = float(counts["ours"].mean()), float(counts["PCA"].mean())
    rows.append(_beside(title, "drivers", *both, counts["ours"] - counts["PCA"]))
    low, high = (int(end) for end in stats.binom.interval(SURE, NULLS, LEVEL))
    for words, covariates in (("covariates held the same", held), ("no covariates", [])):
        tests = {kind: _joint(study, kind, people, nulls, covariates) for kind in study.codes}
        count = {kind: sum(row.p <= LEVEL for row in made) for kind, made in tests.items()}
        title = f"of {NULLS} variables that go with age and site alone, found at p ≤ {LEVEL}: {words}"
        peer = f"{LEVEL}: {low} to {high}; PCA: {count['PCA']}"
        ok = low <= count["ours"] <= high if covariates else count["ours"] > high
        rows.append(as_row(title, count["ours"], "variables", peer, None, None, ok))
    return rows


def _found(study: Study, kind: str, people: NDArray[np.intp]) -> set[str]:
    """True drivers that a joint test finds, at a false discovery rate over all of them."""
    tests = _joint(study, kind, people, study.terms(TRUE), [*KNOWN, "stage"])
    return {row.variable for row in tests if row.q < LEVEL}


def _joint(
    study: Study, kind: str, people: NDArray[np.intp], asked: Sequence[Term], held: Sequence[str]
) -> list[Association]:
    """Of each variable the test of all dimensions together."""
    names = [study.latents.people[row] for row in people]
    variables, covariates = (
        [Term(term.name, term.levels, term.values[people]) for term in terms] for terms in (asked, study.terms(held))
    )
    made = associate(study.codes[kind][people], names, variables, covariates, permutations=PERMUTATIONS)
    return [row for row in made if row.dimension == JOINT]


def _nulls(study: Study) -> list[Term]:
    """Scores that follow age (r about 0.6) and are higher at the third site, and nothing else."""
    rng = np.random.default_rng(5)
    age = stats.zscore(study.numbers("age"))
    third = np.array(study.latents.columns["site"]) == "site-3"
    scores = 0.75 * age + 0.5 * third + rng.normal(size=(NULLS, len(age)))
    return [Term(f"score-{number}", (), score[:, None]) for number, score in enumerate(scores)]


def _map_rows(study: Study, work: Path) -> list[Row]:
    """Maps of drivers beside how the image of one and the same person changes with them."""
    rows = []
    for driver in DRIVERS:
        truth = _truth(study, work, driver)
        size = np.abs(truth[study.inside])
        core = size > np.quantile(size, 0.999) / 2
        rest = [
            name for name in (*KNOWN, "stage", *LOSSES) if name != driver and (driver in LOSSES or name not in LOSSES)
        ]
        maps = {kind: _map(study, kind, driver, rest) for kind in study.codes}
        dice = {kind: _dice(found.slope[study.inside], core) for kind, found in maps.items()}
        drawn = {kind: np.array([_dice(each, core) for each in _drawn(found)]) for kind, found in maps.items()}
        alike = {kind: _r(found.slope[study.inside], truth[study.inside]) for kind, found in maps.items()}
        title = f"map of {driver}: Dice with the truth's {core.sum()} voxels"
        rows.append(_beside(title, "Dice", dice["ours"], dice["PCA"], drawn["ours"] - drawn["PCA"]))
        best = {kind: _dice(_spanned(found, truth[study.inside]), core) for kind, found in maps.items()}
        rows[-1]["peer"] += f"; the truth in as many dimensions: {best['ours']:.3f}, PCA's {best['PCA']:.3f}"
        title = f"map of {driver}: r with the truth over the mask's {len(core)} voxels"
        rows.append(as_row(title, alike["ours"], "r", f"PCA: {alike['PCA']:.3f}"))
        if driver == "stage":
            naive = _map(study, "ours", driver, [])
            differences = np.array([_dice(each, core) for each in _drawn(naive)]) - drawn["ours"]
            both = _dice(naive.slope[study.inside], core), dice["ours"]
            title = f"map of {driver} without covariates: Dice"
            rows.append(_beside(title, "Dice", *both, differences, to="with covariates", aim="below"))
    return rows


def _truth(study: Study, work: Path, driver: str) -> Numbers:
    path = work / f"truth-{driver}.npy"
    if not path.is_file():
        made = driver_map(study.run.pipeline, driver, others(TRUTH_PEOPLE))
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, made)
    return np.asarray(np.load(path), np.float64)


def _map(study: Study, kind: str, driver: str, held: Sequence[str]) -> AssociationMap:
    """Of everyone; cohorts drawn anew are the same for ours and PCA."""
    (contrast,) = contrasts_of(study.latents.term(driver), study.terms(held))
    return association_map(study.decode[kind], study.codes[kind], study.latents.people, contrast, study.inside)


def _drawn(found: AssociationMap) -> Iterator[Numbers]:
    """The map, in the mask, as it would be of each cohort that was drawn."""
    for offset in found.offsets:
        yield found.slope[found.inside] + found.gradient @ offset


def _spanned(found: AssociationMap, truth: Numbers) -> Numbers:
    """The truth, as far as any map of the decoder, to first order, can be like it."""
    axes = np.linalg.qr(found.gradient.astype(np.float64))[0]
    return np.asarray(axes @ (axes.T @ truth))


def _dice(values: NDArray[np.floating], core: NDArray[np.bool_]) -> float:
    """Overlap of the truth's voxels with as many voxels in which the map is largest, whatever its sign."""
    size = np.abs(values)
    return float(core[np.argpartition(size, -core.sum())[-core.sum() :]].mean())


def _stage_rows(study: Study) -> list[Row]:
    """The stage of people who are new, from their codes."""
    stage, patient = study.numbers("stage"), study.numbers("stage") > 0
    rows = []
    for words, chosen in (("patients", study.new & patient), ("people", study.new)):
        y = stage[chosen]
        read = {kind: _ridge(codes[chosen], y) for kind, codes in study.codes.items()}
        known = _ridge(columns_of(study.terms(KNOWN), len(stage))[chosen], y)

        def measure(which: NDArray[np.intp], predicted: Numbers, y: Numbers = y) -> float:
            return _r(predicted[which], y[which])

        title = f"stage of {len(y)} new {words} from codes, r"
        rows.append(_compared(title, "r", measure, read["ours"], read["PCA"]))
        mirrored = _r(_ridge(study.mirrored[chosen], y), y)
        rows[-1]["peer"] += f"; PCA on images and mirror images: {mirrored:.3f}; without codes: {_r(known, y):.3f}"
    return rows


def _site_rows(study: Study) -> list[Row]:
    """Site and what is to be kept, read from codes of people who are new, before and after ComBat."""
    new, site = study.new, np.array(study.latents.columns["site"])
    place = np.unique(site, return_inverse=True)[1][new]
    terms = study.terms(KEPT)
    kept = columns_of(terms, len(new))
    told: dict[str, dict[str, Numbers]] = {}
    for kind, codes in study.codes.items():
        combat = ComBat.fit(codes[~new], site[~new], kept[~new])
        blind, naive = combat.apply(codes[new], site[new]), ComBat.fit(codes[~new], site[~new])
        told[kind] = {
            "site before": _levels(codes[new], place),
            "site after": _levels(combat.apply(codes[new], site[new], kept[new]), place),
            "age naive": _ridge(naive.apply(codes[new], site[new]), study.numbers("age")[new]),
        }
        for term in terms:
            y = term.values[new, 0]
            for when, z in (("before", codes[new]), ("after", blind)):
                told[kind][f"{term.name} {when}"] = (
                    _levels(z, y.astype(np.int64))[:, 1] if term.levels else _ridge(z, y)
                )
    by_kept = _balanced(_levels(kept[new], place), place)

    def balanced(which: NDArray[np.intp], chances: Numbers) -> float:
        return _balanced(chances[which], place[which])

    rows = []
    for when, peer in (
        ("before", "chance: 0.333"),
        ("after", f"chance: 0.333, age, sex and diagnosis alone: {by_kept:.3f}"),
    ):
        title = f"site of {new.sum()} new people {when} ComBat, balanced accuracy"
        name = f"site {when}"
        rows.append(_compared(title, "ratio", balanced, told["ours"][name], told["PCA"][name], aim="not above"))
        rows[-1]["peer"] += f"; {peer}"
    for term in terms:
        measure = _measure(term, new)
        for when in ("before", "after"):
            name = f"{term.name} {when}"
            title = f"{name} ComBat, {'AUC' if term.levels else 'r'}"
            rows.append(
                _compared(title, "ratio" if term.levels else "r", measure, told["ours"][name], told["PCA"][name])
            )
    age = _measure(terms[0], new)
    with_it = "ComBat that keeps age, sex and diagnosis"
    both = told["ours"]["age naive"], told["ours"]["age after"]
    rows.append(_compared("age after a ComBat that keeps nothing, r", "r", age, *both, to=with_it, aim="below"))
    return rows


def _measure(term: Term, new: NDArray[np.bool_]) -> Measure:
    y = term.values[new, 0]
    if term.levels:
        return lambda which, told: float(roc_auc_score(y[which], told[which]))
    return lambda which, told: _r(told[which], y[which])


def _ridge(codes: Numbers, target: Numbers) -> Numbers:
    return np.mean([nested_ridge(codes, target, seed=seed).predicted for seed in range(DIVISIONS)], axis=0)


def _levels(codes: Numbers, level: NDArray[np.int64]) -> Numbers:
    return np.mean([level_chances(codes, level, seed) for seed in range(DIVISIONS)], axis=0)


def _balanced(chances: Numbers, place: NDArray[np.int64]) -> float:
    """Mean over sites of the share of people who are put there."""
    hit = chances.argmax(axis=1) == place
    return float(np.mean([hit[place == each].mean() for each in np.unique(place)]))


def _r(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def _compared(name: str, unit: str, measure: Measure, ours: Numbers, theirs: Numbers, **said: Any) -> Row:
    """A figure beside another by paired draws of people; see `_beside`."""
    rng, n = np.random.default_rng(1), len(ours)
    draws = [rng.integers(0, n, n) for _ in range(RESAMPLES)]
    differences = np.array([measure(which, ours) - measure(which, theirs) for which in draws])
    everyone = np.arange(n)
    return _beside(name, unit, measure(everyone, ours), measure(everyone, theirs), differences, **said)


def _beside(
    name: str, unit: str, ours: float, theirs: float, differences: Numbers, *, to: str = "PCA", aim: str = "not below"
) -> Row:
    """A figure beside another.

    Args:
        name: Of the row; the interval is added.
        unit: Of the figure.
        ours: It.
        theirs: The other.
        differences: Of both, for people drawn anew.
        to: What the other is of.
        aim: How the difference's interval must lie to 0: not below, not above, below.
    """
    low, high = np.quantile(differences, [0.025, 0.975])
    title = f"{name} (difference 95 % {low:+.3f} to {high:+.3f})"
    ok = {"not below": high >= 0, "not above": low <= 0, "below": high < 0}[aim]
    return as_row(title, ours, unit, f"{to}: {theirs:.3f}", None, None, bool(ok))
