"""Axes of codes: principal ones and varimax, what they do not depend on, and how far two trainings' axes agree."""

import csv
import json
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.decomposition import PCA
from statsmodels.multivariate.factor_rotation import rotate_factors
from typer.testing import CliRunner

from kerasvae.analysis.agreement import agreement_of
from kerasvae.analysis.latents import Latents
from kerasvae.analysis.rotation import principal_axes, rotated, rotation_of, varimax
from kerasvae.cli import app
from kerasvae.errors import ArgumentError, RunError
from kerasvae.metrics import match_axes
from kerasvae.preprocess import Pipeline
from kerasvae.types import Grid

RNG = np.random.default_rng(8)
PEOPLE, D, SHAPE = 90, 4, (6, 5, 4)
ROLES = ("train",) * 60 + ("test",) * 30
NAMES = tuple(f"sub-{i:02d}" for i in range(PEOPLE))
SESSIONS = ("n/a",) * PEOPLE
SCANS = tuple(zip(NAMES, SESSIONS, strict=True))
TURN = stats.ortho_group.rvs(D, random_state=2)
MASK = RNG.random(SHAPE) < 0.8
FACTORS = RNG.standard_normal((PEOPLE, D)) * [2.0, 1.5, 1.2, 1.0]
PLACES = np.arange(np.prod(SHAPE)).reshape(SHAPE) % D
"""The one factor that each voxel goes with."""
IMAGES = (FACTORS[:, PLACES] + 0.1 * RNG.standard_normal((PEOPLE, *SHAPE))).astype("f4")


def run_of(images=IMAGES, mask=MASK, people=NAMES):
    """What of a run is read for varimax."""
    rows = {(person, "n/a"): row for row, person in enumerate(people)}
    store = SimpleNamespace(load=lambda some: np.stack([images[row] for row in some]))
    pipeline = Pipeline(grid=Grid.of(SHAPE, np.eye(4), "native"), mask=mask)
    return SimpleNamespace(path="run", named_scans=rows, store=store, pipeline=pipeline)


def criterion(loadings):
    return np.square(loadings).var(axis=0).sum()


def test_principal_axes_are_scikit_learns():
    codes = FACTORS @ TURN + 5
    axes = principal_axes(codes)
    pca = PCA().fit(codes)
    np.testing.assert_allclose(abs((axes.T * pca.components_).sum(axis=1)), 1)
    np.testing.assert_allclose((codes @ axes).var(axis=0, ddof=1), pca.explained_variance_)


