"""Schedules: a number for each fraction of the training, and the callback that moves an objective's numbers by them.

Bowman et al. 2016, Generating Sentences from a Continuous Space, arXiv 1511.06349, section 3.1: the weight of the KL
rises, along a line or a sigmoid. Fu et al. 2019, Cyclical Annealing Schedule, NAACL, arXiv 1903.10145, section 3: it
rises again and again. Loshchilov & Hutter 2017, SGDR, ICLR, arXiv 1608.03983, equation 5: the half cosine.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import keras

from kerasvae.errors import ArgumentError, nearest

__all__ = ["Constant", "Cosine", "Cyclical", "Linear", "Schedule", "Schedules", "Sigmoid"]


@dataclass(frozen=True)
class Schedule:
    """A function from the fraction of the training that is done, in [0, 1], to a number.

    Numbers are kept as floats. Two schedules of the same kind and numbers are equal.

    Attributes:
        kind: Name in configurations.
    """

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _finite(field.name, getattr(self, field.name)))

    def __call__(self, fraction: float) -> float:
        """The number at `fraction` of the training, which must lie in [0, 1]."""
        fraction = _finite("fraction", fraction)
        if not 0 <= fraction <= 1:
            raise ArgumentError("fraction", rule="lie in [0, 1]", got=fraction, fix="Divide steps done by all steps")
        return self._value(fraction)

    def _value(self, fraction: float) -> float:
        raise NotImplementedError

    def to_config(self) -> dict[str, Any]:
        """Kind and numbers, as JSON holds them."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Schedule:
        """The schedule that `to_config` described.

        Raises:
            ArgumentError: If the kind is unknown or another than this class's, or a number is unknown, missing or bad.
        """
        kinds = {name: made for name, made in KINDS.items() if issubclass(made, cls)}
        kind = config.get("kind")
        if kind not in kinds:
            close = nearest(str(kind), kinds)
            raise ArgumentError(
                "A schedule's kind",
                rule=f"be one of {', '.join(kinds)}",
                got=repr(kind),
                fix=f"Did you mean {close!r}?" if close else "Choose one of them",
            )
        given = {name: value for name, value in config.items() if name != "kind"}
        fields = dataclasses.fields(kinds[kind])
        needed = [field.name for field in fields if field.default is dataclasses.MISSING]
        if not set(needed) <= set(given) <= {field.name for field in fields}:
            raise ArgumentError(
                f"The schedule {kind!r}",
                rule=f"have the numbers {', '.join(field.name for field in fields)}, of which {', '.join(needed)} must "
                "be given",
                got=", ".join(given) or "none",
                fix="Correct their names",
            )
        return kinds[kind](**given)


@dataclass(frozen=True)
class Constant(Schedule):
    """Always the same.

    Args:
        value: The number.
    """

    value: float
    kind: ClassVar[str] = "constant"

    def _value(self, fraction: float) -> float:
        return self.value


@dataclass(frozen=True)
class _Ramp(Schedule):
    """From one number to another and no way back: exactly `start` up to `begin`, exactly `stop` from `end` on.

    Args:
        start: The number at first.
        stop: The number at last.
        begin: Fraction at which it begins to move, in [0, 1).
        end: Fraction at which it has arrived, in (begin, 1].
    """

    start: float
    stop: float
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.begin < self.end <= 1:
            raise ArgumentError(
                "begin and end",
                rule="be fractions of the training with 0 ≤ begin < end ≤ 1",
                got=f"begin={self.begin}, end={self.end}",
                fix="Use 0 and 1 for the whole training",
            )

    def _value(self, fraction: float) -> float:
        if fraction <= self.begin:
            return self.start
        if fraction >= self.end:
            return self.stop
        part = self._shape((fraction - self.begin) / (self.end - self.begin))
        return self.start + (self.stop - self.start) * part

    def _shape(self, t: float) -> float:
        """A rising function from 0 at t = 0 to 1 at t = 1."""
        raise NotImplementedError


@dataclass(frozen=True)
class Linear(_Ramp):
    """Along a straight line.

    Args:
        start: The number at first.
        stop: The number at last.
        begin: Fraction at which it begins to move, in [0, 1).
        end: Fraction at which it has arrived, in (begin, 1].

    >>> warm_up = Linear(0.0, 2.0, end=0.5)
    >>> [warm_up(fraction) for fraction in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 1.0, 2.0, 2.0]
    """

    kind: ClassVar[str] = "linear"

    def _shape(self, t: float) -> float:
        return t


@dataclass(frozen=True)
class Cosine(_Ramp):
    """Along half a cosine, (1 − cos πt) / 2: slow at both ends, fastest in the middle.

    Args:
        start: The number at first.
        stop: The number at last.
        begin: Fraction at which it begins to move, in [0, 1).
        end: Fraction at which it has arrived, in (begin, 1].
    """

    kind: ClassVar[str] = "cosine"

    def _shape(self, t: float) -> float:
        return 0.5 * (1 - math.cos(math.pi * t))


