"""Total correlation from densities and from a critic, and the adversarial autoencoder."""

import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from scipy.special import logsumexp

from kerasvae.errors import ArgumentError
from kerasvae.models import VAE
from kerasvae.networks import dense_decoder, dense_encoder
from kerasvae.objectives import Draws
from kerasvae.objectives.adversarial import AdversarialAutoencoder, critic_entropy, critic_network
from kerasvae.objectives.factor_vae import FactorVAE, shuffle_dimensions
from kerasvae.objectives.total_correlation import (
    BetaTCVAE,
    aggregate_log_densities,
    stratified_log_weights,
    weighted_log_weights,
)

RNG = np.random.default_rng(0)
SEED = tf.constant([3, 4])


def make_draws(**given):
    """Draws with what a test gives; the rest is None."""
    parts = {
        name: tf.constant(value, tf.float32) if isinstance(value, np.ndarray) else value
        for name, value in given.items()
    }
    return Draws(**{name: parts.get(name) for name in Draws._fields})


def normal_people(people, d=2, rho=0.0, stddev=0.5, seed=0):
    """Posteriors N(mean_i, stddev_i²) of correlated people, and a code of each, float64."""
    rng = np.random.default_rng(seed)
    covariance = np.full((d, d), rho) + (1 - rho) * np.eye(d)
    mean = rng.multivariate_normal(np.zeros(d), covariance, people)
    scale = np.full((people, d), stddev)
    return mean, scale, mean + scale * rng.standard_normal((people, d))


def pairwise_log_prob(mean, scale, z):
    return stats.norm.logpdf(z[:, None], mean[None], scale[None])


def numbers(**values):
    return {name: tf.constant(value) for name, value in values.items()}


# --- densities -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "people"), [(2, 2), (4, 4), (5, 9), (8, 300), (16, 100_000)])
def test_stratified_weights_have_rows_of_sum_one_and_the_own_share_on_the_diagonal(batch, people):
    weights = np.exp(stratified_log_weights(batch, people).numpy().astype("f8"))
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.diag(weights), 1 / people, rtol=1e-5)
    others = weights[~np.eye(batch, dtype=bool)]
    np.testing.assert_allclose(others, (people - 1) / people / (batch - 1), rtol=1e-5)


def test_stratified_weights_of_a_batch_of_one_and_of_unknown_people():
    np.testing.assert_allclose(np.exp(stratified_log_weights(1, 50)), [[1]])
    np.testing.assert_allclose(np.exp(stratified_log_weights(4, 0.0)), np.full((4, 4), 0.25), rtol=1e-6)


def test_stratified_weights_are_the_mean_of_the_papers_over_who_is_singled_out():
    batch, people = 5, 12
    m = batch - 1  # appendix C.2 counts the others
    mean = np.zeros((batch, batch))
    for own in range(batch):
        others = [i for i in range(batch) if i != own]
        for last in others:
            row = np.full(batch, 1 / m)
            row[own], row[last] = 1 / people, (people - m) / (people * m)
            mean[own] += row / m
    np.testing.assert_allclose(np.exp(stratified_log_weights(batch, people)), mean, rtol=1e-5)


def test_stratified_estimate_of_the_aggregate_density_is_unbiased_over_all_batches():
    people, batch = 7, 3
    mean, scale, z = normal_people(people, seed=1)
    density = np.exp(pairwise_log_prob(mean, scale, z).sum(-1))
    weights = np.exp(stratified_log_weights(batch, people).numpy().astype("f8"))
    for own in range(people):
        others = [i for i in range(people) if i != own]
        estimates = [weights[0] @ density[own, [own, *rest]] for rest in itertools.combinations(others, batch - 1)]
        assert np.mean(estimates) == pytest.approx(density[own].mean(), rel=1e-6)


