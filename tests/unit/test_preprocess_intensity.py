"""Intensity steps against numpy, and what makes them impossible."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter

from kerasvae.errors import VolumeError
from kerasvae.preprocess import Intensity, PercentileIntensity, RangeIntensity, ZScoreIntensity


@pytest.fixture
def data() -> np.ndarray:
    return np.random.default_rng(0).gamma(2.0, 50.0, (8, 9, 10)).astype(np.float32)


@pytest.fixture
def mask(data) -> np.ndarray:
    return np.random.default_rng(1).random(data.shape) > 0.4


def test_percentile(data, mask):
    step = PercentileIntensity(low=2, high=95)
    low, high = np.percentile(data[mask].astype(np.float64), [2, 95])
    out = step.scaling(data, mask).apply(data)
    np.testing.assert_allclose(out, np.clip((data - low) / (high - low), 0, 1), atol=1e-6)
    assert out.dtype == np.float32
    loose = PercentileIntensity(low=2, high=95, clip=False).scaling(data, mask).apply(data)
    assert loose.max() > 1
    assert loose.min() < 0


def test_zscore(data, mask):
    out = ZScoreIntensity().scaling(data, mask).apply(data)
    assert out[mask].astype(np.float64).mean() == pytest.approx(0, abs=1e-6)
    assert out[mask].astype(np.float64).std() == pytest.approx(1, abs=1e-6)


def test_range(data):
    out = RangeIntensity(low=20, high=120).scaling(data).apply(data)
    np.testing.assert_allclose(out, np.clip((data - 20) / 100, 0, 1), atol=1e-6)


def test_without_a_mask_voxels_above_zero_count(data):
    data[:3] = 0
    data[3] = -5
    scaling = ZScoreIntensity().scaling(data)
    assert scaling.offset == pytest.approx(data[data > 0].astype(np.float64).mean(), rel=1e-6)


@pytest.mark.parametrize(
    "step", [PercentileIntensity(clip=False), ZScoreIntensity(), RangeIntensity(high=9, clip=False)]
)
def test_can_be_undone(step, data, mask):
    scaling = step.scaling(data, mask)
    np.testing.assert_allclose(scaling.invert(scaling.apply(data)), data, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [PercentileIntensity(), ZScoreIntensity()])
def test_flat_and_empty_are_volume_errors(step):
    with pytest.raises(VolumeError, match=r"scan\.nii must vary"):
        step.scaling(np.full((3, 3, 3), 7.1, np.float32), source="scan.nii")
    with pytest.raises(VolumeError, match="above 0"):
        step.scaling(np.full((3, 3, 3), -1, np.float32))


def test_told_apart_by_kind():
    adapter = TypeAdapter(Intensity)
    for step in (PercentileIntensity(low=3), ZScoreIntensity(), RangeIntensity(high=4)):
        assert adapter.validate_python(step.model_dump()) == step


@pytest.mark.parametrize("kind", [PercentileIntensity, RangeIntensity])
def test_order_of_limits(kind):
    with pytest.raises(ValueError, match="below high"):
        kind(low=60, high=40)


def test_an_image_in_another_unit_is_refused_by_a_fixed_range(data):
    step = RangeIntensity(low=0, high=1)
    with pytest.raises(VolumeError, match="100% outside, from 100 to 200"):
        step.scaling(np.linspace(100, 200, 50, dtype="f4"))
    with pytest.raises(VolumeError, match="vary inside the brain, but received 0 everywhere"):
        step.scaling(np.zeros(50, "f4"))
    assert RangeIntensity(low=0, high=1, clip=False).scaling(np.linspace(100, 200, 50, dtype="f4")).scale == 1
