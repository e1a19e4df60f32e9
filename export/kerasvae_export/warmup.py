"""Requests that TF Serving sends itself before it serves: the golden case, once for each signature.

TF Serving reads them from `assets.extra/tf_serving_warmup_requests` of a version, a TFRecord file of `PredictionLog`
messages, and does not serve the version if one of them fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kerasvae_export.parity import scan_of

__all__ = ["WARMUP", "write_warmup"]

WARMUP = "assets.extra/tf_serving_warmup_requests"


def write_warmup(folder: Path, name: str, signatures: Mapping[str, Sequence[str]], golden: dict[str, Any]) -> None:
    """Write the requests.

    Args:
        folder: Of one version of a SavedModel.
        name: Of the model, as it will be served.
        signatures: Names of the inputs of each signature that the golden case is asked for.
        golden: Arrays of the golden case; `nifti` is made of them.
    """
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    path = folder / WARMUP
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in signatures.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = name, signature
            for key in inputs:
                value = [scan_of(golden)] if key == "nifti" else np.asarray(golden[key])
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
