"""Covariates in encoder, decoder and prior: against closed forms, and the ways in that must agree."""

import keras
import numpy as np
import pytest
from scipy import stats

from kerasvae import VAE, Covariates, dense_decoder, dense_encoder, fit_core, linear_start
from kerasvae.distributions import ConditionalNormalPrior, NormalLikelihood, RegressionPrior, VampPrior
from kerasvae.errors import ArgumentError, ModelError
from kerasvae.objectives import InfoVAE

RNG = np.random.default_rng(11)
TABLE = {"age": RNG.uniform(20, 80, 40), "sex": RNG.choice(["F", "M"], 40)}
COVARIATES = Covariates.fit(TABLE, units={"age": "years"})
Q, V = 2, 9


def images():
    """x = μ + S c + W z + ε with known parts."""
    coded = np.stack([(TABLE["age"] - 50) / 17, TABLE["sex"] == "M"], 1).astype(float)
    slopes, loadings = np.random.default_rng(1).normal(size=(2, V)), np.random.default_rng(2).normal(size=(Q, V))
    noise = 0.3 * RNG.normal(size=(40, V))
    return (1 + coded @ slopes + RNG.normal(size=(40, Q)) @ loadings + noise).astype("f4")


X = images()
GIVEN = {"image": X, "covariates": TABLE}


def coded(table=TABLE):
    age, sex = np.asarray(table["age"], float), np.asarray(table["sex"]) == "M"
    known, sexes = COVARIATES
    return np.stack([(age - known.mean) / known.stddev, sex - sexes.shares[1]], 1)


def linear():
    """A model that begins as probabilistic PCA of what covariates leave."""
    core = fit_core(X, Q, condition=coded().astype("f4"))
    networks = dense_encoder((V,), 2 * Q, (4,), condition_size=2), dense_decoder((V,), Q, (4,), condition_size=2)
    model = VAE(*linear_start(*networks, core), covariates=COVARIATES)
    model.likelihood.set_sigma(float(np.sqrt(core.noise_variance)))
    return model


def plain(**parts):
    networks = dense_encoder((V,), 2 * Q, (8,), condition_size=2), dense_decoder((V,), Q, (8,), condition_size=2)
    return VAE(*networks, covariates=COVARIATES, **parts)


def test_linear_start_is_the_exact_maximum_of_the_linear_conditional_model():
    """Regression by least squares, then pPCA of the residual by its covariance; all in float64 here."""
    design = np.column_stack([np.ones(40), coded()])
    coefficients, *_ = np.linalg.lstsq(design, X.astype("f8"), rcond=None)
    expected = design @ coefficients
    values, vectors = np.linalg.eigh(np.cov((X - expected).T, bias=True))
    values, vectors = values[::-1], vectors[:, ::-1]
    noise = values[Q:].mean()
    loadings = vectors[:, :Q] * np.sqrt(values[:Q] - noise)
    marginal = loadings @ loadings.T + noise * np.eye(V)
    evidence = np.array([stats.multivariate_normal(m, marginal).logpdf(x) for m, x in zip(expected, X, strict=True)])

    model = linear()
    terms = model.elbo(GIVEN, samples=4000)
    np.testing.assert_allclose(terms["elbo"], evidence, atol=0.15)  # the posterior is exact, so the bound is tight
    assert terms["elbo"].mean() == pytest.approx(evidence.mean(), abs=0.02)
    # x̂ = μ + S c + W M⁻¹ Wᵀ (x − μ − S c)
    projection = loadings @ np.linalg.inv(loadings.T @ loadings + noise * np.eye(Q)) @ loadings.T
    np.testing.assert_allclose(model.reconstruct(GIVEN), expected + (X - expected) @ projection, atol=2e-4)
    np.testing.assert_allclose(model.log_evidence(GIVEN, samples=50).log_evidence, evidence, atol=0.02)


def test_changing_the_covariate_moves_the_image_along_its_slope():
    model = linear()
    older = {**TABLE, "age": np.full(40, 70.0)}
    younger = {**TABLE, "age": np.full(40, 30.0)}
    z = np.zeros((40, Q))
    moved = model.decode(z, covariates=older) - model.decode(z, covariates=younger)
    design = np.column_stack([np.ones(40), coded()])
    slope = (np.linalg.pinv(design) @ X)[1] / COVARIATES[0].stddev
    np.testing.assert_allclose(moved, np.tile(40 * slope, (40, 1)), atol=1e-3)


def test_every_way_in_agrees():
    model = plain(prior=ConditionalNormalPrior(Q, 2, units=(4,)))
    numbers = COVARIATES.matrix(TABLE)
    by_table, by_numbers = model.encode(GIVEN)["mean"], model.encode({"image": X, "covariates": numbers})["mean"]
    np.testing.assert_array_equal(by_table, by_numbers)
    model.compile("adam")
    np.testing.assert_allclose(model.predict(GIVEN, verbose=0), model.reconstruct(GIVEN), atol=1e-6)
    assert model.evaluate(GIVEN, verbose=0, return_dict=True) == model.evaluate(
        {"image": X, "covariates": numbers}, verbose=0, return_dict=True
    )
    history = model.fit(GIVEN, validation_data=GIVEN, epochs=1, verbose=0).history
    assert np.isfinite(history["val_loss"]).all()
    assert model.sample(3, covariates={"age": [30], "sex": ["F"]}).shape == (3, V)
    np.testing.assert_array_equal(
        model.sample(2, seed=4, covariates={"age": [30], "sex": ["F"]}),
        model.sample(2, seed=4, covariates={"age": [30, 30], "sex": ["F", "F"]}),
    )


