"""Models on disk and in memory: bundles are found, checked, loaded, replaced and kept while the server runs.

A bundle comes into service when its hashes and its golden case hold, never before. One that fails is named in the index
with the reason and takes nobody's place: not in service, and not among the versions that are kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kerasvae.bundle import MANIFEST, read_bundle
from kerasvae.errors import ArgumentError, BundleError, ConflictError, KerasVAEError, UnknownModelError
from kerasvae_serving.engine import Engine
from kerasvae_serving.signatures import Signature, signatures

__all__ = ["DECODER", "Entry", "Repository", "Version"]

DECODER = "-decoder"
"""What a decoder's name ends in, after its model's."""

LONGEST_WAIT_S = 60.0
"""Between two attempts at a bundle that failed: it may have been half copied."""
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Version:
    """One version of a model in service.

    Args:
        engine: Checked and warm.
        stamp: Of its manifest when it was loaded.
        memory: What loading it added to the process, bytes; 0 where the system does not say.
    """

    engine: Engine
    stamp: Stamp
    memory: int

    @property
    def name(self) -> str:
        """The model's name."""
        return self.engine.manifest.name

    @cached_property
    def signatures(self) -> dict[str, Signature]:
        """What it computes, by name."""
        return signatures(self.engine)

    @property
    def number(self) -> int:
        """The model's version."""
        return self.engine.manifest.version


@dataclass(frozen=True)
class Entry:
    """A line of the index.

    Args:
        name: Of the model; of the folder, where its manifest cannot be read.
        version: In figures, or empty.
        state: READY or UNAVAILABLE.
        reason: Why it is unavailable, or what is to be known of it.
    """

    name: str
    version: str
    state: str
    reason: str = ""


@dataclass(frozen=True)
class _Failure:
    reason: str
    attempts: int
    next_attempt: float