def test_aggregate_densities_against_a_mixture_in_float64():
    people = 6
    mean, scale, z = normal_people(people, d=3, rho=0.6, seed=2)
    log_q = pairwise_log_prob(mean, scale, z)
    joint = logsumexp(log_q.sum(-1), axis=1) - np.log(people)
    product = (logsumexp(log_q, axis=1) - np.log(people)).sum(-1)
    found = aggregate_log_densities(tf.constant(log_q, tf.float32), stratified_log_weights(people, people))
    np.testing.assert_allclose(found[0], joint, rtol=1e-4)
    np.testing.assert_allclose(found[1], product, rtol=1e-4)


def test_weighted_sampling_is_the_formula():
    mean, scale, z = normal_people(5, seed=3)
    log_q = pairwise_log_prob(mean, scale, z)
    found = aggregate_log_densities(tf.constant(log_q, tf.float32), weighted_log_weights(5, 40))
    np.testing.assert_allclose(found[0], logsumexp(log_q.sum(-1), axis=1) - np.log(5 * 40), rtol=1e-4)
    np.testing.assert_allclose(found[1], (logsumexp(log_q, axis=1) - np.log(5 * 40)).sum(-1), rtol=1e-4)


def tc_draws(people, rho, seed, constants, d=2, stddev=0.5, known=None):
    mean, scale, z = normal_people(people, d, rho, stddev, seed)
    log_q = pairwise_log_prob(mean, scale, z)
    return make_draws(
        z=z[None],
        log_likelihood=np.zeros((1, people)),
        log_prior=stats.norm.logpdf(z).sum(-1)[None],
        log_posterior=np.diagonal(log_q.sum(-1)).copy()[None],
        kl=(0.5 * (scale**2 + mean**2 - 1) - np.log(scale)).sum(-1),
        pairwise=lambda: tf.constant(log_q, tf.float32),
        people=tf.constant(float(known or people)),
        scheduled=numbers(**constants),
    )


def test_parts_of_a_gaussian_are_the_closed_forms():
    people, rho, stddev = 1500, 0.8, 0.5
    constants = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0}
    terms = BetaTCVAE(**constants).terms(tc_draws(people, rho, 5, constants, stddev=stddev))
    parts = {name: float(value) for name, value in terms.aggregate.items()}
    total = 1 + stddev**2  # marginal variance of a code
    correlation = rho / total
    information = 0.5 * np.log(np.linalg.det([[total, rho], [rho, total]]) / stddev**4)
    assert parts["total_correlation"] == pytest.approx(-0.5 * np.log(1 - correlation**2), abs=0.05)
    assert parts["mutual_information"] == pytest.approx(information, abs=0.08)
    assert parts["dimension_kl"] == pytest.approx(2 * 0.5 * (total - 1 - np.log(total)), abs=0.05)


def test_parts_sum_to_the_kl_estimated_from_draws_in_expectation():
    constants = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0}
    differences = []
    for seed in range(60):
        draws = tc_draws(40, 0.6, seed, constants)
        terms = BetaTCVAE(**constants).terms(draws)
        differences.append(sum(float(x) for x in terms.aggregate.values()) - float(tf.reduce_mean(draws.kl)))
    error = np.std(differences) / np.sqrt(len(differences))
    assert error < 0.05
    assert abs(np.mean(differences)) < 4 * error


