"""Graphs with fewer bits: float16, or int8 calibrated on people whom no weight was fitted to.

Inputs and outputs stay float32. int8 is static quantisation (Jacob et al. 2018, Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference, arXiv 1712.05877): each tensor gets the scale that the
calibration people's values ask for, weights one for each output channel.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from kerasvae.bundle import Reduced, graph_file, largest_difference
from kerasvae.errors import ArgumentError
from kerasvae_export.parity import open_onnx, run_onnx
from kerasvae_export.reference import rounded

__all__ = ["PRECISIONS", "check_precisions", "correlations", "golden_difference", "reduce_graphs", "write_reduced"]

PRECISIONS = ("float16", "int8")
QUANTISED = ["Conv", "Gemm", "MatMul"]
"""What is computed in int8; all else stays float32."""


def check_precisions(precisions: Sequence[str], people: int) -> None:
    """Refuse unknown precisions, repeated ones, and any without people to calibrate and judge them: ArgumentError."""
    if unknown := [name for name in precisions if name not in PRECISIONS]:
        raise ArgumentError("--quantize", rule=f"name {' or '.join(PRECISIONS)}", got=unknown[0], fix="Choose of these")
    if len(set(precisions)) < len(precisions):
        raise ArgumentError("--quantize", rule="name each precision once", got=list(precisions), fix="Leave one out")
    if precisions and people < 2:
        raise ArgumentError(
            "--quantize",
            rule="have two people or more whom no weight was fitted to, to calibrate and to judge by",
            got=people,
            fix="Give the split calibration people",
        )


def reduce_graphs(
    folder: Path,
    precision: str,
    people: Mapping[str, NDArray[Any]],
    codes: Mapping[str, NDArray[Any]],
    golden: Mapping[str, NDArray[Any]],
    first: str,
) -> Reduced:
    """Write encoder and decoder in a precision, and compare them with the float32 graphs.

    Args:
        folder: With the float32 graphs.
        precision: One of `PRECISIONS`.
        people: Inputs of the encoder by name, of people whom no weight was fitted to.
        codes: Inputs of the decoder for the same people.
        golden: Arrays of the golden case.
        first: Name of the encoder's first output.
    """
    made = {}
    for part, given in (("encoder", people), ("decoder", codes)):
        files = folder / graph_file(part), folder / graph_file(part, precision)
        write_reduced(*files, precision, given)
        made[part] = [run_onnx(open_onnx(file), **given) for file in files]
    latents = [each[first].reshape(len(each[first]), -1) for each in made["encoder"]]
    images = [each["reconstruction"].astype(np.float64) for each in made["decoder"]]
    between = 2 * images[0].var(axis=0, ddof=1).mean()
    return Reduced(
        people=len(images[0]),
        latent_correlation=rounded(correlations(latents[1], latents[0])),
        reconstruction_difference=float(np.sqrt(np.square(images[1] - images[0]).mean() / max(between, 1e-30))),
        golden_difference=golden_difference(folder, precision, golden),
    )


def golden_difference(folder: Path, precision: str, golden: Mapping[str, NDArray[Any]]) -> float:
    """Largest difference of both graphs of a precision from the float32 ones on the golden case, in relative terms."""
    differences = []
    for part in ("encoder", "decoder"):
        plain, few = (open_onnx(folder / graph_file(part, each)) for each in ("float32", precision))
        given = {entry.name: golden[entry.name] for entry in plain.get_inputs()}
        expected, found = run_onnx(plain, **given), run_onnx(few, **given)
        differences += [largest_difference(found[name], value) for name, value in expected.items()]
    return max(differences)


def write_reduced(source: Path, target: Path, precision: str, people: Mapping[str, NDArray[Any]]) -> None:
    """Write a graph with fewer bits beside a float32 one.

    Args:
        source: The float32 graph.
        target: The new file.
        precision: One of `PRECISIONS`.
        people: Inputs by name, (n, …), of people whom no weight was fitted to.
    """
    whole = onnx.load(source)
    if precision == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values that float16 rounds to 0
            made = convert_float_to_float16(whole, keep_io_types=True)
        ordered = OnnxModel(made)  # the casts at inputs and outputs stand at the end
        ordered.topological_sort()
        onnx.save(ordered.model, target)
    else:
        _quantise(source, target, people)
        made = onnx.load(target)
        del made.metadata_props[:]
        made.metadata_props.extend(whole.metadata_props)
        onnx.save(made, target)
    onnx.checker.check_model(str(target), full_check=False)


def _quantise(source: Path, target: Path, people: Mapping[str, NDArray[Any]]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = _rows(people)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.rows, None)

    level = logging.getLogger().level
    logging.disable(logging.WARNING)  # advice to optimise the graph first, which ONNX Runtime does when it loads it
    try:
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # weights of 7 bits: sums of 8 overflow on processors without VNNI, tenfold the error
        )
    finally:
        logging.disable(logging.NOTSET)
        logging.getLogger().setLevel(level)


def _rows(people: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
    """One person at a time."""
    for row in range(len(next(iter(people.values())))):
        yield {name: np.ascontiguousarray(values[row : row + 1]) for name, values in people.items()}


def correlations(found: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """Pearson correlation over people of each dimension, (d,); of one that is expected not to vary, 1 if it does not.

    Args:
        found: (n, d).
        expected: The same.
    """
    a, b = (np.asarray(each, np.float64) - np.mean(each, axis=0, dtype=np.float64) for each in (found, expected))
    scale = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    flat = scale <= 1e-12 * max(float(np.abs(expected).max()), 1.0) ** 2 * len(a)
    agreed = np.abs(a - b).max(axis=0) <= 1e-6
    return np.where(flat, agreed.astype(float), (a * b).sum(axis=0) / np.where(flat, 1.0, scale))
