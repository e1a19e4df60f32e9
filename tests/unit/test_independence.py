"""Codes that pay for what they tell of a site: HSIC and the critic against other estimators, and both in `fit`."""

import json
from itertools import permutations

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression

from kerasvae import VAE, Covariate, RegressionVAE, dense_decoder, dense_encoder
from kerasvae.errors import ArgumentError, ModelError
from kerasvae.metrics import debiased_cka
from kerasvae.objectives import ELBO, IWAE, Draws, FactorVAE, WithAdversary, WithHSIC, WithMSSSIM
from kerasvae.objectives.independence import hsic

SITE = Covariate(name="site", kind="categorical", levels=("a", "b"), shares=(0.5, 0.5))


def by_tuples(k, l_):
    """HSIC as a U-statistic over all ordered pairs, triples and quadruples: Song et al. 2012, section 2.4."""
    n = len(k)
    pairs = np.mean([k[i, j] * l_[i, j] for i, j in permutations(range(n), 2)])
    quads = np.mean([k[i, j] * l_[p, q] for i, j, p, q in permutations(range(n), 4)])
    triples = np.mean([k[i, j] * l_[i, p] for i, j, p in permutations(range(n), 3)])
    return pairs + quads - 2 * triples


def kernels(n=7, seed=0):
    rng = np.random.default_rng(seed)
    z, place = rng.standard_normal((n, 3)), rng.integers(0, 2, n)
    return np.exp(-((z[:, None] - z) ** 2).sum(-1) / 3), (place[:, None] == place).astype(float)


def test_hsic_is_the_u_statistic():
    k, l_ = kernels()
    assert float(hsic(k, l_)) == pytest.approx(by_tuples(k, l_), abs=1e-6)


def test_hsic_of_linear_kernels_is_what_cka_is_made_of():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((12, 3)), rng.standard_normal((12, 2))
    b[:, 0] += a[:, 0]
    k, l_ = ((x - x.mean(0)) @ (x - x.mean(0)).T for x in (a, b))
    found = float(hsic(k, l_)) / np.sqrt(float(hsic(k, k)) * float(hsic(l_, l_)))
    assert found == pytest.approx(debiased_cka(a, b), abs=1e-5)


def test_who_is_not_known_does_not_count():
    k, l_ = kernels(9, seed=2)
    known = np.array([1, 0, 1, 1, 1, 0, 1, 1, 0])
    rows = np.flatnonzero(known)
    expected = by_tuples(k[np.ix_(rows, rows)], l_[np.ix_(rows, rows)])
    assert float(hsic(k, l_, known)) == pytest.approx(expected, abs=1e-6)
    few = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0])
    with tf.GradientTape() as tape:
        variable = tf.Variable(k, dtype=tf.float32)
        value = hsic(variable, l_, few)
    assert float(value) == 0
    assert np.isfinite(tape.gradient(value, variable).numpy()).all()


def draws_of(objective, z, site, critic=None):
    """Draws with nothing but codes, (S, B, d), and sites."""
    samples, people = z.shape[:2]
    given = {
        "z": tf.constant(z, tf.float32),
        "log_likelihood": tf.zeros((samples, people)),
        "kl": tf.ones(people),
        "scheduled": {name: tf.constant(float(objective.constants[name])) for name in objective.scheduled},
        "critic": critic,
        "site": None if site is None else tf.constant(site, tf.float32),
    }
    return Draws(**{name: given.get(name) for name in Draws._fields})


def test_the_penalty_is_the_mean_over_draws_and_is_reported():
    objective = WithHSIC(ELBO(), SITE, site_weight=50.0, kernel="rbf", scales=(1.0,))
    rng = np.random.default_rng(3)
    z, site = rng.standard_normal((2, 8, 3)), np.array([0, 1, 1, np.nan, 0, 1, 0, 1])
    terms = objective.terms(draws_of(objective, z, site))
    known = ~np.isnan(site)
    same = (site[known][:, None] == site[known]).astype(float)
    expected = np.mean([by_tuples(np.exp(-((c[:, None] - c) ** 2).sum(-1) / 6), same) for c in z[:, known]])
    assert float(terms.aggregate["hsic"]) == pytest.approx(expected, abs=1e-6)
    assert float(terms.penalty) == pytest.approx(50 * expected, rel=1e-4)
    assert (objective.aggregates, objective.scheduled) == (("hsic",), ("beta", "site_weight"))
    assert float(objective.terms(draws_of(objective, z, None)).penalty) == 0


def test_the_critic_learns_what_bayes_rule_knows():
    """Two normals a distance of 2 apart: the surprise comes down to that of a logistic regression."""
    objective = WithAdversary(ELBO(), SITE, site_weight=3.0, units=(16,), learning_rate=1e-2)
    rng = np.random.default_rng(4)
    site = rng.integers(0, 2, 2000).astype(float)
    z = rng.standard_normal((1, 2000, 2)) + np.stack([2 * site - 1, 0 * site], axis=-1)
    site[:40] = np.nan
    critic, optimizer = objective.build_critic(2), objective.critic_optimizer()
    optimizer.build(critic.trainable_variables)
    draws = draws_of(objective, z, site, critic)
    for _ in range(150):
        with tf.GradientTape() as tape:
            loss = objective.critic_loss(critic, draws)
        optimizer.apply(tape.gradient(loss, critic.trainable_variables), critic.trainable_variables)
    known = ~np.isnan(site)
    chances = LogisticRegression().fit(z[0, known], site[known]).predict_proba(z[0, known])
    expected = -np.log(chances[np.arange(known.sum()), site[known].astype(int)]).mean()
    terms = objective.terms(draws)
    surprise = terms.per_subject["site_surprise"].numpy()
    assert surprise[known].mean() == pytest.approx(expected, abs=0.02) == pytest.approx(float(loss), abs=0.02)
    assert not surprise[~known].any()
    np.testing.assert_allclose(terms.loss, 1 - 3 * surprise, rtol=1e-5)  # β KL is 1, the log-likelihood 0


