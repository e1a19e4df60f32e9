"""The simulator: same seed, same arrays; its factors do in the images what the tables say; nothing is lost."""

import dataclasses
import json

import nibabel
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kerasvae import Cohort
from kerasvae.data import population, scanner
from kerasvae.data.anatomy import REGIONS, load_anatomy, output_grid
from kerasvae.data.brain import Shape, draw_shape, grow, inverse_displacement
from kerasvae.data.deformation import LATTICE, jacobian_determinant
from kerasvae.data.population import draw_person, state_at, visit_years
from kerasvae.data.scanner import NOISE, Site, acquire, draw_site, site_of
from kerasvae.data.simulate import TRUTH, simulate
from kerasvae.errors import ArgumentError

GRID = output_grid(4.0)
STILL = Shape(np.zeros((3, *LATTICE.shape), np.float32), np.zeros((96, 120, 96), np.float32))
"""Nobody's own shape: what is left is what the factors do."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Six people with two visits at two sites, on 4 mm."""
    return simulate(tmp_path_factory.mktemp("simulated") / "cohort", people=6, visits=2, sites=2, seed=4, spacing_mm=4)


def arrays(root):
    return {path.relative_to(root): np.asarray(nibabel.load(path).dataobj) for path in sorted(root.rglob("*.nii.gz"))}


def test_it_is_a_cohort(cohort):
    read = Cohort.read(cohort, select={"suffix": "T1w", "desc": "brain"}, covariates=["age", "sex", "diagnosis"])
    assert (len(read), len(read.people)) == (12, 6)
    assert len(Cohort.read(cohort, select={"suffix": "mask", "label": "GM"})) == 12
    truth = pd.read_csv(cohort / "ground_truth.tsv", sep="\t")
    assert list(truth) == ["participant_id", "session_id", *TRUTH]
    assert set(json.loads((cohort / "ground_truth.json").read_text())) == set(TRUTH)
    # the age of a session is that of the scan, not of the first visit
    np.testing.assert_allclose(read.numbers("age"), truth["age"], atol=1e-3)
    assert (truth.groupby("participant_id")["age"].diff().dropna() > 1.5).all()


def test_images_are_brains_on_the_grid(cohort):
    for path in sorted(cohort.rglob("*_T1w.nii.gz")):
        image = nibabel.load(path)
        data = np.asarray(image.dataobj)
        assert data.dtype == np.uint8
        assert (data.shape, image.header["sform_code"], image.header.get_xyzt_units()[0]) == (GRID.shape, 4, "mm")
        np.testing.assert_array_equal(image.affine, GRID.matrix)
        assert 1.5e6 < (data > 0).sum() * 64 < 2.2e6  # mm³ of brain and fluid, MNI size
        grey = np.asarray(nibabel.load(str(path).replace("desc-brain_T1w", "label-GM_mask")).dataobj)
        assert set(np.unique(grey)) == {0, 1}
        assert (data[grey == 1] > 0).all()


def test_same_seed_same_arrays_and_neighbours_do_not_matter(cohort, tmp_path):
    again = arrays(simulate(tmp_path / "a", people=3, visits=2, sites=2, seed=4, spacing_mm=4))
    first = arrays(cohort)
    assert len(again) == 12
    for name, array in again.items():
        np.testing.assert_array_equal(array, first[name])
    other = arrays(simulate(tmp_path / "b", people=1, visits=2, sites=2, seed=5, spacing_mm=4))
    assert all((other[name] != first[name]).any() for name in other)


def test_interrupted_it_goes_on(tmp_path, cohort):
    class Stopped(Exception):
        pass

    def stop(done, total):
        if done == 2:
            raise Stopped

    out = tmp_path / "cohort"
    settings = {"people": 6, "visits": 2, "sites": 2, "seed": 4, "spacing_mm": 4}
    with pytest.raises(Stopped):
        simulate(out, **settings, progress=stop)
    assert not (out / "ground_truth.tsv").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    assert 4 <= len(kept) < 24
    simulate(out, **settings)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items() if _noted(path, kept))
    whole = arrays(cohort)
    for name, array in arrays(out).items():
        np.testing.assert_array_equal(array, whole[name])
    assert (out / "ground_truth.tsv").read_bytes() == (cohort / "ground_truth.tsv").read_bytes()
    assert not (out / ".simulation").exists()
    # a third call finds nothing to do
    before = (out / "participants.tsv").stat().st_mtime_ns
    simulate(out, **settings)
    assert (out / "participants.tsv").stat().st_mtime_ns == before


def _noted(path, kept):
    """Whether both images of the scan were there when it was interrupted."""
    pair = str(path).replace("desc-brain_T1w", "label-GM_mask")
    return any(str(other) == pair for other in kept) and "T1w" in path.name


