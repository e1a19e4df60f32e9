"""Read and write brain images: NIfTI-1, NIfTI-2 and MGZ in, NIfTI-1 out. Everything read is float32 in RAS+ order."""

from __future__ import annotations

import gzip
import io
import math
import os
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError, VolumeError
from kerasvae.preprocess.orient import orientation_of
from kerasvae.storage import atomic_path
from kerasvae.types import Affine, Volume

__all__ = ["as_volume", "image_of", "read_volume", "sform_code_of", "write_image", "write_volume"]

MAX_VOXELS = 2**29
"""Largest image that is read, in voxels (2 GiB as float32; about 0.3 mm over a head)."""
BRAIN = "a brain image"
_MAX_REST = 2**20
"""Bytes that may follow an image in a compressed file: a small file may unpack to any amount of nothing."""
_MAX_DEFLATE_RATIO = 1040
"""Deflate cannot shrink more than 1032:1, so a header that claims more is refused before memory is taken."""


def read_volume(
    path: str | os.PathLike[str] | bytes,
    *,
    volume: int | None = None,
    max_voxels: int = MAX_VOXELS,
    content: str = BRAIN,
) -> Volume:
    """Read one 3-D image, in RAS+ order, as float32 with the file's slope and intercept applied.

    The format is told by content, not by name. Trailing axes of length 1 are dropped. The affine is the sform when
    its code is above 0, otherwise the qform. Compressed files are read to the end, so that their checksum counts.

    Args:
        path: A NIfTI-1 or NIfTI-2 file in one piece (.nii, .nii.gz), or MGH/MGZ; or the content of one.
        volume: Which volume of a 4-D series, from 0; None where the image must be 3-D.
        max_voxels: Largest image that is read.
        content: What it should hold, for the sentence about one that holds one value only.

    Raises:
        VolumeError: If the file is missing, unreadable, truncated or not an image; if it is not 3-D, holds colours
            or complex numbers, NaN or infinities, one value only, or nothing; if neither sform nor qform is set, or
            the affine is singular; if the header claims more voxels than the file can hold or than `max_voxels`; if
            more than a mebibyte follows the image.
    """
    source = "image" if isinstance(path, bytes) else str(path)
    try:
        with io.BytesIO(path) if isinstance(path, bytes) else Path(path).open("rb") as raw:
            size = raw.seek(0, os.SEEK_END)
            raw.seek(0)
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if packed else raw as stream:
                available = size * (_MAX_DEFLATE_RATIO if packed else 1)
                image = _open_image(cast(BinaryIO, stream), source, available, max_voxels)
                _check_size(image, source, available, max_voxels)
                result = _to_volume(image, source, volume, content)
                if packed and volume is None:
                    _read_rest(cast(BinaryIO, stream), source)
    except (VolumeError, ArgumentError):
        raise
    except FileNotFoundError as error:
        raise _wrong(source, "exist", "no such file", "Check the path") from error
    except IsADirectoryError as error:
        raise _wrong(source, "be a file", "a folder", "Give the path of one image") from error
    except PermissionError as error:
        raise _wrong(source, "be readable", "permission denied", "Change its permissions") from error
    except Exception as error:  # any byte pattern may stand in a file, and the reader may fail on it in any way
        got = f"{type(error).__name__}: {error}".strip(": ")
        raise _wrong(source, "be a complete, undamaged image", f"{got}", "Copy or convert the file again") from error
    return result


def as_volume(image: str | os.PathLike[str] | bytes | Volume | Any, *, content: str = BRAIN) -> Volume:
    """A `Volume` from a path, the bytes of a file, a `Volume` (returned as it is) or a nibabel image.

    The checks are those of `read_volume`.

    Args:
        image: As said.
        content: See `read_volume`.

    Raises:
        VolumeError: As `read_volume`.
        ArgumentError: If it is none of these.
    """
    if isinstance(image, Volume):
        _check_affine(image.affine, image.source)
        _check_values(image.data, image.source)
        return image
    if isinstance(image, (str, bytes, os.PathLike)):
        return read_volume(image, content=content)
    if not (hasattr(image, "dataobj") and hasattr(image, "affine")):
        raise ArgumentError(
            "image", rule="be a path, a Volume or a nibabel image", got=type(image).__name__, fix="Wrap the array"
        )
    return _to_volume(image, str(image.get_filename() or "image"), None, content)


def write_volume(path: str | os.PathLike[str], data: NDArray, affine: Affine, *, space: str = "native") -> Path:
    """Write a map as float32 NIfTI-1; a reader sees the old file or the whole new one.

    The same arrays give the same bytes. The sform code is 4 for a space whose name starts with ``MNI``, 3 for
    ``Talairach``, 1 (scanner) for ``native`` and 2 (aligned) for any other.

    Args:
        path: Ends in .nii or .nii.gz.
        data: Shape (x, y, z) or (x, y, z, n).
        affine: Voxel indices to mm, RAS+.
        space: Name of the coordinate space.

    Returns:
        The path.

    Raises:
        ArgumentError: If the name has another ending.
        StorageError: If it could not be written; what stood there before is untouched.
    """
    return write_image(path, image_of(data, affine, sform_code_of(space)))