@pytest.mark.parametrize("estimator", ["stratified", "weighted"])
def test_objective_weighs_the_parts(estimator):
    constants = {"alpha": 0.5, "beta": 6.0, "gamma": 2.0}
    draws = tc_draws(8, 0.6, 6, constants, d=3, known=50)._replace(
        log_likelihood=tf.constant(RNG.random((1, 8)), tf.float32)
    )
    terms = BetaTCVAE(**constants, estimator=estimator).terms(draws)
    mean, scale, z = normal_people(8, 3, 0.6, 0.5, 6)
    log_q = pairwise_log_prob(mean, scale, z)
    weights = np.full((8, 8), 1 / (8 * 50))
    if estimator == "stratified":
        weights = np.where(np.eye(8, dtype=bool), 1 / 50, 49 / (50 * 7))
    joint = logsumexp(log_q.sum(-1), b=weights, axis=1)
    product = logsumexp(log_q, b=weights[..., None], axis=1).sum(-1)
    own = np.diagonal(log_q.sum(-1))
    information, correlation = (own - joint).mean(), (joint - product).mean()
    assert float(terms.aggregate["mutual_information"]) == pytest.approx(information, rel=1e-4)
    assert float(terms.aggregate["total_correlation"]) == pytest.approx(correlation, rel=1e-4)
    dimension_kl = (product - stats.norm.logpdf(z).sum(-1)).mean()
    assert float(terms.aggregate["dimension_kl"]) == pytest.approx(dimension_kl, rel=1e-4)
    # γ·KL is in closed form for each person, what α and β differ from γ is the batch's
    np.testing.assert_allclose(terms.loss, 2 * draws.kl - draws.log_likelihood[0], rtol=1e-5)
    assert float(terms.penalty) == pytest.approx((0.5 - 2) * information + (6 - 2) * correlation, rel=1e-4)


def test_equal_weights_are_the_elbo():
    constants = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0}
    draws = tc_draws(8, 0.6, 7, constants)
    assert float(BetaTCVAE(**constants).terms(draws).total) == pytest.approx(float(tf.reduce_mean(draws.kl)), rel=1e-6)


# --- critics -------------------------------------------------------------------------------------


def test_shuffling_keeps_each_dimension_and_breaks_their_ties():
    z = RNG.standard_normal((500, 3)).astype("f4")
    z[:, 1] = z[:, 0]
    shuffled = shuffle_dimensions(tf.constant(z), SEED).numpy()
    np.testing.assert_array_equal(np.sort(shuffled, axis=0), np.sort(z, axis=0))
    assert abs(np.corrcoef(shuffled.T)[0, 1]) < 0.2
    np.testing.assert_array_equal(shuffled, shuffle_dimensions(tf.constant(z), SEED).numpy())
    assert not np.array_equal(shuffled, shuffle_dimensions(tf.constant(z), tf.constant([3, 5])).numpy())


def test_cross_entropy_against_the_formula():
    yes, no = RNG.standard_normal((5, 1)), RNG.standard_normal((8, 1))
    probability = [1 / (1 + np.exp(-x)) for x in (yes, no)]
    expected = -0.5 * np.log(probability[0]).mean() - 0.5 * np.log(1 - probability[1]).mean()
    assert float(critic_entropy(tf.constant(yes, tf.float32), tf.constant(no, tf.float32))) == pytest.approx(expected)
    assert float(critic_entropy(tf.zeros((3, 1)), tf.zeros((2, 1)))) == pytest.approx(np.log(2))


def train_critic(objective, codes, steps, prior=None):
    """The objective's critic after steps on fresh codes: (critic, last losses)."""
    critic, optimizer = objective.build_critic(2), objective.critic_optimizer()
    optimizer.build(critic.trainable_variables)

    @tf.function
    def step(z, prior_z, seed):
        draws = make_draws(z=z[None], seed=seed, draw_prior=lambda count: prior_z)
        with tf.GradientTape() as tape:
            loss = objective.critic_loss(critic, draws)
        optimizer.apply(tape.gradient(loss, critic.trainable_variables), critic.trainable_variables)
        return loss

    losses = []
    for index in range(steps):
        prior_z = tf.constant(np.random.default_rng(index).standard_normal((256, 2)), tf.float32)
        losses.append(float(step(tf.constant(codes(index), tf.float32), prior_z, tf.constant([0, index]))))
    return critic, losses


def correlated(rho):
    covariance = np.array([[1, rho], [rho, 1]])
    return lambda seed: np.random.default_rng(1000 + seed).multivariate_normal(np.zeros(2), covariance, 256)


