"""Encode scans by Triton: they are prepared here, by the bundle's pipeline, and only arrays are sent.

    python encode.py localhost:8001 NAME BUNDLE sub-01_T1w.nii.gz sub-02_T1w.nii.gz

Of the bundle its manifest is used, and no graph. Prints a line for each scan: its name, a tab, and a JSON object with
the encoder's outputs. A scan that is refused is named on the error stream, and makes the exit status 1.
"""

from __future__ import annotations

import json
import sys

from tritonclient import grpc

from kerasvae.bundle import read_bundle
from kerasvae.errors import VolumeError
from kerasvae.preprocess import Pipeline

SECONDS = 60


def main(address: str, model: str, bundle: str, *scans: str) -> int:
    """One request for each scan."""
    manifest = read_bundle(bundle).manifest
    pipeline, refused = Pipeline.from_config(manifest.pipeline), 0
    with grpc.InferenceServerClient(address) as client:
        for scan in scans:
            try:
                image = pipeline.apply(scan)[None]
            except VolumeError as error:
                print(error, file=sys.stderr)
                refused = 1
                continue
            given = grpc.InferInput("image", image.shape, "FP32")
            given.set_data_from_numpy(image)
            answer = client.infer(model, [given], client_timeout=SECONDS)
            outputs = {output.name: answer.as_numpy(output.name)[0].tolist() for output in manifest.outputs}
            print(scan, json.dumps(outputs), sep="\t")
    return refused


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
