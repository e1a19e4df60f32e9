"""Remedies at work: a callback that takes numbers, learning rate and weights over when their time has come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasvae.training.remedy import Remedy

__all__ = ["Remedied"]


class Remedied(keras.callbacks.Callback):
    """Apply remedies at their epochs: weights and learning rate at once, numbers before each step.

    Args:
        remedies: In the order of their epochs.
    """

    def __init__(self, remedies: Sequence[Remedy] = ()) -> None:
        super().__init__()
        self._given = list(remedies)
        self._epoch = 0
        self._first: list[tuple[keras.Variable, NDArray]] | None = None

    @property
    def remedies(self) -> list[Remedy]:
        """What was done, in order."""
        return self._given

    def keep_first(self) -> None:
        """Remember the weights and the optimisers as they are, for remedies that begin again from them."""
        model = self.model
        kept = [model.step, model.people, *model.scheduled.values()]
        for optimizer in (model.optimizer, model.critic_optimizer):
            if optimizer is not None and isinstance(optimizer.learning_rate, keras.Variable):
                kept.append(optimizer.learning_rate)
        apart = {id(variable) for variable in kept}
        optimizers = [each for each in (model.optimizer, model.critic_optimizer) if each is not None]
        every = [*model.variables, *(variable for each in optimizers for variable in each.variables)]
        self._first = [(each, np.array(each)) for each in every if id(each) not in apart]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin what is due."""
        self._epoch = epoch
        for remedy in (each for each in self.remedies if each.epoch == epoch):
            if remedy.restart and self._first is not None:
                for variable, value in self._first:
                    variable.assign(value)
            if remedy.learning_rate is not None:
                self.model.optimizer.learning_rate.assign(remedy.learning_rate[1])
        self.model.remedied = self._remedied()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the numbers of the coming step."""
        steps = self.params.get("steps") or batch + 1
        self._set(self._epoch + batch / steps)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave the last values."""
        self.settle(self.model)

    def settle(self, model: keras.Model) -> None:
        """Set a model's numbers to where the remedies take them."""
        model.remedied = self._remedied()
        self._set(math.inf, model)

    def _remedied(self) -> frozenset[str]:
        """Numbers that no schedule may move any more."""
        names = {name for each in self.remedies for name in each.numbers}
        return frozenset(names | {"learning_rate" for each in self.remedies if each.learning_rate is not None})

    def _set(self, time: float, model: keras.Model | None = None) -> None:
        last = {name: remedy for remedy in self.remedies for name in remedy.numbers}
        for name, remedy in last.items():
            (model or self.model).scheduled[name].assign(remedy.value(name, time))