def test_factor_critic_learns_the_log_ratio_of_dependent_codes():
    rho = 0.9
    objective = FactorVAE(units=(32, 32), learning_rate=3e-3)
    critic, losses = train_critic(objective, correlated(rho), 300)
    assert losses[0] > 0.6
    z = correlated(rho)(10_000)
    covariance = np.array([[1, rho], [rho, 1]])
    ratio = stats.multivariate_normal.logpdf(z, np.zeros(2), covariance) - stats.norm.logpdf(z).sum(1)
    logit = critic(z.astype("f4")).numpy()[:, 0]
    assert np.corrcoef(logit, ratio)[0, 1] > 0.9
    draws = make_draws(
        z=z[None],
        log_likelihood=np.zeros((1, 256)),
        kl=np.zeros(256),
        critic=critic,
        seed=SEED,
        scheduled=numbers(gamma=2.0),
    )
    terms = objective.terms(draws)
    truth = -0.5 * np.log(1 - rho**2)
    assert float(terms.aggregate["total_correlation"]) == pytest.approx(truth, abs=0.25)
    assert float(terms.aggregate["critic_loss"]) < 0.6
    np.testing.assert_allclose(terms.loss, 2 * logit, rtol=1e-5)
    assert float(terms.penalty) == 0


def test_factor_critic_finds_nothing_in_independent_codes():
    objective = FactorVAE(units=(16,), learning_rate=3e-3)
    critic, losses = train_critic(objective, correlated(0.0), 150)
    assert np.mean(losses[-50:]) == pytest.approx(np.log(2), abs=0.02)
    assert abs(critic(correlated(0.0)(5000).astype("f4")).numpy().mean()) < 0.1


def test_adversarial_critic_tells_codes_from_the_prior_and_the_loss_is_its_surprise():
    objective = AdversarialAutoencoder(units=(16, 16), learning_rate=3e-3)
    critic, losses = train_critic(objective, lambda seed: correlated(0.0)(seed) * 0.3 + [2.0, 0.0], 150)
    assert losses[-1] < 0.3
    assert critic(np.array([[2.0, 0.0]], "f4")).numpy() < 0 < critic(np.array([[-1.0, 0.5]], "f4")).numpy()
    z = RNG.standard_normal((2, 5, 2)).astype("f4")
    draws = make_draws(
        z=z,
        log_likelihood=RNG.standard_normal((2, 5)),
        kl=np.ones(5),
        critic=critic,
        draw_prior=lambda count: tf.zeros((10, 2)),
        scheduled=numbers(lambda_=3.0),
    )
    terms = objective.terms(draws)
    probability = 1 / (1 + np.exp(-critic(z.reshape(10, 2)).numpy().astype("f8").reshape(2, 5)))
    surprise = -np.log(probability).mean(0)
    np.testing.assert_allclose(terms.per_subject["prior_surprise"], surprise, rtol=1e-4)
    np.testing.assert_allclose(terms.loss, 3 * surprise - draws.log_likelihood.numpy().mean(0), rtol=1e-4)


def test_critic_starts_from_its_seed_and_stays_in_float32():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        first, again, other = (critic_network(3, (4, 5), seed) for seed in (1, 1, 2))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert first.output_shape == (None, 1)
    assert first(np.zeros((2, 3), "f4")).dtype == tf.float32
    for a, b in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.get_weights()[0], other.get_weights()[0])


# --- in the model --------------------------------------------------------------------------------

CRITICS = {
    "factor": lambda: FactorVAE(gamma=2.0, units=(8,), learning_rate=1e-2),
    "adversarial": lambda: AdversarialAutoencoder(units=(8,), learning_rate=1e-2),
}
OBJECTIVES = CRITICS | {
    "stratified": lambda: BetaTCVAE(),
    "weighted": lambda: BetaTCVAE(beta=3.0, estimator="weighted"),
}


