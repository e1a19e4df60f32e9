"""A model in NumPy's hands: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.covariates import Covariates
from kerasvae.errors import ArgumentError
from kerasvae.models.core import Core
from kerasvae.models.evidence import Evidence, log_evidence
from kerasvae.objectives import Draws

__all__ = ["ArrayMethods", "Examination"]


class Examination(NamedTuple):
    """All that `ArrayMethods.examine` sees of n people in one pass of the encoder.

    Attributes:
        reconstruction: Deterministic, as `reconstruct` gives it, (n, *data_shape).
        codes: The posterior's deterministic outputs by name, as `encode` gives them, each (n, …).
        center: The code that stands for each person, (n, d).
        log_likelihood: Of the draw that `residual_terms` takes, nats, (n,).
        cost: As `residual_terms` gives it, nats, (n,).
        residual: As `residual_terms` gives it, (n,).
        kl_per_dimension: Nats, (n, d); None where the KL is no sum over dimensions.
    """

    reconstruction: NDArray[np.float32]
    codes: dict[str, NDArray[Any]]
    center: NDArray[np.float32]
    log_likelihood: NDArray[np.float32]
    cost: NDArray[np.float32]
    residual: NDArray[np.float32]
    kl_per_dimension: NDArray[np.float32] | None


class ArrayMethods(Core):
    """The methods of `VAE` that take and give arrays, a batch at a time.

    Where a model takes covariates, `x` is ``{"image": …, "covariates": …}``; see `VAE`.
    """

    def encode(self, x: Any, batch_size: int = 8) -> dict[str, NDArray[Any]]:
        """The posterior's deterministic outputs of each subject by name, e.g. mean and stddev, each (n, d)."""
        batches = [
            self.encode_tensors(*(batch[name] for name in self.input_names)) for batch in self._batches(x, batch_size)
        ]
        return {name: np.concatenate([batch[name].numpy() for batch in batches]) for name in batches[0]}

    def draw_codes(self, x: Any, samples: int = 1, seed: int = 0, batch_size: int = 8) -> NDArray[np.float32]:
        """Draws from each subject's posterior, (samples, n, d): together, of the aggregate posterior.

        Args:
            x: Images, (n, *data_shape).
            samples: Draws a subject.
            seed: Seed of the draws, which depend on `batch_size` too.
            batch_size: Subjects at a time.
        """
        parts = []
        for index, batch in enumerate(self._batches(x, batch_size)):
            given = self.inputs_of(batch)
            parameters = self.parameters(self._encoded(given.image, given.condition))
            parts.append(self.posterior.draw(parameters, samples, tf.constant([seed, index], tf.int32))[0].numpy())
        return np.concatenate(parts, axis=1)

    def decode(
        self, z: Any, batch_size: int = 8, covariates: Any = None, noise_seed: int | None = None
    ) -> NDArray[np.float32]:
        """The image of each code.

        Args:
            z: Codes, (n, d).
            batch_size: Codes at a time.
            covariates: As everywhere, one row a code.
            noise_seed: Seed of the likelihood's noise, which depends on `batch_size` too; None gives mean images.

        Returns:
            Images, (n, *data_shape).
        """
        z = np.asarray(z, dtype=np.float32)
        if z.ndim != 2 or z.shape[1] != self.latent_size or not len(z):
            raise ArgumentError("z", rule=f"have shape (n, {self.latent_size})", got=z.shape, fix="Give codes as rows")
        rows = self._numbers_of(covariates, len(z))
        images = []
        for start in range(0, len(z), batch_size):
            part = slice(start, start + batch_size)
            condition = self._condition(None if rows is None else tf.constant(rows[part]))
            decoded = self._decoded(tf.constant(z[part]), condition)
            if noise_seed is None:
                image = self.likelihood.mean(decoded)
            else:
                key = tf.random.experimental.stateless_fold_in(tf.constant([noise_seed, 1], tf.int32), start)
                image = self.likelihood.draw(decoded, key)
            images.append(image.numpy())
        return np.concatenate(images)

    def reconstruct(self, x: Any, batch_size: int = 8) -> NDArray[np.float32]:
        """Deterministic reconstructions, the same shape as `x`."""
        return np.concatenate([self(batch).numpy() for batch in self._batches(x, batch_size)])

    def sample(self, count: int, seed: int = 0, covariates: Any = None) -> NDArray[np.float32]:
        """Mean images of `count` codes drawn from the prior, (count, *data_shape); see `sample_codes`."""
        rows = self.rows_for(count, covariates)
        return self.decode(self.sample_codes(count, seed, rows), covariates=rows)

    def sample_codes(self, count: int, seed: int = 0, covariates: Any = None) -> NDArray[np.float32]:
        """Codes drawn from the prior, (count, d).

        Args:
            count: How many.
            seed: Seed of the draws.
            covariates: Of the people to be made, one row each, or one row for all; only for a model that takes them.
        """
        rows = self.rows_for(count, covariates)
        context = self._context(None if rows is None else self._condition(tf.constant(rows)))
        return self.prior.sample(count, self.latent_size, tf.constant([seed, 0], tf.int32), context).numpy()

    def rows_for(self, count: int, covariates: Any) -> NDArray[np.float32] | None:
        """Covariates of `count` people, (count, k), from as many rows or one for all; None where none are taken."""
        rows = self._numbers_of(covariates, None)
        if rows is None:
            return None
        rows = np.ascontiguousarray(np.broadcast_to(rows, (count, rows.shape[1]))) if len(rows) == 1 else rows
        return self._numbers_of(rows, count)

    def elbo(self, x: Any, batch_size: int = 8, samples: int = 1, seed: int = 0) -> dict[str, NDArray[np.float32]]:
        """Named ELBO terms of each subject in nats, whatever the objective.

        Args:
            x: Images, (n, *data_shape).
            batch_size: Subjects at a time.
            samples: Posterior draws that are averaged over.
            seed: Seed of the draws.

        Returns:
            ``elbo``, ``log_likelihood``, ``kl`` of shape (n,), and ``kl_per_dimension`` of shape (n, d) where the KL is
            a sum over dimensions.
        """
        parts: list[dict[str, NDArray[np.float32]]] = []
        for index, batch in enumerate(self._batches(self.likely(x), batch_size)):
            draws, _ = self.draws(batch, tf.constant([seed, index], tf.int32), samples=samples)
            part = self.bound(draws)
            if draws.kl_per_dimension is not None:
                part["kl_per_dimension"] = draws.kl_per_dimension
            parts.append({name: value.numpy() for name, value in part.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def log_evidence(self, x: Any, samples: int = 100, *, chunk: int = 10, seed: int = 0) -> Evidence:
        """Importance-weighted log p(x) of each subject; see `kerasvae.models.evidence`.

        Args:
            x: Images, (n, *data_shape).
            samples: Posterior draws a subject.
            chunk: Draws decoded at a time.
            seed: Seed of the draws.

        Raises:
            ModelError: With a posterior that has no density.
        """
        return log_evidence(self, self.likely(x), samples, chunk=chunk, seed=seed)

    def score(self, x: Any, batch_size: int = 8) -> dict[str, NDArray[np.float32]]:
        """How unusual each subject is: ``surprise`` (nats) and ``residual``, (n,), and the code ``center``, (n, d).

        Deterministic; see `kerasvae.scoring`.
        """
        parts = [
            self.score_tensors(*(batch[name] for name in self.input_names)) for batch in self._batches(x, batch_size)
        ]
        return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}

    def describe(self, x: Any, batch_size: int = 8, seed: int = 0) -> dict[str, NDArray[Any]]:
        """What `encode` and `score` give, and ``elbo`` and ``kl`` of `elbo` from one draw, encoding once; each (n, …).

        Args:
            x: Images, (n, *data_shape).
            batch_size: Subjects at a time.
            seed: Seed of the draws.
        """
        parts: list[dict[str, tf.Tensor]] = []
        for index, batch in enumerate(self._batches(self.likely(x), batch_size)):
            draws, _ = self.draws(batch, tf.constant([seed, index], tf.int32), samples=1)
            bound, given = self.bound(draws), self.inputs_of(batch)
            scores = self.scores_of(draws.parameters, given.image, given.condition)
            parts.append({**draws.outputs, **scores, "elbo": bound["elbo"], "kl": bound["kl"]})
        return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}

    def residual_terms(self, x: Any, batch_size: int = 8) -> tuple[NDArray, NDArray, NDArray]:
        """log-likelihood, cost (see `VAE.cost`) and the likelihood's residual of each subject, each (n,).

        From one posterior draw a subject, the same at each call, and not those of training or `evaluate`.
        """
        parts = [self._judged(*each)[1] for each in enumerate(self._batches(self.likely(x), batch_size))]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return whole["log_likelihood"], whole["cost"], whole["residual"]

    def _judged(self, index: int, batch: Any) -> tuple[Draws, dict[str, Any]]:
        """The draw by which a batch is judged, and the terms of it."""
        draws, decoded = self.draws(batch, self._draw_seed(-2 - index), samples=1)
        cost, residual = self.cost(self.inputs_of(batch), draws), self.likelihood.residual(batch["image"], decoded)
        return draws, {"log_likelihood": draws.log_likelihood[0], "cost": cost, "residual": residual}

    def examine(self, x: Any, batch_size: int = 8) -> Examination:
        """What `reconstruct`, `encode` and `residual_terms` give, and the KL of each dimension, encoding once."""
        parts: list[dict[str, Any]] = []
        for index, batch in enumerate(self._batches(self.likely(x), batch_size)):
            draws, judged = self._judged(index, batch)
            center = self.posterior.center(self.posterior.deterministic(self.parameters(draws.parameters)))
            part = {
                "reconstruction": self.likelihood.mean(self._decoded(center, self.inputs_of(batch).condition)),
                "center": center,
                **judged,
                **{f"codes.{name}": value for name, value in draws.outputs.items()},
            }
            if draws.kl_per_dimension is not None:
                part["kl_per_dimension"] = draws.kl_per_dimension
            parts.append(part)
        whole: dict[str, Any] = {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}
        codes = {name.removeprefix("codes."): whole.pop(name) for name in list(whole) if name.startswith("codes.")}
        return Examination(**{"kl_per_dimension": None, **whole}, codes=codes)

    def checked(self, x: Any) -> dict[str, NDArray[np.float32]]:
        """Images, and what else the model takes by name, as arrays of the right shapes, each (n, …).

        Raises:
            ArgumentError: If something is missing, unknown, or of another shape.
        """
        given = dict(x) if isinstance(x, Mapping) else {"image": x}
        unknown = [name for name in given if name not in (*self.input_names, *self.optional_names)]
        if unknown or "image" not in given:
            raise ArgumentError(
                "x",
                rule=f"hold {', '.join(self.input_names)}" + "".join(f", perhaps {n}" for n in self.optional_names),
                got=", ".join(map(str, given)) or "nothing",
                fix="Give what the model takes, and nothing else",
            )
        checked = {"image": self._checked_image(given["image"])}
        numbers = self._numbers_of(given.get("covariates"), len(checked["image"]))
        checked |= {} if numbers is None else {"covariates": numbers}
        site, level = given.get("site"), self.objective.site
        if site is None or level is None:
            return checked
        cells = np.asarray(site).reshape(-1)
        values: Any = cells[:, None] if cells.dtype.kind in "fiu" else {level.name: cells.tolist()}
        known = Covariates([level.model_copy(update={"missing": "mean"})])  # it may be unknown
        return checked | {"site": known.matrix(values, rows=len(checked["image"]))}

    def _numbers_of(self, covariates: Any, rows: int | None) -> NDArray[np.float32] | None:
        """Covariates in their units, (n, k); None where the model takes none."""
        if self.covariates is None:
            if covariates is not None:
                raise ArgumentError(
                    "covariates", rule="be left out", got="some", fix="This model was made without covariates"
                )
            return None
        if covariates is None:
            self._condition(None)  # says which are needed
        return self.covariates.matrix(covariates, rows=rows)

    def _checked_image(self, x: Any) -> NDArray[np.float32]:
        x = np.asarray(x, dtype=np.float32)
        if x.shape[1:] != self.data_shape or not len(x):
            raise ArgumentError(
                "x",
                rule=f"have shape (n, {', '.join(map(str, self.data_shape))}) with n at least 1",
                got=x.shape,
                fix="Apply the model's pipeline first, and stack its volumes",
            )
        return x

    def likely(self, x: Any) -> dict[str, NDArray[np.float32]]:
        """As `checked`, with images within the likelihood's support."""
        given = self.checked(x)
        self.likelihood.check(given["image"])
        return given

    def _batches(self, x: Any, batch_size: int) -> Iterator[dict[str, tf.Tensor]]:
        given = self.checked(x)
        for start in range(0, len(given["image"]), batch_size):
            yield {name: tf.constant(values[start : start + batch_size]) for name, values in given.items()}
