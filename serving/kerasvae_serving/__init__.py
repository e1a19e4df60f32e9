"""Inference from a bundle with ONNX Runtime; no TensorFlow."""

from kerasvae_serving.engine import Engine
from kerasvae_serving.files import encode_files

__all__ = ["Engine", "encode_files"]
