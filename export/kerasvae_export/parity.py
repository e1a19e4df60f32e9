"""How far what was exported is from the Keras model, on the golden case: measured, not promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.bundle import DECODER, ENCODER, largest_difference
from kerasvae.preprocess.nifti import image_of, sform_code_of
from kerasvae.runtime import onnxruntime
from kerasvae_export.contract_graph import OUT_OF_PLACE

__all__ = ["TOLERANCE", "onnx_differences", "open_onnx", "run_onnx", "saved_model_differences", "scan_of"]

TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest absolute value of the output: float32 sums in another order."""


def open_onnx(path: Path) -> onnxruntime.InferenceSession:
    """An ONNX graph on the CPU with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_onnx(session: onnxruntime.InferenceSession, **inputs: NDArray) -> dict[str, NDArray]:
    """Outputs of an ONNX graph by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def onnx_differences(folder: Path, golden: dict[str, NDArray]) -> dict[str, float]:
    """Relative difference of every output of both ONNX graphs from the golden arrays, as ``onnx/<output>``."""
    outputs: dict[str, NDArray] = {}
    for name in (ENCODER, DECODER):
        session = open_onnx(folder / name)
        outputs |= run_onnx(session, **{entry.name: golden[entry.name] for entry in session.get_inputs()})
    return {f"onnx/{name}": largest_difference(value, golden[name]) for name, value in outputs.items()}


def scan_of(golden: dict[str, NDArray]) -> bytes:
    """The golden scan as a NIfTI file."""
    content: bytes = image_of(golden["raw"], golden["raw_affine"], sform_code_of("native")).to_bytes()
    return content


def saved_model_differences(folder: Path, golden: dict[str, NDArray]) -> dict[str, float]:
    """The same for the signatures of the SavedModel, as ``saved_model/<signature>/<output>``."""
    loaded = tf.saved_model.load(str(folder))
    differences = {}
    for signature in sorted(loaded.signatures.keys() - {"serving_default"}):
        function = loaded.signatures[signature]
        given = dict(golden)
        if "nifti" in (names := function.structured_input_signature[1]):
            given["nifti"] = np.array([scan_of(golden)], dtype=object)
        try:
            outputs = function(**{name: tf.constant(given[name], spec.dtype) for name, spec in names.items()})
        except tf.errors.InvalidArgumentError as error:
            if "nifti" in names and OUT_OF_PLACE in error.message:
                continue  # a model that cannot draw an image that keeps its own contract: nothing to compare
            raise
        for name, value in outputs.items():
            differences[f"saved_model/{signature}/{name}"] = largest_difference(value.numpy(), golden[name])
    return differences
