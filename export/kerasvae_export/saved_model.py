"""TensorFlow's SavedModel, with the signatures that TF Serving and its clients call by name."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from kerasvae.errors import StorageError
from kerasvae_export.graphs import Graph

__all__ = ["write_saved_model"]


def write_saved_model(made: dict[str, Graph], folder: Path) -> None:
    """Write each function as a signature of its name, ``encode`` also as ``serving_default``.

    Args:
        made: From `kerasvae_export.graphs.graphs`. The variables that they use are stored, no others.
        folder: A new folder; TF Serving wants its name to be the version, an integer.

    Raises:
        StorageError: If it cannot be written.
    """
    module = tf.Module()
    module.functions = {name: graph.function for name, graph in made.items()}
    signatures = {name: graph.function.get_concrete_function() for name, graph in made.items()}
    used = {variable.ref(): variable for signature in signatures.values() for variable in signature.variables}
    module.weights = list(used.values())
    try:
        tf.saved_model.save(module, str(folder), signatures={**signatures, "serving_default": signatures["encode"]})
    except tf.errors.OpError as error:  # TensorFlow's own form of a full disk
        raise StorageError(
            folder,
            rule="be a place that can be written to",
            got=error.message.splitlines()[0],
            fix="Free some space or choose another folder; what stood there before is untouched",
        ) from error
