"""Posteriors whose dimensions go together, from latents.tsv on: all that uses their width, beside draws of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from kerasvae.analysis.contents import read_codes
from kerasvae.analysis.deviation import residuals
from kerasvae.analysis.generation.conditional_codes import ConditionalCodes
from kerasvae.analysis.latents import Latents
from kerasvae.analysis.rotation import rotated
from kerasvae.distributions import FullNormalPosterior, LowRankNormalPosterior
from tests.tables import write_rows

N, D, DRAWS = 12, 3, 20_000
NAMES = tuple(f"sub-{i:02d}" for i in range(N))


@pytest.fixture(scope="module", params=[FullNormalPosterior(), LowRankNormalPosterior(rank=1)], ids=lambda p: p.kind)
def made(request, tmp_path_factory):
    """Codes as they are read from latents.tsv, and draws of the posteriors by the posterior itself, (s, n, d)."""
    posterior, rng = request.param, np.random.default_rng(0)
    size = posterior.parameter_size(D)
    parameters = tf.constant(rng.normal(size=size) + 0.4 * rng.normal(size=(N, size)), tf.float32)
    outputs = {name: each.numpy() for name, each in posterior.deterministic(parameters).items()}
    rows = []
    for person, name in enumerate(NAMES):
        row = {"participant_id": name, "session_id": "n/a", "role": "train" if person < 10 else "test"}
        for output in posterior.outputs:
            values = outputs[output.name][person]
            row |= {"_".join([output.name, *map(str, at)]): values[at].item() for at in np.ndindex(values.shape)}
        rows.append(row | {"elbo_nats": -1.0})
    path = tmp_path_factory.mktemp("spread") / "latents.tsv"
    write_rows(path, rows)
    codes = read_codes(path, D)
    latents = Latents(NAMES, tuple(codes.roles), codes.means, codes.stddev, {}, ("n/a",) * N, root=codes.root)
    return latents, posterior.draw(parameters, DRAWS, tf.constant([1, 2]))[0].numpy().astype(float)


def test_standard_deviations_on_other_axes(made):
    latents, draws = made
    found, rotation = rotated(SimpleNamespace(), latents, "principal")
    expected = (draws @ rotation.matrix).std(axis=0)
    np.testing.assert_allclose(found.stddev, expected, rtol=0.03)
    as_if_apart = np.sqrt(latents.stddev**2 @ rotation.matrix**2)
    assert np.abs(as_if_apart / expected - 1).max() > 0.2
    np.testing.assert_allclose(latents.stddev_along(np.eye(D)), latents.stddev, rtol=1e-5)


def test_what_a_reconstruction_leaves_open(made, monkeypatch):
    latents, draws = made
    weights = np.random.default_rng(1).normal(size=(D, 4, 3, 2))
    monkeypatch.setattr(residuals, "decoder_of", lambda run, inside: lambda codes: np.tensordot(codes, weights, 1))
    inside, rows = weights[0] > -0.5, [7, 2, 11]
    found = residuals._open(SimpleNamespace(), latents, rows, inside)
    np.testing.assert_allclose(found, (draws[:, rows] @ weights[:, inside]).var(axis=0), rtol=0.06)


def test_draws_and_the_spread_of_codes_of_people(made):
    latents, draws = made
    rng = np.random.default_rng(2)
    own = np.array([latents.drawn(rng) for _ in range(DRAWS)])
    for person in range(0, N, 5):
        theirs = np.cov(draws[:, person].T)
        np.testing.assert_allclose(np.cov(own[:, person].T), theirs, atol=0.05 * np.trace(theirs))
    means, opened = (ConditionalCodes.fit(latents.codes, stddev=each).covariance for each in (None, latents.root))
    theirs = np.mean([np.cov(draws[:, person].T) for person in range(N)], axis=0)
    np.testing.assert_allclose(opened - means, theirs, atol=0.02 * np.trace(theirs))
    assert np.abs(theirs - np.diag(np.diag(theirs))).max() > 0.1 * np.trace(theirs)


def test_rows_are_taken_together(made):
    latents, _ = made
    np.testing.assert_array_equal(latents.of(["test"]).root, latents.root[10:])