class Repository:
    """Bundles in service.

    Args:
        sources: Bundles, and folders of bundles, one or two levels deep.
        keep: Versions of a model that stay in memory; of more, the highest.
        load: What makes an engine of a bundle's folder.

    Raises:
        ArgumentError: If a source does not exist.
    """

    def __init__(
        self, sources: Sequence[str | os.PathLike[str]], *, keep: int = 2, load: Callable[[Path], Engine] = Engine
    ) -> None:
        self._sources = [Path(source) for source in sources]
        for source in self._sources:
            if not source.is_dir():
                raise ArgumentError("BUNDLE", rule="be a folder", got=f"{source}, which is none", fix="Check the path")
        if keep < 1:
            raise ArgumentError("keep", rule="be 1 or more", got=keep, fix="Use 2")
        self._keep, self._load = keep, load
        # every change makes new dictionaries, so that requests, in other threads, see the old or the new whole
        self._served: dict[str, dict[int, Version]] = {}
        self._withdrawn: dict[str, set[int]] = {}
        self._failures: dict[Path, _Failure] = {}

    @property
    def names(self) -> list[str]:
        """Models in service."""
        return sorted(self._served)

    def versions(self, name: str) -> list[int]:
        """Versions in service, lowest first.

        Raises:
            UnknownModelError: If there is no such model.
        """
        return sorted(self._of(name))

    def get(self, name: str, version: int | str | None = None) -> Version:
        """A version of a model; by default the highest that is not withdrawn.

        Raises:
            UnknownModelError: If there is none.
        """
        served = self._of(name)
        if version is None or version == "":
            return served[self._current(name, served)]
        text = str(version)
        found = served.get(int(text)) if text.isdecimal() and len(text) <= 18 else None
        if found is None:
            known = ", ".join(map(str, sorted(served)))
            raise UnknownModelError(
                f"The version of {name}", rule=f"be one in service: {known}", got=repr(text)[:60], fix="Leave it out"
            )
        return found

    def resolve(self, name: str, version: str | None = None) -> tuple[Version, Signature]:
        """What a name of the Open Inference Protocol stands for: a model is its encoder, `…-decoder` its decoder.

        Raises:
            UnknownModelError: If there is none.
        """
        if name not in self._served and name.endswith(DECODER):
            found = self.get(name.removesuffix(DECODER), version)
            return found, found.signatures["decode"]
        found = self.get(name, version)
        return found, found.signatures["encode"]

    def index(self) -> list[Entry]:
        """Every version in service, and every bundle that could not be."""
        ready = [
            Entry(name, str(number), "READY", "withdrawn" if number in self._withdrawn.get(name, ()) else "")
            for name, served in sorted(self._served.items())
            for number in sorted(served)
        ]
        # by its name: clients need not know where it lies
        return ready + [
            Entry(path.name, "", "UNAVAILABLE", failure.reason.replace(str(path.parent) + os.sep, ""))
            for path, failure in self._failures.items()
        ]

    def rollback(self, name: str) -> Version:
        """Withdraw the version that answers by default; the highest below it does from now on.

        A version that comes into service later and is higher answers again; `activate` takes this back.

        Raises:
            UnknownModelError: If there is no such model.
            ConflictError: If there is no lower version in service.
        """
        served = self._of(name)
        current = self._current(name, served)
        lower = [n for n in served if n < current and n not in self._withdrawn.get(name, ())]
        if not lower:
            got = f"version {current} alone"
            raise ConflictError(name, rule="have a lower version in service", got=got, fix="Deploy one first")
        between = {n for n in served if n >= current}
        self._withdrawn = self._withdrawn | {name: self._withdrawn.get(name, set()) | between}
        return served[max(lower)]

    def activate(self, name: str, version: int | str) -> Version:
        """Let a version answer by default: higher ones are withdrawn, it is not.

        Raises:
            UnknownModelError: If it is not in service.
        """
        chosen = self.get(name, version)
        withdrawn = self._withdrawn.get(name, set()) - {chosen.number} | {
            n for n in self._of(name) if n > chosen.number
        }
        self._withdrawn = self._withdrawn | {name: withdrawn}
        return chosen

    def scan(self) -> list[str]:
        """Look the sources over once: load what is new, drop what is gone. Takes as long as loading does.

        Returns:
            What changed, one sentence each.
        """
        news: list[str] = []
        found = {path: stamp for path in self._bundles() if (stamp := _stamp(path)) is not None}
        self._failures = {path: failure for path, failure in self._failures.items() if path in found}
        for path, stamp in found.items():
            if any(v.engine.path == path and v.stamp == stamp for v in self._all()):
                self._forget(path)
                continue
            earlier = self._failures.get(path)
            if earlier is not None and time.monotonic() < earlier.next_attempt:
                continue
            try:
                if not self._wanted(path):
                    continue
                news.append(self._take(path, stamp))
                self._forget(path)
            except Exception as error:  # a disk or a damaged file may fail in any way; the other bundles go on
                known = isinstance(error, KerasVAEError)
                reason = str(error) if known else f"{path} could not be loaded: {type(error).__name__}."
                attempts = 1 if earlier is None else earlier.attempts + 1
                wait = min(2.0**attempts, LONGEST_WAIT_S)
                failure = _Failure(reason, attempts, time.monotonic() + wait)
                self._failures = self._failures | {path: failure}
                if earlier is None or earlier.reason != reason:
                    news.append(f"not loaded: {reason}")
        return news + self._drop(set(found))

    def _forget(self, path: Path) -> None:
        self._failures = {other: failure for other, failure in self._failures.items() if other != path}

    def _wanted(self, path: Path) -> bool:
        """Whether a bundle would stay in memory, by its manifest alone.

        Raises:
            BundleError: If another folder has its name and version.
        """
        manifest = read_bundle(path, check=False).manifest
        served = self._served.get(manifest.name, {})
        other = served.get(manifest.version)
        if other is not None and other.engine.path != path and other.engine.path.is_dir():
            raise BundleError(
                path,
                rule="have a name and version of its own",
                got=f"{manifest.name} {manifest.version}, which {other.engine.path} has",
                fix="Export it with another --version",
            )
        left = {n for n, version in served.items() if version.engine.path != path}
        return manifest.version in self._kept(manifest.name, {*left, manifest.version})

    def _kept(self, name: str, numbers: Iterable[int]) -> list[int]:
        """Of these versions those that stay in memory: the highest, and withdrawn ones only if there is room."""
        withdrawn = self._withdrawn.get(name, set())
        return sorted(numbers, key=lambda n: (n not in withdrawn, n), reverse=True)[: self._keep]

    def _take(self, path: Path, stamp: Stamp) -> str:
        """Load a bundle and put it into service."""
        before = _resident()
        engine = self._load(path)
        version = Version(engine, stamp, max(0, _resident() - before))
        served = self._served.get(version.name, {})
        # the same folder with other content: what it held before is gone
        kept = {n: v for n, v in served.items() if v.engine.path != path} | {version.number: version}
        self._served = self._served | {version.name: {n: kept[n] for n in self._kept(version.name, kept)}}
        return f"{version.name} {version.number} is in service"

    def _drop(self, found: set[Path]) -> list[str]:
        """Take out of service what is gone, unless it is all that a model has."""
        news = []
        for name, served in self._served.items():
            here = {n: v for n, v in served.items() if v.engine.path in found}
            if here and len(here) < len(served):
                news += [f"{name} {n} is out of service: its folder is gone" for n in served if n not in here]
                self._served = self._served | {name: here}
        return news

    def _bundles(self) -> Iterator[Path]:
        for source in self._sources:
            if (source / MANIFEST).is_file():
                yield source
                continue
            for pattern in (f"*/{MANIFEST}", f"*/*/{MANIFEST}"):
                folders = (file.parent for file in sorted(source.glob(pattern)))
                # what begins with a dot is being written
                yield from (f for f in folders if not any(p.startswith(".") for p in f.relative_to(source).parts))

    def _all(self) -> Iterator[Version]:
        return (version for served in self._served.values() for version in served.values())

    def _of(self, name: str) -> dict[int, Version]:
        if name not in self._served:
            known = ", ".join(self.names) or "none yet"
            raise UnknownModelError("The model", rule=f"be one in service: {known}", got=repr(name), fix="Correct it")
        return self._served[name]

    def _current(self, name: str, served: dict[int, Version]) -> int:
        withdrawn = self._withdrawn.get(name, set())
        return max((n for n in served if n not in withdrawn), default=max(served))


def _stamp(path: Path) -> Stamp | None:
    """What changes when a bundle is replaced."""
    try:
        found = (path / MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _resident() -> int:
    """Memory of this process, bytes."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
