"""A second VAE that learns where the codes of the first one lie.

Dai & Wipf 2019, Diagnosing and Enhancing VAE Models, ICLR, arXiv 1903.05789, section 4: where images lie near a
manifold, a VAE of optimal scale can reconstruct them well although q(z) is far from N(0, I). Its codes, draws of q(z),
then fill the latent space, and a second VAE of the same latent size can bring theirs to N(0, I). New people are drawn
backwards: u ~ N(0, I), z ~ p₂(z|u), x ~ p(x|z).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self
from zipfile import BadZipFile

import keras
import numpy as np
from numpy.typing import NDArray

from kerasvae.data.dataset import steps_per_epoch, training_dataset
from kerasvae.errors import ModelError
from kerasvae.models.samplers.base import Sampler, aggregate, seeds_of
from kerasvae.models.samplers.files import check_model, codes_digest, file_path
from kerasvae.models.vae import VAE
from kerasvae.networks import dense_decoder, dense_encoder
from kerasvae.objectives.rules import whole_number
from kerasvae.storage import atomic_path

__all__ = ["SecondStage", "TwoStageSampler"]


@keras.saving.register_keras_serializable("kerasvae")
class SecondStage(VAE):
    """A VAE of standardised codes, which knows whose codes they are and how they were standardised.

    Args:
        first: Digest of the model whose codes they are.
        kwargs: As for `VAE`.
    """

    def __init__(self, *args: Any, first: str = "", **kwargs: Any) -> None:
        self.first = first
        super().__init__(*args, **kwargs)

    def _add_state(self) -> None:
        super()._add_state()
        still = {"shape": self.data_shape, "dtype": "float32", "trainable": False, "autocast": False}
        self.centre = self.add_weight(name="centre", initializer="zeros", **still)
        self.spread = self.add_weight(name="spread", initializer="ones", **still)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "first": self.first}


class TwoStageSampler(Sampler):
    """Codes from a second VAE: u ~ N(0, I), then z from its decoder with its likelihood's noise.

    For a model with covariates the second VAE takes them too: z ~ p₂(z|u, c). With few people it can learn them by
    heart, as any VAE can; a mixture of few components has less to remember them by. It can also collapse, as any VAE
    can, most easily where codes are spread alike in all directions: then ``second.likelihood.sigma()``, in standard
    deviations of the codes, stays near 1, and draws are no better than those of one normal.

    Args:
        model: The model whose codes these are.
        second: A VAE of these codes.
    """

    def __init__(self, model: VAE, second: SecondStage) -> None:
        super().__init__(model)
        self.second = second

    @classmethod
    def fit(
        cls,
        model: VAE,
        x: Any,
        latent_size: int | None = None,
        *,
        units: Sequence[int] = (128, 128),
        epochs: int = 200,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        draws: int = 10,
        seed: int = 0,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int = 0,
    ) -> Self:
        """A second VAE, trained on draws of the aggregate posterior, standardised by their mean and scale.

        Args:
            model: A trained model whose codes are points of Euclidean space.
            x: Training images, one a person, (n, *data_shape); with covariates where the model takes them.
            latent_size: Of the second VAE; by default the first's, as in the paper.
            units: Widths of the hidden layers of its encoder, and backwards of its decoder.
            epochs: Passes over the draws.
            batch_size: Draws a step.
            learning_rate: Of Adam at the start; it falls to 0 along a cosine.
            draws: Posterior draws a person; a `point` posterior has one.
            seed: Of draws, weights, order and noise; global seeds are neither used nor touched.
            callbacks: As in `fit` of Keras.
            verbose: As in `fit` of Keras.

        Raises:
            ModelError: If codes are not points of Euclidean space.
            ArgumentError: If there are too few people.
        """
        seed, epochs = whole_number("seed", seed, least=0), whole_number("epochs", epochs, least=1)
        codes, rows = aggregate(model, x, draws, seed)
        z = codes.reshape(-1, model.latent_size)
        second = _second(model, model.latent_size if latent_size is None else latent_size, tuple(units), seed)
        spread = z.std(axis=0)
        second.centre.assign(z.mean(axis=0))
        second.spread.assign(np.where(spread > 0, spread, 1))
        inputs = {"image": (z - second.centre.numpy()) / second.spread.numpy()}
        if rows is not None:
            inputs["covariates"] = np.tile(rows, (len(codes), 1))
        steps = steps_per_epoch(len(z), batch_size)
        rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps * epochs)
        second.compile(keras.optimizers.Adam(rate), steps_per_execution=steps)
        second.people.assign(len(z))
        second.fit(
            training_dataset(inputs, np.arange(len(z)), batch_size=batch_size, epochs=epochs, seed=seed),
            epochs=epochs,
            steps_per_epoch=steps,
            shuffle=False,
            callbacks=list(callbacks),
            verbose=verbose,
        )
        return cls(model, second)

    def _draw(self, count: int, seed: int, rows: NDArray[np.float32] | None) -> NDArray[np.float32]:
        for_u, for_z, _ = seeds_of(seed)
        u = self.second.sample_codes(count, for_u, rows)
        standardised = self.second.decode(u, 1024, rows, noise_seed=for_z)
        return self.second.centre.numpy() + self.second.spread.numpy() * standardised

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the second VAE, not the first, to a .keras file."""
        with atomic_path(file_path(path, ".keras")) as temporary:
            self.second.save(temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: VAE) -> Self:
        """The sampler that `save` wrote, for the model that it was fitted to.

        Raises:
            ModelError: If the file is another, or was fitted to another model.
        """
        try:
            second = keras.saving.load_model(path)
        except (OSError, ValueError, BadZipFile) as error:
            raise ModelError(path, rule="be what TwoStageSampler.save wrote", got=error, fix="Fit it anew") from error
        if not isinstance(second, SecondStage):
            raise ModelError(
                path, rule="be what TwoStageSampler.save wrote", got=type(second).__name__, fix="Fit it anew"
            )
        check_model(path, second.first, model)
        return cls(model, second)


def _second(model: VAE, latent_size: int, units: tuple[int, ...], seed: int) -> SecondStage:
    """The second VAE before training; its weights depend on `seed` alone."""
    shape, width = (model.latent_size,), model.condition_size
    return SecondStage(
        dense_encoder(shape, 2 * latent_size, units, condition_size=width, seed=seed),
        dense_decoder(shape, latent_size, units[::-1], condition_size=width, seed=seed + len(units) + 1),
        covariates=model.covariates,
        first=codes_digest(model),
        seed=seed,
        name="second_stage",
    )
