"""The bundle's manifest: the contract between export and serving. No TensorFlow.

A bundle is a folder that holds all that is needed to turn a scan into latents: `manifest.json`, which describes the
rest and has the SHA-256 of every other file; `MODEL_CARD.md`; `saved_model/<version>/`; `encoder.onnx`;
`decoder.onnx`; `golden.npz`. `export/README.md` shows one.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from kerasvae.covariates import FEWEST, Covariate
from kerasvae.errors import BundleError, UnsupportedError
from kerasvae.scoring import Reference
from kerasvae.storage import atomic_path

__all__ = [
    "DECODER",
    "ENCODER",
    "GOLDEN",
    "MANIFEST",
    "REFERENCE",
    "SCHEMA",
    "SIGNATURE",
    "Bundle",
    "Manifest",
    "Reduced",
    "Tensor",
    "file_hashes",
    "graph_file",
    "largest_difference",
    "read_bundle",
    "write_manifest",
]

SCHEMA = "1.0.0"
"""Semantic version of the manifest's schema: a reader accepts every version of its own major version."""
MANIFEST, ENCODER, DECODER, GOLDEN = "manifest.json", "encoder.onnx", "decoder.onnx", "golden.npz"
REFERENCE = "reference.npz"
"""Maps of the reference people, where there are enough of them."""
SIGNATURE = "model.sig"
"""Signature over all other files, where somebody has signed the bundle."""


class _Part(BaseModel):
    """Frozen; keys that a newer minor version added are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Tensor(_Part):
    """A named input or output of a graph.

    Args:
        name: As in the SavedModel's signatures and in ONNX.
        shape: Without the batch axis.
        dtype: E.g. ``"float32"``; ``"int32"`` for codes.
        meaning: In words, with the unit.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    meaning: str


class Reduced(_Part):
    """Graphs with fewer bits beside the float32 ones, and how far they follow them.

    Args:
        people: Number of people, whom no weight was fitted to, that they were calibrated and compared on.
        latent_correlation: Correlation over these people with the float32 graph's first output, number by number.
        reconstruction_difference: Root mean squared difference from the float32 reconstructions of the same codes, in
            parts of the root mean squared difference between those of two people.
        golden_difference: Largest difference from the float32 graphs on the golden case, relative to the largest value.
    """

    people: int
    latent_correlation: tuple[float, ...]
    reconstruction_difference: float
    golden_difference: float


class Manifest(_Part):
    """What `manifest.json` holds.

    Args:
        schema_version: Semantic, ``"major.minor.patch"``.
        name: Name of the model.
        version: Version of the model, a positive integer; the name of the folder in `saved_model/`.
        created: ISO 8601, UTC.
        data_shape: Shape of one image on the model's grid.
        latent_size: Number of latent dimensions.
        inputs: Of the encoder; the decoder takes ``z`` in the place of the image.
        outputs: Of the encoder, deterministic.
        covariates: What the model takes beside the image, in the order of the columns of its input ``covariates``;
            empty: nothing.
        pipeline: Configuration for `kerasvae.preprocess.Pipeline`, grid and alignment contract in it, or None.
        pipeline_digest: Its digest.
        weights_digest: SHA-256 over the model's variables.
        opset: Of the ONNX graphs.
        versions: Of the packages that made the bundle.
        parity: Largest differences from the Keras model as measured at export, relative to the largest value.
        metrics: The run's figures on its test people, PCA beside them.
        cohort: Number of people in each role, ranges of their covariates, and what the dataset says of itself: name,
            licence, how to acknowledge it.
        reference: Scores of people the weights were not fitted to, or None.
        reduced: Graphs with fewer bits, by precision: `encoder.int8.onnx` and `decoder.int8.onnx`, say.
        golden_distance: Distance of the golden image from the nearest training image, relative to that image's
            distance from the mean; None where no training image was at hand.
        sha256: Of every other file but the signature, by path.
    """

    schema_version: str = SCHEMA
    name: str
    version: int
    created: str
    data_shape: tuple[int, ...]
    latent_size: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    covariates: tuple[Covariate, ...] = ()
    pipeline: dict[str, Any] | None
    pipeline_digest: str | None
    weights_digest: str
    opset: int
    versions: dict[str, str]
    parity: dict[str, float]
    metrics: dict[str, Any] = {}
    cohort: dict[str, Any] = {}
    reference: Reference | None = None
    reduced: dict[str, Reduced] = {}
    golden_distance: float | None = None
    sha256: dict[str, str] = {}


