"""The variational autoencoder: a Keras model that owns its train step.

Kingma & Welling 2014, arXiv 1312.6114; Rezende, Mohamed & Wierstra 2014, arXiv 1401.4082.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasvae.distributions import (
    Context,
    Likelihood,
    NormalLikelihood,
    NormalPosterior,
    Posterior,
    Prior,
    StandardNormalPrior,
    closed_kl,
)
from kerasvae.errors import ArgumentError, ModelError
from kerasvae.models.compatibility import check_combination
from kerasvae.models.evidence import Evidence, log_evidence
from kerasvae.models.guard import Fault, NonFiniteGuard
from kerasvae.objectives import ELBO, Draws, Objective, Terms

REPORTED = ("elbo", "log_likelihood", "kl")
PARTS = ("encoder", "decoder", "posterior", "prior", "likelihood", "objective")


@keras.saving.register_keras_serializable("kerasvae")
class VAE(keras.Model):
    """Variational autoencoder of volumes, slices or flat vectors.

    All terms are nats per subject: summed over every axis but the batch, averaged once over the batch.
    `call` and `predict` are deterministic: they decode the code that stands for the posterior (its mean).

    Args:
        encoder: Keras model from images (batch, *data_shape) to posterior parameters (batch, p).
        decoder: Keras model from codes (batch, latent_size) to what the likelihood needs: images
            (batch, *data_shape), or (batch, *data_shape, channels) where it needs several numbers a voxel.
        latent_size: Number of latent dimensions d; by default the width of the decoder's input.
        data_shape: Shape of one subject; by default the encoder's input shape.
        posterior: What the parameters mean; p must be ``posterior.parameter_size(latent_size)``.
        prior: p(z).
        likelihood: p(x|z); by default a normal one whose scale is estimated, over all voxels.
        objective: What is minimised; by default the negative ELBO.
        seed: Seed of the posterior draws. Draws depend on it and on the step alone, so training can be resumed.

    Raises:
        ModelError: If the shapes of the two networks do not fit, or the parts do not go together.
    """

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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder
        self.decoder = decoder
        self.posterior = posterior or NormalPosterior()
        self.prior = prior or StandardNormalPrior()
        self.likelihood = likelihood or NormalLikelihood()
        self.objective = objective or ELBO()
        check_combination(self.posterior, self.prior, self.likelihood, self.objective)
        self.latent_size = int(latent_size or _shape(decoder, "input")[0])
        self.data_shape = tuple(int(n) for n in data_shape or _shape(encoder, "input"))
        self.seed = int(seed)
        self._check_networks()
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
        self.fault = Fault(("log_likelihood", "kl", *self.objective.extras, "penalty", "loss", "elbo"), name="fault")
        self.loss_tracker = keras.metrics.Mean("loss")
        names = (*REPORTED, *self.objective.extras, *self.objective.aggregates)
        self.trackers = {name: keras.metrics.Mean(name) for name in names}

    def _number(self, name: str, value: float, dtype: str = "float32") -> keras.Variable:
        initial = keras.initializers.Constant(value)
        return self.add_weight(name=name, dtype=dtype, initializer=initial, trainable=False)

    def _check_networks(self) -> None:
        channels = () if self.likelihood.channels == 1 else (self.likelihood.channels,)
        for network, given, wanted in (
            (self.encoder, (None, *self.data_shape), (self.posterior.parameter_size(self.latent_size),)),
            (self.decoder, (None, self.latent_size), (*self.data_shape, *channels)),
        ):
            made = _output_shape(network, given)
            if made != tuple(wanted):
                raise ModelError(
                    f"The network {network.name!r}",
                    rule=f"give an output of shape (batch, {', '.join(map(str, wanted))})",
                    got=f"(batch, {', '.join(map(str, made))})",
                    fix=f"Change its last layer; latent_size is {self.latent_size}, data_shape {self.data_shape}",
                )
        for part in (self.posterior, self.prior, self.likelihood):
            for size in ("latent_size", "data_shape"):
                theirs, own = getattr(part, size, None), getattr(self, size)
                if theirs is not None and theirs != own:
                    raise ModelError(
                        f"The {size} of {type(part).__name__}",
                        rule=f"be the model's, {own}",
                        got=theirs,
                        fix="Make it with the model's sizes",
                    )
        mask = self.likelihood.mask
        if mask is not None and mask.shape != self.data_shape:
            raise ModelError(
                "The likelihood's mask", rule=f"have the data's shape {self.data_shape}", got=mask.shape, fix="Refit it"
            )

    @property
    def main_variables(self) -> list[keras.Variable]:
        """What the model's optimiser trains: everything trainable but the objective's critic."""
        critic = set() if self.critic is None else {id(variable) for variable in self.critic.trainable_variables}
        return [variable for variable in self.trainable_variables if id(variable) not in critic]

    # --- tensors in, tensors out -----------------------------------------------------------------

    def encode_tensors(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """The posterior's deterministic outputs by name, each (batch, …)."""
        return self.posterior.deterministic(self._parameters(image))

    def decode_tensors(self, z: tf.Tensor) -> tf.Tensor:
        """The mean image of each code: float32 (batch, *data_shape)."""
        return self.likelihood.mean(self._decoded(z))

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """The deterministic reconstruction, (batch, *data_shape)."""
        z = self.posterior(self._parameters(_image(inputs), training))
        return self.likelihood.mean(self._decoded(z, training))

    def _parameters(self, image: tf.Tensor, training: bool = False) -> tf.Tensor:
        return tf.cast(self.encoder(image, training=training), tf.float32)

    def _decoded(self, z: tf.Tensor, training: bool = False) -> tf.Tensor:
        return tf.cast(self.decoder(z, training=training), tf.float32)

    def _context(self) -> Context:
        return Context(posterior=self.posterior, encode=self._parameters)

    def draws(
        self, image: tf.Tensor, seed: tf.Tensor, *, samples: int | None = None, training: bool = False
    ) -> tuple[Draws, tf.Tensor]:
        """Posterior draws with all that an objective may ask of them, and the decoder's output for them.

        Args:
            image: (B, *data_shape).
            seed: Stateless seed, two integers.
            samples: S; by default the objective's.
            training: Whether the networks run in training mode.

        Returns:
            The draws, and the decoder's output of shape (S·B, …), draw by draw.
        """
        count = samples or self.objective.samples
        for_z, for_prior, for_rest = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
        context = self._context()
        parameters = self._parameters(image, training)
        batch = tf.shape(parameters)[0]
        z, log_posterior = self.posterior.draw(parameters, count, for_z)
        weight: list[tf.Tensor] = []
        if training:
            z = _with_gradient_weight(z, weight)
        if self.objective.stops_density:
            log_posterior = self.posterior.log_prob(tf.stop_gradient(parameters), z)
        flat = tf.reshape(z, (count * batch, self.latent_size))
        decoded = self._decoded(flat, training)
        images = image if count == 1 else tf.tile(image, [count] + [1] * len(self.data_shape))
        log_likelihood = tf.reshape(self.likelihood.log_prob(images, decoded), (count, batch))
        log_prior = self.prior.log_prob(z, context)
        kl, kl_per_dimension = closed_kl(self.posterior, parameters, self.prior, context, z) or (
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
            parameters=parameters,
            outputs=self.posterior.deterministic(parameters),
            draw_prior=lambda number: self.prior.sample(number, self.latent_size, for_prior, context),
            # held-out people are judged by themselves
            memory=tf.convert_to_tensor(self.memory)[: tf.convert_to_tensor(self.remembered) if training else 0],
            pairwise=lambda: self.posterior.log_prob_per_dimension(parameters, z[0][:, None]),
            people=tf.cast(tf.convert_to_tensor(self.people), tf.float32),
            scheduled={name: tf.convert_to_tensor(value) for name, value in self.scheduled.items()},
            critic=self.critic,
            seed=for_rest,
            image=lambda: image,
            reconstruction=lambda: tf.reshape(self.likelihood.mean(decoded), (count, batch, *self.data_shape)),
        )
        if training:
            weight.append(self.objective.code_weight(draws))
        return draws, decoded

    # --- Keras's loop ----------------------------------------------------------------------------

    def compile(self, optimizer: Any = "adam", *, jit_compile: bool | str = "auto", **kwargs: Any) -> None:
        """As in Keras; the objective is the model's own, so no `loss` is taken.

        ``jit_compile="auto"`` compiles with XLA on GPUs only: on CPUs it makes 3-D convolutions many times slower.
        """
        if kwargs.get("loss") is not None:
            raise ArgumentError(
                "loss", rule="be left out: a VAE has its own objective", got=kwargs["loss"], fix="Give the VAE another"
            )
        if jit_compile == "auto":
            jit_compile = bool(tf.config.list_physical_devices("GPU"))
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)
        if not self.optimizer.built:  # so that a file saved before the first step holds the whole optimiser
            self.optimizer.build(self.main_variables)

    def get_compile_config(self) -> dict[str, Any]:
        """What `compile` was given."""
        return {"optimizer": keras.saving.serialize_keras_object(self.optimizer)}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as before saving; the optimiser's state follows with the weights."""
        self.compile(optimizer=keras.saving.deserialize_keras_object(config["optimizer"]))

    def fit(self, x: Any = None, y: Any = None, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """As in Keras, on arrays or data sets of images (batch, *data_shape); `y` is not used.

        Where `x` is a data set, assign the number of training people to `people` first if the objective asks for it.

        Raises:
            NonFiniteError: At the first step with a NaN or infinite loss term; that step is not applied.
        """
        if isinstance(x, np.ndarray):
            self.people.assign(len(x))
            x = {"image": self._likely(x), "row": np.arange(len(x))}
        return super().fit(x, None, *args, callbacks=[*(callbacks or []), NonFiniteGuard()], **kwargs)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of the optimiser, one of the likelihood's scale, and one of the critic where there is one."""
        inputs = keras.utils.unpack_x_y_sample_weight(data)[0]
        image, rows = _image(inputs), _rows(inputs)
        with tf.GradientTape() as tape:
            draws, decoded = self.draws(image, self._draw_seed(self.step), training=True)
            terms = self.objective.terms(draws)
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
        draws, _ = self.draws(_image(inputs), self._draw_seed(-1))
        terms = self.objective.terms(draws)
        return self._track(terms.total, terms)

    def _draw_seed(self, step: Any) -> tf.Tensor:
        return tf.stack([tf.constant(self.seed, tf.int32), tf.cast(step, tf.int32)])

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

    # --- arrays in, arrays out -------------------------------------------------------------------

    def encode(self, x: Any, batch_size: int = 8) -> dict[str, NDArray[np.float32]]:
        """The posterior's deterministic outputs of each subject by name, e.g. mean and stddev, each (n, d)."""
        batches = [self.encode_tensors(batch) for batch in self._batches(x, batch_size)]
        return {name: np.concatenate([batch[name].numpy() for batch in batches]) for name in batches[0]}

    def decode(self, z: Any, batch_size: int = 8) -> NDArray[np.float32]:
        """The mean image of each code: (n, d) to (n, *data_shape)."""
        z = np.asarray(z, dtype=np.float32)
        if z.ndim != 2 or z.shape[1] != self.latent_size or not len(z):
            raise ArgumentError("z", rule=f"have shape (n, {self.latent_size})", got=z.shape, fix="Give codes as rows")
        starts = range(0, len(z), batch_size)
        return np.concatenate([self.decode_tensors(tf.constant(z[i : i + batch_size])).numpy() for i in starts])

    def reconstruct(self, x: Any, batch_size: int = 8) -> NDArray[np.float32]:
        """Deterministic reconstructions, the same shape as `x`."""
        return np.concatenate([self(batch).numpy() for batch in self._batches(x, batch_size)])

    def sample(self, count: int, seed: int = 0) -> NDArray[np.float32]:
        """Mean images of `count` codes drawn from the prior, (count, *data_shape)."""
        z = self.prior.sample(count, self.latent_size, tf.constant([seed, 0], tf.int32), self._context())
        return self.decode(z.numpy())

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
        for index, batch in enumerate(self._batches(self._likely(x), batch_size)):
            draws, _ = self.draws(batch, tf.constant([seed, index], tf.int32), samples=samples)
            log_likelihood = tf.reduce_mean(draws.log_likelihood, axis=0)
            part = {"elbo": log_likelihood - draws.kl, "log_likelihood": log_likelihood, "kl": draws.kl}
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
        return log_evidence(self, self._likely(x), samples, chunk=chunk, seed=seed)

    def residual_terms(self, x: Any, seed: tf.Tensor) -> tuple[NDArray, NDArray, NDArray]:
        """log-likelihood, KL and mean squared residual of each subject from one posterior draw, each (n,)."""
        image = tf.constant(self._likely(x))
        draws, decoded = self.draws(image, seed, samples=1)
        square = self.likelihood.squared_residual(image, decoded)
        return draws.log_likelihood[0].numpy(), draws.kl.numpy(), square.numpy()

    def _checked(self, x: Any) -> NDArray[np.float32]:
        x = np.asarray(x, dtype=np.float32)
        if x.shape[1:] != self.data_shape or not len(x):
            raise ArgumentError(
                "x",
                rule=f"have shape (n, {', '.join(map(str, self.data_shape))}) with n at least 1",
                got=x.shape,
                fix="Apply the model's pipeline first, and stack its volumes",
            )
        return x

    def _likely(self, x: Any) -> NDArray[np.float32]:
        """Images of the right shape within the likelihood's support."""
        x = self._checked(x)
        self.likelihood.check(x)
        return x

    def _batches(self, x: Any, batch_size: int) -> Iterable[tf.Tensor]:
        x = self._checked(x)
        return (tf.constant(x[i : i + batch_size]) for i in range(0, len(x), batch_size))

    # --- saving ----------------------------------------------------------------------------------

    def build(self, input_shape: Any = None) -> None:
        """Build both networks on the data's shape."""
        for network, width in ((self.encoder, self.data_shape), (self.decoder, (self.latent_size,))):
            if not network.built:
                network.build((None, *width))
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments; networks, distributions and objective serialised by Keras."""
        return {
            **super().get_config(),
            **{name: keras.saving.serialize_keras_object(getattr(self, name)) for name in PARTS},
            "latent_size": self.latent_size,
            "data_shape": list(self.data_shape),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> VAE:
        """The model that `get_config` described."""
        built = {name: keras.saving.deserialize_keras_object(config[name], custom_objects) for name in PARTS}
        return cls(**{**config, **built})


def _with_gradient_weight(z: tf.Tensor, weight: list[tf.Tensor | None]) -> tf.Tensor:
    """z, whose gradient is multiplied by what the list holds when gradients are taken, (S, B); None leaves it alone."""

    @tf.custom_gradient
    def identity(codes: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def backward(gradient: tf.Tensor) -> tf.Tensor:
            return gradient if weight[0] is None else gradient * tf.stop_gradient(weight[0])[..., None]

        return tf.identity(codes), backward

    return identity(z)


def _shape(network: keras.Model, side: str) -> tuple[int, ...]:
    shape = getattr(network, f"{side}_shape", None)
    if not isinstance(shape, tuple) or None in shape[1:]:
        raise ModelError(
            f"The network {network.name!r}",
            rule=f"have a known {side} shape",
            got=shape,
            fix="Start it with keras.Input, or pass latent_size and data_shape",
        )
    return shape[1:]


def _output_shape(network: keras.Model, given: tuple[int | None, ...]) -> tuple[int, ...]:
    """Shape of one subject's output; a network that cannot tell is tried on zeros."""
    try:
        return tuple(network.compute_output_shape(given))[1:]
    except NotImplementedError:
        return tuple(network(tf.zeros((1, *given[1:]))).shape)[1:]


def _image(inputs: Any) -> tf.Tensor:
    return inputs["image"] if isinstance(inputs, dict) else inputs


def _rows(inputs: Any) -> tf.Tensor:
    if isinstance(inputs, dict) and "row" in inputs:
        return inputs["row"]
    return tf.fill([tf.shape(_image(inputs))[0]], tf.constant(-1, tf.int64))
