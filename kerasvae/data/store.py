"""Preprocessed volumes on disk, one file a scan, so that work done is never done again. No TensorFlow."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kerasvae.data.cohort import Cohort, Scan
from kerasvae.errors import KerasVAEError
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
        """The file of one scan; its name changes with the pipeline, the image's place, size and time."""
        stat = scan.path.stat()
        key = f"{self.pipeline.digest} {scan.path} {stat.st_size} {stat.st_mtime_ns}"
        return self.folder / f"{scan.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"

    def volume(self, scan: Scan) -> Array:
        """The preprocessed volume of one scan, float32 (x, y, z).

        Raises:
            VolumeError: If the image cannot be used; the message names its path.
        """
        path = self.path(scan)
        if path.is_file():
            return np.load(path, allow_pickle=False)
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

    def _attempts(self, scans: Sequence[Scan]) -> Iterator[tuple[Scan, KerasVAEError | None]]:
        def attempt(scan: Scan) -> tuple[Scan, KerasVAEError | None]:
            try:
                self.volume(scan)
            except KerasVAEError as error:
                return scan, error
            return scan, None

        # Reading waits for the disk and scipy's filters release the interpreter lock: two threads keep both busy.
        with ThreadPoolExecutor(2) as pool:
            yield from pool.map(attempt, scans)