def write_image(path: str | os.PathLike[str], image: Any) -> Path:
    """Write a nibabel image as `write_volume` writes arrays.

    Args:
        path: Ends in .nii or .nii.gz.
        image: A Nifti1Image, e.g. of `Pipeline.invert`.

    Returns:
        The path.

    Raises:
        ArgumentError: If the name has another ending.
        StorageError: If it could not be written; what stood there before is untouched.
    """
    final = Path(path)
    if not final.name.endswith((".nii", ".nii.gz")):
        raise ArgumentError("path", rule="end in .nii or .nii.gz", got=final.name, fix="Change its ending")
    content = image.to_bytes()
    with atomic_path(final) as temporary:
        temporary.write_bytes(gzip.compress(content, 6, mtime=0) if final.name.endswith(".gz") else content)
    return final


def image_of(data: NDArray, affine: Affine, sform_code: int) -> Any:
    """A nibabel Nifti1Image, float32, that says in which space its millimetres are counted, and has no qform."""
    import nibabel

    image = nibabel.Nifti1Image(np.asarray(data, dtype=np.float32), np.asarray(affine, dtype=np.float64))
    image.set_sform(affine, code=sform_code)
    image.set_qform(None, code=0)
    image.header.set_xyzt_units("mm")
    return image


def sform_code_of(space: str) -> int:
    """The NIfTI code that says in which space millimetres are counted.

    >>> sform_code_of("MNI152NLin6Asym"), sform_code_of("native")
    (4, 1)
    """
    if space.lower().startswith("mni"):
        return 4
    return {"talairach": 3, "native": 1}.get(space.lower(), 2)


class _Careful:
    """A stream that gives no more at once than `most` bytes: what is behind a header may claim any length.

    Args:
        stream: The stream.
        most: Bytes; None when the header was read.
    """

    def __init__(self, stream: BinaryIO, most: int | None) -> None:
        self.stream, self.most = stream, most

    def read(self, size: int = -1) -> bytes:
        """Read, as a stream does."""
        if self.most is not None and not 0 <= size <= self.most:
            raise ValueError("an extension of the header that is longer than a mebibyte")
        return self.stream.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _open_image(stream: BinaryIO, source: str, available: int, max_voxels: int) -> Any:
    """A nibabel image over an open stream; the first bytes tell the format."""
    head = stream.read(348)
    stream.seek(0)
    if head[344:348] == b"n+1\0":
        from nibabel import Nifti1Image as kind  # noqa: N813
    elif head[4:8] == b"n+2\0":
        from nibabel import Nifti2Image as kind  # noqa: N813
    elif head[:4] == b"\0\0\0\1" and len(head) == 348:
        from nibabel.freesurfer import MGHImage as kind  # noqa: N813

        if head[28:30] == b"\0\0":  # goodRASFlag; nibabel would put a centred identity in its place
            raise _wrong(source, "say where it lies in space", "an MGZ header without a position", "Convert it again")
        shape = tuple(int(n) for n in np.frombuffer(head[4:20], ">i4"))  # nibabel looks behind the data at once
        if min(shape) < 1 or math.prod(shape[:3]) > max_voxels or math.prod(shape) > available:
            rule = f"have at most {max_voxels} voxels, and as many as its file"
            raise _wrong(source, rule, f"shape {shape} in its header", "Copy it again")
    elif not head:
        raise _wrong(source, "hold an image", "an empty file", "Copy it again")
    else:
        raise _wrong(
            source, "be NIfTI-1, NIfTI-2 or MGZ in one file", "another format", "Convert it to .nii.gz, e.g. by nibabel"
        )
    careful = _Careful(stream, _MAX_REST)
    image = kind.from_stream(careful)
    careful.most = None
    return image


def _read_rest(stream: BinaryIO, source: str) -> None:
    """The rest of a gzip file, where its checksum stands; a little padding may come before it, no more."""
    rest = 0
    while block := stream.read(1 << 16):
        rest += len(block)
        if rest > _MAX_REST:
            raise _wrong(source, "end where its image ends", "more than a mebibyte after it", "Write it again")