def test_varimax_of_two_columns_is_the_best_of_all_angles():
    a = RNG.standard_normal((50, 2)) ** 3 @ [[0.8, -0.6], [0.6, 0.8]]

    def loss(angle):
        return -criterion(a @ [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    best = min(
        optimize.minimize_scalar(loss, bounds=(start, start + 0.4), method="bounded").fun
        for start in np.arange(0, np.pi / 2, 0.2)
    )
    found = criterion(a @ varimax(a))
    assert found == pytest.approx(-best, rel=1e-8)
    assert found > 1.01 * criterion(a)


def test_varimax_of_many_is_statsmodels():
    a = RNG.laplace(size=(60, D)) ** 3 @ TURN
    matrix = varimax(a)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(D), atol=1e-12)
    assert criterion(a @ matrix) == pytest.approx(criterion(rotate_factors(a, "varimax")[0]), rel=1e-6)
    np.testing.assert_array_equal(varimax(np.zeros((9, D))), np.eye(D))


def test_varimax_finds_axes_that_go_with_few_voxels():
    run = run_of()
    found = rotation_of(run, SCANS, ROLES, FACTORS @ TURN, "varimax")
    np.testing.assert_allclose(found.matrix.T @ found.matrix, np.eye(D), atol=1e-12)
    r = np.corrcoef(found.of_codes(FACTORS @ TURN).T, FACTORS.T)[:D, D:]
    np.testing.assert_allclose(abs(r), np.eye(D), atol=0.3)  # factors are not quite uncorrelated
    assert abs(np.diag(r)).min() > 0.97
    assert (abs(found.matrix).max(axis=0) == found.matrix.max(axis=0)).all()


@pytest.mark.parametrize("kind", ["principal", "varimax"])
def test_axes_do_not_depend_on_those_of_the_training(kind):
    run = run_of(mask=None)
    codes = [rotation_of(run, SCANS, ROLES, z, kind).of_codes(z) for z in (FACTORS, FACTORS @ TURN)]
    sign = np.sign((codes[0] * codes[1]).sum(axis=0))
    np.testing.assert_allclose(codes[0], codes[1] * sign, atol=1e-5)


@pytest.mark.parametrize("kind", ["principal", "varimax"])
def test_only_training_people_choose_them(kind):
    other_codes, other_images = FACTORS.copy(), IMAGES.copy()
    other_codes[60:], other_images[60:] = 100 * RNG.standard_normal((30, D)), np.nan
    first = rotation_of(run_of(), SCANS, ROLES, FACTORS, kind)
    np.testing.assert_array_equal(
        rotation_of(run_of(other_images), SCANS, ROLES, other_codes, kind).matrix, first.matrix
    )


def test_what_posteriors_leave_open_turns_with_the_codes():
    stddev = RNG.uniform(0.2, 1, (PEOPLE, D))
    latents = Latents(NAMES, ROLES, FACTORS @ TURN, stddev, {}, SESSIONS)
    found, rotation = rotated(run_of(), latents, "principal")
    for row in (0, 70):
        covariance = rotation.matrix.T @ np.diag(stddev[row] ** 2) @ rotation.matrix
        np.testing.assert_allclose(found.stddev[row], np.sqrt(np.diag(covariance)))
        np.testing.assert_allclose(found.codes[row], rotation.matrix.T @ latents.codes[row])
    same, none = rotated(run_of(), latents, "none")
    np.testing.assert_array_equal(same.codes, latents.codes)
    np.testing.assert_array_equal(none.matrix, np.eye(D))
    assert rotated(run_of(), Latents(NAMES, ROLES, FACTORS, None, {}, SESSIONS), "principal")[0].stddev is None


def test_axes_that_cannot_be():
    with pytest.raises(ArgumentError, match="The axes must be none, principal, varimax, but received 'oblimin'"):
        rotation_of(run_of(), SCANS, ROLES, FACTORS, "oblimin")
    with pytest.raises(RunError, match=r"received sub-00 n/a in latents\.tsv alone"):
        rotation_of(run_of(people=("sub-xx", *NAMES[1:])), SCANS, ROLES, FACTORS, "varimax")


def test_images_are_found_by_name():
    other_order = rotation_of(run_of(IMAGES[::-1], people=NAMES[::-1]), SCANS, ROLES, FACTORS, "varimax")
    np.testing.assert_array_equal(other_order.matrix, rotation_of(run_of(), SCANS, ROLES, FACTORS, "varimax").matrix)


def test_axes_are_matched_as_by_trying_all():
    a = RNG.standard_normal((30, 4))
    b = np.c_[-a[:, 2], a[:, 0] + RNG.standard_normal(30), np.ones(30), RNG.standard_normal((30, 2))]
    found = match_axes(a, b, permutations=99)
    r = np.nan_to_num([[np.corrcoef(x, y)[0, 1] if np.ptp(y) else 0 for y in b.T] for x in a.T])
    best = max(permutations(range(5), 4), key=lambda order: sum(abs(r[i, j]) for i, j in enumerate(order)))
    expected = sorted(((i, j, r[i, j]) for i, j in enumerate(best)), key=lambda pair: -abs(pair[2]))
    assert [pair[:2] for pair in found.pairs] == [pair[:2] for pair in expected]
    np.testing.assert_allclose([pair.r for pair in found.pairs], [pair[2] for pair in expected], atol=1e-12)
    assert (found.pairs[0].first, found.pairs[0].second, found.pairs[0].r) == (2, 0, pytest.approx(-1))
    assert found.pairs[0].p == 0.01
    assert found.pairs[-1].p > 0.05
    assert found.mean == pytest.approx(np.mean([abs(pair[2]) for pair in expected]))
    with pytest.raises(ArgumentError, match="permutations must be 1 or more"):
        match_axes(a, b, permutations=0)


def test_chance_is_what_other_people_give():
    p, r, chance = [], [], []
    for _ in range(40):
        found = match_axes(RNG.standard_normal((20, 3)), RNG.standard_normal((20, 3)), permutations=39)
        p.append([found.p, found.pairs[0].p])
        r.append(abs(found.pairs[0].r))
        chance.append(found.pairs[0].chance)
    low, high = stats.binom(40, 0.25).interval(0.999)
    assert all(low <= count <= high for count in (np.array(p) <= 0.25).sum(axis=0))
    error = np.std(r) / np.sqrt(40)
    assert np.mean(chance) == pytest.approx(np.mean(r), abs=3.5 * error)
    assert np.mean(r) > 0.3  # what would look like agreement


def folder_of(folder, codes):
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"latent_size": D}))
    with (folder / "latents.tsv").open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(["participant_id", "session_id", "role", *(f"mean_{i}" for i in range(D)), "elbo_nats"])
        for person, role, code in zip(NAMES, ROLES, codes.tolist(), strict=True):
            writer.writerow([person, "n/a", role, *code, -1.0])
    return folder


def test_stability_of_axes(tmp_path):
    """The same space on other axes: as trained they do not agree, principal ones do."""
    runs = [folder_of(tmp_path / "a", FACTORS), folder_of(tmp_path / "b", FACTORS @ TURN + 3)]
    found = agreement_of(runs, axes=["none", "principal"], permutations=19)
    assert found.new
    assert found.axes["principal"][0].mean == pytest.approx(1)
    assert found.axes["none"][0].mean < 0.9
    assert found.axes["principal"][0].chance < 0.6
    said = CliRunner().invoke(app, ["stability", *map(str, runs), "--axes", "none,principal"])
    assert said.exit_code == 0
    assert "principal axes, matched: mean |r|        1.000  (0." in said.output
    assert sum(" with " in line for line in said.output.splitlines()) == 2 * D
    said = CliRunner().invoke(app, ["stability", *map(str, runs), "--axes", "principal", "--json"])
    axes = json.loads(said.output)["pairs"][0]["axes"]["principal"]
    assert axes["mean"] == pytest.approx(1)
    assert [(pair["first"], pair["second"]) for pair in sorted(axes["pairs"], key=lambda pair: pair["first"])] == [
        (axis, axis) for axis in range(D)
    ]
    with pytest.raises(ArgumentError, match="The axes must be"):
        agreement_of(runs, axes=["promax"])
