"""Refuse another Keras backend with one sentence, before anything else fails with many."""

from __future__ import annotations

import os

from kerasvae.errors import ModelError


def require_tensorflow() -> None:
    """Check that Keras runs on TensorFlow.

    Raises:
        ModelError: If the environment chose another backend.
    """
    chosen = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if chosen != "tensorflow":
        raise ModelError(
            "KERAS_BACKEND",
            rule='be "tensorflow", on which TensorFlow Probability runs',
            got=repr(chosen),
            fix="Unset KERAS_BACKEND and start Python again",
        )
