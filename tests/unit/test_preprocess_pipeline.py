"""The pipeline as a whole: order, config, digest, inversion, fitting."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from kerasvae.errors import AlignmentError, ArgumentError, VolumeError
from kerasvae.preprocess import (
    MaskRule,
    PercentileIntensity,
    Pipeline,
    RangeIntensity,
    fit_pipeline,
    named_grid,
    read_volume,
    resample,
)
from kerasvae.types import Grid, Volume

ROOT = Path(os.environ.get("KERASVAE_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
RAW = {"intensity": {"kind": "range", "low": 0, "high": 1, "clip": False}}


def _brain(seed: int, shape=(48, 52, 46)) -> nibabel.Nifti1Image:
    """A smooth ball of 5 mm voxels near the middle of the MNI box, stored left to right and tilted."""
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", random.normal(0, 2, 3), degrees=True).as_matrix() @ np.diag(
        [-5.0, 5, 5]
    )
    affine[:3, 3] = np.array([0, -18, 12]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2) + random.normal(0, 1, 3)
    index = np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2
    radius = np.sqrt((index**2).sum(axis=0)) * 5
    texture = gaussian_filter(random.normal(size=shape), 2) * 40
    data = np.where(radius < 62, 100 + radius / 2 + texture, 0).clip(0)
    return nibabel.Nifti1Image(data.astype(np.float32), affine)


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    out = []
    for seed in range(6):
        image = _brain(seed)
        image.set_sform(image.affine, code=4)
        nibabel.save(image, tmp_path / f"sub-{seed:02d}.nii.gz")
        out.append(tmp_path / f"sub-{seed:02d}.nii.gz")
    return out


def test_apply_is_the_steps_in_order(paths):
    pipeline = fit_pipeline(paths, grid="mni-8mm", smooth_fwhm_mm=6.0, intensity={"kind": "percentile", "high": 98})
    volume = read_volume(paths[2])
    data = resample(volume.data, volume.affine, named_grid("mni-8mm"), smooth_fwhm_mm=6.0)
    low, high = np.percentile(data[pipeline.mask], [1, 98])
    expected = np.where(pipeline.mask, np.clip((data - low) / (high - low), 0, 1), 0)
    out = pipeline.apply(paths[2])
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    assert not out[~pipeline.mask].any()
    for same in (str(paths[2]), volume, nibabel.load(paths[2])):
        np.testing.assert_array_equal(pipeline.apply(same), out)


def test_orientation_on_disk_does_not_matter(tmp_path, paths):
    pipeline = fit_pipeline(paths, grid="mni-8mm")
    image = nibabel.load(paths[0])
    turned = image.as_reoriented(nibabel.orientations.axcodes2ornt(("P", "I", "R")))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    np.testing.assert_allclose(pipeline.apply(tmp_path / "turned.nii.gz"), pipeline.apply(paths[0]), atol=2e-5)


def test_config_round_trip_and_digest(paths):
    pipeline = fit_pipeline(paths, grid="mni-8mm")
    text = json.dumps(pipeline.to_config())
    again = Pipeline.from_config(json.loads(text))
    assert again == pipeline
    assert hash(again) == hash(pipeline)
    assert again.digest == pipeline.digest
    assert len(pipeline.digest) == 64
    np.testing.assert_array_equal(again.mask, pipeline.mask)
    np.testing.assert_array_equal(again.apply(paths[0]), pipeline.apply(paths[0]))
    assert json.dumps(again.to_config()) == text


def test_every_field_changes_the_digest(paths):
    pipeline = fit_pipeline(paths, grid="mni-8mm")
    config = pipeline.to_config()
    mask = pipeline.mask.copy()
    mask[tuple(np.argwhere(mask)[0])] = False
    others = [
        pipeline.with_mask(mask),
        pipeline.with_mask(None),
        pipeline.with_alignment(None),
        *(
            Pipeline.from_config({**config, **change})
            for change in (
                {"smooth_fwhm_mm": 1.0},
                {"interpolation": "nearest"},
                {"modality": "T2w"},
                {"placement": "crop"},
                {"intensity": {"kind": "zscore"}},
                {"intensity": {"kind": "percentile", "low": 1.5}},
            )
        ),
    ]
    digests = {pipeline.digest, *(p.digest for p in others)}
    assert len(digests) == 1 + len(others)


def test_digest_is_the_same_in_another_process(paths, tmp_path):
    pipeline = fit_pipeline(paths, grid="mni-8mm")
    (tmp_path / "pipeline.json").write_text(json.dumps(pipeline.to_config(), indent=1))
    code = (
        "import json, sys; from kerasvae.preprocess import Pipeline;"
        "print(Pipeline.from_config(json.load(open(sys.argv[1]))).digest)"
    )
    for seed in ("0", "7"):
        out = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "pipeline.json")],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert out.stdout.strip() == pipeline.digest


def test_digest_of_a_known_pipeline_never_changes():
    # guards the canonical form: a change here makes every bundle's digest unknown and needs a new `version`
    mask = np.zeros((2, 2, 2), bool)
    mask[0, 1, 1] = True
    pipeline = Pipeline(grid=Grid.of((2, 2, 2), np.diag([4.0, 4, 4, 1]), "native"), mask=mask)
    canonical = (
        '{"alignment":null,"grid":{"affine":[[4.0,0.0,0.0,0.0],[0.0,4.0,0.0,0.0],[0.0,0.0,4.0,0.0],[0.0,0.0,0.0,1.0]],'
        '"shape":[2,2,2],"space":"native"},"intensity":{"clip":true,"high":99.0,"kind":"percentile","low":1.0},'
        '"interpolation":"linear","mask":{"sha256":"%s","shape":[2,2,2]},"modality":"T1w","placement":"resample",'
        '"smooth_fwhm_mm":0.0,"version":1}'
    )
    bits = hashlib.sha256(bytes([0b00010000])).hexdigest()
    assert pipeline.digest == hashlib.sha256((canonical % bits).encode()).hexdigest()


def test_importing_is_light():
    code = (
        "import sys; import kerasvae.preprocess;"
        "print([m for m in ('tensorflow', 'keras', 'scipy', 'nibabel', 'pandas', 'nilearn') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_is_frozen():
    pipeline = Pipeline(grid="mni-8mm", mask=np.ones((23, 28, 23), bool))
    with pytest.raises(ValueError, match="frozen"):
        pipeline.modality = "T2w"
    with pytest.raises(ValueError, match="read-only"):
        pipeline.mask[0, 0, 0] = False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"smooth_fwhm": 3}, "Did you mean 'smooth_fwhm_mm'"),
        ({"intensity": {"kind": "percentile", "hihg": 3}}, r"intensity\.hihg .*Did you mean 'high'"),
        ({"intensity": {"kind": "percentil"}}, "intensity"),
        ({"intensity": {"kind": "percentile", "low": 80, "high": 20}}, "below high"),
        ({"smooth_fwhm_mm": -1}, "smooth_fwhm_mm"),
        ({"smooth_fwhm_mm": float("nan")}, "smooth_fwhm_mm"),
        ({"interpolation": "cubic"}, "interpolation"),
        ({"grid": "mni4mm"}, "mni-4mm"),
        ({"grid": {"shape": [2, 2, 2]}}, "affine"),
        ({"version": 2}, "version"),
        ({"zzz": 1}, "Choose from"),
    ],
)
def test_wrong_config_is_refused_in_words(change, words):
    with pytest.raises(ArgumentError, match=words):
        Pipeline.from_config({"grid": "mni-8mm", **change})


def test_grid_is_needed():
    with pytest.raises(ArgumentError, match="grid"):
        Pipeline.from_config({})


def test_empty_and_ill_fitting_masks():
    with pytest.raises(VolumeError, match="at least one voxel"):
        Pipeline(grid="mni-8mm", mask=np.zeros((23, 28, 23), bool))
    with pytest.raises(VolumeError, match="grid's shape"):
        Pipeline(grid="mni-8mm", mask=np.ones((3, 3, 3), bool))


# ---------------------------------------------------------------- inversion


@pytest.mark.parametrize("grid", ["mni-4mm", "mni-6mm"])
def test_smooth_map_returns_to_native_space(paths, grid):
    pipeline = Pipeline(grid=grid, **RAW)
    x, y, z = (pipeline.grid.matrix[:3, :3] @ np.indices(pipeline.grid.shape).reshape(3, -1)) + pipeline.grid.matrix[
        :3, 3:
    ]

    def field(x, y, z):
        return np.sin(x / 25) + np.cos(y / 30) * np.sin(z / 20 + 1)

    native = pipeline.invert(field(x, y, z).reshape(pipeline.grid.shape), paths[1])
    file = nibabel.load(paths[1])
    assert native.shape == file.shape
    np.testing.assert_allclose(native.affine, file.affine, atol=1e-6)
    assert native.get_data_dtype() == np.float32
    assert int(native.header["sform_code"]) == 4
    index = np.indices(file.shape).reshape(3, -1)
    mm = file.affine[:3, :3] @ index + file.affine[:3, 3:]
    box = pipeline.grid.matrix @ np.array([[0, n - 1] for n in pipeline.grid.shape] + [[1, 1]])
    inside = ((mm > box[:3, :1]) & (mm < box[:3, 1:])).all(axis=0)
    values = native.get_fdata().ravel()
    assert np.corrcoef(values[inside], field(*mm[:, inside]))[0, 1] > 0.99
    outside = ((mm < box[:3, :1] - 10) | (mm > box[:3, 1:] + 10)).any(axis=0)
    assert outside.any()
    assert not values[outside].any()


def test_there_and_back_again(paths):
    pipeline = Pipeline(grid="mni-4mm", **RAW)
    file = nibabel.load(paths[0])
    smooth = nibabel.Nifti1Image(gaussian_filter(file.get_fdata(), 1.5).astype(np.float32), file.affine)
    back = pipeline.invert(pipeline.apply(smooth), smooth).get_fdata()
    assert np.corrcoef(back.ravel(), smooth.get_fdata().ravel())[0, 1] > 0.99


def test_label_map_stays_labels(paths):
    pipeline = Pipeline(grid="mni-8mm")
    labels = np.random.default_rng(0).choice([0, 4, 9], pipeline.grid.shape)
    native = pipeline.invert(labels, paths[0], interpolation="nearest").get_fdata()
    assert set(np.unique(native)) <= {0, 4, 9}


def test_reconstruction_returns_to_the_images_own_units(paths):
    pipeline = fit_pipeline(paths, grid="mni-6mm", intensity=PercentileIntensity(low=0.5, high=99.5))
    volume = read_volume(paths[0])
    native = pipeline.invert(pipeline.apply(volume), volume, intensity=True).get_fdata()
    raw = nibabel.load(paths[0]).get_fdata()
    middle = tuple(slice(n // 2 - 5, n // 2 + 5) for n in raw.shape)
    assert native[middle].mean() == pytest.approx(raw[middle].mean(), rel=0.05)


def test_map_of_another_shape_is_refused(paths):
    with pytest.raises(ArgumentError, match="grid's shape"):
        Pipeline(grid="mni-8mm").invert(np.zeros((3, 3, 3)), paths[0])


# ---------------------------------------------------------------- fitting


def test_bad_images_are_reported_and_left_out(paths, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(paths[0].read_bytes()[:500])
    elsewhere = nibabel.Nifti1Image(nibabel.load(paths[0]).get_fdata(), None)
    affine = nibabel.load(paths[0]).affine.copy()
    affine[:3, 3] += 2000
    elsewhere.set_sform(affine, code=1)
    nibabel.save(elsewhere, tmp_path / "elsewhere.nii.gz")
    cohort = [broken, *paths, tmp_path / "elsewhere.nii.gz", tmp_path / "missing.nii.gz"]
    with pytest.raises(VolumeError, match=r"broken\.nii\.gz"):
        fit_pipeline(cohort, grid="mni-8mm")
    seen = []
    pipeline = fit_pipeline(cohort, grid="mni-8mm", on_error=lambda path, error: seen.append((path, str(error))))
    assert [path for path, _ in seen] == [broken, tmp_path / "elsewhere.nii.gz", tmp_path / "missing.nii.gz"]
    assert all(str(path) in message for path, message in seen)
    assert pipeline.digest == fit_pipeline(paths, grid="mni-8mm").digest
    assert pipeline.alignment.people == 6


def test_alignment_is_checked_and_can_be_skipped(paths):
    pipeline = fit_pipeline(paths, grid="mni-8mm")
    volume = read_volume(paths[0])
    shifted = volume.affine.copy()
    shifted[0, 3] += 30
    moved = Volume(data=volume.data, affine=shifted, source="moved.nii.gz")
    with pytest.raises(AlignmentError, match=r"moved\.nii\.gz must lie"):
        pipeline.apply(moved)
    assert pipeline.apply(moved, check=False).shape == pipeline.grid.shape
    assert pipeline.with_alignment(None).apply(moved).shape == pipeline.grid.shape


def test_mean_rule_for_fractions(tmp_path):
    images = []
    for seed in range(4):
        image = _brain(seed)
        images.append(nibabel.Nifti1Image((image.get_fdata() > 120).astype(np.uint8), image.affine))
    pipeline = fit_pipeline(images, grid="mni-8mm", mask_rule=MaskRule(kind="mean", threshold=0.05),
                            intensity=RangeIntensity(), modality="GM", units="fraction")  # fmt: skip
    mean = np.mean([pipeline.place(image) for image in images], axis=0)
    np.testing.assert_array_equal(pipeline.mask, mean > 0.05)
    assert pipeline.alignment.units == "fraction"


def test_own_grid_crops_and_pads(tmp_path):
    images = []
    for seed, shape in enumerate([(9, 10, 11), (8, 12, 10), (11, 9, 13)]):
        data = np.random.default_rng(seed).uniform(1, 2, shape).astype(np.float32)
        images.append(nibabel.Nifti1Image(data, np.diag([-1.0, 1, 1, 1])))
    pipeline = fit_pipeline(images, grid="native", mask_rule=None, alignment=False, intensity=RangeIntensity(high=2))
    assert pipeline.grid.shape == (9, 10, 11)
    assert pipeline.placement == "crop"
    out = pipeline.apply(images[1])
    np.testing.assert_allclose(
        out[0:8], np.pad(images[1].get_fdata()[::-1, 1:11] / 2, [(0, 0), (0, 0), (0, 1)]), atol=1e-6
    )
    back = pipeline.invert(out, images[1], intensity=True)
    assert back.shape == (8, 12, 10)
    np.testing.assert_allclose(back.get_fdata()[:, 1:11], images[1].get_fdata()[:, 1:11], atol=1e-6)
    assert fit_pipeline(images, grid="native", shape=(16, 16, 16), mask_rule=None).grid.shape == (16, 16, 16)
    coarse = nibabel.Nifti1Image(np.random.default_rng(0).uniform(size=(9, 9, 9)), np.diag([2.0, 1, 1, 1]))
    with pytest.raises(VolumeError, match="1 × 1 × 1 mm"):
        pipeline.apply(coarse)


def test_nobody_and_wrong_rule(paths):
    with pytest.raises(VolumeError, match="at least one image"):
        fit_pipeline([], grid="mni-8mm")
    with pytest.raises(VolumeError, match="readable image"):
        fit_pipeline([], grid="native")
    with pytest.raises(ArgumentError, match="mask rule"):
        fit_pipeline(paths, grid="mni-8mm", mask_rule="brain")


@pytest.mark.skipif(not (ROOT / "hippocampus" / "nifti_sample").is_dir(), reason="no hippocampus at KERASVAE_DATA")
def test_hippocampus_of_mixed_types_and_shapes():
    files = sorted((ROOT / "hippocampus" / "nifti_sample").glob("*_image.nii.gz"))
    pipeline = fit_pipeline(
        files, grid="native", shape=(44, 60, 48), mask_rule=None, intensity=PercentileIntensity(clip=False)
    )
    for file in files:
        out = pipeline.apply(file)
        assert out.shape == (44, 60, 48)
        back = pipeline.invert(out, file, intensity=True).get_fdata()
        raw = nibabel.load(file).get_fdata()
        assert back.shape == raw.shape
        np.testing.assert_allclose(back, raw, atol=1e-3 * raw.max())  # crops are never larger than this shape


@pytest.mark.skipif(not (ROOT / "ixi").is_dir(), reason="no IXI images at KERASVAE_DATA")
def test_real_brain_there_and_back():
    files = sorted((ROOT / "ixi").glob("sub-*/anat/*desc-brain_T1w.nii.gz"))[:4]
    pipeline = fit_pipeline(files, grid="mni-2mm")
    volume = read_volume(files[0])
    back = pipeline.invert(pipeline.apply(volume), volume, intensity=True).get_fdata()
    inside = pipeline.invert(pipeline.mask, volume).get_fdata() > 0.99
    assert np.corrcoef(back[inside], nibabel.load(files[0]).get_fdata()[inside])[0, 1] > 0.95
