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
from kerasvae_serving.answers import Made, json_of
from kerasvae_serving.body import Bodies, form
from kerasvae_serving.gate import Examined, examine
from kerasvae_serving.metrics import Metrics
from kerasvae_serving.repository import Repository, Version
from kerasvae_serving.settings import Settings
from kerasvae_serving.work import Work

__all__ = ["Scans", "is_file", "media_type"]

MAPS = ("reconstruct", "deviation")
FORM = "multipart/form-data"
TYPES = ("", "application/octet-stream", "application/gzip", "application/x-gzip", "application/x-nifti")


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
        self._makers: dict[str, Callable[[Version, Examined, str], Made]] = {
            "encode": _codes,
            "score": _scores,
            "reconstruct": partial(_map, "reconstruction"),
            "deviation": partial(_map, "deviation"),
        }

    @property
    def verbs(self) -> dict[str, Callable[[Request, str, str | None], Awaitable[Response]]]:
        """What answers each verb: a coroutine of a request, a model's name and version."""
        return {verb: partial(self._verb, verb) for verb in self._makers}

    def answer(
        self,
        found: Version,
        verb: str,
        body: bytes,
        covariates: Mapping[str, str] | None = None,
        space: str = "native",
    ) -> Made:
        """The answer to a scan; a piece of work.

        Args:
            found: The model.
            verb: What is asked.
            body: The bytes of a file.
            covariates: Of the person.
            space: Of a map.

        Raises:
            VolumeError: If the scan cannot be used.
            ArgumentError: If a covariate is missing or outside its rule.
            UnsupportedError: If scores are asked of a model that has no reference people.
        """
        engine = found.engine
        if verb == "score":
            _ = engine.reference  # without one there is nothing to answer
        strict, most = self._settings.strict, self._settings.max_voxels
        seen = examine(engine, body, covariates, strict=strict, max_voxels=most)
        return self._makers[verb](found, seen, space)._replace(told=partial(self._count, found, seen))

    def _count(self, found: Version, seen: Examined) -> None:
        manifest = found.engine.manifest
        center = seen.codes[manifest.outputs[0].name]
        self._metrics.scan(found.name, found.number, center, seen.scores, seen.in_distribution, manifest.reference)

    async def _verb(self, verb: str, request: Request, name: str, version: str | None) -> Response:
        space = request.query_params.get("space", "native") if verb in MAPS else "native"
        if space not in ("native", "model"):
            raise ArgumentError("space", rule="be native or model", got=repr(space)[:60], fix="Leave it out for native")
        found = self._repository.get(name, version)
        kind = media_type(request.headers.get("content-type", ""))
        fields: Mapping[str, str] = {}
        _check_type(kind)
        body = await self._bodies.read(request.headers, request.receive)
        if kind == FORM:
            body, fields = await form(request, body)
        given = {**request.query_params, **fields}
        covariates = _covariates_of(found, {name: value for name, value in given.items() if name != "space"})
        made = await self._work.run(partial(self.answer, found, verb, body, covariates, space))
        return made.response()


def media_type(field: str) -> str:
    """What a Content-Type says, without its parameters."""
    return field.partition(";")[0].strip().lower()


def is_file(kind: str) -> bool:
    """Whether a media type is that of a body which is the file itself."""
    return kind in TYPES or kind.startswith("image/")


def _check_type(kind: str) -> None:
    """Refuse a body whose media type says that it is no file.

    Raises:
        MediaTypeError: If so.
    """
    if kind != FORM and not is_file(kind):
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


def _codes(found: Version, seen: Examined, space: str) -> Made:
    outputs = {key: value[0] for key, value in seen.codes.items()}
    return Made(json_of(_about(found, seen) | {"outputs": outputs}))


def _scores(found: Version, seen: Examined, space: str) -> Made:
    return Made(json_of(_about(found, seen)))


def _map(kind: str, found: Version, seen: Examined, space: str) -> Made:
    """A map as a .nii.gz file."""
    engine = found.engine
    made = engine.deviation_map if kind == "deviation" else engine.reconstruct
    values = made(seen.image, seen.covariates)[0]
    if space == "native":
        image = engine.pipeline.invert(values, seen.volume, intensity=kind == "reconstruction")
    else:
        grid = engine.pipeline.grid
        image = image_of(values, grid.matrix, sform_code_of(grid.space))
    headers = {
        "X-Kerasvae-In-Distribution": str(seen.in_distribution).lower(),
        "X-Kerasvae-Reasons": json.dumps(list(seen.reasons)),
        "X-Kerasvae-Percentiles": json.dumps(_about(found, seen)["percentiles"]),
        "X-Kerasvae-Model-Version": str(found.number),
        "Content-Disposition": f'attachment; filename="{kind}.nii.gz"',
    }
    return Made(gzip.compress(image.to_bytes(), 1, mtime=0), "application/gzip", headers)