def test_fit_learns_what_the_covariates_say():
    """Noise apart, the image is the age: a code is of no use, and the decoder must read the covariate."""
    keras.utils.set_random_seed(0)
    pattern = np.linspace(-1, 1, V)
    x = (coded()[:, :1] * pattern + 0.05 * RNG.normal(size=(40, V))).astype("f4")
    model = plain(likelihood=NormalLikelihood())
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit({"image": x, "covariates": TABLE}, epochs=60, batch_size=10, verbose=0)
    expected = coded({"age": [30, 70], "sex": ["F", "F"]})[:, :1] * pattern
    made = model.decode(np.zeros((2, Q)), covariates={"age": [30, 70], "sex": ["F", "F"]})
    np.testing.assert_allclose(made, expected, atol=0.35)
    terms = model.elbo({"image": x, "covariates": TABLE})
    assert terms["kl"].mean() < 3


def test_conditional_prior_enters_the_kl():
    """KL between two normals by hand, for the prior's mean and scale at each person's covariates."""
    prior = ConditionalNormalPrior(Q, 2, units=())
    prior.network[0][0].assign(RNG.normal(size=(2, 2 * Q)))
    prior.network[0][1].assign(RNG.normal(size=2 * Q))
    model = plain(prior=prior)
    q = model.encode(GIVEN)
    out = coded() @ np.asarray(prior.network[0][0]) + np.asarray(prior.network[0][1])
    mean, scale = out[:, :Q], prior.floor + np.log1p(np.exp(prior.raw + out[:, Q:]))
    kl = np.log(scale / q["stddev"]) + (q["stddev"] ** 2 + (q["mean"] - mean) ** 2) / (2 * scale**2) - 0.5
    np.testing.assert_allclose(model.elbo(GIVEN)["kl"], kl.sum(1), rtol=1e-4)


def test_saved_and_loaded(tmp_path):
    model = plain(prior=ConditionalNormalPrior(Q, 2))
    model.compile("adam")
    model.fit(GIVEN, epochs=1, verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert again.covariates == COVARIATES
    np.testing.assert_array_equal(again.reconstruct(GIVEN), model.reconstruct(GIVEN))


def test_what_is_missing_or_too_much_is_refused():
    model = plain()
    with pytest.raises(ArgumentError, match="be given with the images: age, sex"):
        model.encode(X)
    with pytest.raises(ArgumentError, match="be given with the images"):
        model.decode(np.zeros((1, Q)))
    with pytest.raises(ArgumentError, match="hold image, covariates"):
        model.encode({**GIVEN, "target": TABLE["age"]})
    with pytest.raises(ArgumentError, match=r"shape \(3, 2\)"):
        model.encode({"image": X[:3], "covariates": TABLE})
    without = VAE(dense_encoder((V,), 2 * Q, (8,)), dense_decoder((V,), Q, (8,)))
    with pytest.raises(ArgumentError, match="hold image"):
        without.encode(GIVEN)
    with pytest.raises(ArgumentError, match="be left out"):
        without.decode(np.zeros((1, Q)), covariates=TABLE)


def test_networks_and_priors_that_do_not_fit_are_refused():
    with pytest.raises(ModelError, match="take two inputs"):
        VAE(dense_encoder((V,), 2 * Q), dense_decoder((V,), Q), covariates=COVARIATES)
    with pytest.raises(ModelError, match="take one input"):
        VAE(dense_encoder((V,), 2 * Q, condition_size=2), dense_decoder((V,), Q))
    with pytest.raises(ModelError, match="condition_size of ConditionalNormalPrior"):
        plain(prior=ConditionalNormalPrior(Q, 3))
    with pytest.raises(ModelError, match="pseudo-images have no covariates"):
        plain(prior=VampPrior((V,), pseudo_inputs=3))
    with pytest.raises(ModelError, match="condition_size of RegressionPrior"):
        plain(prior=RegressionPrior(Q))
    with pytest.raises(ModelError, match="remembered codes belong to other covariates"):
        plain(prior=ConditionalNormalPrior(Q, 2), objective=InfoVAE(memory=8))


def test_covariates_that_would_reproduce_a_person_are_refused():
    alone = np.zeros((40, 1))
    alone[3] = 1
    with pytest.raises(ArgumentError, match=r"1\.00 in row 3, whose image the covariates would reproduce"):
        fit_core(X, Q, condition=alone)
    with pytest.raises(ArgumentError, match="fewer columns than people, less three: 7, but received 8"):
        fit_core(X[:10], Q, condition=RNG.normal(size=(10, 8)))
