"""Schedules: a value for each fraction of the training, owned by the training loop.

Bowman et al. 2016, Generating Sentences from a Continuous Space, arXiv 1511.06349, section 3.1: KL warm-up.
"""

from __future__ import annotations

from typing import Any

import keras

__all__ = ["BetaWarmUp", "warm_up"]


def warm_up(fraction: float, *, end: float, final: float) -> float:
    """Rise linearly from 0 to `final` while `fraction` of the steps goes from 0 to `end`; then constant.

    >>> [warm_up(f, end=0.5, final=1.0) for f in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.5, 1.0, 1.0]
    """
    return final if fraction >= end else final * fraction / end


class BetaWarmUp(keras.callbacks.Callback):
    """Set the model's `beta` before each step from the fraction of the training that is done.

    Args:
        total_steps: Steps of the whole training, also where it is resumed.
        end: Fraction of the steps after which beta is `final`.
        final: The value after warm-up.
    """

    def __init__(self, total_steps: int, *, end: float, final: float) -> None:
        super().__init__()
        self.total_steps = total_steps
        self.end = end
        self.final = final

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Follow the model's own step counter, which survives an interruption."""
        fraction = int(self.model.step) / self.total_steps
        self.model.beta.assign(warm_up(fraction, end=self.end, final=self.final))
