"""The parts of a variational autoencoder put together: networks, distributions, and draws through them.

`kerasvae.models.arrays` adds NumPy's side to it, `kerasvae.models.vae` Keras's loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import keras
import tensorflow as tf

from kerasvae.covariates import Covariates
from kerasvae.distributions import (
    Context,
    Likelihood,
    NormalLikelihood,
    NormalPosterior,
    Output,
    Posterior,
    Prior,
    StandardNormalPrior,
    closed_kl,
)
from kerasvae.distributions.base import sum_over_event
from kerasvae.errors import ArgumentError
from kerasvae.models.coding import Coding
from kerasvae.models.compatibility import check_combination
from kerasvae.models.guard import Fault
from kerasvae.models.inputs import Inputs, joined, repeated
from kerasvae.models.shapes import check_shapes, input_shape_of
from kerasvae.objectives import ELBO, Draws, Objective

__all__ = ["Core"]

REPORTED = ("elbo", "log_likelihood", "kl")
"""Terms per subject of every objective."""
PARTS = ("encoder", "decoder", "posterior", "prior", "likelihood", "objective")


class Core(keras.Model):
    """What `kerasvae.VAE` is made of; its arguments are described there."""

    extras: ClassVar[tuple[str, ...]] = ()
    """Names of the terms per subject that the model itself adds to the objective's."""
    remedied: frozenset[str] = frozenset()
    """Names of scheduled numbers that a guard has taken over from their schedules."""
    gives_condition: ClassVar[bool] = False
    """Whether the model has a condition of its own for its prior."""

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        latent_size: int | None = None,
        data_shape: Iterable[int] | None = None,
        posterior: Posterior | None = None,
        prior: Prior | None = None,
        likelihood: Likelihood | None = None,
        objective: Objective | None = None,
        seed: int = 0,
        covariates: Covariates | None = None,
        **kwargs: Any,
    ) -> None:
        # what comes in is in its own unit, and float16 would not hold it; the networks cast for themselves
        super().__init__(autocast=False, **kwargs)
        self.covariates = covariates
        self.coding = None if covariates is None else Coding(covariates)
        self.encoder = encoder
        self.decoder = decoder
        self.posterior = posterior or NormalPosterior()
        self.prior = prior or StandardNormalPrior()
        self.likelihood = likelihood or NormalLikelihood()
        self.objective = objective or ELBO()
        check_combination(
            self.posterior,
            self.prior,
            self.likelihood,
            self.objective,
            conditional=self.condition_size > 0 or self.gives_condition,
        )
        self.latent_size = int(latent_size or input_shape_of(decoder)[0])
        self.data_shape = tuple(int(n) for n in data_shape or input_shape_of(encoder))
        self.seed = int(seed)
        check_shapes(self)
        self._add_state()
        self.build()

    def _add_state(self) -> None:
        """What changes during training beside the weights of the parts."""
        constants, names = self.objective.constants, self.objective.scheduled
        self.scheduled = {name: self._number(name, float(constants[name])) for name in names} | self.posterior.scheduled
        self.step = self._number("step", 0, "int64")
        self.people = self._number("people", 0, "int64")
        slots, size = self.objective.memory, self.latent_size
        self.memory = self.add_weight(name="memory", shape=(slots, size), initializer="zeros", trainable=False)
        self.remembered = self._number("remembered", 0, "int64")
        self.critic = self.objective.build_critic(self.latent_size)
        self.critic_optimizer = self.objective.critic_optimizer()
        if self.critic is not None and self.critic_optimizer is not None:
            self.critic_optimizer.build(self.critic.trainable_variables)
        terms = ("log_likelihood", "kl", *self.objective.extras, *self.extras, "penalty", "loss", "elbo")
        self.fault = Fault(terms, name="fault")
        self.loss_tracker = keras.metrics.Mean("loss")
        names = (*REPORTED, *self.objective.extras, *self.extras, *self.objective.aggregates)
        self.trackers = {name: keras.metrics.Mean(name) for name in names}

    def _number(self, name: str, value: float, dtype: str = "float32") -> keras.Variable:
        initial = keras.initializers.Constant(value)
        return self.add_weight(name=name, dtype=dtype, initializer=initial, trainable=False)

    @property
    def condition_size(self) -> int:
        """Columns c of the standardised covariates; 0 without."""
        return 0 if self.coding is None else self.coding.width

    @property
    def encoder_width(self) -> int:
        """Numbers that the encoder gives for each subject."""
        return self.posterior.parameter_size(self.latent_size)

    @property
    def outputs_of_encoder(self) -> tuple[Output, ...]:
        """Name and meaning of what `encode` gives."""
        return self.posterior.outputs

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of what `encode` takes."""
        return ("image",) if self.covariates is None else ("image", "covariates")

    @property
    def optional_names(self) -> tuple[str, ...]:
        """Names of what images may come with, beside `input_names`."""
        return () if self.objective.site is None else ("site",)

    def input_shapes(self, shape: tuple[int, ...]) -> Any:
        """Shape of a network's input, or of both."""
        main = (None, *shape)
        return main if self.covariates is None else [main, (None, self.condition_size)]

    @property
    def main_variables(self) -> list[keras.Variable]:
        """What the model's optimiser trains: everything trainable but the objective's critic."""
        critic = set() if self.critic is None else {id(variable) for variable in self.critic.trainable_variables}
        return [variable for variable in self.trainable_variables if id(variable) not in critic]

    # --- tensors in, tensors out -----------------------------------------------------------------

    def encode_tensors(self, image: tf.Tensor, covariates: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """The posterior's deterministic outputs by name, each (B, …); covariates in their units, (B, k)."""
        return self.outputs(self._encoded(image, self._condition(covariates)))

    def outputs(self, encoded: tf.Tensor) -> dict[str, tf.Tensor]:
        """The deterministic outputs by name, from what the encoder gives."""
        return self.posterior.deterministic(encoded)

    def parameters(self, encoded: tf.Tensor) -> tf.Tensor:
        """The posterior's parameters, (B, p), in what the encoder gives: all of it, unless a model asks it for more."""
        return encoded

    def decode_tensors(self, z: tf.Tensor, covariates: tf.Tensor | None = None) -> tf.Tensor:
        """The mean image of each code: float32 (batch, *data_shape); covariates in their units, (B, k)."""
        return self.likelihood.mean(self._decoded(z, self._condition(covariates)))

    def score_tensors(self, image: tf.Tensor, covariates: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """How unusual each subject is, float32 (B,): ``surprise`` and ``residual``; see `kerasvae.scoring`.

        With them ``center``, the code that stands for the subject, (B, d).
        """
        condition = self._condition(covariates)
        return self.scores_of(self._encoded(image, condition), image, condition)

    def scores_of(self, encoded: tf.Tensor, image: tf.Tensor, condition: tf.Tensor | None) -> dict[str, tf.Tensor]:
        """As `score_tensors`, from what the encoder gave; covariates standardised, (B, c)."""
        center = self.posterior.center(self.outputs(encoded))
        decoded = self._decoded(center, condition)
        surprise = -self.likelihood.log_prob(image, decoded)
        known = self.divergence(encoded, self._context(condition), None)
        difference = image - tf.reshape(self.likelihood.mean(decoded), tf.shape(image))
        if self.likelihood.mask is not None:
            difference = tf.where(self.likelihood.mask, difference, 0.0)
        squares = sum_over_event(tf.square(difference)) / self.likelihood.count(image)
        return {
            "surprise": surprise if known is None else surprise + known[0],
            "residual": tf.sqrt(squares),
            "center": center,
        }

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """The deterministic reconstruction, (batch, *data_shape)."""
        given = self.inputs_of(inputs)
        z = self.posterior(self.parameters(self._encoded(given.image, given.condition, training)))
        return self.likelihood.mean(self._decoded(z, given.condition, training))

    def inputs_of(self, batch: Any) -> Inputs:
        """The parts of a batch: an image tensor, or a dictionary with ``image`` and, as the model needs, more."""
        if not isinstance(batch, Mapping):
            return Inputs(batch, self._condition(None))
        return Inputs(batch["image"], self._condition(batch.get("covariates")), site=batch.get("site"))

    def _condition(self, covariates: tf.Tensor | None) -> tf.Tensor | None:
        """Standardised covariates, (B, c); None where the model takes none."""
        if self.coding is None:
            return None
        if covariates is None:
            raise ArgumentError(
                "covariates",
                rule=f"be given with the images: {', '.join(self.coding.names)}",
                got="none",
                fix='Pass {"image": …, "covariates": …}, or covariates= to decode and sample',
            )
        return self.coding(covariates)

    def _encoded(self, image: tf.Tensor, condition: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        return tf.cast(self.encoder(joined(image, condition), training=training), tf.float32)

    def _decoded(self, z: tf.Tensor, condition: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        return tf.cast(self.decoder(joined(z, condition), training=training), tf.float32)

    def _context(self, condition: tf.Tensor | None = None) -> Context:
        return Context(condition=condition, posterior=self.posterior, encode=self._encoded)

    def divergence(
        self, encoded: tf.Tensor, context: Context, z: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor | None] | None:
        """KL(q ‖ p) in closed form, and its part in each dimension where it is a sum; None where there is none."""
        return closed_kl(self.posterior, self.parameters(encoded), self.prior, context, z)

    def _draw_seed(self, step: Any) -> tf.Tensor:
        return tf.stack([tf.constant(self.seed, tf.int32), tf.cast(step, tf.int32)])

    def bound(self, draws: Draws) -> dict[str, tf.Tensor]:
        """The ELBO and its terms of each subject, nats, (B,)."""
        log_likelihood = tf.reduce_mean(draws.log_likelihood, axis=0)
        return {"elbo": log_likelihood - draws.kl, "log_likelihood": log_likelihood, "kl": draws.kl}

    def cost(self, inputs: Inputs, draws: Draws) -> tf.Tensor:
        """By what held-out people are judged beside their log-likelihood: the KL, nats, (B,)."""
        return self.bound(draws)["kl"]

    def draws(
        self, batch: Any, seed: tf.Tensor, *, samples: int | None = None, training: bool = False
    ) -> tuple[Draws, tf.Tensor]:
        """Posterior draws with all that an objective may ask of them, and the decoder's output for them.

        Args:
            batch: Images (B, *data_shape), or a dictionary with them as ``image``.
            seed: Stateless seed, two integers.
            samples: S; by default the objective's.
            training: Whether the networks run in training mode.

        Returns:
            The draws, and the decoder's output of shape (S·B, …), draw by draw.
        """
        count = samples or self.objective.samples
        for_z, for_prior, for_rest = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
        given = self.inputs_of(batch)
        image, condition = given.image, given.condition
        context = self._context(condition)
        encoded = self._encoded(image, condition, training)
        parameters = self.parameters(encoded)
        size = tf.shape(parameters)[0]
        z, log_posterior = self.posterior.draw(parameters, count, for_z)
        weight: list[tf.Tensor] = []
        if training:
            z = _with_gradient_weight(z, weight)
        if self.objective.stops_density:
            log_posterior = self.posterior.log_prob(tf.stop_gradient(parameters), z)
        flat = tf.reshape(z, (count * size, self.latent_size))
        decoded = self._decoded(flat, repeated(condition, count), training)
        log_likelihood = tf.reshape(self.likelihood.log_prob(repeated(image, count), decoded), (count, size))
        log_prior = self.prior.log_prob(z, context)
        kl, kl_per_dimension = self.divergence(encoded, context, z) or (
            tf.reduce_mean(log_posterior - log_prior, axis=0),
            None,
        )
        draws = Draws(
            z=z,
            log_likelihood=log_likelihood,
            log_prior=log_prior,
            log_posterior=log_posterior,
            kl=kl,
            kl_per_dimension=kl_per_dimension,
            parameters=encoded,
            outputs=self.outputs(encoded),
            draw_prior=lambda number: self.prior.sample(number, self.latent_size, for_prior, context),
            # held-out people are judged by themselves
            memory=tf.convert_to_tensor(self.memory)[: tf.convert_to_tensor(self.remembered) if training else 0],
            pairwise=lambda: self.posterior.log_prob_per_dimension(parameters, z[0][:, None]),
            people=tf.cast(tf.convert_to_tensor(self.people), tf.float32),
            scheduled={name: tf.convert_to_tensor(value) for name, value in self.scheduled.items()},
            critic=self.critic,
            seed=for_rest,
            image=lambda: image,
            reconstruction=lambda: tf.reshape(self.likelihood.mean(decoded), (count, size, *self.data_shape)),
            site=None if given.site is None else given.site[:, 0],
        )
        if training:
            weight.append(self.objective.code_weight(draws))
        return draws, decoded

    # --- saving ----------------------------------------------------------------------------------

    def build(self, input_shape: Any = None) -> None:
        """Build both networks on the data's shape."""
        for network, shape in ((self.encoder, self.data_shape), (self.decoder, (self.latent_size,))):
            if not network.built:
                network.build(self.input_shapes(shape))
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments; networks, distributions and objective serialised by Keras."""
        return {
            **super().get_config(),
            **{name: keras.saving.serialize_keras_object(getattr(self, name)) for name in PARTS},
            "latent_size": self.latent_size,
            "data_shape": list(self.data_shape),
            "seed": self.seed,
            "covariates": None if self.covariates is None else self.covariates.to_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """The model that `get_config` described."""
        built: dict[str, Any] = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects) for name in PARTS
        }
        if config["covariates"] is not None:
            built["covariates"] = Covariates.from_config(config["covariates"])
        return cls(**{**config, **built})


def _with_gradient_weight(z: tf.Tensor, weight: list[tf.Tensor | None]) -> tf.Tensor:
    """z, whose gradient is multiplied by what the list holds when gradients are taken, (S, B); None leaves it alone."""

    @tf.custom_gradient
    def identity(codes: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def backward(gradient: tf.Tensor) -> tf.Tensor:
            return gradient if weight[0] is None else gradient * tf.stop_gradient(weight[0])[..., None]

        return tf.identity(codes), backward

    return identity(z)
