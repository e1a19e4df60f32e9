"""Train what stands beside a linear core on people whom the core does not know: see `kerasvae.networks.left_out`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.data.augment import Augmentation
from kerasvae.data.dataset import training_dataset
from kerasvae.networks import Core, LeftOut, use_core
from kerasvae.types import Mask

__all__ = ["CrossFit"]


class CrossFit(keras.callbacks.Callback):
    """Give a model the core of each batch's fold, and the core of all whenever it is judged, saved or left.

    Batches must hold people of one fold only and come fold by fold, in their order, in each epoch: those of `dataset`.

    Args:
        core: Of all people; the model was made with it by `linear_start`.
        folds: From `left_out_cores`.
        mask: As given to `linear_start`.
        batch_size: Subjects a batch.
    """

    def __init__(self, core: Core, folds: Sequence[LeftOut], mask: Mask | None, batch_size: int) -> None:
        super().__init__()
        self.core = core
        self.folds = list(folds)
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
        self,
        inputs: Mapping[str, NDArray[np.float32]] | NDArray[np.float32],
        *,
        epochs: int,
        first_epoch: int = 0,
        seed: int = 0,
        rows: NDArray[np.int64] | None = None,
        augmentation: Augmentation | None = None,
    ) -> tf.data.Dataset:
        """Batches as this callback needs them; see `kerasvae.data.dataset.training_dataset`.

        Args:
            inputs: The images that the cores are of, (n, *data_shape), or all that the model takes of them, by name.
            epochs: Number of epochs of the whole training.
            first_epoch: The epoch to begin with.
            seed: Seed of the order, and of what is drawn.
            rows: Row of the cohort of each image, (n,); by default its position.
            augmentation: Random changes of the images.
        """
        given = inputs if isinstance(inputs, Mapping) else {"image": inputs}
        return training_dataset(
            given,
            np.arange(len(self.groups)) if rows is None else rows,
            batch_size=self.batch_size,
            epochs=epochs,
            first_epoch=first_epoch,
            seed=seed,
            augmentation=augmentation,
            groups=self.groups,
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
