"""The reader and the pipeline in the graph, against nibabel and the shared pipeline, on files of every kind."""

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tensorflow as tf

from kerasvae.errors import VolumeError
from kerasvae.preprocess import Pipeline, fit_pipeline, read_volume
from kerasvae.types import Grid, Volume
from kerasvae_export.nifti_graph import ITEM_SIZE, decode_nifti
from kerasvae_export.pipeline_graph import preprocess

BYTES = tf.TensorSpec((), tf.string)
READ = tf.function(decode_nifti, input_signature=[BYTES])
RNG = np.random.default_rng(4)
TURNED = np.array([[0.2, -1.9, 0.1, 11.0], [2.1, 0.3, 0.2, -20.0], [-0.1, 0.2, 2.6, -9.0], [0, 0, 0, 1.0]])
NIBABEL = sorted((Path(nibabel.__file__).parent / "tests" / "data").glob("*.nii*"))


def said(function, content):
    """The sentence of the assertion that a file breaks."""
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        function(content)
    return error.value.message


def image_of(values, affine=TURNED, kind=nibabel.Nifti1Image, sform=2, qform=0):
    image = kind(values, affine, dtype=values.dtype)
    image.set_sform(affine if sform else None, code=sform)
    image.set_qform(affine if qform else None, code=qform)
    image.header.set_xyzt_units("mm")
    return image


def bytes_of(image, order="<", packed=False):
    if order == ">":
        swapped = type(image)(np.asanyarray(image.dataobj), None, image.header.as_byteswapped(">"))
        content = swapped.to_bytes()
    else:
        content = image.to_bytes()
    return gzip.compress(content) if packed else content


def expected(content, tmp_path):
    """What nibabel reads: values and affine in stored order."""
    path = tmp_path / ("scan.nii.gz" if content[:2] == b"\x1f\x8b" else "scan.nii")
    path.write_bytes(content)
    image = nibabel.load(path)
    values = np.asarray(image.dataobj, dtype=np.float32)
    return values.reshape(values.shape[:3]), image.affine


def check_read(content, tmp_path):
    values, affine = expected(content, tmp_path)
    found = READ(content)
    np.testing.assert_allclose(found.data.numpy().T, values, rtol=2e-7, atol=0)
    np.testing.assert_allclose(found.affine.numpy(), affine, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8", "i1", "u2", "u4", "i8", "u8"])
def test_every_type_in_either_order_reads_as_nibabel_reads_it(dtype, order, kind, tmp_path):
    number = np.dtype(dtype)
    if number.kind == "f":
        values = RNG.standard_normal((4, 5, 3)).astype(number)
    else:
        limits = np.iinfo(number)
        values = RNG.integers(limits.min, limits.max, (4, 5, 3), dtype=number, endpoint=True)
    image = image_of(values, kind=kind)
    assert int(image.header["datatype"]) in ITEM_SIZE
    check_read(bytes_of(image, order, packed=order == "<"), tmp_path)


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, -3.25), (1e-3, 0), (0, 7), (np.nan, 7), (-2, 1)])
def test_slope_and_intercept(slope, intercept, tmp_path):
    content = bytearray(bytes_of(image_of(RNG.integers(-9, 9, (4, 5, 3)).astype("i2"))))
    content[112:120] = struct.pack("<ff", slope, intercept)
    check_read(bytes(content), tmp_path)


