"""`predict_runs` on run folders without images: nobody is predicted by who knows them; chance is what it should be."""

import csv
import json

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kerasvae import load_run
from kerasvae.analysis.folds import Fold, read_folds, sample_of
from kerasvae.analysis.latents import Latents
from kerasvae.analysis.prediction import predict_runs
from kerasvae.analysis.predictors import ADDED, BOTH, COVARIATES, Predictors
from kerasvae.errors import ArgumentError, RunError
from kerasvae.metrics.prediction import PENALTIES
from tests.conftest import BLOB_RECIPE
from tests.tables import write_rows

PEOPLE, D = 60, 4
RNG = np.random.default_rng(11)
HEAD = RNG.normal(0, 1, PEOPLE)
TRUE = RNG.normal(size=(PEOPLE, D)) + HEAD[:, None] * [1, 0, 0, 0]
AGE = 50 + 6 * TRUE[:, 0] + 5 * TRUE[:, 1] + 4 * HEAD + RNG.normal(0, 4, PEOPLE)
SEX = np.where(TRUE[:, 1] + RNG.normal(0, 0.7, PEOPLE) > 0, "M", "F")
GROUP = np.array(list("abc"))[np.digitize(TRUE[:, 2] + RNG.normal(0, 0.5, PEOPLE), [-0.5, 0.5])]
FOLDS = 3
PART = np.arange(PEOPLE) % FOLDS


def codes_of(fold, seed):
    """The truth, turned and with noise of their own, as trainings give it."""
    rng = np.random.default_rng((fold, seed))
    return TRUE @ np.linalg.qr(rng.normal(size=(D, D)))[0] + rng.normal(0, 0.3, (PEOPLE, D))


def run_of(folder, fold, seed=0, *, visits=(), columns=None, recipe=BLOB_RECIPE):
    """What training leaves that predictions need; people in `visits` come twice, their codes 1 up and 1 down."""
    folder.mkdir(parents=True)
    section = recipe.replace("[training]", f"[training]\nseed = {seed}")
    (folder / "recipe.toml").write_text(section)
    (folder / "metrics.json").write_text(json.dumps({"latent_size": D}))
    codes, latents, scans = codes_of(fold, seed), [], []
    for person in range(PEOPLE):
        role = "test" if PART[person] == fold else ("train", "train", "validation", "calibration")[person % 4]
        known = columns or {"age": AGE, "sex": SEX, "group": GROUP, "head_size": HEAD}
        for visit, away in (("1", 1), ("2", -1)) if person in visits else (("", 0),):
            who = {"participant_id": f"sub-{person:02d}", "session_id": visit, "role": role}
            latents.append(
                who
                | {"session_id": visit or "n/a"}
                | {f"mean_{i}": repr(float(code + away)) for i, code in enumerate(codes[person])}
            )
            cells = {name: str(values[person]) for name, values in known.items()}
            scans.append(who | cells | {"reason": "", "path": "x"})
    write_rows(folder / "latents.tsv", latents)
    write_rows(folder / "scans.tsv", scans)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("folds")
    return [[run_of(place / f"fold{f}-seed{s}", f, s) for f in range(FOLDS)] for s in range(2)]


