"""Objectives that add something to another one."""

from __future__ import annotations

from typing import Any

import keras

from kerasvae.errors import ArgumentError
from kerasvae.objectives.base import Objective

__all__ = ["Wrapper"]

INHERITED = (
    *("samples", "memory", "scheduled", "extras", "aggregates", "stops_density", "site"),
    *("code_weight", "build_critic", "critic_optimizer", "critic_loss"),
)
"""What a wrapper has from the objective within, beside its terms, unless it has its own."""


class Wrapper(Objective):
    """Another objective, to whose terms something is added. All that is asked of an objective is asked of that one.

    Args:
        objective: What is added to; its schedules stay.
        constants: Those of the addition.

    Raises:
        ArgumentError: If it is none, or adds the same already.
    """

    objective: Objective

    def __init__(self, objective: Objective | dict[str, Any], **constants: Any) -> None:
        inner = keras.saving.deserialize_keras_object(objective) if isinstance(objective, dict) else objective
        within = inner
        while isinstance(within, Wrapper) and not isinstance(within, type(self)):
            within = within.objective
        if not isinstance(inner, Objective) or isinstance(within, type(self)):
            got = type(within).__name__
            raise ArgumentError("objective", rule="be an objective of another kind", got=got, fix="Use ELBO()")
        super().__init__(**{**inner.constants, **constants})
        self.objective = inner
        self.__dict__.update({name: getattr(inner, name) for name in INHERITED})

    @property
    def innermost(self) -> Objective:
        """That of the objective within."""
        return self.objective.innermost

    def _report(self, **added: tuple[str, ...]) -> None:
        """Names beside those of the objective within: scheduled, extras or aggregates."""
        self.__dict__.update({key: (*getattr(self.objective, key), *names) for key, names in added.items()})
