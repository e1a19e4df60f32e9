"""The guard against the mean-brain trap: what a model does for held-out people, each epoch, in numbers and in words."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError, CollapseWarning
from kerasvae.metrics import active_units, explained_variance, identification, mutual_information, variance_ratio
from kerasvae.metrics.diagnosis import Figures, diagnose
from kerasvae.models.arrays import Examination
from kerasvae.training.effective import effective_beta, has_fixed_scale, kl_weight, power_of, scale_weight
from kerasvae.training.entry import Entry
from kerasvae.training.event_file import EventFile
from kerasvae.training.peer import pca_beside
from kerasvae.training.remedied import Remedied
from kerasvae.training.remedy import CURABLE, DEAD, Condition, Remedy, prescribe
from kerasvae.training.run import write_json
from kerasvae.types import Mask

__all__ = ["CollapseGuard"]

Action = Literal["warn", "stop", "remedy"]


class CollapseGuard(Remedied):
    """Watch a VAE in training for the mean-brain trap and other ailments that a loss curve does not show.

    After each epoch it adds figures of the validation people to the logs, so that callbacks after it, the history and
    the progress bar have them: ``val_explained_variance``, ``val_identification``, ``val_variance_ratio``,
    ``val_active_units``, ``val_calibrated_elbo`` (nats per subject, the KL with weight 1; with ``"remedy"`` a fixed
    scale is judged like an optimal one, at its best for these people, since β then stands for it),
    ``val_effective_beta``; where they are defined ``val_mutual_information`` and ``val_kl_00``, ``val_kl_01``, …, nats;
    and, the same in each epoch, ``val_explained_variance_pca``, ``val_identification_pca`` and
    ``val_variance_ratio_pca`` of PCA with as many components, fitted once to the training people.

    What is wrong is said by `kerasvae.metrics.diagnosis.diagnose`. An ailment that has lasted for `patience` epochs in
    a row (notes do not count) is named: once, as a `kerasvae.errors.CollapseWarning`, and

    - ``action="warn"``: no more is done;
    - ``action="stop"``: training stops if it is the mean-brain trap or the collapse of all dimensions;
    - ``action="remedy"``: β, free bits or the learning rate are changed, see `kerasvae.training.remedy.prescribe`, and
      weights begin again where the encoder is dead. A number that is taken over follows the guard and no longer its
      schedule. At most `remedies` times, and only while as many epochs are left as a remedy needs to show.

    Args:
        validation: Validation people: images (n, *data_shape), or what the model takes by name.
        training: Training people likewise, for the mean brain and PCA.
        people: Person of each validation image; by default each is another's.
        mask: Voxels that count, (*data_shape); by default the likelihood's mask.
        action: One of the three.
        patience: Epochs in a row, ≥ 1.
        remedies: Remedies at most, ≥ 0.
        path: JSON file that the entries are kept in, if any; see `restore`.
        tensorboard: Folder for TensorBoard's event files, if any; TensorBoard need not be installed.

    Attributes:
        diagnoses: What was found, an `Entry` an epoch.
        stopped: Why training was stopped, or an empty text.

    Raises:
        ArgumentError: If an argument is outside its rule.
    """

    def __init__(
        self,
        validation: Any,
        training: Any,
        *,
        people: Sequence[str] | None = None,
        mask: Mask | None = None,
        action: Action = "warn",
        patience: int = 5,
        remedies: int = 3,
        path: str | os.PathLike[str] | None = None,
        tensorboard: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if action not in ("warn", "stop", "remedy"):
            raise ArgumentError(
                "action",
                rule='be "warn", "stop" or "remedy"',
                got=repr(action),
                fix='Use "warn", which changes nothing',
            )
        if patience < 1 or remedies < 0:
            raise ArgumentError(
                "patience and remedies",
                rule="be at least 1 and 0",
                got=f"patience={patience}, remedies={remedies}",
                fix="Leave them out",
            )
        self._given_validation, self._given_training = validation, training
        self._people = None if people is None else list(people)
        self._mask = mask
        self.action, self.patience, self.most = action, patience, remedies
        self.path = None if path is None else Path(path)
        self._events = None if tensorboard is None else EventFile(tensorboard)
        self.diagnoses: list[Entry] = []
        self.stopped = ""
        self._pca: dict[str, float] = {}

    # --- what is measured ------------------------------------------------------------------------

    def set_model(self, model: keras.Model) -> None:
        """Take up the people as this model takes them."""
        if model is getattr(self, "_model", None):
            return
        super().set_model(model)
        self.validation, training = model.checked(self._given_validation), model.checked(self._given_training)
        n = len(self.validation["image"])
        if self._people is not None and len(self._people) != n:
            raise ArgumentError("people", rule=f"name {n} people, one an image", got=len(self._people), fix="Give all")
        mask = model.likelihood.mask if self._mask is None else np.asarray(self._mask, bool)
        self.inside = np.ones(model.data_shape, bool) if mask is None else mask
        if self.inside.shape != model.data_shape:
            raise ArgumentError("mask", rule=f"have shape {model.data_shape}", got=self.inside.shape, fix="Change it")
        self.count = n if self._people is None else len(set(self._people))
        self.mean = training["image"].mean(axis=0)[self.inside]
        self._training = training
        self.diagnoses, self._pca, self._first = [], {}, None

    def peer(self) -> dict[str, float]:
        """PCA's figures, computed once."""
        if not self._pca:
            x = self.validation["image"][:, self.inside]
            r = pca_beside(self.model, self._training, self.validation, self.inside)
            self._pca = {f"{name}_pca": value for name, value in self._reconstruction_figures(x, r).items()}
            self._pca["residual_pca"] = float(np.mean(np.abs(x - r) ** power_of(self.model), dtype=np.float64))
        return self._pca

    def _reconstruction_figures(self, x: NDArray, r: NDArray) -> dict[str, float]:
        return {
            "explained_variance": explained_variance(x, r, self.mean),
            "identification": identification(x, r, self._people),
            "variance_ratio": variance_ratio(x, r),
        }

    def observe(self, epoch: int, train_elbo: float = math.nan) -> dict[str, float]:
        """Examine the validation people, note and judge the result, and give the figures for the logs.

        Args:
            epoch: Number of epochs done; with 0 the state before the first is noted.
            train_elbo: ELBO of the training people, nats per subject.
        """
        model, peer = self.model, self.peer()
        seen = model.examine(self.validation)
        x, r = self.validation["image"][:, self.inside], seen.reconstruction[:, self.inside]
        cost = float(np.mean(seen.cost, dtype=np.float64))
        figures = {
            **self._reconstruction_figures(x, r),
            "active_units": float(active_units(seen.center)),
            "calibrated_elbo": self._log_likelihood(seen) - cost,
            "effective_beta": effective_beta(model, float(np.mean(seen.residual, dtype=np.float64))),
        }
        parts = () if seen.kl_per_dimension is None else seen.kl_per_dimension.mean(axis=0, dtype=np.float64).tolist()
        if model.posterior.kind == "normal":
            figures["mutual_information"] = mutual_information(seen.codes["mean"], seen.codes["stddev"])
        moving = self._moving(epoch)
        mean, variance = ((), ()) if moving else self._aggregate(seen)
        noted = Figures(
            people=self.count,
            latent_size=model.latent_size,
            explained_variance=figures["explained_variance"],
            identification=figures["identification"],
            variance_ratio=figures["variance_ratio"],
            active_units=figures["active_units"],
            explained_variance_pca=peer["explained_variance_pca"],
            spared=self._spared(epoch, figures),
            kl_per_dimension=tuple(parts),
            aggregate_mean=mean,
            aggregate_variance=variance,
            effective_beta=math.nan if moving else figures["effective_beta"],
            effective_beta_pca=math.nan if moving else effective_beta(model, peer["residual_pca"]),
            elbo=figures["calibrated_elbo"],
            train_elbo=train_elbo,
            epoch=epoch,
        )
        self._note(epoch, noted)
        shown = {f"val_{name}": value for name, value in figures.items() if math.isfinite(value)}
        shown |= {f"val_kl_{index:02d}": value for index, value in enumerate(parts)}
        return shown | {f"val_{name}": value for name, value in peer.items() if name != "residual_pca"}

    def _log_likelihood(self, seen: Examination) -> float:
        """In nats per subject, with the scale at its best for these people where it is an optimal one.

        The running scale follows training residuals; epochs compared through it would be compared by its noise.
        """
        likelihood = self.model.likelihood
        if has_fixed_scale(self.model) and self.action == "remedy":
            best = max(float(np.mean(seen.residual, dtype=np.float64)) ** (1 / likelihood.power), likelihood.floor)
            return likelihood.count(self.validation["image"]) * likelihood.best_voxel_log_prob(best)
        if likelihood.is_calibrated:
            return likelihood.calibrated_log_prob(seen.residual, self.validation["image"])
        return float(np.mean(seen.log_likelihood, dtype=np.float64))

    def _moving(self, epoch: int) -> bool:
        """Whether β stood at another value an epoch ago: then it is too early to judge it."""
        beta, before = kl_weight(self.model), getattr(self, "_beta_before", None)
        self._beta_before = beta
        return epoch > 0 and before is not None and before != beta

    def _aggregate(self, seen: Examination) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and variance of all people's codes, where the prior says what they should be."""
        if self.model.posterior.kind != "normal" or self.model.prior.kind != "standard_normal":
            return (), ()
        mean, stddev = (np.asarray(seen.codes[name], np.float64) for name in ("mean", "stddev"))
        return tuple(mean.mean(axis=0).tolist()), tuple((mean.var(axis=0) + np.square(stddev).mean(axis=0)).tolist())

    def _spared(self, epoch: int, figures: Mapping[str, float]) -> int:
        """Dimensions that a start which already explains people left out."""
        if epoch == 0:
            informed = figures["explained_variance"] > 0
            return int(self.model.latent_size - figures["active_units"]) if informed else 0
        return self.diagnoses[0].figures.spared if self.diagnoses else 0

    # --- what follows ----------------------------------------------------------------------------

    @property
    def remedies(self) -> list[Remedy]:
        """What was done, in order."""
        return [entry.remedy for entry in self.diagnoses if entry.remedy is not None]

    @property
    def ailments(self) -> tuple[str, ...]:
        """Names of what is wrong now, and has lasted."""
        return self.diagnoses[-1].lasting if self.diagnoses else ()

    @property
    def settled(self) -> int:
        """The epoch at which all remedies have arrived; 0 without any."""
        return max((remedy.settled for remedy in self.remedies), default=0)

    def _note(self, epoch: int, figures: Figures) -> None:
        since = self.settled
        history = [entry.figures for entry in self.diagnoses if entry.epoch >= since]
        found = tuple(diagnose(figures, history))
        recent = [entry.diagnoses for entry in self.diagnoses if entry.epoch > since][1 - self.patience :]
        rows = [*(recent if self.patience > 1 else []), found]
        named = [{each.name for each in row if each.level != "note" and each.name in CURABLE} for row in rows]
        enough = epoch > since and len(named) >= self.patience
        lasting = tuple(name for name in CURABLE if enough and all(name in row for row in named))
        if CURABLE[0] in named[-1] and CURABLE[0] not in lasting:
            lasting = ()  # the others are its signs: the trap is to be named first
        self.diagnoses.append(Entry(epoch, figures, found, lasting))

    def _act(self, epoch: int, logs: dict[str, Any]) -> None:
        """Warn, stop or treat."""
        entry = self.diagnoses[-1]
        since = max((remedy.epoch for remedy in self.remedies), default=-1)
        before = {name for each in self.diagnoses[:-1] if each.epoch > since for name in each.lasting}
        lasting = [each for each in entry.diagnoses if each.name in entry.lasting]
        for each in lasting:
            if each.name not in before:
                warnings.warn(f"Epoch {epoch}: {each.text} {each.advice}", CollapseWarning, stacklevel=2)
        fatal = [each for each in lasting if each.name in DEAD and each.level == "problem"]
        if self.action == "stop" and fatal:
            self.stopped = f"Stopped after epoch {epoch}: {fatal[0].text}"
            self.model.stop_training = True
        if self.action == "remedy" and lasting and len(self.remedies) < self.most:
            remedy = prescribe(lasting, self._condition(), epoch, self.remedies)
            left = int(self.params.get("epochs") or 0) - epoch
            if remedy is not None and left >= remedy.settled - epoch + self.patience:
                self.diagnoses[-1] = dataclasses.replace(entry, remedy=remedy)

    def _condition(self) -> Condition:
        model = self.model
        seen = self._pca["residual_pca"]
        free = model.scheduled.get("free_bits")
        rate = model.optimizer.learning_rate
        return Condition(
            beta=kl_weight(model) if "beta" in model.scheduled else None,
            fitting_beta=1 / scale_weight(model, seen),
            free_bits=None if free is None else float(free),
            learning_rate=float(rate) if isinstance(rate, keras.Variable) else None,
        )

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Look at the model before it is trained."""
        if self.action == "remedy" and self._first is None:
            self.keep_first()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Forget later epochs of an earlier training, look at a model that is new, and begin what is due."""
        self.diagnoses = [entry for entry in self.diagnoses if entry.epoch <= epoch]
        if not self.diagnoses:
            self.observe(epoch)
        super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure, note and act; the callbacks that follow see the figures in the logs."""
        logs = {} if logs is None else logs
        elbo = logs.get("elbo")
        logs.update(self.observe(epoch + 1, math.nan if elbo is None else float(elbo)))
        self._act(epoch + 1, logs)
        self.write()
        if self._events is not None:
            self._events.write(epoch + 1, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave the last values of numbers that were taken over."""
        super().on_train_end(logs)
        if self._events is not None:
            self._events.close()

    # --- keeping ---------------------------------------------------------------------------------

    def write(self) -> None:
        """Write the entries to `path`, where there is one."""
        if self.path is not None:
            content = {
                "action": self.action,
                "patience": self.patience,
                "people": self.count,
                "pca": self._pca,
                "stopped": self.stopped,
                "epochs": [entry.to_config() for entry in self.diagnoses],
            }
            write_json(self.path, content)

    def restore(self, epoch: int) -> None:
        """Go on where an interrupted training stopped: take up what `path` holds of epochs up to `epoch`."""
        if self.path is None or not self.path.is_file():
            return
        content = json.loads(self.path.read_text(encoding="utf-8"))
        self._pca = content["pca"]
        self.diagnoses = [Entry.from_config(each) for each in content["epochs"] if each["epoch"] <= epoch]
        self._beta_before = None if not self.diagnoses else kl_weight(self.model)
