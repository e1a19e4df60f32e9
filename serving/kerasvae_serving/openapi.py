"""The server's own description in OpenAPI 3.1, and a page that shows it without help from elsewhere."""

from __future__ import annotations

from importlib.metadata import version as version_of
from importlib.resources import files
from typing import Any

from kerasvae_serving.repository import DECODER, Repository
from kerasvae_serving.settings import Settings

__all__ = ["describe", "page"]


def page() -> str:
    """HTML that shows the description."""
    return (files("kerasvae_serving") / "docs.html").read_text(encoding="utf-8")


_ERROR = {
    "description": "One sentence: what is wrong, the rule, what was received, and how to mend it.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_SPACE = {
    "name": "space",
    "in": "query",
    "schema": {"type": "string", "enum": ["native", "model"], "default": "native"},
    "description": "Of the map: the scan's own, or the model's grid.",
}
_SCAN_BODY = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "application/gzip": {"schema": {"type": "string", "format": "binary"}},
    },
}


def describe(repository: Repository, settings: Settings) -> dict[str, Any]:
    """The description, with the covariates of the models in service."""
    names: dict[str, str] = {}
    for name in repository.names:
        for covariate in repository.get(name).engine.manifest.covariates:
            names[covariate.name] = covariate.kind
    covariates = [
        {"name": name, "in": "query", "schema": {"type": "string"}, "description": f"Covariate, {kind}."}
        for name, kind in names.items()
    ]
    model, graph = (
        {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": known}}
        for known in (repository.names, [f"{name}{end}" for name in repository.names for end in ("", DECODER)])
    )
    paths: dict[str, Any] = {
        "/v2": _get("Name, version and extensions of the server."),
        "/v2/health/live": _get("Is the process alive?"),
        "/v2/health/ready": _get("Would a request be answered?", {"503": {"description": "Not now."}}),
        "/v2/models/{model}": _get("Inputs and outputs of a model.", parameters=[graph]),
        "/v2/models/{model}/ready": _get("Is this model in service?", parameters=[graph]),
        "/v2/models/{model}/infer": {
            "post": _operation(
                "Preprocessed images to latents, or codes to images, by the Open Inference Protocol.",
                {"application/json": {"schema": {"$ref": "#/components/schemas/InferResponse"}}},
                [graph],
                {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Infer"}}}},
            )
        },
        "/v2/repository/index": {"post": _operation("All versions, and bundles that failed.", _JSON, [], None)},
        "/v1/models": _get("All versions, and bundles that failed."),
        "/v1/models/{model}": _get("Versions of a model, as TF Serving says it.", parameters=[model]),
        "/v1/models/{model}/metadata": _get("Signatures of a model, as TF Serving says it.", parameters=[model]),
        "/metrics": {"get": _operation("Counters, for Prometheus.", {"text/plain": {}}, [], None)},
    }
    scan = {"application/json": {"schema": {"$ref": "#/components/schemas/Scan"}}}
    file = {"application/gzip": {"schema": {"type": "string", "format": "binary"}}}
    for verb, what, answer, more in (
        ("encode", "A scan's latents, and whether the model knows its like.", scan, []),
        ("score", "How unusual a scan is among the reference people.", scan, []),
        ("reconstruct", "The model's reconstruction of a scan, as NIfTI.", file, [_SPACE]),
        ("deviation", "Where a scan deviates from what the model expects, as NIfTI.", file, [_SPACE]),
    ):
        post = _operation(what, answer, [model, *more, *covariates], _SCAN_BODY)
        paths[f"/v1/models/{{model}}:{verb}"] = {"post": post}
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Predict"}}}}
    paths["/v1/models/{model}:predict"] = {"post": _operation("TF Serving's REST.", _JSON, [model], body)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kerasvae",
            "version": version_of("kerasvae"),
            "description": f"Bodies of at most {settings.max_body} bytes. This is not a medical device.",
        },
        "paths": paths,
        "components": {"schemas": _SCHEMAS, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        **({"security": [{"key": []}]} if settings.keys else {}),
    }


_JSON: dict[str, Any] = {"application/json": {}}
_NUMBERS = {"type": "object", "additionalProperties": {"type": "number"}}
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string"},
        "data": {"type": "array"},
        "parameters": {"type": "object"},
    },
}
_SCHEMAS: dict[str, Any] = {
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "Infer": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": _TENSOR},
            "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
        },
    },
    "InferResponse": {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {"outputs": {"type": "array", "items": _TENSOR}},
    },
    "Predict": {
        "type": "object",
        "properties": {"signature_name": {"type": "string"}, "instances": {"type": "array"}, "inputs": {}},
    },
    "Scan": {
        "type": "object",
        "required": ["model_name", "model_version", "in_distribution", "reasons", "scores", "percentiles"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "in_distribution": {"type": ["boolean", "null"]},
            "keeps_contract": {"type": "boolean"},
            "reasons": {"type": "array", "items": {"type": "string"}},
            "scores": _NUMBERS,
            "percentiles": _NUMBERS,
            "outputs": {"type": "object"},
        },
    },
}


def _get(what: str, more: dict[str, Any] | None = None, parameters: list[Any] | None = None) -> dict[str, Any]:
    made = _operation(what, _JSON, parameters or [], None)
    made["responses"] |= more or {}
    return {"get": made}


def _operation(what: str, content: dict[str, Any], parameters: list[Any], body: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"summary": what, "responses": {"200": {"description": what, "content": content}}}
    refusals = (
        ["401"]
        + (["404"] if parameters else [])
        + (["400", "408", "413", "415", "422", "429", "500", "501", "503", "504"] if body else [])
    )
    made["responses"] |= dict.fromkeys(refusals, _ERROR)
    if parameters:
        made["parameters"] = parameters
    if body:
        made["requestBody"] = body
    return made
