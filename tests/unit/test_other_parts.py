"""Validation, figures and checkpoints of models whose posterior, KL and likelihood are not the usual ones."""

import csv
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from kerasvae.data import Scan
from kerasvae.distributions import NormalLikelihood, UniformCodesPrior, VectorQuantisedPosterior
from kerasvae.distributions.base import Likelihood, Output, Posterior
from kerasvae.models import VAE
from kerasvae.networks import dense_decoder, dense_encoder
from kerasvae.objectives import ELBO, Commitment
from kerasvae.preprocess import Pipeline
from kerasvae.training.callbacks import Checkpoint
from kerasvae.training.evaluate import evaluate
from kerasvae.training.guard import CollapseGuard
from kerasvae.types import Grid

X = np.random.default_rng(2).standard_normal((9, 4, 3, 2)).astype("f4")
SHAPE = X.shape[1:]


class OneScale(Posterior):
    """N(middle, scale² I) with one scale for all dimensions: a KL that is not asked for by dimension."""

    kind = "one_scale"
    outputs = (Output("middle", "middle of q(z|x)"), Output("scale", "its one scale"))

    def parameter_size(self, latent_size):
        return latent_size + 1

    def deterministic(self, parameters):
        return {"middle": parameters[:, :-1], "scale": 0.1 + tf.nn.softplus(parameters[:, -1])}

    def center(self, outputs):
        return tf.convert_to_tensor(outputs["middle"])

    def draw(self, parameters, samples, seed):
        made = self.deterministic(parameters)
        noise = tf.random.stateless_normal((samples, *made["middle"].shape), seed)
        z = made["middle"] + made["scale"][:, None] * noise
        return z, self.log_prob(parameters, z)

    def log_prob(self, parameters, z):
        made = self.deterministic(parameters)
        scaled = (z - made["middle"]) / made["scale"][:, None]
        density = -0.5 * tf.square(scaled) - 0.5 * np.log(2 * np.pi) - tf.math.log(made["scale"])[:, None]
        return tf.reduce_sum(density, axis=-1)


class UnitLaplace(Likelihood):
    """A likelihood without a σ, that follows a number of its own."""

    kind = "unit_laplace"

    def voxel_log_prob(self, x, decoded):
        return -tf.abs(x - decoded) - np.log(2.0)

    def mean(self, decoded):
        return decoded

    def numbers(self):
        return {"spread": tf.constant(1.0)}


def make(likelihood):
    keras.utils.set_random_seed(0)
    made = VAE(
        dense_encoder(SHAPE, 4, (5,)),
        dense_decoder(SHAPE, 3, (5,)),
        posterior=OneScale(),
        likelihood=likelihood,
        objective=ELBO(beta=0.5),
    )
    made.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
    made.fit(X, epochs=1, batch_size=3, verbose=0)
    return made


@pytest.fixture
def model():
    return make(UnitLaplace())


@pytest.mark.parametrize(
    "likelihood", [UnitLaplace, lambda: NormalLikelihood(scale="learned")], ids=["none", "learned"]
)
def test_validation_figures_without_a_sigma_that_people_set(likelihood):
    model = make(likelihood())
    watch = CollapseGuard(X, X)
    watch.set_model(model)
    found = watch.observe(0)
    log_likelihood, kl, _ = model.residual_terms(X)
    assert found["val_calibrated_elbo"] == pytest.approx((log_likelihood - kl).mean(), rel=1e-5)
    assert found["val_active_units"] == (model.encode(X)["middle"].var(0) > 0.01).sum()


