"""Scans that come as files: which bodies are one, its covariates, what is answered, and maps."""

from __future__ import annotations

import gzip
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kerasvae.errors import ArgumentError, MediaTypeError
from kerasvae.preprocess.nifti import image_of, sform_code_of
from kerasvae_serving.answers import as_json
from kerasvae_serving.body import Bodies, form
from kerasvae_serving.gate import Examined, examine
from kerasvae_serving.metrics import Metrics
from kerasvae_serving.repository import Repository, Version
from kerasvae_serving.settings import Settings
from kerasvae_serving.work import Work

__all__ = ["Scans"]

FORM = "multipart/form-data"
TYPES = ("", FORM, "application/octet-stream", "application/gzip", "application/x-gzip", "application/x-nifti")


class Scans:
    """The verbs of a model that take a scan.

    Args:
        repository: Models.
        settings: Whether to be strict, and the largest scan.
        work: Where scans are worked on.
        metrics: Told of every scan.
        bodies: Reads them.
    """

    def __init__(
        self, repository: Repository, settings: Settings, work: Work, metrics: Metrics, bodies: Bodies
    ) -> None:
        self._repository, self._settings, self._work = repository, settings, work
        self._metrics, self._bodies = metrics, bodies
        self.verbs: dict[str, Callable[[Request, str, str | None], Awaitable[Response]]] = {
            "encode": self._encode,
            "score": self._score,
            "reconstruct": partial(self._map, "reconstruction"),
            "deviation": partial(self._map, "deviation"),
        }

    async def _encode(self, request: Request, name: str, version: str | None) -> Response:
        found, seen, _ = await self._scan(request, name, version)
        outputs = {key: value[0] for key, value in seen.codes.items()}
        return as_json(_about(found, seen) | {"outputs": outputs})

    async def _score(self, request: Request, name: str, version: str | None) -> Response:
        _ = self._repository.get(name, version).engine.reference  # without one there is nothing to answer
        found, seen, _ = await self._scan(request, name, version)
        return as_json(_about(found, seen))

    async def _map(self, kind: str, request: Request, name: str, version: str | None) -> Response:
        space = request.query_params.get("space", "native")
        if space not in ("native", "model"):
            raise ArgumentError("space", rule="be native or model", got=repr(space)[:60], fix="Leave it out for native")
        found, seen, content = await self._scan(request, name, version, partial(_map_of, kind, space))
        headers = {
            "X-Kerasvae-In-Distribution": str(seen.in_distribution).lower(),
            "X-Kerasvae-Reasons": json.dumps(list(seen.reasons)),
            "X-Kerasvae-Percentiles": json.dumps(_about(found, seen)["percentiles"]),
            "X-Kerasvae-Model-Version": str(found.number),
            "Content-Disposition": f'attachment; filename="{kind}.nii.gz"',
        }
        return Response(content, headers=headers, media_type="application/gzip")

    async def _scan(
        self,
        request: Request,
        name: str,
        version: str | None,
        then: Callable[[Version, Examined], bytes] = lambda found, seen: b"",
    ) -> tuple[Version, Examined, bytes]:
        """Examine the scan of a request, and what is then made of it."""
        found = self._repository.get(name, version)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        fields: Mapping[str, str] = {}
        _check_type(kind)
        body = await self._bodies.read(request.headers, request.receive)
        if kind == FORM:
            body, fields = await form(request, body)
        given = {**request.query_params, **fields}
        covariates = _covariates_of(found, {name: value for name, value in given.items() if name != "space"})

        def work() -> tuple[Examined, bytes]:
            strict, most = self._settings.strict, self._settings.max_voxels
            seen = examine(found.engine, body, covariates, strict=strict, max_voxels=most)
            return seen, then(found, seen)

        seen, made = await self._work.run(work)
        manifest = found.engine.manifest
        center = seen.codes[manifest.outputs[0].name]
        self._metrics.scan(found.name, found.number, center, seen.scores, seen.in_distribution, manifest.reference)
        return found, seen, made


def _check_type(kind: str) -> None:
    """Refuse a body whose media type says that it is no file.

    Raises:
        MediaTypeError: If so.
    """
    if kind not in TYPES and not kind.startswith("image/"):
        rule = f"be application/octet-stream, application/gzip or {FORM}"
        raise MediaTypeError("Content-Type", rule=rule, got=repr(kind)[:60], fix="Send the file's bytes")


def _covariates_of(found: Version, given: Mapping[str, str]) -> Mapping[str, str] | None:
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


def _about(found: Version, seen: Examined) -> dict[str, Any]:
    """What every answer about a scan says."""
    places = {name: value for name, value in seen.scores.items() if name.endswith("_percentile")}
    return {
        "model_name": found.name,
        "model_version": str(found.number),
        "in_distribution": seen.in_distribution,
        "keeps_contract": seen.keeps_contract,
        "reasons": list(seen.reasons),
        "scores": {name: value for name, value in seen.scores.items() if name not in places},
        "percentiles": {name.removesuffix("_percentile"): value for name, value in places.items()},
    }


def _map_of(kind: str, space: str, found: Version, seen: Examined) -> bytes:
    """A map as the bytes of a .nii.gz file."""
    engine = found.engine
    made = engine.deviation_map if kind == "deviation" else engine.reconstruct
    values = made(seen.image, seen.covariates)[0]
    if space == "native":
        image = engine.pipeline.invert(values, seen.volume, intensity=kind == "reconstruction")
    else:
        grid = engine.pipeline.grid
        image = image_of(values, grid.matrix, sform_code_of(grid.space))
    return gzip.compress(image.to_bytes(), 1, mtime=0)
