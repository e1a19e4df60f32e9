"""Remedies: which number is changed against which ailment, and what it is at each moment after."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kerasvae.metrics.diagnosis import HEAVY, Diagnosis

__all__ = ["CURABLE", "Condition", "Remedy", "prescribe", "replayed"]

DEAD = ("mean-brain trap", "posterior collapse")
CURABLE = (*DEAD, "over-regularised", "under-regularised", "overfitted")
"""What a remedy is known against, the most urgent first."""
RAMP = 5
"""Epochs over which a number moves to where a remedy wants it."""
SLOW, FASTER, SLOWER = 1e-4, 10.0, 0.3
"""A learning rate this small or smaller is raised tenfold where a trap has no other cause; overfitting slows it."""
LEAST_FREE = 0.5
"""Nats that a dimension gets for nothing at least once free bits are the remedy."""


@dataclass(frozen=True)
class Condition:
    """Numbers that a remedy may turn, as they are now; None where the model has no such number.

    Attributes:
        beta: Weight of the KL.
        fitting_beta: The weight with which the KL would count as in the ELBO, were the scale at its best for residuals
            as small as PCA's; 1 where the scale follows the residuals.
        free_bits: Nats a dimension.
        learning_rate: Of the optimiser.
    """

    beta: float | None = None
    fitting_beta: float = 1.0
    free_bits: float | None = None
    learning_rate: float | None = None


@dataclass(frozen=True)
class Remedy:
    """What is changed, and when.

    Attributes:
        epoch: Epochs done when it begins.
        against: Name of the diagnosis.
        restart: Whether weights and optimiser go back to where training began.
        numbers: Scheduled number to its first and last value, between which it moves along a line over `ramp` epochs.
        learning_rate: Before and after; None where it stays.
        ramp: Epochs.
    """

    epoch: int
    against: str
    restart: bool = False
    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    learning_rate: tuple[float, float] | None = None
    ramp: int = RAMP

    def value(self, name: str, time: float) -> float:
        """The number at a time in epochs since training began, fractions included."""
        first, last = self.numbers[name]
        return last if time >= self.epoch + self.ramp else first + (last - first) * (time - self.epoch) / self.ramp

    @property
    def settled(self) -> int:
        """The epoch at which all numbers have arrived."""
        return self.epoch + (self.ramp if self.numbers else 0)

    def describe(self) -> str:
        """What was done, as a sentence.

        >>> Remedy(6, "mean-brain trap", True, {"beta": (0.0, 1e-5)}).describe()
        'Began again from the first weights; beta rose from 0 to 1e-05 over 5 epochs.'
        """
        parts = ["began again from the first weights"] if self.restart else []
        for name, (first, last) in self.numbers.items():
            parts.append(
                f"{name} {'rose' if last >= first else 'fell'} from {first:.3g} to {last:.3g} over {self.ramp} epochs"
            )
        if self.learning_rate:
            parts.append(f"the learning rate went from {self.learning_rate[0]:.3g} to {self.learning_rate[1]:.3g}")
        text = "; ".join(parts)
        return f"{text[:1].upper()}{text[1:]}."

    def to_config(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self) | {"numbers": {name: list(pair) for name, pair in self.numbers.items()}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Remedy:
        """The remedy that `to_config` described."""
        numbers = {name: (float(first), float(last)) for name, (first, last) in config["numbers"].items()}
        rate = config["learning_rate"]
        return cls(**{**config, "numbers": numbers, "learning_rate": None if rate is None else (rate[0], rate[1])})


def prescribe(
    diagnoses: Sequence[Diagnosis], condition: Condition, epoch: int, earlier: Sequence[Remedy] = ()
) -> Remedy | None:
    """The remedy against the most urgent of the diagnoses; None where there is none.

    - The trap and a posterior collapse: training begins again from its first weights, for an encoder that says the same
      of everybody gets no gradient from a decoder that does not listen, and stays as it is whatever the β. β rises from
      0 to where the KL counts as in the ELBO if it was dearer by a factor of 2 or more, else to half of what it was;
      free bits are doubled, to 0.5 nats at least. Where neither was the cause, or has helped before, a learning rate of
      10⁻⁴ or less is multiplied by 10.
    - Over-regularised: β goes to where the KL counts as in the ELBO; so it does where it is under-regularised.
    - Overfitted: the learning rate is multiplied by 0.3.

    Args:
        diagnoses: What has lasted.
        condition: Numbers as they are.
        epoch: Epochs done.
        earlier: Remedies so far.
    """
    found = {each.name for each in diagnoses if each.level != "note"}
    name = next((name for name in CURABLE if name in found), None)
    if name is None:
        return None
    rate = condition.learning_rate
    if name == "overfitted":
        slower = None if rate is None else (rate, SLOWER * rate)
        return Remedy(epoch, name, learning_rate=slower) if slower else None
    numbers: dict[str, tuple[float, float]] = {}
    faster, beta, fitting = None, condition.beta, condition.fitting_beta
    dear = beta is not None and beta > HEAVY * fitting
    if beta is not None and math.isfinite(fitting):
        if name == "under-regularised":
            numbers["beta"] = (beta, fitting)
        else:
            numbers["beta"] = (0.0, fitting if dear else beta / 2)
    if name in DEAD:
        if condition.free_bits is not None:
            numbers["free_bits"] = (max(2 * condition.free_bits, LEAST_FREE),) * 2
        if rate is not None and rate <= SLOW and (not dear or any(each.against in DEAD for each in earlier)):
            faster = (rate, FASTER * rate)
    if not numbers and not faster:
        return None
    return Remedy(epoch, name, restart=name in DEAD, numbers=numbers, learning_rate=faster)


def replayed(remedies: Sequence[Remedy], best: int) -> tuple[int, list[Remedy]]:
    """How to come to the weights of an epoch without the way that a restart threw away.

    Args:
        remedies: In the order of their epochs.
        best: The epoch, as a number of epochs done.

    Returns:
        Number of epochs, and the remedies at their places in it, without restarts.

    >>> epochs, again = replayed([Remedy(6, "mean-brain trap", True, {"beta": (0.0, 1e-5)})], 25)
    >>> epochs, again[0].epoch, again[0].restart
    (19, 0, False)
    """
    begun = [each for each in remedies if each.epoch < best]
    first = max((each.epoch for each in begun if each.restart), default=0)
    moved = [dataclasses.replace(each, epoch=max(0, each.epoch - first), restart=False) for each in begun]
    return best - first, moved