def test_a_folder_with_anything_else_is_refused(cohort, tmp_path):
    with pytest.raises(ArgumentError, match="new or empty folder, or hold a simulation with people=7"):
        simulate(cohort, people=7, visits=2, sites=2, seed=4, spacing_mm=4)
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(ArgumentError, match="new or empty"):
        simulate(tmp_path, people=1)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"people": 0}, "people must be 1 or more, but received 0"),
        ({"people": 1, "visits": 0}, "visits must be 1 or more"),
        ({"people": 1, "patients": 1.5}, "patients must lie within 0 and 1"),
        ({"people": 1, "spacing_mm": 0.5}, "spacing_mm must lie within 1 and 8"),
    ],
)
def test_numbers_outside_their_range_are_refused(tmp_path, bad, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        simulate(tmp_path / "out", **bad)
    assert not (tmp_path / "out").exists()


# --- who ------------------------------------------------------------------------------------------


def test_population_is_as_described():
    people = [draw_person(0, index, patients=0.3) for index in range(3000)]
    patients = [p for p in people if p.patient]
    controls = [p for p in people if not p.patient]
    assert len(patients) / len(people) == pytest.approx(0.3, abs=0.03)
    assert np.mean([p.sex == "M" for p in people]) == pytest.approx(population.MALE_SHARE, abs=0.03)
    uniform = stats.uniform(20, 60)
    assert stats.kstest([p.age for p in controls], uniform.cdf).pvalue > 0.001
    assert min(p.age for p in patients) >= 60
    assert {p.stage for p in controls} == {0.0}
    assert {p.pace for p in controls} == {0.0}
    for sex, (mean, deviation) in population.LOG_HEAD.items():
        logs = np.log([p.head_size_ratio for p in people if p.sex == sex])
        assert logs.mean() == pytest.approx(mean, abs=0.01)
        assert logs.std() == pytest.approx(deviation, abs=0.01)


def test_disease_has_the_published_effects():
    """The same people with and without the disease: what is between them is the disease."""
    people = [draw_person(1, index, patients=1.0) for index in range(2000)]
    healthy = [state_at(dataclasses.replace(p, patient=False, stage=0.0, pace=0.0)) for p in people]
    ill = [state_at(p) for p in people]
    ratio = np.mean([np.exp(a.hippocampus - b.hippocampus) for a, b in zip(ill, healthy, strict=True)])
    assert 0.758 <= ratio <= 0.780  # Shi et al. 2009: 24.2 % and 23.1 % less
    within_a_year = [state_at(p, 1.0).hippocampus - state_at(p).hippocampus for p in people]
    ageing = [
        state_at(dataclasses.replace(p, stage=0.0, pace=0.0), 1.0).hippocampus
        - state_at(dataclasses.replace(p, stage=0.0, pace=0.0)).hippocampus
        for p in people
    ]
    assert -0.0494 <= np.mean(within_a_year) - np.mean(ageing) <= -0.0173  # Barnes et al. 2009, 95 % interval
    loss = dict(zip(REGIONS, np.mean([a.loss for a in ill], 0) - np.mean([b.loss for b in healthy], 0), strict=True))
    # McDonald et al. 2009: temporal and limbic first, occipital last of the cortex
    assert min(loss["temporal"], loss["limbic"]) > loss["parietal"] > loss["frontal"] > loss["occipital"]


def test_visits_are_about_two_years_apart_and_the_first_is_at_zero():
    assert visit_years(0, 5, 0) == 0
    gaps = [visit_years(0, index, 1) for index in range(200)]
    assert min(gaps) >= 1.75
    assert max(gaps) <= 2.25
    assert np.std(gaps) > 0.1


# --- the brain ------------------------------------------------------------------------------------


def volumes(**changes):
    person = dataclasses.replace(draw_person(0, 0, patients=0.0), head_size_ratio=np.exp(population.LOG_HEAD_MEAN))
    state = dataclasses.replace(state_at(person), ventricle=0.0, hippocampus=0.0, loss=(0.0,) * len(REGIONS))
    return grow(STILL, person, dataclasses.replace(state, **changes), output_grid(2.0))


@pytest.mark.parametrize("log_volume", [-0.5, 0.0, 0.7, 1.5])
def test_ventricles_get_the_volume_that_is_asked_for(log_volume):
    anatomy = load_anatomy()
    brain = volumes(ventricle=log_volume)
    template = float(anatomy.ventricles.sum()) * 8
    assert np.log(brain.ventricle_mm3 / template) == pytest.approx(log_volume, abs=0.05)
    # and it is seen in the image: fluid where there was tissue
    grown = volumes(ventricle=0.0).t1 - brain.t1
    assert np.sign(grown[30:60, 40:70, 35:50].mean()) == np.sign(log_volume)


@pytest.mark.parametrize("log_volume", [-0.6, -0.2, 0.1])
def test_hippocampi_get_the_volume_that_is_asked_for(log_volume):
    template = float(load_anatomy().hippocampi.sum()) * 8
    assert np.log(volumes(hippocampus=log_volume).hippocampus_mm3 / template) == pytest.approx(log_volume, abs=0.06)


@pytest.mark.parametrize("region", REGIONS)
def test_grey_matter_is_lost_in_its_region_and_hardly_elsewhere(region):
    number = REGIONS.index(region)
    loss = np.zeros(len(REGIONS))
    loss[number] = 0.2
    anatomy = load_anatomy()
    here = anatomy.exposure[number] > 0

    def grey(brain):
        full = np.zeros(anatomy.inside.shape, np.float32)
        # the output grid's voxels are the template's, less a margin
        full[2:93, 4:113, 2:93] = brain.gm
        values = full[anatomy.inside]
        return values[here].sum(dtype=np.float64), values[~here].sum(dtype=np.float64)

    before, after = grey(volumes()), grey(volumes(loss=tuple(loss)))
    assert 0.5 * 0.2 < 1 - after[0] / before[0] < 1.5 * 0.2
    assert abs(1 - after[1] / before[1]) < 0.01


def test_shapes_are_diffeomorphisms():
    for index in range(5):
        person = draw_person(2, index, patients=1.0)
        displacement = inverse_displacement(draw_shape(2, index), person, state_at(person, 10.0))
        assert jacobian_determinant(displacement).min() > 0


def test_a_person_keeps_their_shape_and_their_ventricles_grow():
    person = draw_person(7, 1, patients=1.0)
    shape = draw_shape(7, 1)
    now, later = (grow(shape, person, state_at(person, years), GRID) for years in (0.0, 4.0))
    other = grow(draw_shape(7, 2), person, state_at(person), GRID)
    assert later.ventricle_mm3 > 1.1 * now.ventricle_mm3
    assert later.hippocampus_mm3 < 0.95 * now.hippocampus_mm3
    assert later.gm.sum() < now.gm.sum()
    distance = [np.square(brain.t1 - now.t1).sum() for brain in (later, other)]
    assert distance[0] < 0.3 * distance[1]


# --- the scanner ----------------------------------------------------------------------------------


def test_noise_is_rician():
    # Gudbjartsson & Patz 1995: the length of a vector with normal noise in both components
    t1, inside = np.full(GRID.shape, 0.1, np.float32), np.ones(GRID.shape, bool)
    site = Site(0, 1.0, 1.0, 0.05, (0.0,) * 9)
    scan, drawn = acquire(t1, inside, GRID, site, seed=0, index=0, visit=0)
    signal = (
        0.1
        * drawn["gain"]
        * scanner._bias_field(
            GRID, np.array([drawn[f"bias_{t}"] - 0.2 * (t in ("xx", "yy", "zz")) for t in scanner.BIAS_TERMS])
        )
    )
    middle = np.abs(signal - 0.1) < 0.005
    values = scan[middle] / scanner.FULL_SCALE
    mean, var = stats.rice.stats(0.1 / 0.05, scale=0.05, moments="mv")
    assert values.mean() == pytest.approx(mean, rel=0.02)
    assert values.var() == pytest.approx(var, rel=0.05)


def test_sites_differ_and_the_first_is_the_reference():
    assert draw_site(3, 0) == Site(0, 1.0, 1.0, NOISE, (0.0,) * 9)
    assert draw_site(3, 1) == draw_site(3, 1) != draw_site(3, 2)
    assert draw_site(3, 1).gain != draw_site(4, 1).gain
    numbers = [site_of(0, index, 3) for index in range(900)]
    assert set(numbers) == {0, 1, 2}
    assert min(np.bincount(numbers)) > 240


def test_background_is_zero_and_gain_scales(cohort):
    brain = grow(draw_shape(0, 0), draw_person(0, 0, patients=0), state_at(draw_person(0, 0, patients=0)), GRID)
    quiet = Site(0, 1.0, 1.0, 1e-6, (0.0,) * 9)
    one, _ = acquire(brain.t1, brain.inside, GRID, quiet, seed=0, index=0, visit=0)
    half, _ = acquire(brain.t1, brain.inside, GRID, dataclasses.replace(quiet, gain=0.5), seed=0, index=0, visit=0)
    assert (one[~brain.inside] == 0).all()
    bright = one > 60
    np.testing.assert_allclose(half[bright] / one[bright], 0.5, atol=0.02)
