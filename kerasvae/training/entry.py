"""What the guard notes of an epoch, and how it is kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kerasvae.metrics.diagnosis import Diagnosis, Figures
from kerasvae.training.remedy import Remedy

__all__ = ["Entry"]


@dataclass(frozen=True)
class Entry:
    """One epoch as the guard saw it.

    Attributes:
        epoch: Number of epochs done; 0 is the state before the first.
        figures: Of the validation people.
        diagnoses: All that is wrong, notes included.
        lasting: Names of what has been wrong for so many epochs in a row that the guard speaks or acts.
        remedy: What was done about it, from the next epoch on.
    """

    epoch: int
    figures: Figures
    diagnoses: tuple[Diagnosis, ...] = ()
    lasting: tuple[str, ...] = ()
    remedy: Remedy | None = None

    def to_config(self) -> dict[str, Any]:
        """As JSON holds it."""
        remedy = None if self.remedy is None else {**self.remedy.to_config(), "text": self.remedy.describe()}
        return {**dataclasses.asdict(self), "remedy": remedy}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Entry:
        """The entry that `to_config` described."""
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else math.nan if value is None else value
            for name, value in config["figures"].items()
        }
        remedy = config["remedy"]
        return cls(
            config["epoch"],
            Figures(**known),
            tuple(Diagnosis(**each) for each in config["diagnoses"]),
            tuple(config["lasting"]),
            None
            if remedy is None
            else Remedy.from_config({name: value for name, value in remedy.items() if name != "text"}),
        )