@pytest.mark.parametrize("flip", [1, -1])
def test_the_quaternion_counts_where_there_is_no_sform(flip, tmp_path):
    rotation = np.linalg.qr(RNG.standard_normal((3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.sign(np.linalg.det(rotation)) @ np.diag([1.5, 2.0, flip * 2.5])
    affine[:3, 3] = (5, -6, 7)
    check_read(bytes_of(image_of(RNG.random((4, 5, 3)).astype("f4"), affine, sform=0, qform=1)), tmp_path)


@pytest.mark.parametrize("axis", range(3))
def test_a_half_turn_whose_quaternion_is_rounded(axis, tmp_path):
    affine = np.diag(np.where(np.arange(4) == axis, 2.0, -2.0))
    affine[3, 3] = 1
    check_read(bytes_of(image_of(RNG.random((4, 5, 3)).astype("f4"), affine, sform=0, qform=1)), tmp_path)


def test_trailing_axes_of_one_voxel_and_an_extension(tmp_path):
    image = image_of(RNG.random((4, 5, 3, 1, 1)).astype("f4"))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"before the data"))
    check_read(bytes_of(image), tmp_path)


def damaged(change):
    content = bytearray(bytes_of(image_of(RNG.random((4, 5, 3)).astype("f4"))))
    change(content)
    return bytes(content)


def put(offset, form, *values):
    return lambda content: content.__setitem__(
        slice(offset, offset + struct.calcsize("<" + form)), struct.pack("<" + form, *values)
    )


PLAIN = bytes_of(image_of(RNG.random((4, 5, 3)).astype("f4")))
REFUSED = {
    "nothing": (b"", "too short"),
    "text": (b"a photograph, perhaps" * 40, "be a NIfTI file"),
    "a pair of files": (damaged(put(344, "4s", b"ni1\0")), "in one file"),
    "cut off": (PLAIN[:-1], "as long as its header says"),
    "bytes behind it": (PLAIN + b"\0", "as long as its header says"),
    "gzip cut off": (gzip.compress(PLAIN)[:-30], "complete gzip file"),
    "two gzip members": (gzip.compress(PLAIN[:400]) + gzip.compress(PLAIN[400:]), "of one member"),
    "a bomb by its own account": (gzip.compress(PLAIN)[:-4] + b"\xff\xff\xff\xff", "at most 2 GiB"),
    "a series": (bytes_of(image_of(RNG.random((4, 5, 3, 2)).astype("f4"))), "choose one volume"),
    "a slice": (damaged(put(40, "h", 2)), "3-D image"),
    "no voxel": (damaged(put(42, "h", 0)), "at least one voxel"),
    "minus one voxel": (damaged(put(42, "h", -4)), "at least one voxel"),
    "too many voxels": (damaged(put(42, "hhh", 32767, 32767, 32767)), "at most"),
    "colours": (damaged(put(70, "h", 128)), "one real number per voxel"),
    "complex": (damaged(put(70, "h", 32)), "one real number per voxel"),
    "float128": (damaged(put(70, "h", 1536)), "one real number per voxel"),
    "data in its header": (damaged(put(108, "f", 100.0)), "behind its header|as long"),
    "a negative offset": (damaged(put(108, "f", -400.0)), "behind its header"),
    "no place": (damaged(put(252, "hh", 0, 0)), "sform and qform codes are 0"),
    "a flat affine": (damaged(put(280, "ffff", 0, 0, 0, 0)), "inverted"),
    "an affine of NaN": (damaged(put(280, "f", float("nan"))), "inverted"),
    "metres": (damaged(put(123, "B", 1)), "millimetres"),
    "NaN": (damaged(put(352, "f", float("nan"))), "finite numbers"),
    "an infinite intercept": (damaged(put(112, "ff", 1.0, float("inf"))), "finite"),
    "one value": (bytes_of(image_of(np.ones((4, 5, 3), "f4"))), "the same"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_a_sentence(name, tmp_path):
    content, words = REFUSED[name]
    message = said(READ, content)
    assert any(word in message for word in words.split("|")), message
    assert "The file must" in message
    if name not in {"bytes behind it", "two gzip members"}:  # the shared reader takes these two
        (tmp_path / "scan.nii").write_bytes(content)
        with pytest.raises(VolumeError):
            read_volume(tmp_path / "scan.nii")


# --- the pipeline ------------------------------------------------------------------------------------

GRID = Grid.of(
    (12, 14, 11), np.diag([4.0, 4.0, 4.0, 1.0]) + np.pad([[-22.0], [-26.0], [-20.0]], ((0, 1), (3, 0))), "here"
)
BALL = np.square(np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in GRID.shape), indexing="ij"))).sum(0) < 0.8
PIPELINES = {
    "z-score in a mask, smoothed": {"smooth_fwhm_mm": 5.0, "intensity": {"kind": "zscore"}, "mask": BALL},
    "percentiles": {"intensity": {"kind": "percentile", "low": 2.0, "high": 97.5}},
    "a range, clipped": {"intensity": {"kind": "range", "low": -1.0, "high": 2.0}},
    "nearest": {"interpolation": "nearest", "intensity": {"kind": "range", "low": 0.0, "high": 1.0, "clip": False}},
}


def head(shape=(24, 28, 20), affine=TURNED):
    values = RNG.standard_normal(shape).cumsum(0).cumsum(1).cumsum(2)
    affine = affine.copy()
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) / 2)  # its middle at 0
    return bytes_of(image_of((values / np.abs(values).max()).astype("f4"), affine))


