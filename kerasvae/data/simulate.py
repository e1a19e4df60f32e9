"""Simulated cohorts with known generative factors. No TensorFlow.

A simulated person is the MNI template made individual in three steps: tissue is drawn at each voxel from the template's
tissue fractions through a smooth Gaussian copula (which gives everyone their own sulci), the result is deformed by a
diffeomorphism (random shape, plus flows that open the ventricles and shrink the hippocampi), and a scanner is put in
front of it (gain, contrast, bias field, noise). `docs/simulator.md` has the formulas, where each constant comes from
and how the outcome compares with real brains.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage, special

from kerasvae.data.anatomy import CSF_LEVEL, GM_LEVEL, REGIONS, SOURCE, WM_LEVEL, Anatomy, load_anatomy, output_grid
from kerasvae.data.deformation import band_rms, exponential, random_velocity, resample_lattice, smooth_noise
from kerasvae.types import Array, Grid, Mask

YOUNG = 25.0
_AGE_LOSS = dict(frontal=0.045, parietal=0.038, temporal=0.030, occipital=0.019, limbic=0.024, deep=0.02, cerebellum=0.010)
_STAGE_LOSS = dict(frontal=0.18, parietal=0.25, temporal=0.30, occipital=0.12, limbic=0.30, deep=0.12, cerebellum=0.03)
K = dict(rms=3.0, scale=20.0, exponent=3.0, finest=5.0, width=3.0, tau=0.25, kappa=1.0, csf=0.38, gm=0.63, wm=0.87, deep=0.3, vent_sd=0.30, reg_sd=0.03, common_sd=0.03,
         noise=0.03, bias=0.05, sex=0.4, head=0.5)


@dataclass
class Person:
    sex: str
    age: float
    patient: bool
    years: float
    pace: float
    head: float
    ventricle: float
    regions: dict


def draw(seed, i, patients=0.3):
    rng = np.random.default_rng((seed, 1, i, 0))
    u = rng.random(6)
    e = rng.standard_normal(4 + len(REGIONS))
    male = u[0] < 0.475
    patient = u[1] < patients
    age = 55 + 30 * u[2] if patient else 20 + 60 * u[2]
    head = np.exp(np.log(1.206) + 0.075 * e[0]) if male else np.exp(np.log(1.361) + 0.09 * e[0])
    return Person("M" if male else "F", age, patient, 0.5 + 8.5 * u[3] if patient else 0.0, np.exp(0.2 * e[1]), head, e[2],
                  {r: K["common_sd"] * e[3] + K["reg_sd"] * x for r, x in zip(REGIONS, e[4:])})


def render(seed, i, grid, person, years=0.0, visit=0, site=0):
    a = load_anatomy()
    age = person.age + years
    A = (age - YOUNG) / 10
    stage = (person.years + years * person.pace) / 10 if person.patient else 0.0
    male = person.sex == "M"
    logv = -0.2 + 0.036 * A + 0.029 * A**2 - 0.136 * (male - 0.5) - 1.08 * (np.log(person.head) - 0.25) + K["vent_sd"] * person.ventricle + 0.7 * stage
    logv = np.clip(logv, -1.2, 1.9)
    logh = -0.00047 / 2 * max(0, age - 50) ** 2 - 0.333 * stage
    loss = np.array([_AGE_LOSS[r] * A + person.regions[r] + _STAGE_LOSS[r] * stage for r in REGIONS], dtype=np.float32)
    srng = np.random.default_rng((seed, 2, i, 0))
    v = random_velocity(srng, rms=K["rms"], scale=K["scale"], exponent=K["exponent"], finest=K["finest"])
    u = smooth_noise(srng, SOURCE.shape, spacing=2.0, width=K["width"])
    v = v + np.float32((np.exp(logv) - 1) / 0.8 if logv > 0 else logv / 0.64) * a.ventricle_flow
    v += np.float32(logh / 0.65) * a.hippocampus_flow
    v += np.float32(K["sex"] * (male - 0.5) * 2) * a.sex_flow + np.float32(K["head"] * (np.log(person.head) - 0.25) / 0.11) * a.head_flow
    disp = exponential(-v)
    t1, gm = tissue(a, u, loss)
    D = resample_lattice(disp, grid.shape, grid.matrix)
    ijk = np.indices(grid.shape, dtype=np.float32)
    for ax in range(3):
        ijk[ax] = (ijk[ax] * grid.spacing[ax] + grid.matrix[ax, 3] - SOURCE.matrix[ax, 3] + D[ax]) / 2
    T = ndimage.map_coordinates(t1, ijk, order=1)
    G = ndimage.map_coordinates(gm, ijk, order=1)
    B = ndimage.map_coordinates(a.inside.astype(np.float32), ijk, order=1) > 0.5
    T = scanner(T, B, grid, seed, i, visit, site)
    return T, (G > 0.5).astype(np.uint8)


def tissue(a, u, loss):
    tau = K["tau"]
    q = special.ndtr(u[a.inside])
    spread = np.where(a.exposure[REGIONS.index("deep")] > 0, np.float32(K["deep"]), np.float32(1))
    q = 0.5 + spread * (q - 0.5)
    q = tau / 2 + (1 - tau) * q
    csf = np.clip(a.csf + np.clip(loss @ a.exposure, -0.5, 0.95) * a.gm, 0, a.csf + a.gm)
    f_csf = np.clip((csf - q) / tau + 0.5, 0, 1)
    f_wm = np.clip((q - (a.csf + a.gm)) / tau + 0.5, 0, 1)
    f_gm = np.clip(1 - f_csf - f_wm, 0, 1)
    lev = [K["csf"], K["gm"], K["wm"]]
    t = np.interp(a.t1, [0, CSF_LEVEL, GM_LEVEL, WM_LEVEL, 1], [0, *lev, 1]).astype(np.float32) + K["kappa"] * (lev[0] * (f_csf - a.csf) + lev[1] * (f_gm - a.gm) + lev[2] * (f_wm - a.white))
    T = np.zeros(SOURCE.shape, np.float32)
    T[a.inside] = np.clip(t, 0.12, None)
    G = np.zeros(SOURCE.shape, np.float32)
    G[a.inside] = f_gm
    return T, G


def basis(grid):
    x, y, z = np.meshgrid(*[(grid.matrix[k, 3] + grid.spacing[k] * np.arange(grid.shape[k]) - c) / 75 for k, c in enumerate((0, -18, 8))], indexing="ij", sparse=True)
    return x, y, z


def scanner(T, B, grid, seed, i, visit, site):
    rng = np.random.default_rng((seed, 3, i, visit))
    c = rng.standard_normal(9) * K["bias"]
    x, y, z = basis(grid)
    lb = c[0] * x + c[1] * y + c[2] * z + c[3] * x * y + c[4] * x * z + c[5] * y * z + c[6] * x * x + c[7] * y * y + c[8] * z * z - 0.2 * (x * x + y * y + z * z)
    out = T * np.exp(lb + 0.13).astype(np.float32) * 195
    n = rng.standard_normal((2, *grid.shape), dtype=np.float32) * np.float32(K["noise"] * 170)
    out = np.hypot(out + n[0], n[1]) * B
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)