@dataclass(frozen=True)
class Sigmoid(_Ramp):
    """Along a logistic curve σ(k (t − ½)), stretched so that it meets both numbers exactly.

    Args:
        start: The number at first.
        stop: The number at last.
        begin: Fraction at which it begins to move, in [0, 1).
        end: Fraction at which it has arrived, in (begin, 1].
        steepness: k > 0; towards 0 the curve becomes a line, for large k a step in the middle.
    """

    steepness: float = 12.0
    kind: ClassVar[str] = "sigmoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.steepness > 0:
            raise ArgumentError("steepness", rule="be positive", got=self.steepness, fix="Use 12")

    def _shape(self, t: float) -> float:
        quarter = self.steepness / 4
        return 0.5 * (1 + math.tanh(quarter * (2 * t - 1)) / math.tanh(quarter))


@dataclass(frozen=True)
class Cyclical(Schedule):
    """In each of several cycles of equal length, along a line from `start` to `stop`, which is then kept; then again.

    With τ the part of the cycle that is done: start + (stop − start) · min(τ / ramp, 1). A cycle begins anew at
    `start`; the last one ends at `stop`.

    Args:
        start: The number at the beginning of each cycle.
        stop: The number at its end.
        cycles: How many, M ≥ 1.
        ramp: The part R of a cycle that the rise takes, in (0, 1].
    """

    start: float
    stop: float
    cycles: int = 4
    ramp: float = 0.5
    kind: ClassVar[str] = "cyclical"

    def __post_init__(self) -> None:
        cycles = self.cycles
        super().__post_init__()
        if self.cycles < 1 or self.cycles != int(self.cycles):
            raise ArgumentError("cycles", rule="be a whole number, 1 or more", got=cycles, fix="Use 4")
        object.__setattr__(self, "cycles", int(self.cycles))
        if not 0 < self.ramp <= 1:
            raise ArgumentError("ramp", rule="lie in (0, 1]", got=self.ramp, fix="Use 0.5")

    def _value(self, fraction: float) -> float:
        # k/M · M may fall short of k by a rounding error, which would put the first step of a cycle into the one before
        done = round(fraction * self.cycles, 9) % 1
        if fraction == 1 or done >= self.ramp:
            return self.stop
        return self.start + (self.stop - self.start) * (done / self.ramp)


KINDS: dict[str, type[Schedule]] = {made.kind: made for made in (Constant, Linear, Cosine, Sigmoid, Cyclical)}
"""Kind to class."""


class Schedules(keras.callbacks.Callback):
    """Set numbers of the model's objective or posterior before each step, from the fraction of the training done.

    The fraction is the model's own step counter divided by `total_steps`, so that a training which was interrupted
    goes on with the same numbers; where Keras runs several steps at once, they share the number of the first. When
    training ends, also before its time, the numbers are left at their last value, that of fraction 1.

    Args:
        total_steps: Steps of the whole training, also where it is resumed.
        schedules: Name of a number that the model schedules, e.g. ``"beta"`` of its objective or ``"temperature"`` of
            its posterior, to its schedule.

    Raises:
        ArgumentError: When training begins, if the model's objective does not schedule one of the names.
    """

    def __init__(self, total_steps: int, schedules: Mapping[str, Schedule]) -> None:
        super().__init__()
        if not _finite("total_steps", total_steps).is_integer() or total_steps < 1:
            raise ArgumentError(
                "total_steps", rule="be a whole number, 1 or more", got=repr(total_steps), fix="Use epochs · steps"
            )
        for name, schedule in schedules.items():
            if not isinstance(schedule, Schedule):
                raise ArgumentError(
                    f"The schedule of {name!r}",
                    rule=f"be one of {', '.join(made.__name__ for made in KINDS.values())}",
                    got=repr(schedule),
                    fix=f"Use Constant({schedule!r})" if isinstance(schedule, numbers.Real) else "Make it one of them",
                )
        self.total_steps = int(total_steps)
        self.schedules = dict(schedules)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuse names that the objective does not schedule."""
        valid = dict(getattr(self.model, "scheduled", {}))
        for name in self.schedules:
            if name not in valid:
                close = nearest(name, valid)
                raise ArgumentError(
                    f"The schedule's name {name!r}",
                    rule=f"be one that the objective schedules: {', '.join(valid) or 'it has none'}",
                    got=repr(name),
                    fix=f"Did you mean {close!r}?" if close else "Leave it out, or choose another objective",
                )

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the numbers of the coming step."""
        self._assign(min(int(self.model.step) / self.total_steps, 1.0))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave the last values."""
        self._assign(1.0)

    def _assign(self, fraction: float) -> None:
        for name, schedule in self.schedules.items():
            self.model.scheduled[name].assign(schedule(fraction))


def _finite(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ArgumentError(what, rule="be a finite number", got=repr(value), fix="Give a number such as 0.5")
    return float(value)
