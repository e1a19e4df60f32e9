"""Inference from a bundle with ONNX Runtime, a server of it, and clients; no TensorFlow."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kerasvae_serving.client import AsyncClient, Client, Encoded
    from kerasvae_serving.cohort import encode_files
    from kerasvae_serving.engine import Engine
    from kerasvae_serving.layout import deploy
    from kerasvae_serving.ray_driver import encode_with_ray
    from kerasvae_serving.shards import gather

__all__ = ["AsyncClient", "Client", "Encoded", "Engine", "deploy", "encode_files", "encode_with_ray", "gather"]

_HOMES = {
    "AsyncClient": "client", "Client": "client", "Encoded": "client", "Engine": "engine", "deploy": "layout",
    "encode_files": "cohort", "encode_with_ray": "ray_driver", "gather": "shards",
}  # fmt: skip
"""The module of each name: it is imported when first asked for, so that a server starts with what it needs alone."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