@pytest.fixture(scope="module")
def found(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "p.tsv"
    runs = [load_run(folder) for of_seed in folders for folder in of_seed]
    asked = ["age", "sex", "group"]
    return predict_runs(runs, asked, ["head_size", "age"], pca=False, permutations=0, out=out)


def by_hand(seed, fit):
    """Everyone's prediction by a model fitted in each fold to the codes of its other people."""
    predicted = [None] * PEOPLE
    for fold in range(FOLDS):
        learn, left = np.flatnonzero(PART != fold), np.flatnonzero(PART == fold)
        for person, guess in zip(left, fit(codes_of(fold, seed), learn, left), strict=True):
            predicted[person] = guess
    return np.array(predicted)


def ridge(z, learn, left):
    parts = list(GroupKFold(5, shuffle=True, random_state=0).split(learn, groups=learn))
    search = GridSearchCV(
        make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": PENALTIES}, cv=parts,
        scoring="neg_mean_squared_error",
    )  # fmt: skip
    return search.fit(z[learn], AGE[learn]).predict(z[left])


def test_numbers_are_predicted_by_who_does_not_know_them(found):
    with found.path.open() as stream:
        rows = [row for row in csv.DictReader(stream, delimiter="\t") if row["variable"] == "age"]
    hand = [by_hand(seed, ridge) for seed in range(2)]
    for row in rows:
        person, fold, seed = int(row["participant_id"][4:]), int(row["run"][4]), int(row["run"][-1])
        assert PART[person] == fold
        assert float(row["observed"]) == pytest.approx(AGE[person])
        if row["by"] == "latents":
            assert float(row["predicted"]) == pytest.approx(hand[seed][person], rel=1e-7)
    assert len(rows) == 2 * 3 * PEOPLE
    by = found.figures["age"]["by"]
    assert set(by) == {"latents", COVARIATES, BOTH}  # age itself is no covariate of its own
    assert by["latents"]["r"]["value"] == pytest.approx(np.mean([np.corrcoef(each, AGE)[0, 1] for each in hand]))
    plain = by_hand(
        0, lambda z, learn, left: LinearRegression().fit(HEAD[learn, None], AGE[learn]).predict(HEAD[left, None])
    )
    assert by[COVARIATES]["mae"]["value"] == pytest.approx(abs(plain - AGE).mean())
    slope, intercept = np.polyfit(np.concatenate(hand), np.tile(AGE, 2), 1)
    assert by["latents"]["calibration"] == pytest.approx({"slope": slope, "intercept": intercept})


def test_the_interval_of_a_difference_is_paired(found):
    with found.path.open() as stream:
        rows = [row for row in csv.DictReader(stream, delimiter="\t") if row["variable"] == "age"]
    error = {by: np.zeros(PEOPLE) for by in (COVARIATES, BOTH)}
    for row in rows:
        if row["by"] in error:
            gone = abs(float(row["predicted"]) - float(row["observed"])) / 2
            error[row["by"]][int(row["participant_id"][4:])] += gone
    difference = error[BOTH] - error[COVARIATES]
    drawn = stats.bootstrap((difference,), np.mean, method="percentile", rng=np.random.default_rng(0))
    told = found.figures["age"]["differences"][f"{BOTH} - {COVARIATES}"]["mae"]
    assert told["value"] == pytest.approx(difference.mean())
    width = drawn.confidence_interval.high - drawn.confidence_interval.low
    assert told["low"] == pytest.approx(drawn.confidence_interval.low, abs=0.05 * width)
    assert told["high"] == pytest.approx(drawn.confidence_interval.high, abs=0.05 * width)


def test_categories(found):
    with found.path.open() as stream:
        rows = [row for row in csv.DictReader(stream, delimiter="\t") if row["by"] == "latents"]
    for name, levels, truth in (("sex", ["F", "M"], SEX), ("group", ["a", "b", "c"], GROUP)):
        figures = found.figures[name]["by"]["latents"]
        own = [row for row in rows if row["variable"] == name]
        assert found.figures[name]["levels"] == levels
        accuracy, losses = [], []
        for seed in "01":
            of_seed = sorted((row for row in own if row["run"][-1] == seed), key=lambda row: row["participant_id"])
            accuracy.append(balanced_accuracy_score(truth, [row["predicted"] for row in of_seed]))
            given = np.array([float(row["probability"]) for row in of_seed])
            losses.append(-np.log(given).mean())
            assert [row["observed"] for row in of_seed] == truth.tolist()
        assert figures["balanced_accuracy"]["value"] == pytest.approx(np.mean(accuracy))
        assert figures["log_loss"]["value"] == pytest.approx(np.mean(losses))
        assert min(accuracy) > 1 / len(levels) + 0.2
    assert found.figures["group"]["by"]["latents"]["calibration"] is None
    assert found.figures["sex"]["by"]["latents"]["calibration"]["error"] < 0.3

    def alone(z, learn, left):
        held = np.c_[HEAD, AGE]
        scale = StandardScaler().fit(held[learn])
        fit = LogisticRegression(C=np.inf, max_iter=1000).fit(scale.transform(held[learn]), SEX[learn])
        return fit.predict_proba(scale.transform(held[left]))

    probabilities = by_hand(0, alone)
    covariates = found.figures["sex"]["by"][COVARIATES]
    assert covariates["auc"]["value"] == pytest.approx(roc_auc_score(SEX, probabilities[:, 1]))
    assert covariates["log_loss"]["value"] == pytest.approx(log_loss(SEX, probabilities), rel=1e-4)


def test_what_is_told(found):
    said = found.describe()
    assert said[0].startswith("age, 60 people, r: latents 0.")
    assert "  covariates and latents less covariates alone: 0." in said[1]
    described = json.loads(found.path.with_suffix(".json").read_text())
    with found.path.open() as stream:
        columns = set(next(csv.DictReader(stream, delimiter="\t")))
    assert columns | {"Settings", "FigureMeanings", "Figures"} == set(described)
    assert described["Settings"]["runs"][:2] == ["fold0-seed0", "fold1-seed0"]


def test_scans_of_a_person_count_as_one(tmp_path):
    visits = range(0, PEOPLE, 5)
    runs = [load_run(run_of(tmp_path / f"fold{f}", f, visits=visits)) for f in range(FOLDS)]
    found = predict_runs(runs, ["age"], pca=False, out=tmp_path / "p.tsv")
    assert found.figures["age"]["people"] == PEOPLE
    value = found.figures["age"]["by"]["latents"]["r"]["value"]  # the mean of a person's codes is as without visits
    assert value == pytest.approx(np.corrcoef(by_hand(0, ridge), AGE)[0, 1])


def test_who_is_left_out(tmp_path):
    score, state = AGE.astype(str), SEX.copy()
    score[:6] = "n/a"
    run = run_of(tmp_path / "run", 0, visits=[9], columns={"score": score, "state": state})
    rows = (run / "scans.tsv").read_text().splitlines()
    place = next(i for i, row in enumerate(rows) if row.startswith("sub-09\t2"))
    cells = rows[place].split("\t")
    cells[-3] = "F" if cells[-3] == "M" else "M"  # a category that changes is nobody's
    (run / "scans.tsv").write_text("\n".join([*rows[:place], "\t".join(cells), *rows[place + 1 :]]) + "\n")
    found = predict_runs([load_run(run)], ["score", "state"], pca=False)
    assert found.path == run / "predictions.tsv"
    assert [found.figures[name]["left_out"] for name in ("score", "state")] == [6, 1]
    assert [found.figures[name]["people"] for name in ("score", "state")] == [18, 19]


def made(rng, people=24):
    """Two folds of codes of which z[:, 0] goes with a covariate."""
    held = rng.standard_normal(people)
    z = rng.standard_normal((people, 3)) + 2 * held[:, None] * [1, 0, 0]
    roles = np.where(np.arange(people) % 2, "test", "train"), np.where(np.arange(people) % 2, "train", "test")
    y = held + stats.t(2.5).rvs(people, random_state=rng)
    columns = {"y": tuple(map(str, y)), "held": tuple(map(str, held))}
    names = tuple(f"sub-{i:02d}" for i in range(people))
    return [
        Fold(f"{i}", 0, Latents(names, tuple(each), z, None, columns, ("n/a",) * people), {"latents": z})
        for i, each in enumerate(roles)
    ]


def test_chance_is_chance():
    """y follows the covariate that codes follow: codes alone predict it, but they add nothing to the covariate."""
    added, alone = [], []
    for repetition in range(60):
        folds = made(np.random.default_rng(repetition))
        predictors = Predictors(folds, sample_of(folds, "y", ["held"]), seed=repetition)
        added.append(predictors.chance(ADDED, 19).p)
        alone.append(predictors.chance("latents", 19).p)
    low, high = stats.binom(60, 0.2).interval(0.999)
    assert low <= sum(p <= 0.2 for p in added) <= high
    assert sum(p <= 0.2 for p in alone) > high


def test_what_is_there_is_found(folders):
    runs = [load_run(folder) for folder in folders[0]]
    folds = read_folds(runs, pca=False)
    age = Predictors(folds, sample_of(folds, "age", ["head_size"]))
    seen = []
    assert age.chance(ADDED, 49, seen.append).p == 0.02
    assert seen[-1] == 49
    assert age.chance("latents", 49)._replace(value=0, mean=0) == ("r", 0, 0, 0.02, 49)
    sex = Predictors(folds[:1], sample_of(folds[:1], "sex", ["head_size"]))
    assert sex.chance("latents", 4)._replace(value=0, mean=0) == ("auc", 0, 0, 0.2, 4)
    found = sex.chance(ADDED, 4)
    assert (found.statistic, found.p) == ("log loss saved", 0.2)
    # as it stands it is the difference of the figures
    losses = [
        sex.told(name).figures(sex.sample.target[sex.sample.tested])["log_loss"][0] for name in (COVARIATES, BOTH)
    ]
    assert found.value == pytest.approx(losses[0] - losses[1])
    assert found.mean < found.value


def test_what_cannot_be_predicted_is_refused(folders, tmp_path):
    first = load_run(folders[0][0])
    everyone = [load_run(folder) for folder in folders[0]]
    with pytest.raises(ArgumentError, match="--variables must name a column"):
        predict_runs([first], [])
    with pytest.raises(ArgumentError, match="--out must name a table"):
        predict_runs(everyone, ["age"])
    with pytest.raises(ArgumentError, match="Did you mean age"):
        predict_runs([first], ["agee"], pca=False)
    with pytest.raises(RunError, match="no other run of its seed tests"):
        predict_runs([first, first], ["age"], pca=False, out=tmp_path / "p.tsv")
    with pytest.raises(RunError, match="have the same test people"):
        predict_runs([first, load_run(folders[1][1])], ["age"], pca=False, out=tmp_path / "p.tsv")
    rare = load_run(
        run_of(tmp_path / "rare", 0, columns={"age": AGE, "few": np.where(np.arange(PEOPLE) < 5, "b", "a")})
    )
    with pytest.raises(RunError, match="same scans as the first run"):
        predict_runs([first, rare], ["age"], pca=False, out=tmp_path / "p.tsv")
    few = r'few must be known of 5 people .* received \d with b in rare\..* cohort\.exclude = \{ few = \["b"\] \}'
    with pytest.raises(ArgumentError, match=few):
        predict_runs([rare], ["few"], pca=False)
    told = BLOB_RECIPE.replace("latent_size = 3", 'latent_size = 3\ncondition = ["age"]\ntarget = "head_size"')
    run = load_run(run_of(tmp_path / "told", 0, recipe=told))
    with pytest.raises(ArgumentError, match="given beside the image"):
        predict_runs([run], ["age"], pca=False)
    with pytest.raises(ArgumentError, match="without this target"):
        predict_runs([run], ["head_size"], pca=False)
    assert not list(tmp_path.glob("*.tsv"))


def test_nothing_is_overwritten_where_the_figures_of_a_run_are_gone(tmp_path):
    folder = run_of(tmp_path / "run", 0)
    (folder / "metrics.json").unlink()
    (folder / "predictions.tsv").write_text("as it was")
    with pytest.raises(RunError, match=r"metrics\.json.*--resume"):
        predict_runs([load_run(folder)], ["age"], pca=False, permutations=0)
    assert (folder / "predictions.tsv").read_text() == "as it was"
