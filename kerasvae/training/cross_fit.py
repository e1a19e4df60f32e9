"""Train what stands beside a linear core on people whom the core does not know: see `kerasvae.networks.left_out`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.data.dataset import training_dataset
from kerasvae.errors import ArgumentError
from kerasvae.networks import Core, use_core
from kerasvae.types import Mask

__all__ = ["CrossFit"]


class CrossFit(keras.callbacks.Callback):
    """Give a model the core of each batch's fold, and the core of all whenever it is judged, saved or left.

    Batches must hold people of one fold only and come fold by fold, in their order, in each epoch: those of `dataset`.

    Args:
        core: Of all people, from `fit_core(..., cross_fit=True)`; the model was made of it by `linear_start`.
        mask: As given to `linear_start`.
        batch_size: Subjects a batch.

    Raises:
        ArgumentError: If the core has no others.
    """

    def __init__(self, core: Core, mask: Mask | None, batch_size: int) -> None:
        super().__init__()
        if not core.left_out:
            raise ArgumentError(
                "core", rule="hold cores of left-out people", got="none", fix="Make it by fit_core(..., cross_fit=True)"
            )
        self.core = core
        self.folds = core.left_out
        self.mask = mask
        self.batch_size = batch_size
        steps = [-(-len(fold.rows) // batch_size) for fold in self.folds]
        self.fold_of_batch = np.repeat(np.arange(len(self.folds)), steps)
        self.current: int | None = None

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return len(self.fold_of_batch)

    def dataset(
        self, inputs: Mapping[str, NDArray[np.float32]] | NDArray[np.float32], *, epochs: int, **options: Any
    ) -> tf.data.Dataset:
        """Batches as this callback needs them.

        Args:
            inputs: The images that the cores are of, (n, *data_shape), or all that the model takes of them, by name.
            epochs: Number of epochs of the whole training.
            options: What else `kerasvae.data.dataset.training_dataset` takes, e.g. `seed`.
        """
        given = inputs if isinstance(inputs, Mapping) else {"image": inputs}
        groups = self.groups
        return training_dataset(
            given, np.arange(len(groups)), batch_size=self.batch_size, epochs=epochs, groups=groups, **options
        )

    @property
    def groups(self) -> NDArray[np.int64]:
        """The fold of each row."""
        number = np.zeros(sum(len(fold.rows) for fold in self.folds), np.int64)
        for index, fold in enumerate(self.folds):
            number[fold.rows] = index
        return number

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """The core that does not know the batch's people."""
        self._use(int(self.fold_of_batch[batch]))

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """The core of all."""
        self._use(None)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """The core of all."""
        self._use(None)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """The core of all."""
        self._use(None)

    def _use(self, fold: int | None) -> None:
        if fold != self.current:
            core = self.core if fold is None else self.folds[fold].core
            use_core(self.model.encoder, self.model.decoder, core, self.mask)
            self.current = fold
