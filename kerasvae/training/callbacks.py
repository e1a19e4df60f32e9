"""What happens between steps and epochs: schedules, the checkpoint from which training resumes, the progress line."""

from __future__ import annotations

import json
import numbers
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError, RunError, nearest
from kerasvae.storage import atomic_path
from kerasvae.training.schedules import KINDS, Schedule, finite

__all__ = ["Checkpoint", "EpochProgress", "Schedules"]


class Checkpoint(keras.callbacks.Callback):
    """After each epoch, save all that training needs to go on; keep the best weights; stop when it gets no better.

    One folder is replaced as a whole, so an interruption at any moment leaves a usable checkpoint. It holds every
    variable of model and optimisers (random state included) as plain arrays, the history, and the best weights.

    Args:
        folder: The checkpoint folder.
        patience: Epochs without a better `monitor` before training stops.
        first_candidate: Index of the first epoch whose weights may be the best (after warm-up).
        monitor: What is maximised.
        settled: Gives the epoch from which patience counts at the earliest: a remedy takes time to show.
    """

    def __init__(
        self,
        folder: Path,
        *,
        patience: int,
        first_candidate: int,
        monitor: str = "val_calibrated_elbo",
        settled: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__()
        self.settled = settled
        self.folder = folder
        self.patience = patience
        self.first_candidate = first_candidate
        self.monitor = monitor
        self.history: list[dict[str, float]] = []
        self.best: list[NDArray] | None = None
        self.best_epoch = -1
        self.finished = False

    def record(self, epoch: int, logs: dict[str, Any]) -> None:
        """Take up one epoch (0 is the state before the first) and save."""
        row = {"epoch": float(epoch), **{name: float(value) for name, value in logs.items()}}
        self.history.append(row)
        if epoch >= self.first_candidate and (self.best is None or row[self.monitor] > self._best_value()):
            self.best_epoch = epoch
            self.best = [np.asarray(variable) for variable in self.model.variables]
        late = self.best is not None and epoch - max(self.best_epoch, self.settled()) >= self.patience
        self.finished = late or bool(self.model.stop_training)
        self.save()

    def _best_value(self) -> float:
        return next(row[self.monitor] for row in self.history if row["epoch"] == self.best_epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Record epoch number `epoch` + 1."""
        self.record(epoch + 1, logs or {})
        if self.finished:
            self.model.stop_training = True

    def _state(self) -> list[keras.Variable]:
        optimizers = [self.model.optimizer, self.model.critic_optimizer]
        own = [variable for each in optimizers if each is not None for variable in each.variables]
        return [*self.model.variables, *own]

    def save(self) -> None:
        """Write the folder anew and put it in the place of the old one."""
        with atomic_path(self.folder) as temporary:
            temporary.mkdir()
            _save_arrays(temporary / "state.npz", [np.asarray(variable) for variable in self._state()])
            if self.best is not None:
                _save_arrays(temporary / "best.npz", self.best)
            state = {"history": self.history, "best_epoch": self.best_epoch, "finished": self.finished}
            (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")

    def restore(self) -> int:
        """Bring back model, optimiser and history.

        Returns:
            Number of epochs that are done.

        Raises:
            RunError: If the checkpoint belongs to another model.
        """
        state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        _assign(self._state(), _load_arrays(self.folder / "state.npz"), self.folder)
        self.history, self.best_epoch, self.finished = state["history"], state["best_epoch"], state["finished"]
        best = self.folder / "best.npz"
        self.best = _load_arrays(best) if best.is_file() else None
        return int(self.history[-1]["epoch"])

    def use_best(self) -> None:
        """Put the best weights into the model."""
        if self.best is not None:
            _assign(self.model.variables, self.best, self.folder)


class Schedules(keras.callbacks.Callback):
    """Set numbers of the model's objective before each step, from the fraction of the training that is done.

    The fraction is the model's own step counter divided by `total_steps`, so that a training which was interrupted
    goes on with the same numbers; where Keras runs several steps at once, they share the number of the first. Numbers
    that a `CollapseGuard` has taken over are left to it. When
    training ends, also before its time, the numbers are left at their last value, that of fraction 1.

    Args:
        total_steps: Steps of the whole training, also where it is resumed.
        schedules: Name of a number that the objective schedules, e.g. ``"beta"``, to its schedule; ``"learning_rate"``
            is the optimiser's.

    Raises:
        ArgumentError: When training begins, if the model's objective does not schedule one of the names.
    """

    def __init__(self, total_steps: int, schedules: Mapping[str, Schedule]) -> None:
        super().__init__()
        if not finite("total_steps", total_steps).is_integer() or total_steps < 1:
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
        valid = {**getattr(self.model, "scheduled", {}), "learning_rate": None}
        for name in self.schedules:
            if name not in valid:
                close = nearest(name, valid)
                raise ArgumentError(
                    f"The schedule's name {name!r}",
                    rule=f"be one that the objective or posterior schedules: {', '.join(valid) or 'it has none'}",
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
            if name in self.model.remedied:
                continue
            number = self.model.optimizer.learning_rate if name == "learning_rate" else self.model.scheduled[name]
            number.assign(schedule(fraction))


class EpochProgress(keras.callbacks.Callback):
    """Report the fraction of an epoch and the figures that matter to a function.

    Args:
        report: Called with the number of batches done and a short text.
        steps: Batches an epoch.
        done: Batches done before.
        ailments: Gives the names of what a guard has found.
    """

    def __init__(
        self,
        report: Callable[[int, str], None],
        steps: int,
        done: int = 0,
        ailments: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        super().__init__()
        self.ailments = ailments
        self.report = report
        self.steps = steps
        self.done = done
        self.text = ""

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """One more batch."""
        self.done += 1
        self.report(self.done, self.text)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """New figures."""
        logs, unknown = logs or {}, float("nan")
        self.text = (
            f"epoch {epoch + 1}  validation: ELBO {logs.get('val_calibrated_elbo', unknown):.0f} nats, "
            f"explained variance {logs.get('val_explained_variance', unknown):.3f} "
            f"(PCA {logs.get('val_explained_variance_pca', unknown):.3f}), "
            f"identification {logs.get('val_identification', unknown):.2f}"
        )
        self.text += "".join(f", {name}" for name in self.ailments())
        self.report(self.done, self.text)


def _save_arrays(path: Path, arrays: list[NDArray]) -> None:
    named: dict[str, Any] = {f"{index:05d}": array for index, array in enumerate(arrays)}
    np.savez(path, **named)


def _load_arrays(path: Path) -> list[NDArray]:
    with np.load(path, allow_pickle=False) as content:
        return [content[name] for name in sorted(content.files)]


def _assign(variables: list[keras.Variable], arrays: list[NDArray], folder: Path) -> None:
    if [tuple(v.shape) for v in variables] != [a.shape for a in arrays]:
        raise RunError(folder, rule="be a checkpoint of this recipe", got="other shapes", fix="Train into a new folder")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
