"""What is said of a scan that came as a file: which bodies are one, its covariates, answers, and maps."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from typing import Any

from kerasvae.errors import ArgumentError, MediaTypeError
from kerasvae.preprocess.nifti import image_of, sform_code_of
from kerasvae_serving.gate import Examined
from kerasvae_serving.repository import Version

__all__ = ["FORM", "about", "check_type", "covariates_of", "map_of"]

FORM = "multipart/form-data"
TYPES = ("", FORM, "application/octet-stream", "application/gzip", "application/x-gzip", "application/x-nifti")


def check_type(kind: str) -> None:
    """Refuse a body whose media type says that it is no file.

    Raises:
        MediaTypeError: If so.
    """
    if kind not in TYPES and not kind.startswith("image/"):
        rule = f"be application/octet-stream, application/gzip or {FORM}"
        raise MediaTypeError("Content-Type", rule=rule, got=repr(kind)[:60], fix="Send the file's bytes")


def covariates_of(found: Version, given: Mapping[str, str]) -> Mapping[str, str] | None:
    """The covariates among a request's parameters and fields; None if the model takes none.

    Raises:
        ArgumentError: If one is not the model's.
    """
    known = found.engine.covariates
    names = () if known is None else known.names
    unknown = [name for name in given if name not in names]
    if unknown:
        takes = ", ".join(names) or "none"
        raise ArgumentError(
            "A parameter", rule=f"be one of the model's: {takes}", got=repr(unknown[0])[:60], fix="Leave it out"
        )
    return given if known is not None and given else None


def about(found: Version, seen: Examined) -> dict[str, Any]:
    """What every answer about a scan says."""
    places = {name: value for name, value in seen.scores.items() if name.endswith("_percentile")}
    return {
        "model_name": found.name,
        "model_version": str(found.number),
        "in_distribution": seen.in_distribution,
        "reasons": list(seen.reasons),
        "scores": {name: value for name, value in seen.scores.items() if name not in places},
        "percentiles": {name.removesuffix("_percentile"): value for name, value in places.items()},
    }


def map_of(kind: str, space: str, found: Version, seen: Examined, covariates: Mapping[str, str] | None) -> bytes:
    """A map as the bytes of a .nii.gz file."""
    engine = found.engine
    table = None if covariates is None else {name: [value] for name, value in covariates.items()}
    made = engine.deviation_map if kind == "deviation" else engine.reconstruct
    values = made(seen.image, table)[0]
    if space == "native":
        image = engine.pipeline.invert(values, seen.volume, intensity=kind == "reconstruction")
    else:
        grid = engine.pipeline.grid
        image = image_of(values, grid.matrix, sform_code_of(grid.space))
    return gzip.compress(image.to_bytes(), 1, mtime=0)
