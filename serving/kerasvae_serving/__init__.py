"""Inference from a bundle with ONNX Runtime, and its layout for servers; no TensorFlow."""

from kerasvae_serving.deploy import deploy
from kerasvae_serving.engine import Engine
from kerasvae_serving.files import encode_files

__all__ = ["Engine", "deploy", "encode_files"]
