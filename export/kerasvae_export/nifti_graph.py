"""A NIfTI file's bytes to an array and its affine in TensorFlow operations: `kerasvae.preprocess.nifti` in a graph.

NIfTI-1 and NIfTI-2 in one file, plain or gzipped, of either byte order, with the data types of `ITEM_SIZE`. The rules
for scaling, affine and repairs of a header are nibabel's, which the shared pipeline reads with. What breaks a rule is
an assertion, which TensorFlow reports as an invalid argument with the sentence given here.

Two things differ from the shared reader. A file must end where its header says, since TensorFlow decompresses a
truncated gzip file to fewer bytes without an error. And a gzip file must be of one member: its last four bytes then
hold its length, which is looked at before anything is decompressed. They may lie, and TensorFlow takes no limit, so
whoever serves this graph to strangers has to limit the size of requests.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from kerasvae.preprocess.nifti import MAX_VOXELS

__all__ = ["ITEM_SIZE", "Decoded", "decode_nifti", "must"]

ITEM_SIZE = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8}
"""Bytes a voxel by NIfTI data type: uint8, int16, int32, float32, float64, int8, uint16, uint32, int64, uint64."""
_TYPES = {
    2: tf.uint8,
    4: tf.int16,
    8: tf.int32,
    16: tf.float32,
    64: tf.float64,
    256: tf.int8,
    512: tf.uint16,
    768: tf.uint32,
    1024: tf.int64,
    1280: tf.uint64,
}
_NAMES = "uint8, int16, int32, float32, float64, int8, uint16, uint32, int64 or uint64"
_RAW = {tf.uint32: tf.int32, tf.uint64: tf.int64}
"""Types that TensorFlow does not decode, and what their bits are decoded as."""
MAX_BYTES = 2**31
"""Largest gzip file, decompressed: 2²⁹ voxels of float32."""
QUATERNION_ROUNDING = 3 * 2.0**-23
"""How far 1 − b² − c² − d² may be from 0 and count as 0: three float32 roundings, as in nibabel."""


class Decoded(NamedTuple):
    """One image.

    Attributes:
        data: float32, axes (z, y, x) of the stored array, slope and intercept applied.
        affine: Stored voxel indices (x, y, z) to mm, float64, (4, 4).
        form_code: Code of the form that the affine comes from.
    """

    data: tf.Tensor
    affine: tf.Tensor
    form_code: tf.Tensor


class _Header(NamedTuple):
    dim: tf.Tensor
    """int64, (8,)."""
    datatype: tf.Tensor
    units: tf.Tensor
    offset: tf.Tensor
    codes: tf.Tensor
    """Of qform and sform, int64, (2,)."""
    scaling: tf.Tensor
    """Slope and intercept, float64, (2,)."""
    pixdim: tf.Tensor
    """float64, (4,)."""
    quaternion: tf.Tensor
    """b, c, d and the offsets along x, y, z, float64, (6,)."""
    rows: tf.Tensor
    """The sform, float64, (12,)."""


def decode_nifti(content: tf.Tensor) -> Decoded:
    """Read one file.

    Args:
        content: Its bytes, a scalar string.
    """
    raw = _unpacked(content)
    with tf.control_dependencies([must(tf.strings.length(raw) >= 348, "be a NIfTI file: it is too short for one")]):
        sizes = tf.concat([tf.io.decode_raw(tf.strings.substr(raw, 0, 4), tf.int32, end) for end in (True, False)], 0)
    known = tf.constant([348, 540])
    kind = tf.reduce_any(sizes[:, None] == known, axis=1)
    little, second = kind[0], tf.reduce_any(sizes == 540)
    magic = tf.strings.substr(raw, tf.where(second, 4, 344), 4)
    checks = [
        must(tf.reduce_any(kind), "be a NIfTI file"),
        must(magic == tf.where(second, b"n+2\0", b"n+1\0"), "be NIfTI-1 or NIfTI-2 in one file"),
        must(~second | (tf.strings.length(raw) >= 540), "be as long as its header"),
    ]
    with tf.control_dependencies(checks):
        which = tf.cast(second, tf.int32) * 2 + tf.cast(little, tf.int32)
    branches = [lambda v=version, e=end: tuple(_header(raw, v, e)) for version in (1, 2) for end in (False, True)]
    header = _Header(*tf.switch_case(which, branches))
    return Decoded(_data(raw, header, little), *_affine(header))


def must(condition: tf.Tensor, rule: str) -> tf.Operation:
    """An assertion that says what the file must do; give it to `tf.control_dependencies`."""
    return tf.debugging.Assert(condition, [f"The file must {rule}."], summarize=8)


def _unpacked(content: tf.Tensor) -> tf.Tensor:
    """The bytes of the file, decompressed where it is gzipped."""

    def unpack() -> tf.Tensor:
        tail = tf.io.decode_raw(tf.strings.substr(content, -4, 4), tf.int32)
        size = tf.cast(tf.bitcast(tail, tf.uint32), tf.int64)[0]
        with tf.control_dependencies([must(size <= MAX_BYTES, "hold at most 2 GiB")]):
            raw = tf.io.decode_compressed(content, "GZIP")
        whole = tf.cast(tf.strings.length(raw), tf.int64) == size
        with tf.control_dependencies([must(whole, "be a complete gzip file of one member")]):
            return tf.identity(raw)

    packed = (tf.strings.length(content) > 18) & (tf.strings.substr(content, 0, 2) == b"\x1f\x8b")
    return tf.cond(packed, unpack, lambda: content)


def _header(raw: tf.Tensor, version: int, little: bool) -> _Header:
    """The fields of one of the two versions and byte orders."""

    def field(offset: int, count: int, kind: tf.DType, to: tf.DType) -> tf.Tensor:
        piece = tf.strings.substr(raw, offset, count * kind.size)
        values = tf.io.decode_raw(piece, kind) if kind.size == 1 else tf.io.decode_raw(piece, kind, little)
        return tf.cast(tf.ensure_shape(values, (count,)), to)

    i64, f64 = tf.int64, tf.float64
    if version == 1:
        short, single = tf.int16, tf.float32
        return _Header(
            dim=field(40, 8, short, i64),
            datatype=field(70, 1, short, i64)[0],
            units=field(123, 1, tf.uint8, i64)[0],
            offset=field(108, 1, single, i64)[0],
            codes=field(252, 2, short, i64),
            scaling=field(112, 2, single, f64),
            pixdim=field(76, 4, single, f64),
            quaternion=field(256, 6, single, f64),
            rows=field(280, 12, single, f64),
        )
    return _Header(
        dim=field(16, 8, i64, i64),
        datatype=field(12, 1, tf.int16, i64)[0],
        units=field(500, 1, tf.int32, i64)[0],
        offset=field(168, 1, i64, i64)[0],
        codes=field(344, 2, tf.int32, i64),
        scaling=field(176, 2, f64, f64),
        pixdim=field(104, 4, f64, f64),
        quaternion=field(352, 6, f64, f64),
        rows=field(400, 12, f64, f64),
    )


def _data(raw: tf.Tensor, header: _Header, little: tf.Tensor) -> tf.Tensor:
    """The stored array as float32, (z, y, x)."""
    rank, sizes = header.dim[0], header.dim[1:]
    used = tf.range(7, dtype=tf.int64) < rank
    sizes = tf.where(used, sizes, 1)
    kinds = tf.constant(list(ITEM_SIZE), tf.int64)
    index = tf.argmax(tf.cast(kinds == header.datatype, tf.int32))
    size = tf.gather(tf.constant(list(ITEM_SIZE.values()), tf.int64), index)
    # sizes are bounded one by one before they are multiplied, so that no product overflows
    small = tf.reduce_all((sizes >= 1) & (sizes <= MAX_VOXELS)) & (sizes[0] * sizes[1] <= MAX_VOXELS)
    checks = [
        must((rank >= 3) & (rank <= 7), "be a 3-D image"),
        must(tf.reduce_all(sizes >= 1), "hold at least one voxel"),
        must(tf.reduce_all(sizes[3:] == 1), "be a 3-D image: choose one volume of the series"),
        must(small, f"have at most {MAX_VOXELS} voxels"),
        must(tf.reduce_any(kinds == header.datatype), f"hold one real number per voxel, as {_NAMES}"),
    ]
    with tf.control_dependencies(checks):
        count = tf.where(small, sizes[0] * sizes[1], 0) * sizes[2]
    length = tf.cast(tf.strings.length(raw), tf.int64)
    checks = [
        must(count <= MAX_VOXELS, f"have at most {MAX_VOXELS} voxels"),
        must(header.offset >= 348, "hold its data behind its header"),
        must(header.offset + count * size == length, "be as long as its header says"),
    ]
    with tf.control_dependencies(checks):
        body = tf.strings.substr(raw, header.offset, count * size)
    slope, intercept = header.scaling[0], header.scaling[1]
    scaled = tf.math.is_finite(slope) & (slope != 0)

    def values(kind: tf.DType, end: bool) -> tf.Tensor:
        stored = _RAW.get(kind, kind)
        found = tf.io.decode_raw(body, stored) if stored.size == 1 else tf.io.decode_raw(body, stored, end)
        found = tf.bitcast(found, kind) if stored != kind else found
        return tf.cond(
            scaled,
            lambda: tf.cast(tf.cast(found, tf.float64) * slope + intercept, tf.float32),
            lambda: tf.cast(found, tf.float32),
        )

    branches = [lambda k=kind, e=end: values(k, e) for kind in _TYPES.values() for end in (False, True)]
    flat = tf.switch_case(tf.cast(index, tf.int32) * 2 + tf.cast(little, tf.int32), branches)
    checks = [
        must(tf.math.is_finite(intercept) | ~scaled, "have a finite intercept"),
        must(tf.reduce_all(tf.math.is_finite(flat)), "hold finite numbers"),
        must(tf.reduce_min(flat) < tf.reduce_max(flat), "hold a brain image: all its voxels are the same"),
    ]
    with tf.control_dependencies(checks):
        return tf.reshape(flat, tf.reverse(sizes[:3], [0]))


def _affine(header: _Header) -> tuple[tf.Tensor, tf.Tensor]:
    """The sform where its code is above 0, else the qform; and the code."""
    # codes that no standard knows count as 0, as in nibabel
    codes = tf.where((header.codes >= 0) & (header.codes <= 5), header.codes, 0)
    qform, sform = codes[0], codes[1]
    last = tf.constant([[0.0, 0.0, 0.0, 1.0]], tf.float64)
    b, c, d = (header.quaternion[i] for i in range(3))
    rest = 1 - (b * b + c * c + d * d)
    a = tf.sqrt(tf.where(tf.abs(rest) < QUATERNION_ROUNDING, tf.zeros_like(rest), tf.maximum(rest, 0)))
    twice = 2 / (a * a + b * b + c * c + d * d)
    rotation = tf.stack(
        [
            1 - twice * (c * c + d * d),
            twice * (b * c - d * a),
            twice * (b * d + c * a),
            twice * (b * c + d * a),
            1 - twice * (b * b + d * d),
            twice * (c * d - b * a),
            twice * (b * d - c * a),
            twice * (c * d + b * a),
            1 - twice * (b * b + c * c),
        ]
    )
    lengths = tf.abs(header.pixdim[1:])
    lengths = tf.where(lengths == 0, tf.ones_like(lengths), lengths)
    one = tf.ones((), tf.float64)
    handed = tf.stack([one, one, tf.where(header.pixdim[0] == -1, -one, one)])
    columns = tf.reshape(rotation, (3, 3)) * lengths * handed
    by_quaternion = tf.concat([tf.concat([columns, header.quaternion[3:, None]], axis=1), last], axis=0)
    by_rows = tf.concat([tf.reshape(header.rows, (3, 4)), last], axis=0)
    affine = tf.where(sform > 0, by_rows, by_quaternion)
    edges = tf.norm(affine[:3, :3], axis=0)
    skew = tf.abs(tf.linalg.det(affine[:3, :3])) / tf.reduce_prod(edges)
    unit = header.units % 8
    checks = [
        must((sform > 0) | (qform > 0), "say where it lies in space: its sform and qform codes are 0"),
        must((sform > 0) | (rest > -QUATERNION_ROUNDING), "have a quaternion of length 1 at most"),
        must((unit == 0) | (unit == 2), "count in millimetres"),
        must(tf.reduce_all(tf.math.is_finite(affine)) & (tf.reduce_min(edges) >= 1e-4) & (skew > 1e-3),
              "have an affine that can be inverted"),
    ]  # fmt: skip
    with tf.control_dependencies(checks):
        return tf.identity(affine), tf.where(sform > 0, sform, qform)
