"""The variational autoencoder: a Keras model that owns its train step.

Kingma & Welling 2014, arXiv 1312.6114; Rezende, Mohamed & Wierstra 2014, arXiv 1401.4082.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasvae.errors import ArgumentError
from kerasvae.models.arrays import ArrayMethods
from kerasvae.models.guard import NonFiniteGuard
from kerasvae.models.inputs import Inputs, rows_of
from kerasvae.objectives import Draws, Terms


@keras.saving.register_keras_serializable("kerasvae")
class VAE(ArrayMethods):
    """Variational autoencoder of volumes, slices or flat vectors.

    All terms are nats per subject: summed over every axis but the batch, averaged once over the batch.
    `call` and `predict` are deterministic: they decode the code that stands for the posterior (its mean).

    With `covariates` it is a conditional VAE: p(x|z, c) and q(z|x, c), and p(z|c) where the prior is a conditional one
    (Sohn, Lee & Yan 2015, Learning Structured Output Representation using Deep Conditional Generative Models, NeurIPS).
    Wherever images are taken, a dictionary ``{"image": x, "covariates": c}`` is then given, with c a table (column name
    to cells) or numbers of shape (n, k); the networks see them standardised, as a second input (batch, c).

    Args:
        encoder: Keras model from images (batch, *data_shape) to posterior parameters (batch, p); with covariates from
            [images, condition], the condition of shape (batch, covariates.width).
        decoder: Keras model from codes (batch, latent_size), with covariates from [codes, condition], to what the
            likelihood needs: images (batch, *data_shape), or (batch, *data_shape, channels) where it needs several
            numbers a voxel.
        latent_size: Number of latent dimensions d; by default the width of the decoder's input.
        data_shape: Shape of one subject; by default the encoder's input shape.
        posterior: What the parameters mean; p must be ``posterior.parameter_size(latent_size)``.
        prior: p(z).
        likelihood: p(x|z); by default a normal one whose scale is estimated, over all voxels.
        objective: What is minimised; by default the negative ELBO.
        seed: Seed of the posterior draws. Draws depend on it and on the step alone, so training can be resumed.
        covariates: What the model takes beside the image.

    Raises:
        ModelError: If the shapes of the two networks do not fit, or the parts do not go together.
    """

    def compile(self, optimizer: Any = "adam", **kwargs: Any) -> None:
        """As in Keras; the objective is the model's own, so no `loss` is taken.

        ``jit_compile="auto"``, the default, compiles with XLA where there is a GPU and deterministic operations were
        not asked for; on CPUs XLA makes 3-D convolutions many times slower.
        """
        if kwargs.get("loss") is not None:
            raise ArgumentError(
                "loss", rule="be left out: a VAE has its own objective", got=kwargs["loss"], fix="Give the VAE another"
            )
        super().compile(optimizer=optimizer, **kwargs)
        if not self.optimizer.built:  # so that a file saved before the first step holds the whole optimiser
            self.optimizer.build(self.main_variables)

    def get_compile_config(self) -> dict[str, Any] | None:
        """What `compile` was given; None before."""
        if not self.compiled:
            return None
        return {"optimizer": keras.saving.serialize_keras_object(self.optimizer)}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as before saving; the optimiser's state follows with the weights."""
        self.compile(optimizer=keras.saving.deserialize_keras_object(config["optimizer"]))

    def fit(self, x: Any = None, y: Any = None, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """As in Keras, on arrays or data sets of images (batch, *data_shape); `y` is not used.

        A model with covariates takes a dictionary, or a data set of dictionaries, ``{"image": …, "covariates": …}``;
        the covariates of a data set are numbers, (batch, k), see `Covariates.matrix`.

        Where `x` is a data set, assign the number of training people to `people` first if the objective asks for it.

        Raises:
            NonFiniteError: At the first step with a NaN or infinite loss term; that step is not applied.
        """
        if isinstance(x, np.ndarray | Mapping):
            x = self.likely(x)
            self.people.assign(len(x["image"]))
            x["row"] = np.arange(len(x["image"]))
        held_out = kwargs.get("validation_data")
        if isinstance(held_out, np.ndarray | Mapping):
            kwargs["validation_data"] = (self.likely(held_out), None)
        elif isinstance(held_out, tuple) and isinstance(held_out[0], np.ndarray | Mapping):
            kwargs["validation_data"] = (self.likely(held_out[0]), None)
        return super().fit(x, None, *args, callbacks=[*(callbacks or []), NonFiniteGuard()], **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        """As in Keras; `x` as for `fit`, `y` is not used."""
        return super().evaluate(self.likely(x) if isinstance(x, np.ndarray | Mapping) else x, None, **kwargs)

    def predict(self, x: Any, **kwargs: Any) -> Any:
        """As in Keras: reconstructions; `x` as for `fit`."""
        return super().predict(self.checked(x) if isinstance(x, np.ndarray | Mapping) else x, **kwargs)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of the optimiser, one of the likelihood's scale, and one of the critic where there is one."""
        inputs = keras.utils.unpack_x_y_sample_weight(data)[0]
        given = self.inputs_of(inputs)
        image, rows = given.image, rows_of(inputs, given.image)
        with tf.GradientTape() as tape:
            draws, decoded = self.draws(inputs, self._draw_seed(self.step), training=True)
            terms = self.terms(given, draws)
            loss = tf.add_n([terms.total, *self.losses])  # a user's layers may bring penalties of their own
            scaled = self.optimizer.scale_loss(loss)
        variables = self.main_variables
        gradients = tape.gradient(scaled, variables)
        penalty = tf.fill(tf.shape(terms.loss), terms.penalty)
        watched = {**terms.per_subject, "loss": terms.loss, "penalty": penalty}
        healthy = self.fault.check(watched, rows, tf.convert_to_tensor(self.step))
        first = decoded[: tf.shape(image)[0]]
        tf.cond(healthy, lambda: self._apply(gradients, variables, image, first, draws), lambda: tf.constant(False))
        self.step.assign_add(1)
        return self._track(loss, terms)

    def _apply(
        self, gradients: list[tf.Tensor], variables: list[Any], image: tf.Tensor, decoded: tf.Tensor, draws: Draws
    ) -> tf.Tensor:
        self.optimizer.apply(gradients, variables)
        self.likelihood.update(image, decoded)
        self.posterior.update(draws.parameters, draws.seed)
        if self.objective.memory:
            self._remember(draws.z[0])
        if self.critic is not None and self.critic_optimizer is not None:
            still = draws._replace(z=tf.stop_gradient(draws.z))
            with tf.GradientTape() as tape:
                loss = self.objective.critic_loss(self.critic, still)
            weights = self.critic.trainable_variables
            self.critic_optimizer.apply(tape.gradient(loss, weights), weights)
        return tf.constant(True)

    def _remember(self, z: tf.Tensor) -> None:
        """Newest codes first; the oldest fall out."""
        slots = self.objective.memory
        self.memory.assign(tf.concat([tf.stop_gradient(z), tf.convert_to_tensor(self.memory)], axis=0)[:slots])
        known = tf.convert_to_tensor(self.remembered) + tf.cast(tf.shape(z)[0], tf.int64)
        self.remembered.assign(tf.minimum(known, slots))

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Terms on held-out images, with the same draws at every evaluation."""
        inputs = keras.utils.unpack_x_y_sample_weight(data)[0]
        draws, _ = self.draws(inputs, self._draw_seed(-1))
        terms = self.terms(self.inputs_of(inputs), draws)
        return self._track(terms.total, terms)

    def terms(self, inputs: Inputs, draws: Draws) -> Terms:
        """The named terms of what is minimised: the objective's, unless a model adds its own (`extras`)."""
        return self.objective.terms(draws)

    def _track(self, loss: tf.Tensor, terms: Terms) -> dict[str, tf.Tensor]:
        self.loss_tracker.update_state(loss, sample_weight=tf.shape(terms.loss)[0])
        for name, tracker in self.trackers.items():
            tracker.update_state(terms.per_subject[name] if name in terms.per_subject else terms.aggregate[name])
        results = {tracker.name: tracker.result() for tracker in self.metrics}
        results |= {name: tf.convert_to_tensor(value) for name, value in self.scheduled.items()}
        return results | self.posterior.numbers() | self.likelihood.numbers()

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The running means that `fit` and `evaluate` report."""
        return [self.loss_tracker, *self.trackers.values()]
