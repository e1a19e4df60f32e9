"""What is read from codes: what is there, nothing where there is nothing, and what a simulated site leaves of it."""

import numpy as np
import pytest
from scipy import stats

from kerasvae.analysis.design import term_of
from kerasvae.analysis.sites.combat import ComBat
from kerasvae.analysis.sites.judged import Parts, kept_alone, principal, spaces_of
from kerasvae.analysis.sites.readings import measure_of, read_site, read_term


def test_a_site_that_shifts_codes_is_read_as_bayes_rule_would():
    """Two normals a distance of 2 apart: the best rule is right in Φ(1) of the cases."""
    rng = np.random.default_rng(0)
    site = rng.permutation(np.repeat(["a", "b"], 400))
    codes = rng.standard_normal((800, 3)) + np.outer(site == "b", [2.0, 0, 0])
    found = read_site(codes, site, permutations=19)
    assert found.accuracy == pytest.approx(stats.norm.cdf(1), abs=0.03)
    assert (found.chance, found.p) == (0.5, 0.05)


def test_p_is_uniform_where_codes_know_nothing():
    """Sites of unequal size, too few people for one: p is at most α in no more than α of the cases."""
    rng = np.random.default_rng(1)
    site = np.array(["a"] * 16 + ["b"] * 8 + ["c"] * 2)
    found = [read_site(rng.standard_normal((26, 3)) ** 3, site, permutations=9, seed=seed) for seed in range(16)]
    hits = sum(each.p <= 0.3 for each in found)
    assert 0 < hits <= stats.binom.ppf(0.9995, 16, 0.3)
    assert np.mean([each.accuracy for each in found]) == pytest.approx(0.5, abs=0.1)
    assert {each.chance for each in found} == {0.5}


def test_what_is_kept_is_read():
    rng = np.random.default_rng(2)
    age, sex = rng.uniform(20, 80, 300), rng.choice(["F", "M"], 300)
    stage = np.array(["x", "y", "z"])[np.digitize(age, [40, 60])]
    codes = rng.standard_normal((300, 4))
    codes[:, 0] += (age - 50) / 10
    codes[:, 1] += 2.0 * (sex == "M")
    terms = [term_of("age", [str(a) for a in age]), term_of("sex", list(sex)), term_of("stage", list(stage))]
    assert [measure_of(term) for term in terms] == ["r", "AUC", "balanced accuracy"]
    r, area, accuracy = (read_term(codes, term) for term in terms)
    assert r == pytest.approx(stats.pearsonr(codes[:, 0], age).statistic, abs=0.03)
    truth = stats.mannwhitneyu(codes[sex == "M", 1], codes[sex == "F", 1]).statistic / np.prod(np.bincount(sex == "M"))
    assert area == pytest.approx(truth, abs=0.03)
    assert accuracy > 0.6
    assert abs(read_term(codes[:, 2:], terms[0])) < 0.2
    assert read_term(codes[:, 2:], terms[1]) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("people", [4, 9])
def test_too_few_are_not_read(people):
    rng = np.random.default_rng(3)
    codes, site = rng.standard_normal((people, 2)), np.array(["a", "b"] * people)[:people]
    assert read_site(codes, site) is None
    assert read_term(codes, term_of("sex", list(site))) is None
    assert read_term(codes, term_of("age", [str(a) for a in rng.uniform(20, 80, people)])) is None
    assert read_site(np.zeros((20, 2)), np.array(["a", "b"] * 10)) is None


@pytest.fixture(scope="module")
def cohort():
    """Voxels of 240 people: age and sex in patterns, three sites that shift and stretch all of them; site b is old."""
    rng = np.random.default_rng(4)
    n, v = 240, 60
    place = rng.integers(0, 3, n)
    age, male = rng.normal(50, 12, n) + 8 * (place == 1), rng.integers(0, 2, n)
    patterns, effect = rng.standard_normal((5, v)), rng.standard_normal((3, v))
    factors = np.concatenate([rng.standard_normal((n, 3)), np.c_[(age - 50) / 8, 2.0 * male]], axis=1)
    clean = factors @ patterns + rng.standard_normal((n, v))
    voxels = clean * np.array([1.0, 1.3, 0.8])[place][:, None] + 1.5 * effect[place]
    site = np.array(["a", "b", "c"])[place]
    terms = [term_of("age", [str(a) for a in age]), term_of("sex", ["FM"[m] for m in male])]
    rows = np.arange(n)
    return Parts(site, terms, rows[:140], rows[140:], permutations=19), voxels, clean


def test_site_goes_and_biology_stays_for_people_who_were_not_fitted_to(cohort):
    parts, voxels, clean = cohort
    before, after = spaces_of("PCA of voxels", parts, voxels[:140], voxels[140:], principal(6))
    assert (before.harmonized, after.harmonized, before.dimensions, after.dimensions) == (False, True, 6, 6)
    assert before.site_accuracy > 0.9
    assert before.site_p == 0.05
    alone = kept_alone(parts)
    assert alone.site_accuracy > alone.site_chance == pytest.approx(1 / 3)  # site b is older, which must stay
    assert after.site_accuracy < alone.site_accuracy + 0.15
    reference = principal(6)(clean[:140])(clean[140:])
    for term in parts.terms:
        own = type(term)(term.name, term.levels, term.values[140:])
        assert after.kept[term.name] > read_term(reference, own) - 0.05
    assert "site 0." in after.describe()
    assert "age 0." in after.describe()
    assert "(AUC)" in after.describe()


def test_what_is_kept_is_not_read_from_what_the_harmoniser_was_told():
    """Sites of very different scale and features without an age in them: ages that were told come back out of codes."""
    rng = np.random.default_rng(5)
    n = 160
    place, age = rng.integers(0, 2, n), rng.uniform(20, 80, n)
    features = rng.standard_normal((n, 3)) * np.where(place, 60.0, 1.0)[:, None]
    parts = Parts(
        np.array(["a", "b"])[place], [term_of("age", [str(a) for a in age])], np.arange(80), np.arange(80, n), 19
    )
    _, after = spaces_of("latents", parts, features[:80], features[80:], lambda _: lambda z: z)
    assert abs(after.kept["age"]) < 0.25
    kept, where = parts.kept, parts.site
    combat = ComBat.fit(features[:80], where[:80], kept[:80])
    told = combat.apply(features[80:], where[80:], kept[80:])[where[80:] == "a"]
    ages = age[80:][where[80:] == "a"]
    assert max(abs(stats.pearsonr(column, ages).statistic) for column in told.T) > 0.9
