"""ONNX graphs of encoder and decoder, by tf2onnx."""

from __future__ import annotations

from pathlib import Path

import onnx
import tf2onnx

from kerasvae_export.graphs import Graph

__all__ = ["OPSET", "write_onnx"]

OPSET = 18
"""The highest operator set that tf2onnx 1.17 writes."""


def write_onnx(graph: Graph, path: Path, metadata: dict[str, str]) -> None:
    """Convert one function and check the result against the ONNX specification.

    Args:
        graph: From `kerasvae_export.graphs.graphs`; the names of its tensors are kept, its batch axis stays free.
        path: The file to write.
        metadata: Entries of the model's metadata.
    """
    proto, _ = tf2onnx.convert.from_function(graph.function, input_signature=graph.inputs, opset=OPSET)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    _drop_unused_operator_sets(proto)
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def _drop_unused_operator_sets(proto: onnx.ModelProto) -> None:
    """Keep the import of a domain only where a node is of it: some engines refuse domains that they do not know."""
    used = {node.domain for node in proto.graph.node}
    kept = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
