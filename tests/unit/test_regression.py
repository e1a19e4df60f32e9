"""The VAE that regresses: its bound against integrals, its predictions against a regression, its semi-supervision."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from kerasvae import Covariate, RegressionVAE, dense_decoder, dense_encoder, fit_core, linear_start
from kerasvae.distributions import ConditionalNormalPrior, InverseAutoregressiveFlowPosterior, RegressionPrior
from kerasvae.errors import ArgumentError, ModelError
from kerasvae.objectives import ELBO, IWAE, Capacity, FreeBits, InfoVAE, MonteCarloELBO

RNG = np.random.default_rng(4)
AGE = RNG.uniform(20, 80, 60)
TARGET = Covariate(name="age", kind="continuous", unit="years", mean=AGE.mean(), stddev=AGE.std())
R = (AGE - AGE.mean()) / AGE.std()
Q, V = 3, 10
X = (1 + np.outer(R, np.linspace(-1, 1, V)) + 0.2 * RNG.normal(size=(60, V))).astype("f4")


def made(seed=0, **options):
    keras.utils.set_random_seed(seed)
    networks = dense_encoder((V,), 2 * Q + 2, (8,)), dense_decoder((V,), Q, (8,))
    return RegressionVAE(*networks, target=TARGET, **options)


def moved_prior():
    prior = RegressionPrior(Q)
    prior.vector.assign([1.0, -2.0, 0.5])
    prior.raw.assign(-0.5)
    return prior, np.array([1.0, -2.0, 0.5]) / np.sqrt(5.25), 1e-3 + np.log1p(np.exp(-0.5))


def test_prior_without_a_condition_is_the_mixture_over_r():
    prior, u, sigma = moved_prior()
    z = RNG.normal(size=(1, 7, Q))
    covariance = sigma**2 * np.eye(Q) + np.outer(u, u)
    expected = stats.multivariate_normal(np.zeros(Q), covariance).logpdf(z[0])
    np.testing.assert_allclose(prior.log_prob(tf.constant(z, tf.float32))[0], expected, rtol=1e-5)
    drawn = prior.sample(20000, Q, tf.constant([1, 2])).numpy()
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.04)


def test_kl_is_the_mean_over_r_of_the_kl_at_r():
    """E over r by Gauss–Hermite quadrature, the KL at each r by the formula for normals."""
    prior, u, sigma = moved_prior()
    model = made(prior=prior)
    out = model.encode(X)
    f, g = (out["target_mean"][:, 0] - AGE.mean()) / AGE.std(), out["target_stddev"][:, 0] / AGE.std()
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    kl = np.zeros(60)
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        mean = np.outer(f + g * node, u)
        square = (out["stddev"] ** 2 + (out["mean"] - mean) ** 2) / (2 * sigma**2)
        kl += weight * (np.log(sigma / out["stddev"]) + square - 0.5).sum(1)
    target_kl = 0.5 * (f**2 + g**2 - 1) - np.log(g)
    terms = model.elbo(X)
    np.testing.assert_allclose(terms["target_kl"], target_kl, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(terms["kl"], kl + target_kl, rtol=1e-4)
    np.testing.assert_allclose(terms["elbo"], terms["log_likelihood"] - terms["kl"], rtol=1e-5)
    np.testing.assert_allclose(terms["kl_per_dimension"].sum(1), kl, rtol=1e-4)


def test_elbo_is_below_the_evidence():
    model = made(prior=moved_prior()[0])
    evidence = model.log_evidence(X[:8], samples=500).log_evidence
    assert (model.elbo(X[:8], samples=200)["elbo"] < evidence).all()


def test_the_loss_takes_the_surprise_of_who_is_known_and_the_kl_of_who_is_not():
    model = made()
    target = AGE.copy()
    target[::3] = np.nan
    given = model.checked({"image": X, "target": target})
    batch = {name: tf.constant(values) for name, values in given.items()}
    draws, _ = model.draws(batch, tf.constant([0, 0]))
    terms = model.terms(model.inputs_of(batch), draws)
    out = model.encode(X)
    surprise = -stats.norm(out["target_mean"][:, 0], out["target_stddev"][:, 0]).logpdf(AGE) - np.log(AGE.std())
    expected = np.where(np.isnan(target), model.bound(draws)["target_kl"], surprise)
    np.testing.assert_allclose(terms.per_subject["target_nats"], expected, rtol=1e-4, atol=1e-4)
    plain = model.objective.terms(draws)
    np.testing.assert_allclose(terms.loss - plain.loss, expected, rtol=1e-3, atol=1e-3)


def test_it_learns_to_read_the_target_and_where_it_changes_the_image():
    networks = linear_start(dense_encoder((V,), 2 * Q + 2, (8,)), dense_decoder((V,), Q, (8,)), fit_core(X, Q))
    model = RegressionVAE(*networks, target=TARGET)
    before = np.abs(model.encode(X)["target_mean"][:, 0] - AGE).mean()
    assert before == pytest.approx(np.abs(AGE - AGE.mean()).mean(), rel=1e-4)  # a linear start reads the mean age
    model.compile(keras.optimizers.Adam(1e-2))
    target = AGE.copy()
    target[40:] = np.nan  # nobody tells these ages
    model.fit({"image": X, "target": target}, epochs=80, batch_size=15, verbose=0)
    out = model.encode(X[40:])
    error = np.abs(out["target_mean"][:, 0] - AGE[40:]).mean()
    assert error < 4
    assert error < 0.3 * before
    assert (out["target_stddev"] > 0).all()
    u = model.prior.direction().numpy()
    moved = model.decode(np.stack([u, -u]))
    slope = moved[0] - moved[1]
    assert abs(np.corrcoef(slope, np.linspace(-1, 1, V))[0, 1]) > 0.95


@pytest.mark.parametrize(
    "objective", [ELBO(), FreeBits(0.001), Capacity(capacity=1.0), InfoVAE(alpha=0.5, lambda_=2.0)]
)
def test_the_code_tells_the_reading_where_it_lies(objective):
    """People without a target help only if the KL of their codes reaches q(r|x)."""
    model = made(objective=objective)
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        draws, _ = model.draws(x, tf.constant([0, 0]), training=True)
        loss = model.objective.terms(draws).total
    last = model.encoder.trainable_variables[-2]
    gradient = tape.gradient(loss, last).numpy()
    assert np.abs(gradient[:, -2]).max() > 1e-3


def test_parts_that_would_lose_the_target_are_refused():
    for objective in (IWAE(2), MonteCarloELBO()):
        with pytest.raises(ModelError, match="use a closed KL"):
            made(objective=objective)
    posterior = InverseAutoregressiveFlowPosterior(Q, units=4)
    networks = dense_encoder((V,), posterior.parameter_size(Q) + 2, (8,)), dense_decoder((V,), Q, (8,))
    with pytest.raises(ModelError, match="use a closed KL"):
        RegressionVAE(*networks, target=TARGET, posterior=posterior)


def test_saved_and_loaded(tmp_path):
    model = made()
    model.compile("adam")
    model.fit({"image": X, "target": AGE}, epochs=1, verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert isinstance(again, RegressionVAE)
    assert again.target == TARGET
    for name, value in model.encode(X).items():
        np.testing.assert_array_equal(again.encode(X)[name], value)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ModelError, match="be continuous"):
        RegressionVAE(
            dense_encoder((V,), 2 * Q + 2),
            dense_decoder((V,), Q),
            target=Covariate(name="sex", kind="categorical", levels=("F", "M"), shares=(0.5, 0.5)),
        )
    with pytest.raises(ModelError, match="be a RegressionPrior"):
        made(prior=ConditionalNormalPrior(Q, 1))
    with pytest.raises(ModelError, match=r"\(batch, 8\)"):
        RegressionVAE(dense_encoder((V,), 2 * Q), dense_decoder((V,), Q), target=TARGET)
    with pytest.raises(ArgumentError, match=r"shape \(60, 1\)"):
        made().encode({"image": X, "target": AGE[:5]})
    with pytest.raises(ArgumentError, match="hold image, perhaps target"):
        made().encode({"image": X, "covariates": AGE})


def test_covariates_and_a_target_go_together():
    from kerasvae import Covariates

    sex = Covariates.fit({"sex": np.where(np.arange(60) % 2, "F", "M")})
    networks = dense_encoder((V,), 2 * Q + 2, (4,), condition_size=1), dense_decoder((V,), Q, (4,), condition_size=1)
    model = RegressionVAE(*networks, target=TARGET, covariates=sex)
    model.compile("adam")
    given = {"image": X, "covariates": {"sex": ["F"] * 60}}
    model.fit({**given, "target": AGE}, epochs=1, verbose=0)
    assert model.encode(given)["target_mean"].shape == (60, 1)


def test_a_recipe_starts_with_a_reading_of_the_target():
    """As a ridge regression on PCA's scores, by scikit-learn's own PCA, predicts people whom it never saw."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LinearRegression

    from kerasvae.preprocess import Pipeline
    from kerasvae.training.build import build_model
    from kerasvae.training.recipe import parse_recipe
    from kerasvae.types import Grid

    rng = np.random.default_rng(9)
    age = rng.uniform(20, 80, 80)
    shape = (4, 5, 3)
    pattern, other = rng.normal(size=(2, *shape))
    x = (age[:, None, None, None] - 50) / 17 * pattern + rng.normal(size=(80, 1, 1, 1)) * other
    x = (x + 0.5 * rng.normal(size=(80, *shape))).astype("f4")
    section = {"latent_size": 4, "filters": [4], "target": "age"}
    recipe = parse_recipe({"pipeline": {"intensity": {"kind": "zscore"}}, "model": section}, "here")
    grid = Grid.of(shape, np.eye(4), "test")
    model = build_model(
        recipe, x[:60], Pipeline(grid=grid), {"age": [str(a) for a in age[:60]]}, {"age": "years"}
    ).model
    out = model.encode(x[60:])
    scores = PCA(4).fit(x[:60].reshape(60, -1))
    line = LinearRegression().fit(scores.transform(x[:60].reshape(60, -1)), age[:60])
    expected = line.predict(scores.transform(x[60:].reshape(20, -1)))
    np.testing.assert_allclose(out["target_mean"][:, 0], expected, atol=2.5)
    error = out["target_mean"][:, 0] - age[60:]
    assert np.abs(error).mean() < 5
    assert np.sqrt(np.mean(error**2)) == pytest.approx(out["target_stddev"].mean(), rel=0.5)
    toward = model.decode(model.prior.direction().numpy()[None])[0] - model.decode(np.zeros((1, 4)))[0]
    assert np.corrcoef(toward.ravel(), pattern.ravel())[0, 1] > 0.9
