"""What the input gate finds: scans of people it has not seen, and the same made wrong in known ways.

Five folds of people. Of each, those to learn from fit the pipeline with its contract and the model, which is the linear
start of the T1 recipe (probabilistic PCA with mirror images; no training); others are the reference; the rest are new.
A detection is a scan that is told to be out of distribution; a file that is refused as no image counts too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from rows import Row, as_row
from scipy import ndimage
from sklearn.datasets import load_sample_images

from kerasvae import VAE, NormalLikelihood, fit_pipeline
from kerasvae.data import Cohort
from kerasvae.errors import VolumeError
from kerasvae.networks import fit_core, linear_start
from kerasvae_export import export
from kerasvae_serving import Engine
from kerasvae_serving.gate import examine

FOLDS, REFERENCE, LATENTS = 5, 40, 32
Image = NDArray[np.float32]


def gate_rows(folder: Path) -> list[Row]:
    """Share of good scans that are flagged, and of wrong ones of each kind."""
    t1, gm = (
        {scan.person: Path(scan.path) for scan in Cohort.read(folder, select=select, exclude={"qc": ["fail"]}).scans}
        for select in ({"suffix": "T1w", "desc": "brain"}, {"suffix": "mask", "label": "GM"})
    )
    people = sorted(set(t1) & set(gm))
    order = [people[i] for i in np.random.default_rng(0).permutation(len(people))]
    flagged: dict[str, list[bool]] = {}
    for fold in range(FOLDS):
        new = order[fold::FOLDS]
        known = [person for person in order if person not in new]
        engine = _engine([t1[p] for p in known[REFERENCE:]], [t1[p] for p in known[:REFERENCE]])
        for number, person in enumerate(new):
            rng = np.random.default_rng([fold, number])
            image = nibabel.load(t1[person])
            for kind, spoil in KINDS.items():
                made = spoil(image, nibabel.load(gm[person]), rng)
                flagged.setdefault(kind, []).append(_flagged(engine, made))
        print(f"fold {fold}: " + ", ".join(f"{kind} {np.mean(each):.3f}" for kind, each in flagged.items()), flush=True)
    rows = []
    for kind, each in flagged.items():
        share, n = float(np.mean(each)), len(each)
        if kind == GOOD:
            rows.append(_row(f"good scans of {n} new people that are flagged", share, None, 0.05, share <= 0.08))
        elif kind in REPORTED:
            rows.append(_row(f"flagged: {kind} ({n})", share, None, None, None))
        else:
            rows.append(_row(f"flagged: {kind} ({n})", share, 0.95, 0.99, share >= 0.95))
    return rows


def _row(name: str, value: float, at_least: float | None, aim: float | None, ok: bool | None) -> Row:
    return as_row(name, value, "share", None, at_least, aim, ok)


def _engine(learners: list[Path], reference: list[Path]) -> Engine:
    pipeline = fit_pipeline(learners, grid="mni-4mm", smooth_fwhm_mm=4.0, intensity={"kind": "zscore"})
    learned, held_out = (np.stack([pipeline.apply(p, check=False) for p in paths]) for paths in (learners, reference))
    core = fit_core(learned, LATENTS, pipeline.mask, mirror=True)
    model = VAE(*linear_start(None, None, core, pipeline.mask), likelihood=NormalLikelihood(mask=pipeline.mask))
    codes = np.asarray(model.encode(learned)["mean"])
    with tempfile.TemporaryDirectory() as place:
        bundle = export(model, pipeline, Path(place) / "bundle", reference=held_out, learned_codes=codes)
        return Engine(bundle)


def _flagged(engine: Engine, image: Any) -> bool:
    try:
        return examine(engine, image.to_bytes()).in_distribution is False
    except VolumeError:
        return True


def _like(image: Any, data: NDArray[Any], affine: NDArray[Any] | None = None) -> Any:
    made = nibabel.Nifti1Image(np.asarray(data, np.float32), image.affine if affine is None else affine)
    made.set_sform(made.affine, 4)
    return made


def _moved(image: Any, rng: np.random.Generator) -> Any:
    """As from the scanner: turned by 8 to 25 degrees and shifted by 5 to 20 mm."""
    angle, axis = np.deg2rad(rng.uniform(8, 25)), rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.eye(4)
    turn[:3, :3] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    shift = rng.normal(size=3)
    turn[:3, 3] = shift / np.linalg.norm(shift) * rng.uniform(5, 20)
    return _like(image, image.get_fdata(), turn @ image.affine)


def _unregistered(image: Any, rng: np.random.Generator) -> Any:
    """The person's own space: voxels of 2 mm along the axes, as they were before registration, the brain centred."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    centre = np.array([*ndimage.center_of_mass(image.get_fdata() > 0), 1])
    affine[:3, 3] = (image.affine @ centre)[:3] - 2 * centre[:3]
    return _like(image, image.get_fdata(dtype=np.float32), affine)