def test_metrics_and_latents(model, tmp_path):
    run = fake_run(model, tmp_path)
    metrics = evaluate(run, seconds=1.0)
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["kl_per_dimension"] == []
    assert metrics["mutual_information"] is None
    assert "sigma" not in metrics
    assert metrics["spread"] == 1
    assert metrics["active_units"] == (model.encode(X[6:])["middle"].var(0) > 0.01).sum()
    with (tmp_path / "latents.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    names = ["middle_0", "middle_1", "middle_2", "scale"]
    codes = model.encode(X)
    np.testing.assert_allclose(
        [[float(row[name]) for name in names] for row in rows],
        np.c_[codes["middle"], codes["scale"]],
        rtol=1e-4,
        atol=1e-6,
    )
    described = json.loads((tmp_path / "latents.json").read_text())
    assert set(described) == set(rows[0]) - {"participant_id", "session_id"}
    assert described["middle_2"]["Description"] == "middle of q(z|x) (dimension 2)"
    assert described["scale"]["Description"] == "its one scale"


def test_figures_of_discrete_codes(tmp_path):
    keras.utils.set_random_seed(0)
    model = VAE(
        dense_encoder(SHAPE, 3, (5,)),
        dense_decoder(SHAPE, 3, (5,)),
        posterior=VectorQuantisedPosterior(3, positions=3, codebook_size=4),
        prior=UniformCodesPrior(),
        objective=Commitment(),
    )
    model.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
    model.fit(X, epochs=1, batch_size=3, verbose=0)
    metrics = evaluate(fake_run(model, tmp_path), seconds=1.0)
    codes = model.encode(X)
    assert metrics["kl_nats"] == pytest.approx(3 * np.log(4), rel=1e-6)
    assert metrics["kl_per_dimension"] == []
    assert metrics["mutual_information"] is None
    assert metrics["active_units"] == (codes["embedding"][6:].var(0) > 0.01).sum()
    assert metrics["perplexity"] == pytest.approx(float(model.posterior.numbers()["perplexity"]))
    assert 1 <= metrics["codes_used"] <= 4
    with (tmp_path / "latents.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [[row[f"codes_{position}"] for position in range(3)] for row in rows] == codes["codes"].astype(str).tolist()
    watch = CollapseGuard(X, X)
    watch.set_model(model)
    assert watch.observe(0)["val_active_units"] == (codes["embedding"].var(0) > 0.01).sum()


def fake_run(model, path):
    """A run of nine people, six of whom are of the training."""
    people = [f"sub-{i}" for i in range(9)]
    scans = [Scan(person, "", path / person, {}) for person in people]
    roles = {person: "train" if i < 6 else "test" for i, person in enumerate(people)}
    images = dict(zip(people, X, strict=True))
    counts = {"train": 6, "validation": 0, "calibration": 0, "test": 3}
    return SimpleNamespace(
        path=path,
        model=model,
        recipe=SimpleNamespace(model=SimpleNamespace(latent_size=3), training=SimpleNamespace(learned_from=("train",))),
        pipeline=Pipeline(grid=Grid.of(SHAPE, np.eye(4), "native")),
        split=SimpleNamespace(
            roles=roles, counts=lambda: counts, people=lambda role: [p for p in people if roles[p] == role]
        ),
        cohort=SimpleNamespace(
            scans=scans, scans_of=lambda split, *wanted: [scan for scan in scans if roles[scan.person] in wanted]
        ),
        store=SimpleNamespace(
            load=lambda scans: np.stack([images[scan.person] for scan in scans]),
            volume=lambda scan: images[scan.person],
        ),
    )


class WithCritic(ELBO):
    """An objective with a network beside the model, which learns log p(z) of the codes."""

    def build_critic(self, latent_size):
        return keras.Sequential([keras.Input((latent_size,)), keras.layers.Dense(1)])

    def critic_optimizer(self):
        return keras.optimizers.Adam(1e-2)

    def critic_loss(self, critic, draws):
        return tf.reduce_mean(tf.square(critic(draws.z[0])[:, 0] - draws.log_prior[0]))


def with_critic():
    keras.utils.set_random_seed(0)
    model = VAE(dense_encoder(SHAPE, 6, (5,)), dense_decoder(SHAPE, 3, (5,)), objective=WithCritic())
    model.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
    return model


def test_checkpoint_holds_the_critics_optimiser(tmp_path):
    def train(model, epochs, done=0):
        model.fit(X, epochs=epochs, initial_epoch=done, batch_size=9, shuffle=False, verbose=0)
        return model

    def checkpoint_of(model):
        checkpoint = Checkpoint(tmp_path / "checkpoint", patience=5, first_candidate=0, monitor="loss")
        checkpoint.set_model(model)
        return checkpoint

    whole, cut, again = train(with_critic(), 4), train(with_critic(), 2), with_critic()
    checkpoint_of(cut).record(2, {"loss": 1.0})
    assert checkpoint_of(again).restore() == 2
    train(again, 4, done=2)
    for a, b in zip(whole.variables, again.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=a.path)
    kept = [np.asarray(variable) for variable in again.critic_optimizer.variables]
    assert int(kept[0]) == 4  # steps
    for a, b in zip(whole.critic_optimizer.variables, kept, strict=True):
        np.testing.assert_array_equal(np.asarray(a), b)


def test_the_posterior_of_this_file_is_normal(model):
    parameters = model.encoder(X)
    z, log_q = model.posterior.draw(parameters, 2, tf.constant([1, 2]))
    made = model.encode(X)
    expected = stats.norm.logpdf(z, made["middle"], made["scale"][:, None]).sum(-1)
    np.testing.assert_allclose(log_q, expected, rtol=1e-4, atol=1e-4)
