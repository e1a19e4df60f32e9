"""Random fields and diffeomorphisms: their statistics and their algebra, against closed forms and scipy."""

import numpy as np
import pytest
from scipy import ndimage

from kerasvae.data.deformation import (
    BANDS_MM,
    LATTICE,
    band_rms,
    exponential,
    jacobian_determinant,
    potential_flow,
    random_velocity,
    resample_lattice,
    smooth_noise,
)

SPECTRUM = {"scale": 18.0, "exponent": 3.0, "finest": 5.0}


def wave(periods, amplitude):
    """A sinusoid along x with a whole number of periods, as the x component of a velocity."""
    x = np.arange(LATTICE.shape[0]) / LATTICE.shape[0]
    field = np.zeros((3, *LATTICE.shape), np.float32)
    field[0] = amplitude * np.sin(2 * np.pi * periods * x)[:, None, None]
    return field


def test_smooth_noise_has_unit_variance_and_a_gaussian_correlation():
    shape, spacing, width = (48, 48, 48), 2.0, 3.0
    fields = np.stack([smooth_noise(np.random.default_rng(i), shape, spacing=spacing, width=width) for i in range(12)])
    assert fields.dtype == np.float32
    assert fields.mean() == pytest.approx(0, abs=0.02)
    assert fields.var() == pytest.approx(1, abs=0.03)
    for lag in (1, 2, 4):
        expected = np.exp(-((lag * spacing) ** 2) / (4 * width**2))
        assert (fields * np.roll(fields, lag, axis=1)).mean() == pytest.approx(expected, abs=0.03)


def test_random_velocity_has_its_amplitude_and_most_power_in_long_waves():
    fields = [random_velocity(np.random.default_rng(i), rms=1.5, **SPECTRUM) for i in range(10)]
    assert np.sqrt(np.mean(np.square(fields))) == pytest.approx(1.5, rel=0.05)
    bands = np.mean([band_rms(field) for field in fields], axis=0)
    assert (np.diff(bands) < 0).all()
    assert np.sqrt((bands**2).sum()) == pytest.approx(1.5, rel=0.05)


def test_bands_tell_waves_apart():
    # 48 nodes 4 mm apart: 1, 3, 6 and 12 periods are waves of 192, 64, 32 and 16 mm, one in each band
    for position, periods in enumerate((1, 3, 6, 12)):
        low, high = BANDS_MM[position]
        assert low <= 192 / periods < high
        rms = np.zeros(4)
        rms[position] = 2 / np.sqrt(2) / np.sqrt(3)  # a sine in one of three components
        np.testing.assert_allclose(band_rms(wave(periods, 2.0)), rms, atol=1e-5)


def test_flow_of_a_constant_is_a_shift():
    velocity = np.full((3, *LATTICE.shape), 5.0, np.float32)
    np.testing.assert_allclose(exponential(velocity), velocity, rtol=1e-5)


def test_flow_of_a_wave_solves_its_differential_equation():
    # dx/dt = a sin(kx): tan(k x(1) / 2) = exp(a k) tan(k x(0) / 2)
    amplitude, periods = 4.0, 2
    k = 2 * np.pi * periods / (LATTICE.shape[0] * 4.0)
    found = exponential(wave(periods, amplitude))[0, :, 30, 24]
    x = 4.0 * np.arange(LATTICE.shape[0])
    inner = slice(2, 11)  # before the first turning point, where the tangent has no jump
    expected = 2 / k * np.arctan(np.exp(amplitude * k) * np.tan(k * x[inner] / 2)) - x[inner]
    np.testing.assert_allclose(found[inner], expected, atol=0.1)


def test_inverse_and_no_folds():
    velocity = random_velocity(np.random.default_rng(3), rms=2.0, **SPECTRUM)
    forth, back = exponential(velocity), exponential(-velocity)
    assert jacobian_determinant(forth).min() > 0
    nodes = np.indices(LATTICE.shape, dtype=np.float32)
    there = nodes + forth / 4.0
    returned = there + np.stack([ndimage.map_coordinates(c, there, order=1, mode="nearest") for c in back]) / 4.0
    inner = (slice(None), slice(6, -6), slice(6, -6), slice(6, -6))
    assert np.abs(4.0 * (returned - nodes)[inner]).max() < 0.6
    assert np.sqrt(np.mean((4.0 * (returned - nodes)[inner]) ** 2)) < 0.05


def test_potential_flow_has_its_divergence_and_no_curl():
    x, y, z = np.meshgrid(*(2 * np.pi * np.arange(n) / n for n in LATTICE.shape), indexing="ij")
    flow = potential_flow(np.cos(x) + 0.5 * np.sin(y) * np.cos(z) + 3.0)  # the constant is taken off
    lengths = 4.0 * np.array(LATTICE.shape) / (2 * np.pi)
    a = 0.5 / (1 / lengths[1] ** 2 + 1 / lengths[2] ** 2)
    np.testing.assert_allclose(flow[0], np.sin(x) * lengths[0], atol=1e-3)
    np.testing.assert_allclose(flow[1], -a / lengths[1] * np.cos(y) * np.cos(z), atol=1e-3)
    np.testing.assert_allclose(flow[2], a / lengths[2] * np.sin(y) * np.sin(z), atol=1e-3)


def test_lattice_is_interpolated_as_scipy_does():
    field = random_velocity(np.random.default_rng(1), rms=1.0, **SPECTRUM)
    affine = np.diag([3.0, 2.5, 5.0, 1.0])
    affine[:3, 3] = (-80.0, -90.0, -60.0)
    shape = (20, 22, 15)
    points = np.indices(shape).reshape(3, -1)
    where = np.linalg.solve(LATTICE.matrix, affine @ np.vstack([points, np.ones(points.shape[1])]))[:3]
    expected = np.stack([ndimage.map_coordinates(c, where, order=1).reshape(shape) for c in field])
    np.testing.assert_allclose(resample_lattice(field, shape, affine), expected, atol=1e-4)