def _check_size(image: Any, source: str, available: int, max_voxels: int) -> None:
    """Refuse a header that claims more than the limit or than the file can hold, before any memory is taken."""
    shape = tuple(int(n) for n in image.shape)
    if min(shape, default=0) < 1:
        raise _wrong(source, "hold at least one voxel", f"shape {shape}", "Make the image again")
    if math.prod(shape[:3]) > max_voxels:
        raise _wrong(source, f"have at most {max_voxels} voxels", f"shape {shape} in its header", "Resample it first")
    if int(image.dataobj.offset) > _MAX_REST:
        got = f"an offset of {int(image.dataobj.offset)} bytes"
        raise _wrong(source, "begin its image within a mebibyte", got, "Write it again")
    needed = int(image.dataobj.offset) + math.prod(shape) * image.get_data_dtype().itemsize
    if needed > available:
        raise _wrong(
            source, "be as long as its header says", f"too few bytes for shape {shape}: truncated", "Copy it again"
        )


def _to_volume(image: Any, source: str, volume: int | None, content: str) -> Volume:
    """Check a nibabel image and bring it to RAS+ order."""
    dtype = np.dtype(image.dataobj.dtype)  # that of the file, or of an array in memory
    if dtype.kind not in "iufb":
        kind = "complex numbers" if dtype.kind == "c" else "colours"
        raise _wrong(source, "hold one real number per voxel", kind, "Take one channel or the magnitude")
    affine, code = _affine_of(image, source)
    native = _read_data(image, source, volume)
    if native.size == 0:
        raise _wrong(source, "hold at least one voxel", f"shape {native.shape}", "Make the image again")
    _check_values(native, source)
    lowest, highest = float(native.min()), float(native.max())
    if lowest == highest:
        raise _wrong(source, f"hold {content}", f"{lowest:g} in every voxel", "Make the image again")
    data, ras = orientation_of(affine).to_ras(native, affine)
    return Volume(
        data=np.ascontiguousarray(data),
        affine=ras,
        source=source,
        sform_code=code,
        native_shape=tuple(native.shape),
        native_affine=affine,
    )


def _affine_of(image: Any, source: str) -> tuple[Affine, int | None]:
    """The affine and, for NIfTI, the code of the form it comes from."""
    code: int | None = None
    header = image.header
    if "sform_code" in header:
        code = int(header["sform_code"]) or int(header["qform_code"])
        if code == 0:
            raise _wrong(source, "say where it lies in space", "sform and qform codes of 0", "Set its sform")
    if image.affine is None:
        raise _wrong(source, "say where it lies in space", "no affine", "Give the image an affine")
    unit = header.get_xyzt_units()[0] if hasattr(header, "get_xyzt_units") else "mm"
    if unit not in ("mm", "unknown"):
        raise _wrong(source, "count in millimetres", f"an affine in {unit}s", "Scale its affine and set its unit")
    affine = np.asarray(image.affine, dtype=np.float64)
    _check_affine(affine, source)
    return affine, code


def _check_values(data: NDArray[Any], source: str) -> None:
    """Refuse NaN and infinity."""
    # the sum is finite when every value is; only a sum that is not asks for the slow count
    with np.errstate(all="ignore"):
        finite = bool(np.isfinite(data.sum(dtype=np.float64)))
    if not finite and (bad := int(data.size - np.isfinite(data).sum())):
        raise _wrong(source, "hold finite numbers", f"{bad} voxels of NaN or infinity", "Replace them, e.g. by 0")


def _check_affine(affine: Affine, source: str) -> None:
    """Refuse an affine that cannot be inverted."""
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        # the volume of a voxel against that of a box with its edges: 1 for right angles, 0 for a flat one
        skew = abs(np.linalg.det(affine[:3, :3])) / np.prod(lengths)
    if not np.isfinite(affine).all() or lengths.min() < 1e-4 or not skew > 1e-3:
        rows = np.array2string(affine[:3], precision=3, separator=", ").replace("\n", "")
        raise _wrong(source, "have an affine that can be inverted", rows, "Set its sform or qform")


def _read_data(image: Any, source: str, volume: int | None) -> NDArray[np.float32]:
    """The array as float32, 3-D, in stored order."""
    shape = tuple(int(n) for n in image.shape)
    count = math.prod(shape[3:])
    if len(shape) < 3 or math.prod(shape[4:]) != 1 or (count != 1 and volume is None):
        raise _wrong(source, "be a 3-D image", f"{len(shape)} dimensions {shape}", "Choose one volume of the series")
    if volume is not None and not 0 <= volume < count:
        raise ArgumentError("volume", rule=f"be from 0 to {count - 1}", got=volume, fix=f"Choose a volume of {source}")
    index = (slice(None),) * 3 + ((volume or 0,) + (0,) * (len(shape) - 4) if len(shape) > 3 else ())
    with np.errstate(all="ignore"):  # an overflow becomes infinity, which is refused by the caller
        return np.asarray(image.dataobj[index], dtype=np.float32)


def _wrong(source: str, rule: str, got: str, fix: str) -> VolumeError:
    return VolumeError(source, rule=rule, got=got, fix=fix)
