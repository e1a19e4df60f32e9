"""ONNX Runtime, as every part of kerasvae imports it: told beforehand not to report to its maker what it runs."""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reads this once, when it is imported

import onnxruntime

__all__ = ["onnxruntime"]
