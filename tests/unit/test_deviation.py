"""Scores and p of single people on simulated maps: what they hold, and what they find."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from kerasvae.analysis.deviation.focal import Bands
from kerasvae.analysis.deviation.norm import Norm
from kerasvae.analysis.deviation.residuals import Residuals
from kerasvae.analysis.deviation.scores import Judge, region_means, told
from kerasvae.errors import ArgumentError

SHAPE = (14, 16, 12)
MASK = np.zeros(SHAPE, bool)
MASK[2:12, 2:14, 1:11] = True
MASK[2:4, 2:4, 1:3] = False
INDEX = np.full(SHAPE, -1)
INDEX[MASK] = np.arange(MASK.sum())
REGIONS = [INDEX[half][INDEX[half] >= 0] for half in (np.s_[:7], np.s_[7:])]
BANDS = Bands(MASK, (4.0, 4.0, 4.0))


def brains(n, seed):
    """Smooth fields with heavy tails, and each person with a spread of their own."""
    rng = np.random.default_rng(seed)
    fields = np.stack([gaussian_filter(rng.standard_t(5, SHAPE), 0.7)[MASK] for _ in range(n)])
    return fields * rng.gamma(4, 0.25, (n, 1))


def spot(centre, radius):
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    return (np.square(places - centre).sum(axis=-1) <= radius**2)[MASK]


def test_p_of_healthy_people_hold_their_rates():
    """Full conformal: exact whatever the tails, so that the rate over many draws is within its standard error."""
    pool = brains(24 + 1, 0)
    rng = np.random.default_rng(1)
    found = []
    for _ in range(200):
        order = rng.permutation(len(pool))[:10]
        judge = Judge(pool[order[:9]], pool[order[:9]], BANDS, REGIONS)
        found.append(judge(pool[order[9]], pool[order[9]]))
    for alpha in (0.1, 0.2, 0.5):
        for score in ("extent", "focus", "regions"):
            rate = np.mean([each.p[score] <= alpha for each in found])
            assert rate <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 200), score
        voxels = np.mean([each.p_voxels.min() <= alpha for each in found])
        assert voxels <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 200)
    assert np.mean([each.p["focus"] <= 0.5 for each in found]) > 0.4  # and they are not simply large


def test_a_spot_is_found_where_it_is():
    known, new = brains(30, 2), brains(1, 3)[0]
    there = spot((7, 9, 6), 2.0)
    new = new - 12 * new.std() * there
    found = Judge(known, known, BANDS)(new, new)
    assert found.p["focus"] == pytest.approx(1 / 31)
    assert there[found.place]
    assert found.focus_map[found.place] < 0
    assert found.p_voxels[there].min() == pytest.approx(1 / 31, rel=1e-6)
    assert "regions" not in found.p


def test_the_largest_voxel_is_the_focus():
    known, new = brains(12, 4), brains(1, 5)[0]
    found = Judge(known, known, BANDS)(new, new)
    assert np.abs(found.focus_map).max() == pytest.approx(found.focus, rel=1e-6)
    assert found.p_voxels.min() == pytest.approx(found.p["focus"], rel=1e-6)


def test_a_person_who_is_wide_all_over_has_extent_not_focus():
    known, new = brains(39, 6), brains(1, 7)[0]
    found = Judge(known, known, BANDS)(6 * new, 6 * new)
    assert found.p["extent"] == pytest.approx(1 / 40)
    plain = Judge(known, known, BANDS)(new, new)
    assert found.focus < 1.25 * plain.focus  # not six times; the others' mean, which is taken off, is not scaled
    assert found.p["focus"] > 0.1


def test_a_shifted_region_is_told():
    known, new = brains(30, 8), brains(1, 9)[0]
    new[REGIONS[0]] += 1.5
    found = Judge(known, known, BANDS, REGIONS)(new, new)
    assert found.p_regions[0] == pytest.approx(1 / 31)
    assert found.regions[0] > 3
    assert abs(found.regions[1]) < 3
    assert (found.p_regions_family >= found.p_regions - 1e-12).all()


def test_region_means():
    values = np.random.default_rng(0).standard_normal((3, MASK.sum()))
    expected = [[row[places].mean() for places in REGIONS] for row in values]
    np.testing.assert_allclose(region_means(values, REGIONS), expected)
    assert region_means(values, []).shape == (3, 0)


def test_bands_of_a_constant_are_zero_and_stay_in_the_mask():
    for band in BANDS(np.full((1, MASK.sum()), 7.0)):
        np.testing.assert_allclose(band, 0, atol=1e-9)


def test_bands_are_differences_of_gaussians():
    """Far from the edge a point's band is scipy's filter of a point."""
    mask = np.ones((41, 41, 41), bool)
    point = np.zeros(mask.shape)
    point[20, 20, 20] = 1
    (band,) = Bands(mask, (2.0, 2.0, 4.0), widths=(8.0,))(point[mask][None])
    sigma = 8 / np.sqrt(8 * np.log(2))
    narrow, wide = (gaussian_filter(point, [s / 2, s / 2, s / 4]) for s in (sigma, 2.5 * sigma))
    centre = np.s_[15:26, 15:26, 15:26]
    found = np.zeros(mask.shape)
    found[mask] = band[0]
    np.testing.assert_allclose(found[centre], (narrow - wide)[centre], atol=2e-5)


def test_wrong_widths_are_refused():
    with pytest.raises(ArgumentError, match="above 0"):
        Bands(MASK, (4.0, 4.0, 4.0), widths=(0.0,))


def test_told_is_benjamini_hochberg():
    z = np.array([0.1, 4.0, -3.5, 2.0, 1.0])
    p = np.sort(2 * norm.sf(np.abs(z)))
    most = max(i for i, each in enumerate(p, start=1) if each <= 0.05 * i / 5)
    assert told(z).sum() == most
    assert told(z)[[1, 2]].all()


def test_everyone_alike_has_each_rank_once():
    """Each of n + 1 people in turn is the new one: if all are treated alike, p is every rank once."""
    people, rng = 8, np.random.default_rng(11)
    rows = brains(people, 12).astype(np.float32)
    covariates = np.where(rng.random((people, 2)) < 0.2, np.nan, rng.standard_normal((people, 2)))
    codes, spread = rng.standard_normal((people, 3)), rng.gamma(2, 0.1, rows.shape).astype(np.float32)
    learned = Residuals(rows[:0], brains(20, 13).astype(np.float32), None)
    before = (rng.standard_normal((20, 3)), rng.standard_normal((20, 2)))
    found: dict[str, list[float]] = {}
    for new in range(people):
        others = np.delete(np.arange(people), new)
        known = Residuals(rows[others], rows[others], spread[others])
        norm = Norm.fit(
            learned, known, (before[0], codes[others]), (before[1], covariates[others]), MASK, (4.0, 4.0, 4.0), REGIONS
        )
        one = norm.of(rows[new], spread[new], covariates[new])
        told_ = {**one.p, "distance": norm.distance_of(codes[new], covariates[new])[1], "voxels": one.p_voxels.min()}
        told_ |= {f"region {index}": float(p) for index, p in enumerate(one.p_regions)}
        for name, p in told_.items():
            found.setdefault(name, []).append(float(p))
    ranks = np.arange(1, people + 1) / people
    assert set(found) == {"extent", "focus", "regions", "distance", "voxels", "region 0", "region 1"}
    for name, p in found.items():
        np.testing.assert_allclose(np.sort(p), ranks, rtol=1e-6, err_msg=name)
