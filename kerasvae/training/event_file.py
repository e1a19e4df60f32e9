"""Scalars for TensorBoard, written by TensorFlow alone: TensorBoard itself need not be installed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

__all__ = ["EventFile"]


class EventFile:
    """A folder of TensorBoard's event files; the first file is made with the first scalars.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.fspath(folder)
        self._writer: Any = None

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Add scalars by name at a step, and put them on the disk."""
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(self.folder)
        metadata = tf.compat.v1.SummaryMetadata(
            plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"),
            data_class="DATA_CLASS_SCALAR",
        )
        with self._writer.as_default():
            for name, value in scalars.items():
                tf.summary.write(name, tf.constant(float(value), tf.float32), step=step, metadata=metadata)
        self._writer.flush()

    def close(self) -> None:
        """Close the file; more scalars begin another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
