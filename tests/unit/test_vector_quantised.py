"""Vector quantisation against brute force, moving averages worked by hand in float64, and toy clusters."""

import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from scipy.spatial.distance import cdist

from kerasvae.distributions import Context, NormalLikelihood, PointPosterior, UniformCodesPrior, closed_kl
from kerasvae.distributions.vector_quantised import VectorQuantisedPosterior
from kerasvae.errors import ArgumentError, ModelError, NonFiniteError
from kerasvae.models import VAE
from kerasvae.networks import dense_decoder, dense_encoder
from kerasvae.objectives import Commitment
from kerasvae.training.build import build_model
from kerasvae.training.recipe import parse_recipe
from kerasvae_export import export
from kerasvae_serving import Engine, encode_files

SEED = tf.constant([3, 4])
D, P, K = 6, 3, 5


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def weights(posterior):
    return {name: np.asarray(getattr(posterior, name)) for name in ("codebook", "counts", "sums", "usage")}


def by_brute_force(vectors, codebook):
    """Number of the nearest row of the codebook, (M,), in float64."""
    return cdist(np.asarray(vectors, "f8"), np.asarray(codebook, "f8"), "sqeuclidean").argmin(axis=1)


@pytest.fixture
def posterior():
    return VectorQuantisedPosterior(D, P, K, seed=1)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_each_position_gets_the_nearest_vector(posterior, offset):
    posterior.codebook.assign(posterior.codebook + offset)  # far from the origin, float32 leaves no digits to waste
    codebook, parameters = np.asarray(posterior.codebook), offset + numbers(40, D)
    found = posterior.deterministic(parameters)
    expected = by_brute_force(parameters.reshape(-1, D // P), codebook).reshape(40, P)
    assert list(found) == [output.name for output in posterior.outputs] == ["embedding", "codes"]
    assert (found["embedding"].dtype, found["codes"].dtype) == (tf.float32, tf.int32)
    np.testing.assert_array_equal(found["codes"], expected)
    np.testing.assert_array_equal(found["embedding"], codebook[expected].reshape(40, D))
    np.testing.assert_array_equal(posterior.center(found), found["embedding"])


def test_shapes_are_known_in_a_graph_of_unknown_batch(posterior):
    graph = tf.function(posterior.deterministic, input_signature=[tf.TensorSpec((None, D), tf.float32)])
    shapes = {name: tuple(spec.shape) for name, spec in graph.get_concrete_function().structured_outputs.items()}
    assert shapes == {"embedding": (None, D), "codes": (None, P)}
    np.testing.assert_array_equal(graph(numbers(4, D))["codes"], posterior.deterministic(numbers(4, D))["codes"])


def test_draws_are_the_code_and_hand_their_gradient_to_the_encoder(posterior):
    parameters, slope = tf.constant(numbers(4, D)), numbers(2, 4, D, seed=1)
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        z, log_q = posterior.draw(parameters, 2, SEED)
        value = tf.reduce_sum(z * slope)
    code = posterior.deterministic(parameters)["embedding"]
    np.testing.assert_array_equal(z, [code, code])  # to the last bit: z + (code − z) would not be
    np.testing.assert_array_equal(log_q, np.zeros((2, 4)))
    np.testing.assert_allclose(tape.gradient(value, parameters), slope.sum(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(posterior.log_prob(parameters, z), 0)
    np.testing.assert_array_equal(posterior.log_prob(parameters, z + tf.constant([1e-3] + [0.0] * (D - 1))), -np.inf)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_encoder_is_not_hidden_by_the_nearest_vector(posterior, bad):
    parameters = numbers(2, D)
    parameters[1, 0] = bad
    assert np.isnan(posterior.deterministic(parameters)["embedding"][1, 0])
    assert np.isfinite(posterior.deterministic(parameters)["embedding"][0]).all()
    assert np.isnan(posterior.draw(parameters, 1, SEED)[0][0, 1, 0])


# --- the codebook --------------------------------------------------------------------------------


def test_codebook_follows_by_the_moving_averages_of_the_paper():
    decay, epsilon = 0.9, 1e-3
    posterior = VectorQuantisedPosterior(D, P, K, decay=decay, epsilon=epsilon, restart_below=0.0, seed=1)
    codebook = np.asarray(posterior.codebook, "f8")
    codebook[4] = 50  # never the nearest
    posterior.codebook.assign(codebook)
    counts, sums, usages = np.zeros(K), np.zeros((K, D // P)), np.zeros(K)
    for step in range(6):
        batch = numbers(7, D, seed=10 + step)
        vectors = batch.reshape(-1, D // P).astype("f8")
        codes = by_brute_force(vectors, codebook)
        posterior.update(batch, SEED + step)
        for i in range(K):
            mine = vectors[codes == i]
            counts[i] = decay * counts[i] + (1 - decay) * len(mine)
            usages[i] = decay * usages[i] + (1 - decay) * len(mine)
            sums[i] = decay * sums[i] + (1 - decay) * mine.sum(axis=0)
        n = counts.sum()
        for i in range(K):
            if counts[i] > 0:
                codebook[i] = sums[i] / ((counts[i] + epsilon) / (n + K * epsilon) * n)
        found = weights(posterior)
        for name, expected in (("counts", counts), ("sums", sums), ("usage", usages), ("codebook", codebook)):
            np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(codebook[4], 50)


def test_numbers_are_perplexity_and_codes_in_use(posterior):
    assert {name: float(value) for name, value in posterior.numbers().items()} == {"perplexity": 1, "codes_used": 0}
    usage = np.array([4.0, 3.0, 0.0, 0.16, 0.1])  # an equal share is 1.452
    posterior.usage.assign(usage)
    found = posterior.numbers()
    assert float(found["perplexity"]) == pytest.approx(np.exp(stats.entropy(usage)), rel=1e-6)
    assert float(found["codes_used"]) == 3


def test_dead_codes_are_restarted_at_different_outputs_of_the_batch():
    def updated(restart_below, seed=SEED):
        posterior = VectorQuantisedPosterior(2, 1, K, decay=0.9, restart_below=restart_below)
        posterior.codebook.assign([[0, 0], [1, 1], [90, 0], [0, 90], [90, 90]])
        posterior.counts.assign([5, 4, 0.05, 3, 0.05])
        posterior.sums.assign(np.asarray(posterior.counts)[:, None] * np.asarray(posterior.codebook))
        posterior.update(batch, seed)
        return weights(posterior)

    batch = numbers(8, 2, seed=2)
    without, found = updated(0.0), updated(0.1)
    alive = [0, 1, 3]  # code 3 was not used by this batch, but has been
    np.testing.assert_array_equal(found["codebook"][alive], without["codebook"][alive])
    rows = [np.flatnonzero((batch == found["codebook"][i]).all(axis=1)) for i in (2, 4)]
    assert [len(row) for row in rows] == [1, 1]
    assert rows[0] != rows[1]
    share = without["counts"].sum() / K
    np.testing.assert_allclose(found["counts"][[2, 4]], share, rtol=1e-6)
    np.testing.assert_allclose(found["sums"][[2, 4]], share * found["codebook"][[2, 4]], rtol=1e-6)
    np.testing.assert_array_equal(found["usage"], without["usage"])  # to be put somewhere is no use
    np.testing.assert_array_equal(found["codebook"], updated(0.1)["codebook"])
    assert any(not np.array_equal(found["codebook"], updated(0.1, SEED + i)["codebook"]) for i in (1, 2, 3))


def test_threshold_is_a_part_of_an_equal_share():
    posterior = VectorQuantisedPosterior(2, 1, 2, decay=0.5, restart_below=0.2)
    posterior.codebook.assign([[0, 0], [50, 50]])
    batch = np.zeros((4, 2), "f4")
    for count, restarted in ((0.7, False), (0.4, True)):
        posterior.codebook.assign([[0, 0], [50, 50]])
        posterior.counts.assign([2.0, count])  # becomes [3, count / 2]; a fifth of an equal share is about 0.33 or 0.32
        posterior.sums.assign([[0, 0], [50 * count, 50 * count]])
        posterior.update(batch, SEED)
        assert bool(np.asarray(posterior.codebook)[1, 0] == 0) is restarted, count


@pytest.mark.parametrize("xla", [False, True])  # as train steps on GPUs are compiled; its lots are other ones
def test_the_first_batch_puts_all_unused_codes_among_its_outputs(posterior, xla):
    posterior.codebook.assign(posterior.codebook + 100)  # nowhere near: all outputs share one code
    batch = numbers(4, D)
    tf.function(posterior.update, jit_compile=xla)(tf.constant(batch), SEED)
    nearest = cdist(np.asarray(posterior.codebook), batch.reshape(-1, D // P)).min(axis=1)
    assert (nearest == 0).sum() == K - 1
    assert len(np.unique(np.asarray(posterior.codebook), axis=0)) == K


def test_restarts_find_every_cluster():
    """A codebook that is nowhere near, and as many codes as clusters: without restarts one code would be all."""
    clusters = 3 * numbers(4, 2, seed=6)
    found = {}
    for restart_below in (0.0, 0.1):
        posterior = VectorQuantisedPosterior(2, 1, 4, decay=0.8, restart_below=restart_below, seed=1)
        posterior.codebook.assign(posterior.codebook + 100)
        for step in range(60):
            people = np.random.default_rng(step).permutation(np.repeat(np.arange(4), 5))
            posterior.update(clusters[people], SEED + step)
        found[restart_below] = {name: float(value) for name, value in posterior.numbers().items()}
    assert found[0.0] == {"perplexity": pytest.approx(1, abs=1e-5), "codes_used": 1}
    assert found[0.1] == {"perplexity": pytest.approx(4, abs=1e-3), "codes_used": 4}
    np.testing.assert_allclose(posterior.deterministic(clusters)["embedding"], clusters, atol=1e-3)


# --- prior and KL --------------------------------------------------------------------------------


def test_the_kl_is_the_log_of_the_number_of_codes(posterior):
    context, parameters = Context(posterior=posterior), tf.constant(numbers(4, D))
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        kl, per_dimension = closed_kl(posterior, parameters, UniformCodesPrior(), context)
    np.testing.assert_allclose(kl, np.full(4, stats.entropy(np.full(K**P, 1 / K**P))), rtol=1e-6)
    assert per_dimension is None
    assert tape.gradient(kl, parameters) is None
    z, log_q = posterior.draw(parameters, 2, SEED)
    np.testing.assert_allclose(log_q - UniformCodesPrior().log_prob(z, context), [kl, kl], rtol=1e-6)


def test_prior_draws_every_vector_alike_at_every_position(posterior):
    draws = UniformCodesPrior().sample(3000, D, SEED, Context(posterior=posterior)).numpy().reshape(3000, P, -1)
    codebook = np.asarray(posterior.codebook)
    for position in range(P):
        same = (draws[:, position, None] == codebook).all(axis=-1)
        np.testing.assert_array_equal(same.sum(axis=1), 1)
        assert stats.chisquare(same.sum(axis=0)).pvalue > 1e-3
    both = (draws[:, 0, None] == codebook).all(-1).argmax(1) * K + (draws[:, 1, None] == codebook).all(-1).argmax(1)
    assert stats.chisquare(np.bincount(both, minlength=K * K)).pvalue > 1e-3  # positions are independent


@pytest.mark.parametrize("context", [Context(), Context(posterior=PointPosterior())])
def test_prior_needs_a_codebook(context):
    for call in (lambda p: p.log_prob(tf.zeros((1, 2, D)), context), lambda p: p.sample(2, D, SEED, context)):
        with pytest.raises(ModelError, match="posterior with a codebook"):
            call(UniformCodesPrior())


# --- in a model ----------------------------------------------------------------------------------


def model(posterior=None, voxels=8, objective=None, eager=False, **options):
    posterior = posterior or VectorQuantisedPosterior(D, P, K, seed=1)
    encoder = dense_encoder((voxels,), posterior.parameter_size(posterior.latent_size), (10,))
    made = VAE(encoder, dense_decoder((voxels,), posterior.latent_size, (10,)), posterior=posterior,
               prior=UniformCodesPrior(), objective=objective or Commitment(), **options)  # fmt: skip
    made.compile(keras.optimizers.Adam(1e-2), run_eagerly=eager)
    return made


def test_commitment_is_equation_three_without_the_codebook_term():
    keras.utils.set_random_seed(0)
    vae, x = model(objective=Commitment(weight=0.4), likelihood=NormalLikelihood("fixed", stddev=0.5)), numbers(5, 8)
    parameters = tf.constant(vae.encoder(x))
    vae._encoded = lambda image, condition=None, training=False: parameters
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        draws, _ = vae.draws(tf.constant(x), SEED)
        terms = vae.objective.terms(draws)
    code = np.asarray(vae.posterior.codebook, "f8")[vae.posterior.deterministic(parameters)["codes"]].reshape(5, D)
    away = parameters.numpy().astype("f8") - code
    log_likelihood = stats.norm(vae.decode(code), 0.5).logpdf(x).sum(axis=1)
    np.testing.assert_allclose(terms.per_subject["commitment"], (away**2).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(terms.loss, 0.4 * (away**2).sum(axis=1) - log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(terms.per_subject["elbo"], log_likelihood - P * np.log(K), rtol=1e-5)
    z = tf.constant(code, tf.float32)
    with tf.GradientTape() as at_code:
        at_code.watch(z)
        value = vae.likelihood.log_prob(x, vae.decoder(z))
    expected = 0.8 * away - at_code.gradient(value, z).numpy()
    np.testing.assert_allclose(tape.gradient(terms.loss, parameters), expected, rtol=1e-4, atol=1e-5)


def test_training_finds_the_clusters():
    keras.utils.set_random_seed(0)
    x = np.repeat(3 * numbers(4, 8, seed=5), 10, axis=0)
    posterior = VectorQuantisedPosterior(2, 1, 4, decay=0.8)
    vae = model(posterior, likelihood=NormalLikelihood("fixed"))
    before = vae.evaluate(x, verbose=0, return_dict=True)["loss"]
    history = vae.fit(x, epochs=60, batch_size=20, verbose=0).history
    assert vae.evaluate(x, verbose=0, return_dict=True)["loss"] < 0.3 * before
    assert history["perplexity"][-1] == pytest.approx(4, abs=0.1)
    codes = vae.encode(x)["codes"].reshape(4, 10)
    assert (codes == codes[:, :1]).all()
    assert len(np.unique(codes)) == 4


def test_a_nan_stops_training():
    vae = model(objective=Commitment(weight=0), eager=True)
    vae.encoder.weights[-1].assign(np.full(D, np.nan))
    with pytest.raises(NonFiniteError):
        vae.fit(numbers(8, 8), epochs=1, verbose=0)


def test_a_file_keeps_the_codebook_and_its_averages(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        vae, x = model(eager=True), numbers(16, 8)
        vae.fit(x, epochs=2, batch_size=8, verbose=0)
        vae.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.asarray(vae.posterior.counts).sum() > 0
    assert {str(weight.dtype) for weight in vae.posterior.weights} == {"float32"}
    assert vae.posterior.trainable_variables == []
    for step in range(2):  # as saved, and after one more batch
        for name, value in weights(vae.posterior).items():
            np.testing.assert_array_equal(weights(again.posterior)[name], value, err_msg=f"{name} {step}")
        for each in (vae, again):
            each.posterior.update(numbers(4, D, seed=3), SEED)
    config = json.loads(json.dumps(vae.posterior.get_config()))
    assert again.posterior.get_config() == config


def test_evidence_is_refused():
    with pytest.raises(ModelError, match="have a density to weigh draws by, but received 'vector_quantised'"):
        model().log_evidence(numbers(1, 8))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"latent_size": 0}, "latent_size"),
        ({"positions": 4}, "positions must divide latent_size, 6"),
        ({"positions": 1.5}, "positions"),
        ({"codebook_size": 1}, "codebook_size must be a whole number of 2 or more"),
        ({"decay": 1.0}, "decay"),
        ({"epsilon": -1e-9}, "epsilon"),
        ({"restart_below": 1.0}, "restart_below"),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    with pytest.raises(ArgumentError, match=match):
        VectorQuantisedPosterior(**{"latent_size": D, "positions": P, "codebook_size": K} | arguments)


def test_a_recipe_builds_it():
    content = {
        "pipeline": {"intensity": {"kind": "zscore"}},
        "model": {
            "start": "random", "network": "dense", "latent_size": 6, "posterior": "vector_quantised",
            "posterior_options": {"positions": 2, "codebook_size": 7, "decay": 0.95}, "prior": "uniform_codes",
        },
        "objective": {"kind": "commitment", "options": {"weight": 0.5}},
    }  # fmt: skip
    built = build_model(parse_recipe(content, "here"), numbers(4, 3, 3, 3), SimpleNamespace(mask=None)).model
    assert (built.posterior.kind, built.prior.kind, built.objective.constants) == (
        "vector_quantised", "uniform_codes", {"weight": 0.5},
    )  # fmt: skip
    assert (built.posterior.latent_size, built.posterior.codebook_size, built.posterior.decay) == (6, 7, 0.95)
    assert built.encode(numbers(4, 3, 3, 3))["codes"].shape == (4, 2)


# --- outside Keras -------------------------------------------------------------------------------


def test_codes_stay_whole_numbers_in_a_bundle(tmp_path):
    vae, x = model(), numbers(16, 8)
    engine = Engine(export(vae, None, tmp_path / "bundle"))
    outputs = [(output.name, output.shape, output.dtype) for output in engine.manifest.outputs]
    assert outputs == [("embedding", (D,), "float32"), ("codes", (P,), "int32")]
    found = engine.encode(x)
    assert list(found) == ["embedding", "codes"]
    assert found["codes"].dtype == np.int32
    np.testing.assert_array_equal(found["codes"], vae.encode(x)["codes"])
    np.testing.assert_allclose(engine.reconstruct(x), vae.reconstruct(x), rtol=1e-4, atol=1e-5)


def test_tables_hold_whole_numbers_and_every_axis(tmp_path):
    outputs = {
        "embedding": np.array([[0.5, -2.0]], "f4"),
        "codes": np.array([[2_000_000_011, 7]], "i4"),
        "matrix": np.array([[[1.0, 2.0], [3.0, 4.5]]], "f4"),
        "scale": np.array([0.25], "f4"),
    }

    class Fake(Engine):
        pipeline = SimpleNamespace(apply=lambda path: np.zeros(3))
        identity = {"model": "fake 1"}  # noqa: RUF012

        def __init__(self):
            pass

        def encode(self, image, covariates=None):
            return outputs

    (tmp_path / "sub-1_T1w.nii.gz").touch()
    encode_files(Fake(), [tmp_path / "sub-1_T1w.nii.gz"], tmp_path / "latents.tsv")
    header, row = (line.split("\t")[3:] for line in (tmp_path / "latents.tsv").read_text().splitlines())
    assert dict(zip(header, row, strict=True)) == {
        "embedding_0": "0.5", "embedding_1": "-2", "codes_0": "2000000011", "codes_1": "7", "matrix_0_0": "1",
        "matrix_0_1": "2", "matrix_1_0": "3", "matrix_1_1": "4.5", "scale": "0.25",
    }  # fmt: skip
