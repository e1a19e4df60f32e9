"""From a trained model to one folder that can be deployed: SavedModel, ONNX, pipeline, proof of parity."""

from kerasvae_export.signature import Signer, sign
from kerasvae_export.verify import Check, verify
from kerasvae_export.write import export, export_run

__all__ = ["Check", "Signer", "export", "export_run", "sign", "verify"]
