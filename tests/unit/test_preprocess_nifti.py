"""Reading and writing against nibabel, and every kind of bad input."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from kerasvae.errors import ArgumentError, StorageError, VolumeError
from kerasvae.preprocess import as_volume, read_volume, write_volume
from kerasvae.types import Volume

AFFINE = np.array([[-2.0, 0, 0, 20], [0, 0, 3.0, -30], [0, 2.5, 0, 5], [0, 0, 0, 1]])
NIBABEL_DATA = Path(nibabel.__file__).parent / "tests" / "data"


def _array(shape: tuple[int, ...] = (6, 7, 8), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, shape)


def _saved(path: Path, image: nibabel.Nifti1Image) -> Path:
    nibabel.save(image, path)
    return path


def _nifti(path: Path, data: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Path:
    data = _array().astype(np.float32) if data is None else data
    return _saved(path, nibabel.Nifti1Image(data, affine))


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", ">i2", "<i4", "f4", ">f8", "u8"])
def test_every_format_and_type_reads_as_nibabel_does(tmp_path, kind, dtype, ending):
    path = _saved(tmp_path / f"scan.{ending}", kind(_array().astype(dtype), AFFINE, dtype=np.dtype(dtype)))
    volume = read_volume(path)
    expected = nibabel.as_closest_canonical(nibabel.load(path))
    np.testing.assert_array_equal(volume.data, expected.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-12)
    assert volume.data.dtype == np.float32
    assert volume.data.flags.c_contiguous
    assert volume.native_shape == (6, 7, 8)
    np.testing.assert_allclose(volume.native_affine, AFFINE)


def test_mgz_reads_as_nibabel_does(tmp_path):
    path = tmp_path / "scan.mgz"
    nibabel.save(nibabel.MGHImage(_array().astype(np.int16), AFFINE.astype(np.float32)), path)
    volume = read_volume(path)
    expected = nibabel.as_closest_canonical(nibabel.load(path))
    np.testing.assert_array_equal(volume.data, expected.get_fdata())
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-5)
    assert volume.sform_code is None


def test_slope_and_intercept_are_applied(tmp_path):
    image = nibabel.Nifti1Image(_array().astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.25, -7.0)
    stored = _saved(tmp_path / "scan.nii.gz", image)
    np.testing.assert_allclose(read_volume(stored).data, nibabel.load(stored).get_fdata(), rtol=1e-6)


def test_format_is_told_by_content_not_by_name(tmp_path):
    misnamed = _nifti(tmp_path / "scan.nii.gz").rename(tmp_path / "scan.nii")
    assert read_volume(misnamed).data.shape == (6, 8, 7)


def test_trailing_single_axes_are_dropped(tmp_path):
    data = _array((5, 6, 7, 1, 1)).astype(np.float32)
    assert read_volume(_nifti(tmp_path / "a.nii", data, np.eye(4))).data.shape == (5, 6, 7)


def test_one_volume_of_a_series(tmp_path):
    data = _array((4, 5, 6, 3)).astype(np.float32)
    path = _nifti(tmp_path / "a.nii.gz", data, np.eye(4))
    np.testing.assert_array_equal(read_volume(path, volume=2).data, data[..., 2])
    with pytest.raises(ArgumentError, match="from 0 to 2"):
        read_volume(path, volume=3)
    with pytest.raises(VolumeError, match="4 dimensions"):
        read_volume(path)


def test_sform_goes_before_qform_and_its_code_is_kept(tmp_path):
    image = nibabel.Nifti1Image(_array().astype(np.float32), None)
    image.set_qform(np.diag([1.0, 1, 1, 1]), code=1)
    image.set_sform(np.diag([3.0, 3, 3, 1]), code=4)
    volume = read_volume(_saved(tmp_path / "both.nii", image))
    assert volume.sform_code == 4
    assert volume.affine[0, 0] == 3.0
    image.set_sform(None, code=0)
    volume = read_volume(_saved(tmp_path / "qform.nii", image))
    assert volume.sform_code == 1
    assert volume.affine[0, 0] == 1.0


def test_nibabel_image_and_volume_are_accepted(tmp_path):
    image = nibabel.Nifti1Image(_array().astype(np.float32), AFFINE)
    volume = as_volume(image)
    assert isinstance(volume, Volume)
    assert as_volume(volume) is volume
    np.testing.assert_array_equal(volume.data, read_volume(_saved(tmp_path / "a.nii", image)).data)
    with pytest.raises(ArgumentError, match="nibabel image"):
        as_volume(np.zeros((3, 3, 3)))
    with pytest.raises(VolumeError, match="complex"):
        as_volume(nibabel.Nifti1Image(np.ones((2, 2, 2), np.complex64), np.eye(4)))


# ---------------------------------------------------------------- bad input


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(VolumeError, match="no such file"):
        read_volume(tmp_path / "none.nii.gz")
    with pytest.raises(VolumeError, match="folder"):
        read_volume(tmp_path)


def test_unreadable_file(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # a test run as root may read everything
    with pytest.raises(VolumeError, match="permission denied"):
        read_volume(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("keep", [1, 5, 30, 200, 0.3, 0.9, -8, -1])
def test_truncated_gzip(tmp_path, keep):
    path = _nifti(tmp_path / "scan.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32))
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(VolumeError) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("place", [-6, -2, 0.5])
def test_gzip_with_a_changed_byte(tmp_path, place):
    path = _nifti(tmp_path / "scan.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32))
    content = bytearray(path.read_bytes())
    content[place if isinstance(place, int) else int(len(content) * place)] ^= 0x55
    path.write_bytes(bytes(content))
    with pytest.raises(VolumeError):
        read_volume(path)


@pytest.mark.parametrize("keep", [0, 3, 100, 348, 352, 400, -1])
def test_truncated_nii(tmp_path, keep):
    path = _nifti(tmp_path / "scan.nii")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(VolumeError):
        read_volume(path)


@pytest.mark.parametrize(
    "content", [b"", b"not an image at all" * 100, b"\x1f\x8b", gzip.compress(b"hello", mtime=0), bytes(999)]
)
def test_not_a_nifti(tmp_path, content):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    with pytest.raises(VolumeError):
        read_volume(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(tmp_path, bad):
    data = _array().astype(np.float32)
    data[1, 2, 3] = bad
    with pytest.raises(VolumeError, match="1 voxels of NaN or infinity"):
        read_volume(_nifti(tmp_path / "scan.nii.gz", data))


def test_number_beyond_float32(tmp_path):
    data = _array().astype(np.float64)
    data[0, 0, 0] = 1e300
    with pytest.raises(VolumeError, match="infinity"):
        read_volume(_nifti(tmp_path / "scan.nii.gz", data))


@pytest.mark.parametrize("value", [0, 3])
def test_constant_image(tmp_path, value):
    with pytest.raises(VolumeError, match="every voxel"):
        read_volume(_nifti(tmp_path / "scan.nii.gz", np.full((4, 4, 4), value, np.uint8)))


def test_no_sform_and_no_qform(tmp_path):
    path = _saved(tmp_path / "scan.nii.gz", nibabel.Nifti1Image(_array().astype(np.float32), None))
    with pytest.raises(VolumeError, match="codes of 0"):
        read_volume(path)


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([0.0, 0, 0, 1]),
        np.diag([1.0, 1, 0, 1]),
        np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
    ids=["zero", "flat", "singular"],
)
def test_singular_affine(tmp_path, affine):
    image = nibabel.Nifti1Image(_array().astype(np.float32), None)
    image.header["sform_code"] = 4
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = affine[:3]
    content = bytearray(image.to_bytes())
    content[254:256] = (4).to_bytes(2, "little")
    content[280:328] = affine[:3].astype("<f4").tobytes()
    path = tmp_path / "scan.nii"
    path.write_bytes(bytes(content))
    with pytest.raises(VolumeError, match="affine that can be inverted"):
        read_volume(path)


def test_colours(tmp_path):
    data = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(VolumeError, match="colours"):
        read_volume(_saved(tmp_path / "scan.nii", nibabel.Nifti1Image(data, np.eye(4))))


@pytest.mark.parametrize("shape", [(4, 5), (5,)])
def test_fewer_than_three_dimensions(tmp_path, shape):
    with pytest.raises(VolumeError, match="3-D"):
        read_volume(_nifti(tmp_path / "scan.nii", _array(shape).astype(np.float32)))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("side", [700, 32767])
def test_absurd_header_is_refused_before_memory_is_taken(tmp_path, packed, side):
    header = nibabel.Nifti1Header()
    header["dim"] = [3, side, side, side, 1, 1, 1, 1]
    header["datatype"], header["bitpix"], header["sform_code"], header["vox_offset"] = 16, 32, 1, 352
    header["srow_x"][0] = header["srow_y"][1] = header["srow_z"][2] = 1
    header["magic"] = b"n+1"
    content = header.binaryblock + bytes(4 + 4096)
    path = tmp_path / "scan.nii"
    path.write_bytes(gzip.compress(content) if packed else content)
    start = time.perf_counter()
    with pytest.raises(VolumeError, match=r"truncated|at most"):
        read_volume(path)
    assert time.perf_counter() - start < 2.0


def test_error_names_the_path_and_a_remedy(tmp_path):
    with pytest.raises(VolumeError) as caught:
        read_volume(tmp_path / "sub-01_T1w.nii.gz")
    assert "sub-01_T1w.nii.gz must exist" in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("path", sorted(p for p in NIBABEL_DATA.glob("*.*") if p.is_file()), ids=lambda p: p.name)
def test_images_that_ship_with_nibabel_are_read_or_refused(path):
    try:
        volume = read_volume(path)
    except VolumeError:
        return
    expected = nibabel.as_closest_canonical(nibabel.load(path))
    np.testing.assert_allclose(volume.data, expected.get_fdata().reshape(volume.data.shape), rtol=1e-6)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-6)


def test_enough_of_nibabels_images_are_read():
    readable = {"anatomical.nii", "reoriented_anat_moved.nii", "standard.nii.gz"}
    for name in readable & {p.name for p in NIBABEL_DATA.iterdir()}:
        assert read_volume(NIBABEL_DATA / name).data.size


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize(("space", "code"), [("MNI152NLin6Asym", 4), ("native", 1), ("T1w", 2), ("Talairach", 3)])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_written_map_reads_back(tmp_path, space, code, ending):
    data = np.random.default_rng(1).normal(size=(4, 5, 6))
    path = write_volume(tmp_path / "deep" / f"map.{ending}", data, AFFINE, space=space)
    image = nibabel.load(path)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), data.astype(np.float32))
    np.testing.assert_allclose(image.affine, AFFINE)
    assert image.get_data_dtype() == np.float32
    assert int(image.header["sform_code"]) == code
    assert list(path.parent.iterdir()) == [path]


def test_same_map_gives_same_bytes(tmp_path):
    data = np.random.default_rng(1).normal(size=(4, 5, 6))
    first = write_volume(tmp_path / "a.nii.gz", data, AFFINE).read_bytes()
    assert write_volume(tmp_path / "b.nii.gz", data, AFFINE).read_bytes() == first


def test_full_disk_loses_nothing(tmp_path, monkeypatch):
    path = write_volume(tmp_path / "map.nii.gz", np.ones((3, 3, 3)), np.eye(4))
    before = path.read_bytes()

    def full(self, content):
        self.open("wb").close()  # the name exists before the disk is found full
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left"):
        write_volume(path, np.zeros((3, 3, 3)), np.eye(4))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_other_ending_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"end in \.nii"):
        write_volume(tmp_path / "map.mgz", np.ones((3, 3, 3)), np.eye(4))


def test_mgz_without_a_position_is_refused(tmp_path):
    image = nibabel.MGHImage(np.random.default_rng(0).random((4, 5, 6)).astype("f4"), np.eye(4))
    nibabel.save(image, tmp_path / "a.mgh")
    content = bytearray((tmp_path / "a.mgh").read_bytes())
    assert content[28:30] == b"\0\1"
    content[28:30] = b"\0\0"  # goodRASFlag
    (tmp_path / "a.mgz").write_bytes(gzip.compress(content))
    with pytest.raises(VolumeError, match="without a position"):
        read_volume(tmp_path / "a.mgz")


def test_metres_are_refused(tmp_path):
    image = nibabel.Nifti1Image(np.random.default_rng(0).random((4, 5, 6)).astype("f4"), np.diag([0.002] * 3 + [1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(VolumeError, match="count in millimetres, but received an affine in meters"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("data", "affine", "sentence"),
    [(np.full((2, 2, 2), np.nan), np.eye(4), "finite"), (np.ones((2, 2, 2)), np.zeros((4, 4)), "inverted")],
)
def test_volumes_made_in_memory_are_checked_too(data, affine, sentence):
    with pytest.raises(VolumeError, match=sentence):
        as_volume(Volume(data.astype("f4"), affine))


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_the_bytes_of_a_file_are_read_as_the_file_is(tmp_path, ending):
    path = _saved(tmp_path / f"scan.{ending}", nibabel.Nifti1Image(_array().astype("f4"), AFFINE))
    for read in (read_volume, as_volume):
        found, expected = read(path.read_bytes()), read_volume(path)
        np.testing.assert_array_equal(found.data, expected.data)
        np.testing.assert_array_equal(found.affine, expected.affine)
        assert found.source == "image"
    with pytest.raises(VolumeError, match=r"^image must hold an image, but received an empty file"):
        read_volume(b"")
    with pytest.raises(VolumeError, match="image must have at most 10 voxels"):
        read_volume(path.read_bytes(), max_voxels=10)


def test_little_may_follow_an_image_in_a_packed_file(tmp_path):
    path = _saved(tmp_path / "scan.nii", nibabel.Nifti1Image(_array().astype("f4"), AFFINE))
    content = path.read_bytes()
    np.testing.assert_array_equal(read_volume(gzip.compress(content + bytes(1000))).data, read_volume(path).data)
    with pytest.raises(VolumeError, match="end where its image ends"):
        read_volume(gzip.compress(content + bytes(2**21)))
