"""What runs a graph: ONNX Runtime's execution providers, by short names, the fastest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kerasvae.errors import ArgumentError
from kerasvae.runtime import onnxruntime

__all__ = ["AUTO", "PROVIDERS", "candidates", "chain"]

AUTO = "auto"
PROVIDERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # TF32 would keep ten bits of a float32's mantissa
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
    # else OpenVINO computes in bfloat16 where the processor can
    "openvino": ("OpenVINOExecutionProvider", {"device_type": "CPU", "precision": "ACCURACY"}),
    "cpu": ("CPUExecutionProvider", {}),
}
"""ONNX Runtime's name of each, and the options that keep what a bundle promises."""


def candidates(provider: str, available: Sequence[str] | None = None) -> list[str]:
    """Names to try, in order.

    Args:
        provider: One of `PROVIDERS`, or "auto": all that this ONNX Runtime has, the fastest first.
        available: ONNX Runtime's names of what it has; None asks it.

    Raises:
        ArgumentError: If the name is unknown, or this ONNX Runtime was built without it.

    >>> candidates("auto", ["CPUExecutionProvider", "CUDAExecutionProvider"])
    ['cuda', 'cpu']
    """
    available = onnxruntime.get_available_providers() if available is None else available
    here = [name for name, (known, _) in PROVIDERS.items() if known in available]
    if provider == AUTO:
        return here
    if provider not in PROVIDERS:
        rule = f"be {AUTO}, {', '.join(PROVIDERS)}"
        raise ArgumentError("--provider", rule=rule, got=repr(provider), fix="Choose one")
    if provider not in here:
        extra = {"cuda": "serve-gpu", "openvino": "serve-openvino"}.get(provider, "serve")
        raise ArgumentError(
            "--provider",
            rule="be one that this ONNX Runtime was built with",
            got=f"{provider}, and it has {', '.join(here)}",
            fix=f"Install kerasvae with the extra {extra!r} in an environment of its own",
        )
    return [provider]


def chain(name: str) -> list[tuple[str, Mapping[str, Any]]]:
    """What ONNX Runtime is told: the provider, and the CPU for what that cannot do."""
    return [PROVIDERS[name]] if name == "cpu" else [PROVIDERS[name], PROVIDERS["cpu"]]
