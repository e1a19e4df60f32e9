"""Preprocessed volumes on disk, one file a scan, so that work done is never done again. No TensorFlow."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kerasvae.data.cohort import Cohort, Scan
from kerasvae.errors import VolumeError
from kerasvae.preprocess import Pipeline
from kerasvae.storage import atomic_path
from kerasvae.types import Array

__all__ = ["VolumeStore"]


@dataclass(frozen=True)
class VolumeStore:
    """Volumes of a cohort on the model grid, computed when first asked for.

    Args:
        folder: Where the files are kept; it may be deleted at any time.
        pipeline: What is applied to each scan.
    """

    folder: Path
    pipeline: Pipeline

    def path(self, scan: Scan) -> Path:
        """The file of one scan: its name, a hash of pipeline and place of the image, one of the image's size and time.

        Where the image cannot be reached but one file of it is kept, this is that file.

        Raises:
            VolumeError: If the image cannot be reached, and none or several files of it are kept.
        """
        label = re.sub(r"[^A-Za-z0-9_-]", "_", scan.name)[:100]
        stem = f"{label}-{_hash(self.pipeline.digest, scan.name, scan.path.resolve())}"
        try:
            stat = scan.path.stat()
        except OSError as error:
            kept = list(self.folder.glob(f"{stem}-*.npy"))
            if len(kept) == 1:
                return kept[0]
            raise VolumeError(
                f"The image {scan.path} of {scan.name}",
                rule="be readable",
                got=str(error.strerror).lower(),
                fix="Check the folder, link and permissions, or read the cohort again from where the images are now",
            ) from error
        return self.folder / f"{stem}-{_hash(stat.st_size, stat.st_mtime_ns)}.npy"

    def volume(self, scan: Scan) -> Array:
        """The preprocessed volume of one scan, float32 (x, y, z); a damaged file of the store is made again.

        Raises:
            VolumeError: If the image cannot be used; the message names its path.
            StorageError: If the store cannot be written to.
        """
        path = self.path(scan)
        kept = _read(path)
        if kept is not None and kept.dtype == np.float32 and kept.shape == self.pipeline.grid.shape:
            return kept
        volume = self.pipeline.apply(scan.path)
        with atomic_path(path) as temporary:
            np.save(temporary, volume, allow_pickle=False)
        return volume

    def load(self, scans: Sequence[Scan]) -> Array:
        """Volumes of several scans, (n, x, y, z)."""
        return np.stack([self.volume(scan) for scan in scans])

    def prepare(
        self, cohort: Cohort, *, skip_bad: bool = False, progress: Callable[[], None] | None = None
    ) -> tuple[Cohort, dict[str, str]]:
        """Preprocess every scan that is not there yet.

        Args:
            cohort: The scans.
            skip_bad: Leave out images that cannot be used, instead of raising at the first.
            progress: Called after each scan.

        Returns:
            The cohort less the bad scans, and the sentence for each of these by `Scan.name`.

        Raises:
            VolumeError: If an image cannot be used, unless `skip_bad`.
            StorageError: If the store cannot be written to; that is no fault of an image.
        """
        bad: dict[str, str] = {}
        for scan, error in self._attempts(cohort.scans):
            if error is not None and not skip_bad:
                raise error
            if error is not None:
                bad[scan.name] = str(error)
            if progress:
                progress()
        return (cohort.without(bad) if bad else cohort), bad

    def _attempts(self, scans: Sequence[Scan]) -> Iterator[tuple[Scan, VolumeError | None]]:
        def attempt(scan: Scan) -> tuple[Scan, VolumeError | None]:
            try:
                self.volume(scan)
            except VolumeError as error:
                return scan, error
            return scan, None

        # Reading waits for the disk and scipy's filters release the interpreter lock: two threads keep both busy.
        with ThreadPoolExecutor(2) as pool:
            yield from pool.map(attempt, scans)


def _hash(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _read(path: Path) -> Array | None:
    """The array in a file, or None where there is no file or it does not hold one."""
    try:
        with path.open("rb") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except Exception:  # any bytes may stand in a damaged file, and numpy may fail on them in any way
        return None