def images(n=160, seed=0):
    """Vectors with two patterns of people and one of a site of half of them; what is regressed goes with the first."""
    rng, patterns = np.random.default_rng(seed), np.random.default_rng(9).standard_normal((3, 12))
    site, factors = rng.integers(0, 2, n), rng.standard_normal((n, 2))
    x = factors @ patterns[:2] + np.outer(1.5 * (2 * site - 1), patterns[2]) + 0.3 * rng.standard_normal((n, 12))
    return x.astype("f4"), site, factors


def told(model, x, site):
    """Share of people whose site a logistic regression on other people's posterior means tells."""
    codes, half = model.encode(x)["mean"], len(x) // 2
    reader = LogisticRegression().fit(codes[:half], site[:half])
    return reader.score(codes[half:], site[half:])


@pytest.mark.parametrize(
    "objective",
    [
        ELBO(),
        WithHSIC(ELBO(), SITE, site_weight=300.0),
        WithAdversary(ELBO(), SITE, site_weight=10.0, units=(32,), learning_rate=1e-2),
    ],
    ids=["none", "HSIC", "adversary"],
)
def test_codes_that_pay_do_not_tell(objective, tmp_path):
    keras.utils.set_random_seed(0)
    x, site, _ = images()
    new, where, known = images(400, seed=1)
    model = VAE(dense_encoder((12,), 6, (32,)), dense_decoder((12,), 3, (32,)), objective=objective)
    model.compile(keras.optimizers.Adam(3e-3))
    given = {"image": x} | ({} if objective.site is None else {"site": ["ab"[s] for s in site]})
    history = model.fit(given, epochs=60, batch_size=32, verbose=0).history
    assert all(np.isfinite(column).all() for column in history.values())
    accuracy = told(model, new, where)  # images alone
    assert accuracy > 0.95 if objective.site is None else accuracy < 0.75
    codes = np.c_[np.ones(400), model.encode(new)["mean"]]
    lost = known - codes @ np.linalg.lstsq(codes, known, rcond=None)[0]
    assert 1 - lost.var() / known.var() > 0.8  # people are still there
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert json.dumps(again.get_config()) == json.dumps(model.get_config())
    np.testing.assert_array_equal(again.encode(new)["mean"], model.encode(new)["mean"])


def test_what_comes_with_the_images():
    x, site, _ = images(8)
    model = VAE(dense_encoder((12,), 4, (4,)), dense_decoder((12,), 2, (4,)), objective=WithHSIC(ELBO(), SITE))
    checked = model.checked({"image": x, "site": ["a", "n/a", "b", "a", "b", "", "b", "a"]})
    np.testing.assert_array_equal(checked["site"][:, 0], [0, np.nan, 1, 0, 1, np.nan, 1, 0])
    np.testing.assert_array_equal(model.checked({"image": x, "site": site})["site"][:, 0], site)
    with pytest.raises(ArgumentError, match="be one of a, b, but received 'c'"):
        model.checked({"image": x, "site": ["a"] * 7 + ["c"]})
    with pytest.raises(ArgumentError, match="hold image"):
        VAE(dense_encoder((12,), 4, (4,)), dense_decoder((12,), 2, (4,))).checked({"image": x, "site": site})
    age = Covariate(name="age", kind="continuous", mean=50, stddev=10)
    both = RegressionVAE(
        dense_encoder((12,), 6, (4,)), dense_decoder((12,), 2, (4,)), target=age, objective=WithHSIC(ELBO(), SITE)
    )
    with pytest.raises(ModelError, match="'normal' and 'iwae'"):
        RegressionVAE(both.encoder, both.decoder, target=age, objective=WithHSIC(IWAE(2), SITE))
    both.compile("adam")
    both.fit({"image": x, "target": np.full(8, 40.0), "site": site}, epochs=1, verbose=0)
    assert set(both.encode(x)) == {"mean", "stddev", "target_mean", "target_stddev"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WithHSIC(ELBO(), Covariate(name="age", kind="continuous")), "site must be a category"),
        (lambda: WithHSIC(ELBO(), SITE, site_weight=-1.0), "site_weight must"),
        (lambda: WithHSIC(ELBO(), SITE, kernel="linear"), "kernel must be one of"),
        (lambda: WithHSIC(WithAdversary(ELBO(), SITE), SITE), "no price for a site yet"),
        (lambda: WithHSIC(WithHSIC(ELBO(), SITE), SITE), "objective of another kind"),
        (lambda: WithHSIC(WithMSSSIM(WithHSIC(ELBO(), SITE), 1.0, 1.0), SITE), "objective of another kind"),
        (lambda: WithAdversary(FactorVAE(), SITE), "no critic of its own"),
        (lambda: WithHSIC("elbo", SITE), "objective of another kind"),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()
