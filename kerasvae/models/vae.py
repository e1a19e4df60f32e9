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

from kerasvae.distributions import NormalLikelihood, NormalPosterior, StandardNormalPrior
from kerasvae.errors import ArgumentError, ModelError
from kerasvae.models.guard import Fault, NonFiniteGuard
from kerasvae.objectives import Terms, elbo_terms

REPORTED = ("elbo", "log_likelihood", "kl")


@keras.saving.register_keras_serializable("kerasvae")
class VAE(keras.Model):
    """Variational autoencoder of volumes, slices or flat vectors.

    All terms are nats per subject: summed over every axis but the batch, averaged once over the batch.
    `call` and `predict` are deterministic: they decode the code that stands for the posterior (its mean).

    Args:
        encoder: Keras model from images (batch, *data_shape) to posterior parameters (batch, p).
        decoder: Keras model from codes (batch, latent_size) to images (batch, *data_shape).
        latent_size: Number of latent dimensions d; by default the width of the decoder's input.
        data_shape: Shape of one subject; by default the encoder's input shape.
        posterior: What the parameters mean; p must be ``posterior.parameter_size(latent_size)``.
        prior: p(z).
        likelihood: p(x|z); by default a normal one whose scale is estimated, over all voxels.
        beta: Weight of the KL in the loss; 1 is the ELBO. The variable `beta` may be scheduled.
        seed: Seed of the posterior draws. Draws depend on it and on the step alone, so training can be resumed.

    Raises:
        ModelError: If the shapes of the two networks do not fit.
    """

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        latent_size: int | None = None,
        data_shape: Iterable[int] | None = None,
        posterior: NormalPosterior | None = None,
        prior: StandardNormalPrior | None = None,
        likelihood: NormalLikelihood | None = None,
        beta: float = 1.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder
        self.decoder = decoder
        self.posterior = posterior or NormalPosterior()
        self.prior = prior or StandardNormalPrior()
        self.likelihood = likelihood or NormalLikelihood()
        self.latent_size = int(latent_size or _shape(decoder, "input")[0])
        self.data_shape = tuple(int(n) for n in data_shape or _shape(encoder, "input"))
        self.seed = int(seed)
        self._check_networks()
        if not beta >= 0:
            raise ArgumentError("beta", rule="be zero or positive", got=beta, fix="Use 1 for the ELBO")
        self.initial_beta = float(beta)
        constant = keras.initializers.Constant
        self.beta = self.add_weight(name="beta", initializer=constant(self.initial_beta), trainable=False)
        self.step = self.add_weight(name="step", dtype="int64", initializer="zeros", trainable=False)
        self.fault = Fault(("log_likelihood", "kl", "elbo"), name="fault")
        self.loss_tracker = keras.metrics.Mean("loss")
        self.trackers = {name: keras.metrics.Mean(name) for name in REPORTED}
        self.build()

    def _check_networks(self) -> None:
        for network, given, wanted in (
            (self.encoder, (None, *self.data_shape), (self.posterior.parameter_size(self.latent_size),)),
            (self.decoder, (None, self.latent_size), self.data_shape),
        ):
            made = _output_shape(network, given)
            if made != tuple(wanted):
                raise ModelError(
                    f"The network {network.name!r}",
                    rule=f"give an output of shape (batch, {', '.join(map(str, wanted))})",
                    got=f"(batch, {', '.join(map(str, made))})",
                    fix=f"Change its last layer; latent_size is {self.latent_size}, data_shape {self.data_shape}",
                )
        mask = self.likelihood.mask
        if mask is not None and mask.shape != self.data_shape:
            raise ModelError(
                "The likelihood's mask", rule=f"have the data's shape {self.data_shape}", got=mask.shape, fix="Refit it"
            )

    # --- tensors in, tensors out -----------------------------------------------------------------

    def encode_tensors(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """The posterior's deterministic outputs by name, each (batch, d)."""
        return self.posterior.deterministic(self.encoder(image, training=False))

    def decode_tensors(self, z: tf.Tensor) -> tf.Tensor:
        """The mean image of each code: float32 (batch, *data_shape)."""
        return tf.cast(self.decoder(z, training=False), tf.float32)

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """The deterministic reconstruction, (batch, *data_shape)."""
        parameters = self.encoder(_image(inputs), training=training)
        return tf.cast(self.decoder(self.posterior(parameters), training=training), tf.float32)

    def terms(self, image: tf.Tensor, seed: tf.Tensor, training: bool = False) -> tuple[Terms, tf.Tensor]:
        """Named terms of the objective, and the reconstruction from one posterior draw.

        Args:
            image: Shape (batch, *data_shape).
            seed: Stateless seed, two integers.
            training: Whether the networks run in training mode.
        """
        parameters = self.encoder(image, training=training)
        z = self.posterior.sample(parameters, seed)
        mean = tf.cast(self.decoder(z, training=training), tf.float32)
        kl = self.posterior.kl(parameters, self.prior.distribution(self.latent_size))
        return elbo_terms(self.likelihood.log_prob(image, mean), kl, tf.convert_to_tensor(self.beta)), mean

    # --- Keras's loop ----------------------------------------------------------------------------

    def compile(self, optimizer: Any = "adam", *, jit_compile: bool | str = "auto", **kwargs: Any) -> None:
        """As in Keras; the objective is the model's own, so no `loss` is taken.

        ``jit_compile="auto"`` compiles with XLA on GPUs only: on CPUs it makes 3-D convolutions many times slower.
        """
        if kwargs.get("loss") is not None:
            raise ArgumentError(
                "loss", rule="be left out: a VAE's objective is its ELBO", got=kwargs["loss"], fix="Choose a likelihood"
            )
        if jit_compile == "auto":
            jit_compile = bool(tf.config.list_physical_devices("GPU"))
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)
        if not self.optimizer.built:  # so that a file saved before the first step holds the whole optimiser
            self.optimizer.build(self.trainable_variables)

    def get_compile_config(self) -> dict[str, Any]:
        """What `compile` was given."""
        return {"optimizer": keras.saving.serialize_keras_object(self.optimizer)}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as before saving; the optimiser's state follows with the weights."""
        self.compile(optimizer=keras.saving.deserialize_keras_object(config["optimizer"]))

    def fit(self, x: Any = None, y: Any = None, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """As in Keras, on arrays or data sets of images (batch, *data_shape); `y` is not used.

        Raises:
            NonFiniteError: At the first step with a NaN or infinite loss term; that step is not applied.
        """
        if isinstance(x, np.ndarray):
            x = {"image": self._checked(x), "row": np.arange(len(x))}
        return super().fit(x, None, *args, callbacks=[*(callbacks or []), NonFiniteGuard()], **kwargs)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of the optimiser, and one of the likelihood's scale."""
        inputs = keras.utils.unpack_x_y_sample_weight(data)[0]
        image, rows = _image(inputs), _rows(inputs)
        with tf.GradientTape() as tape:
            terms, mean = self.terms(image, self._draw_seed(self.step), training=True)
            loss = tf.reduce_mean(terms.loss)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_variables)
        healthy = self.fault.check(terms.per_subject, rows, tf.convert_to_tensor(self.step))
        tf.cond(healthy, lambda: self._apply(gradients, image, mean), lambda: tf.constant(False))
        self.step.assign_add(1)
        return self._track(loss, terms)

    def _apply(self, gradients: list[tf.Tensor], image: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
        self.optimizer.apply(gradients, self.trainable_variables)
        self.likelihood.update(image, mean)
        return tf.constant(True)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Terms on held-out images, with the same draws at every evaluation."""
        inputs = keras.utils.unpack_x_y_sample_weight(data)[0]
        terms, _ = self.terms(_image(inputs), self._draw_seed(-1))
        return self._track(tf.reduce_mean(terms.loss), terms)

    def _draw_seed(self, step: Any) -> tf.Tensor:
        return tf.stack([tf.constant(self.seed, tf.int32), tf.cast(step, tf.int32)])

    def _track(self, loss: tf.Tensor, terms: Terms) -> dict[str, tf.Tensor]:
        self.loss_tracker.update_state(loss, sample_weight=tf.shape(terms.loss)[0])
        for name, tracker in self.trackers.items():
            tracker.update_state(terms.per_subject[name])
        results = {tracker.name: tracker.result() for tracker in self.metrics}
        return {**results, "beta": tf.convert_to_tensor(self.beta), "sigma": self.likelihood.sigma()}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The running means that `fit` and `evaluate` report."""
        return [self.loss_tracker, *self.trackers.values()]

    # --- arrays in, arrays out -------------------------------------------------------------------

    def encode(self, x: Any, batch_size: int = 8) -> dict[str, NDArray[np.float32]]:
        """Posterior mean and standard deviation of each subject, each (n, d)."""
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
        return self.decode(self.prior.sample(count, self.latent_size, tf.constant([seed, 0], tf.int32)).numpy())

    def elbo(self, x: Any, batch_size: int = 8, samples: int = 1, seed: int = 0) -> dict[str, NDArray[np.float32]]:
        """Named ELBO terms of each subject in nats.

        Args:
            x: Images, (n, *data_shape).
            batch_size: Subjects at a time.
            samples: Posterior draws that the log-likelihood is averaged over.
            seed: Seed of the draws.

        Returns:
            ``elbo``, ``log_likelihood``, ``kl`` of shape (n,) and ``kl_per_dimension`` of shape (n, d).
        """
        parts: list[dict[str, NDArray[np.float32]]] = []
        for index, batch in enumerate(self._batches(x, batch_size)):
            draws = [
                self.terms(batch, tf.constant([seed, index * samples + draw], tf.int32))[0] for draw in range(samples)
            ]
            part = {name: np.mean([d.per_subject[name].numpy() for d in draws], axis=0) for name in REPORTED}
            parts.append({**part, "kl_per_dimension": draws[0].per_dimension["kl"].numpy()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def residual_terms(self, x: Any, seed: tf.Tensor) -> tuple[NDArray, NDArray, NDArray]:
        """log-likelihood, KL and mean squared residual of each subject from one posterior draw, each (n,)."""
        image = tf.constant(self._checked(x))
        terms, mean = self.terms(image, seed)
        square = self.likelihood.squared_residual(image, mean)
        return terms.per_subject["log_likelihood"].numpy(), terms.per_subject["kl"].numpy(), square.numpy()

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
        """Constructor arguments, networks and distributions serialised by Keras."""
        parts = ("encoder", "decoder", "posterior", "prior", "likelihood")
        return {
            **super().get_config(),
            **{name: keras.saving.serialize_keras_object(getattr(self, name)) for name in parts},
            "latent_size": self.latent_size,
            "data_shape": list(self.data_shape),
            "beta": self.initial_beta,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> VAE:
        """The model that `get_config` described."""
        parts = ("encoder", "decoder", "posterior", "prior", "likelihood")
        built = {name: keras.saving.deserialize_keras_object(config[name], custom_objects) for name in parts}
        return cls(**{**config, **built})


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