def graph_file(part: str, precision: str = "float32") -> str:
    """Name of an ONNX graph.

    >>> graph_file("encoder"), graph_file("decoder", "int8")
    ('encoder.onnx', 'decoder.int8.onnx')
    """
    return f"{part}.onnx" if precision == "float32" else f"{part}.{precision}.onnx"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Args:
        path: Its folder.
        manifest: What it says of itself.
    """

    path: Path
    manifest: Manifest

    @property
    def encoder(self) -> Path:
        """The ONNX encoder."""
        return self.path / ENCODER

    @property
    def decoder(self) -> Path:
        """The ONNX decoder."""
        return self.path / DECODER

    def graph(self, part: str, precision: str = "float32") -> Path:
        """An ONNX graph.

        Args:
            part: "encoder" or "decoder".
            precision: "float32", or one of the manifest's `reduced`.

        Raises:
            BundleError: If the bundle has no graph of this precision.
        """
        known = ("float32", *self.manifest.reduced)
        if precision not in known:
            raise BundleError(
                self.path,
                rule=f"have graphs of the precision asked for; it has {', '.join(known)}",
                got=repr(precision),
                fix="Export it again with --quantize",
            )
        return self.path / graph_file(part, precision)

    @property
    def saved_model(self) -> Path:
        """The SavedModel's folder of this version."""
        return self.path / "saved_model" / str(self.manifest.version)

    def golden(self) -> dict[str, NDArray]:
        """Arrays of a simulated subject, made by the Keras model at export.

        `drawn` (m, d) (the codes that it is made of), `raw` and `raw_affine` (a scan before preprocessing, where the
        bundle has a pipeline), `image` (1, *data_shape),
        `covariates` (1, k) where the model takes them, the encoder's outputs by name (1, …), `z` (1, d),
        `reconstruction` (1, *data_shape) and, where the bundle has a reference, the scores of `kerasvae.scoring` and
        their percentiles, (1,).

        Raises:
            BundleError: If the file cannot be read.
        """
        return self._arrays(GOLDEN)

    def maps(self) -> tuple[NDArray, NDArray, float]:
        """What `kerasvae.scoring.deviation` measures by: mean, standard deviation and degrees of freedom.

        Raises:
            UnsupportedError: If there are none.
            BundleError: If the file cannot be read.
        """
        if self.manifest.reference is None or self.manifest.reference.degrees is None:
            raise UnsupportedError(
                f"{self.manifest.name} {self.manifest.version}",
                rule="have maps of calibration people to say where a scan deviates",
                got="none",
                fix=f"Export with {FEWEST} calibration people or more",
            )
        found = self._arrays(REFERENCE)
        return found["mean"], found["stddev"], self.manifest.reference.degrees

    def _arrays(self, name: str) -> dict[str, NDArray]:
        try:
            with np.load(self.path / name, allow_pickle=False) as content:
                return {key: content[key] for key in content.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(
                self.path / name, rule="be a readable archive of arrays", got=str(error), fix="Export again"
            ) from error

    def altered(self) -> list[str]:
        """What differs from the manifest: files changed, missing or added, one phrase each."""
        promised, found = self.manifest.sha256, file_hashes(self.path)
        missing = [f"{name} is missing" for name in sorted(promised.keys() - found.keys())]
        added = [f"{name} is not in the manifest" for name in sorted(found.keys() - promised.keys())]
        changed = [
            f"{name} was changed" for name in sorted(promised) if name in found and found[name] != promised[name]
        ]
        return missing + added + changed


def read_bundle(path: str | os.PathLike[str], *, check: bool = True) -> Bundle:
    """Open a bundle.

    Args:
        path: The folder.
        check: Compare the hash of every file.

    Raises:
        BundleError: If it is not a bundle, has a schema this version cannot read, or a file was altered.
    """
    folder = Path(path)
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        got = "a folder without it" if folder.is_dir() else "a file" if folder.is_file() else "no such folder"
        raise BundleError(folder, rule=f"be a bundle with {MANIFEST}", got=got, fix="Run `kerasvae export`") from error
    except (OSError, ValueError) as error:
        raise BundleError(folder / MANIFEST, rule="be readable JSON", got=str(error), fix="Export again") from error
    _check_schema(folder, content)
    try:
        bundle = Bundle(folder, Manifest.model_validate(content))
    except ValidationError as error:
        finding = error.errors()[0]
        where = ".".join(str(part) for part in finding["loc"])
        raise BundleError(
            f"{where} of {folder / MANIFEST}", rule="be valid", got=finding["msg"].lower(), fix="Export again"
        ) from error
    if check and (altered := bundle.altered()):
        raise BundleError(
            folder,
            rule="be as it was exported",
            got="; ".join(altered[:3]) + (f" and {len(altered) - 3} more" if len(altered) > 3 else ""),
            fix="Copy or export it again; what is not in the manifest may be removed",
        )
    return bundle


def _check_schema(folder: Path, content: Any) -> None:
    version = content.get("schema_version") if isinstance(content, Mapping) else None
    if not isinstance(version, str) or version.split(".")[0] != SCHEMA.split(".")[0]:
        raise BundleError(
            folder / MANIFEST,
            rule=f"have schema_version {SCHEMA.split('.')[0]}.x.x",
            got=repr(version),
            fix="Install the kerasvae version that wrote it, or export it again",
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` with the hash of every other file in the folder."""
    full = manifest.model_copy(update={"sha256": file_hashes(folder)})
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text(full.model_dump_json(indent=2) + "\n", encoding="utf-8")


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 (hex) of every file of a folder but manifest and signature, by its path with forward slashes."""
    apart = {folder / MANIFEST, folder / SIGNATURE}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in apart)
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def largest_difference(found: NDArray, expected: NDArray) -> float:
    """Largest absolute difference, relative to the largest absolute expected value; infinite for other shapes.

    >>> largest_difference(np.array([1.0, 4.0]), np.array([1.0, 5.0]))
    0.2
    """
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()) / scale