def _turned(image: Any, rng: np.random.Generator) -> Any:
    """Upside down, or back to front, with the affine as it was."""
    return _like(image, np.flip(image.get_fdata(dtype=np.float32), int(rng.integers(1, 3))))


def _half_stripped(image: Any, rng: np.random.Generator) -> Any:
    """A skull-strip that failed on one side: the scalp of `_with_skull` is left there."""
    data = image.get_fdata(dtype=np.float32)
    side = np.zeros(data.shape, bool)
    side[: data.shape[0] // 2] = True
    return _like(image, np.where(side, _with_skull(image, rng).get_fdata(dtype=np.float32), data))


def _lesion(image: Any, rng: np.random.Generator, volume_cm3: float) -> Any:
    """A dark ball (30 % of what was there) in the brain."""
    data = image.get_fdata(dtype=np.float32)
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    radius = (3 * volume_cm3 * 1000 / (4 * np.pi)) ** (1 / 3)
    deep = np.argwhere(ndimage.distance_transform_edt(data > 0, sampling=spacing) > radius)
    away = (np.indices(data.shape).T - deep[rng.integers(len(deep))]) * spacing
    return _like(image, np.where(np.square(away).sum(-1).T < radius**2, 0.3 * data, data))


def _with_skull(image: Any, rng: np.random.Generator) -> Any:
    """A made scalp, 6 mm thick and about as bright as the brain, around 6 mm of dark bone: the derivative has none."""
    data = image.get_fdata(dtype=np.float32)
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    away = ndimage.distance_transform_edt(data <= 0, sampling=spacing)
    bright = float(np.percentile(data[data > 0], 75)) * rng.uniform(0.9, 1.4)
    scalp = (away > 6) & (away <= 12)
    texture = ndimage.gaussian_filter(rng.normal(1, 0.6, data.shape), 2)
    return _like(image, np.where(scalp, bright * np.clip(texture, 0.2, 2), data))


def _noise(image: Any, rng: np.random.Generator) -> Any:
    """Noise of the brain's mean and spread, in its outline."""
    data = image.get_fdata(dtype=np.float32)
    inside = data > 0
    return _like(image, np.where(inside, rng.normal(data[inside].mean(), data[inside].std(), data.shape), 0))


def _photograph(image: Any, rng: np.random.Generator) -> Any:
    """A picture, repeated over slices, on the scan's own grid."""
    picture = load_sample_images().images[int(rng.integers(2))].mean(axis=2)
    shape = image.shape
    place = [int(rng.integers(0, n - m + 1)) if n > m else 0 for n, m in zip(picture.shape, shape[:2], strict=True)]
    part = picture[place[0] : place[0] + shape[0], place[1] : place[1] + shape[1]]
    part = np.pad(part, [(0, n - m) for n, m in zip(shape[:2], part.shape, strict=True)])
    return _like(image, np.repeat(part[:, :, None], shape[2], axis=2))


def _swapped(image: Any, rng: np.random.Generator) -> Any:
    """Two axes of the array swapped, the affine as it was."""
    first, second = rng.choice([[0, 1], [0, 2], [1, 2]])
    return _like(image, np.swapaxes(image.get_fdata(dtype=np.float32), first, second))


GOOD = "good"
REPORTED = ("mirrored left to right", "lesion of 10 cm³", "lesion of 50 cm³")
KINDS: dict[str, Callable[[Any, Any, np.random.Generator], Any]] = {
    GOOD: lambda image, other, rng: image,
    "wrong modality (grey-matter map)": lambda image, other, rng: other,
    "wrong modality (contrast turned around)": lambda image, other, rng: _like(
        image,
        np.where(image.get_fdata() > 0, np.percentile(image.get_fdata(), 99.5) * 1.1 - image.get_fdata(), 0).clip(0),
    ),
    "swapped axes": lambda image, other, rng: _swapped(image, rng),
    "not skull-stripped": lambda image, other, rng: _with_skull(image, rng),
    "turned upside down or back to front": lambda image, other, rng: _turned(image, rng),
    "skull-strip failed on one side": lambda image, other, rng: _half_stripped(image, rng),
    "not registered (moved)": lambda image, other, rng: _moved(image, rng),
    "not registered (the person's own space)": lambda image, other, rng: _unregistered(image, rng),
    "noise": lambda image, other, rng: _noise(image, rng),
    "photograph": lambda image, other, rng: _photograph(image, rng),
    REPORTED[0]: lambda image, other, rng: _like(image, image.get_fdata(dtype=np.float32)[::-1]),
    REPORTED[1]: lambda image, other, rng: _lesion(image, rng, 10),
    REPORTED[2]: lambda image, other, rng: _lesion(image, rng, 50),
}