def vectors(people=12):
    rng = np.random.default_rng(9)
    return (
        rng.standard_normal((people, 2)) @ rng.standard_normal((2, 15)) + 0.1 * rng.standard_normal((people, 15))
    ).astype("f4")


def small(objective):
    keras.utils.set_random_seed(1)
    return VAE(dense_encoder((15,), 4, (8,)), dense_decoder((15,), 2, (8,)), objective=objective)


def values(variables):
    return [np.array(variable) for variable in variables]


def moved(before, after):
    return [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_trains_a_model_and_reports_its_terms(name):
    objective = OBJECTIVES[name]()
    model = small(objective)
    model.compile(keras.optimizers.Adam(1e-3))
    history = model.fit(vectors(), epochs=2, batch_size=5, verbose=0).history  # the last batch has two people
    reported = {"loss", "elbo", "log_likelihood", "kl", "sigma", *objective.scheduled}
    assert set(history) == reported | set(objective.extras) | set(objective.aggregates)
    assert all(np.isfinite(column).all() for column in history.values())


@pytest.mark.parametrize("name", CRITICS)
def test_each_optimiser_moves_its_own_weights_only(name):
    x = vectors()
    model = small(CRITICS[name]())
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    main, critic = values(model.main_variables), values(model.critic.trainable_variables)
    model.fit(x, epochs=1, batch_size=6, verbose=0)
    assert not any(moved(main, values(model.main_variables)))
    assert all(moved(critic, values(model.critic.trainable_variables)))

    model.compile(keras.optimizers.SGD(1e-4), run_eagerly=True)
    model.critic_optimizer.learning_rate = 0.0
    critic = values(model.critic.trainable_variables)
    model.fit(x, epochs=1, batch_size=6, verbose=0)
    assert any(moved(main, values(model.main_variables)))
    assert not any(moved(critic, values(model.critic.trainable_variables)))


@pytest.mark.parametrize("name", CRITICS)
def test_keras_file_keeps_the_critic_and_its_optimiser(tmp_path, name):
    x = vectors()
    model = small(CRITICS[name]())
    model.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
    model.fit(x, epochs=2, batch_size=6, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert int(again.critic_optimizer.iterations) == 4
    for part in ("critic", "critic_optimizer"):
        kept, loaded = (values(getattr(m, part).variables) for m in (model, again))
        assert len(kept) > 0
        assert not any(moved(kept, loaded)), part
    for m in (model, again):
        m.run_eagerly = True
        m.fit(x, epochs=1, batch_size=6, shuffle=False, verbose=0)
    assert not any(moved(values(model.critic.variables), values(again.critic.variables)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_config_round_trip(name):
    objective = OBJECTIVES[name]()
    written = json.dumps(keras.saving.serialize_keras_object(objective))
    again = keras.saving.deserialize_keras_object(json.loads(written))
    assert type(again) is type(objective)
    assert again.get_config() == objective.get_config()
    assert set(objective.scheduled) <= set(objective.get_config())


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (BetaTCVAE, {"alpha": -1.0}),
        (BetaTCVAE, {"beta": float("nan")}),
        (BetaTCVAE, {"gamma": float("inf")}),
        (BetaTCVAE, {"estimator": "stratifed"}),
        (FactorVAE, {"gamma": -0.1}),
        *itertools.product([FactorVAE, AdversarialAutoencoder], [{"units": ()}, {"units": (8, 0)}, {"units": (8.5,)}]),
        *itertools.product([FactorVAE, AdversarialAutoencoder], [{"learning_rate": 0.0}, {"learning_rate": -1.0}]),
        *itertools.product([FactorVAE, AdversarialAutoencoder], [{"seed": -1}, {"seed": 0.5}]),
        (AdversarialAutoencoder, {"lambda_": -1.0}),
    ],
)
def test_bad_constants_are_one_sentence(kind, arguments):
    with pytest.raises(ArgumentError, match=f"^{next(iter(arguments))} must"):
        kind(**arguments)