def largest(pipeline, content, tmp_path, function=None):
    """Largest difference of the graph from the shared pipeline, in parts of the range of intensities."""
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content if content[:2] == b"\x1f\x8b" else gzip.compress(content))
    wanted = pipeline.apply(path)
    found = (function or tf.function(preprocess(pipeline), input_signature=[BYTES]))(content).numpy()
    assert found.shape == wanted.shape
    return np.abs(found - wanted).max() / np.ptp(wanted)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_graph_prepares_as_the_shared_pipeline_does(name, tmp_path):
    pipeline = Pipeline(grid=GRID, **PIPELINES[name])
    assert largest(pipeline, head(), tmp_path) < 1e-5
    fine = head((50, 40, 44), np.diag([1.0, -1.2, 0.9, 1.0]))
    assert largest(pipeline, fine, tmp_path) < 1e-5


@pytest.mark.parametrize("shape", [(12, 14, 11), (15, 9, 12), (8, 20, 7)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_images_on_their_own_voxels_are_turned_cropped_and_padded(shape, order, tmp_path):
    pipeline = Pipeline(grid=GRID, placement="crop", smooth_fwhm_mm=6.0, intensity={"kind": "zscore"})
    affine = np.eye(4)
    affine[:3, :3] = np.diag([4.0, -4.0, 4.01])[:, list(order)]
    assert largest(pipeline, head(shape, affine), tmp_path) < 1e-5
    function = tf.function(preprocess(pipeline), input_signature=[BYTES])
    assert "voxels of 4 x 4 x 4 mm" in said(function, head(shape, np.diag([4.0, 4.0, 5.0, 1.0])))


def test_an_image_with_nothing_to_normalise_by_is_refused(tmp_path):
    function = tf.function(preprocess(Pipeline(grid=GRID)), input_signature=[BYTES])
    values = -RNG.random((9, 9, 9)).astype("f4")
    assert "voxels above 0" in said(function, bytes_of(image_of(values, np.diag([4.0, 4, 4, 1]))))
    clipped = Pipeline(grid=GRID, intensity={"kind": "range", "low": 5.0, "high": 9.0})
    function = tf.function(preprocess(clipped), input_signature=[BYTES])
    assert "within 5 and 9" in said(function, head())


def brains(count):
    """Balls of one size, brighter on the right: people who tell left from right."""
    right = np.arange(GRID.shape[0])[:, None, None] / 30
    for _ in range(count):
        yield Volume(((1 + right + 0.05 * RNG.standard_normal(GRID.shape)) * BALL).astype("f4"), GRID.matrix)


def test_the_contract_is_kept_in_the_graph():
    pipeline = fit_pipeline(list(brains(24)), grid=GRID, intensity={"kind": "zscore"})
    function = tf.function(preprocess(pipeline), input_signature=[BYTES])

    def file(values, affine=GRID.matrix):
        return bytes_of(image_of(np.ascontiguousarray(values), affine))

    brain = next(iter(brains(1)))
    np.testing.assert_allclose(function(file(brain.data)).numpy(), pipeline.apply(brain), atol=1e-5)
    moved = GRID.matrix.copy()
    moved[1, 3] += 20
    for broken in (
        file(brain.data, moved),
        file(1 + brain.data),
        file(brain.data * BALL[:, :, ::-1][:, :, :] * (np.arange(11) < 5)),
    ):
        assert "lie as the training images do" in said(function, broken)


@pytest.mark.parametrize("path", NIBABEL, ids=lambda path: path.name)
def test_nibabels_own_images(path, tmp_path):
    content = path.read_bytes()
    try:
        volume = read_volume(path)
    except VolumeError:
        assert "The file must" in said(READ, content)
        return
    check_read(content, tmp_path)
    centre = volume.affine[:3, :3] @ (np.array(volume.data.shape) / 2) + volume.affine[:3, 3]
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = centre - 15
    pipeline = Pipeline(grid=Grid.of((11, 11, 11), affine, "there"), intensity={"kind": "range", "clip": False})
    assert largest(pipeline, content, tmp_path) < 1e-5


def test_real_scans(data_folder, tmp_path):
    files = sorted((data_folder / "ixi").rglob("*.nii.gz"))[::40]
    assert len(files) >= 5
    pipeline = Pipeline(grid="mni-4mm", smooth_fwhm_mm=4.0, intensity={"kind": "zscore"})
    function = tf.function(preprocess(pipeline), input_signature=[BYTES])
    assert max(largest(pipeline, path.read_bytes(), tmp_path, function) for path in files) < 1e-5
