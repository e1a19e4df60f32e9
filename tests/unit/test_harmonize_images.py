"""Images decoded with another site: against least squares, which is what a linear conditional model is."""

import numpy as np
import pytest

from kerasvae import VAE, Covariates, dense_decoder, dense_encoder, fit_core, linear_start
from kerasvae.analysis.sites.run import harmonize_images
from kerasvae.errors import ArgumentError, ModelError
from kerasvae.models.coding import Coding


@pytest.fixture(scope="module")
def made():
    """A model that begins as probabilistic PCA of what site and age leave, its images, and their table."""
    rng = np.random.default_rng(0)
    n = 90
    table = {"site": list(rng.permutation(["a", "b", "c"] * 30)), "age": rng.uniform(20, 80, n).tolist()}
    place = np.array([["a", "b", "c"].index(s) for s in table["site"]])
    x = rng.standard_normal((n, 2)) @ rng.standard_normal((2, 12)) * 2 + 3 * rng.standard_normal((3, 12))[place]
    x = (x + 0.05 * np.outer(table["age"], rng.standard_normal(12)) + 0.2 * rng.standard_normal((n, 12))).astype("f4")
    covariates = Covariates.fit(table, units={"age": "years"})
    coded = Coding(covariates)(covariates.matrix(table)).numpy()
    networks = dense_encoder((12,), 6, condition_size=3), dense_decoder((12,), 3, condition_size=3)
    model = VAE(*linear_start(*networks, fit_core(x, 3, condition=coded)), covariates=covariates)
    design = np.c_[np.eye(3)[place], table["age"]]
    return model, x, table, design, np.linalg.lstsq(design, x.astype(float), rcond=None)[0]


def test_the_site_is_exchanged_and_nothing_else(made):
    model, x, table, design, slopes = made
    found = harmonize_images(model, x, table, {"site": "b"}, detail=True)
    other = design.copy()
    other[:, :3] = [0, 1, 0]
    np.testing.assert_allclose(found, x + (other - design) @ slopes, atol=1e-3)
    at_b = np.array(table["site"]) == "b"
    np.testing.assert_allclose(found[at_b], x[at_b], atol=1e-5)
    # sites, given age, are alike now
    again = np.linalg.lstsq(design, found.astype(float), rcond=None)[0]
    np.testing.assert_allclose(again[:3], np.repeat(again[1:2], 3, axis=0), atol=2e-3)
    np.testing.assert_allclose(again[3], slopes[3], atol=1e-4)


def test_without_detail_it_is_a_reconstruction(made):
    model, x, table, *_ = made
    found = harmonize_images(model, x, table, {"site": "b"})
    at_b = np.array(table["site"]) == "b"
    own = model.reconstruct({"image": x, "covariates": table})
    np.testing.assert_allclose(found[at_b], own[at_b], atol=1e-5)
    assert np.abs(found[~at_b] - own[~at_b]).max() > 1


def test_wrong_calls(made):
    model, x, table, *_ = made
    with pytest.raises(ArgumentError, match="to must name covariates: site, age, but received 'sight'"):
        harmonize_images(model, x, table, {"sight": "b"})
    with pytest.raises(ArgumentError, match="be one of a, b, c, but received 'd'"):
        harmonize_images(model, x, table, {"site": "d"})
    plain = VAE(dense_encoder((12,), 6), dense_decoder((12,), 3))
    with pytest.raises(ModelError, match="take covariates"):
        harmonize_images(plain, x, None, {"site": "b"})
