"""The linear core under a smooth prior: against dense matrices, closed forms and people it never saw."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from scipy.linalg import eigh, subspace_angles
from scipy.spatial.distance import cdist

from kerasvae.distributions import NormalLikelihood
from kerasvae.errors import ArgumentError
from kerasvae.models import VAE
from kerasvae.networks import Core, SmoothPrior, dense_decoder, dense_encoder, fit_core, linear_start
from kerasvae.networks.covariance_map import choose_prior, folds_of, mirror_index
from kerasvae.networks.prior_covariance import PriorCovariance
from kerasvae.training.build import build_model
from kerasvae.training.recipe import Recipe

SPACING = (2.0, 3.0, 4.0)
PRIORS = [
    [SmoothPrior("variance", 6.0, 0.7)],
    [SmoothPrior("deformation", 5.0, 1.3)],
    [SmoothPrior("variance", 6.0, 0.7), SmoothPrior("deformation", 9.0, 0.3)],
]


def ragged(shape, seed=0):
    return np.random.default_rng(seed).random(shape) < 0.8


def kernel(mask, width, spacing):
    places = np.argwhere(mask) * np.asarray(spacing)
    return np.exp(-cdist(places, places, "sqeuclidean") / (2 * width**2))


def dense(priors, mean, stddev, mask, spacing):
    """Each belief as a matrix, scaled to its share."""
    total = np.zeros((mask.sum(), mask.sum()))
    for prior in priors:
        k = kernel(mask, prior.width_mm, spacing)
        if prior.kind == "variance":
            smooth = kernel(mask, prior.width_mm / 3, spacing)
            rows = [smooth @ stddev / smooth.sum(1)]
        else:
            volume = np.zeros(mask.shape)
            volume[mask] = mean
            padded = np.pad(volume, 1)
            rows = []
            for axis, step in enumerate(spacing):
                ahead, behind = (np.roll(padded, shift, axis) for shift in (-1, 1))
                rows.append(((ahead - behind) / (2 * step))[(slice(1, -1),) * mask.ndim][mask])
        matrix = sum(np.outer(row, row) * k for row in rows)
        total += prior.share * matrix / np.trace(matrix)
    return total


@pytest.mark.parametrize("priors", PRIORS, ids=["variance", "deformation", "sum"])
@pytest.mark.parametrize("shape", [(5, 4, 6), (7, 6), (1, 6, 5)])
def test_priors_are_their_dense_matrices(priors, shape):
    rng, mask = np.random.default_rng(1), ragged(shape)
    mean, stddev = rng.standard_normal(mask.sum()).astype("f4"), rng.random(mask.sum()).astype("f4")
    spacing = SPACING[: mask.ndim]
    operator = PriorCovariance(priors, mean, stddev, mask, spacing)
    matrix = operator.apply(np.eye(mask.sum(), dtype="f4"))
    np.testing.assert_allclose(matrix, dense(priors, mean, stddev, mask, spacing), atol=1e-6 * abs(matrix).max() * 10)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-7)
    assert np.linalg.eigvalsh(matrix.astype("f8")).min() > -1e-6
    assert operator.trace == pytest.approx(np.trace(matrix.astype("f8")), rel=1e-5)
    assert operator.trace == pytest.approx(sum(prior.share for prior in priors))


def blurred(people, shape, width, rng):
    """Fields that are smooth over `width` voxels, variance 1: (n, *shape)."""
    fields = rng.standard_normal((people, *shape))
    for axis, length in enumerate(shape):
        p = np.arange(length) / width
        root = np.linalg.cholesky(np.exp(-0.5 * np.square(p[:, None] - p)) + 1e-6 * np.eye(length))
        fields = np.moveaxis(np.tensordot(fields, root, axes=(axis + 1, 1)), -1, axis + 1)
    return fields


SHAPE = (14, 15, 12)
BRAIN = np.linalg.norm((np.indices(SHAPE).T - (np.array(SHAPE) - 1) / 2) / (np.array(SHAPE) / 2), axis=-1).T < 1


def population(kind, people, seed):
    """People whose differences are smooth in intensity, or displacements of one structured image; 4 mm voxels."""
    anatomy = 3 * blurred(1, SHAPE, 1.5, np.random.default_rng(99))[0]
    rng = np.random.default_rng(seed)
    if kind == "variance":
        images = anatomy + blurred(people, SHAPE, 3, rng)
    else:
        shifts = (blurred(people, SHAPE, 3, rng) for _ in range(3))
        images = anatomy + 0.7 * sum(g * t for g, t in zip(np.gradient(anatomy), shifts, strict=True))
    return (images + 0.3 * rng.standard_normal(images.shape)).astype("f4") * BRAIN


def explained(core, images, mask=BRAIN):
    centred = images[:, mask] - core.mean
    return 1 - (np.square(centred).sum() - np.square(centred @ core.axes.T).sum()) / np.square(centred).sum()


@pytest.mark.parametrize("priors", PRIORS, ids=["variance", "deformation", "sum"])
@pytest.mark.parametrize("mirror", [False, True])
def test_axes_are_those_of_the_most_probable_covariance(priors, mirror):
    rng, mask, q = np.random.default_rng(3), ragged((6, 5, 4)), 4
    scales = np.r_[[9, 6, 4, 3], np.ones(8)]
    images = np.einsum("nk,kxyz->nxyz", rng.standard_normal((14, 12)) * scales, blurred(12, mask.shape, 2, rng))
    images = (images + 2 + rng.standard_normal(mask.shape)).astype("f4")
    core = fit_core(images, q, mask, mirror=mirror, prior=priors, spacing_mm=SPACING)

    x = images[:, mask].astype("f8")
    residuals = x - x.mean(0)
    sample = np.concatenate([residuals, mirrored(residuals, mask)]) if mirror else residuals
    scatter = sample.T @ sample / len(sample)
    prior = dense(priors, x.mean(0), np.sqrt(np.diag(scatter)), mask, SPACING)
    vectors = np.linalg.eigh(scatter + np.trace(scatter) * prior)[1][:, ::-1][:, :q]
    np.testing.assert_allclose(core.mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(core.axes @ core.axes.T, np.eye(q), atol=1e-5)
    np.testing.assert_allclose(abs(np.sum(core.axes * vectors.T, axis=1)), 1, atol=1e-5)
    assert core.priors == tuple(priors)
    assert core.mirrored is mirror


def mirrored(residuals, mask):
    """Left and right exchanged by going through volumes; a voxel without a counterpart keeps its value."""
    result = residuals.copy()
    for row, values in zip(result, residuals, strict=True):
        volume = np.full(mask.shape, np.nan)
        volume[mask] = values
        other = volume[::-1][mask]
        row[np.isfinite(other)] = other[np.isfinite(other)]
    return result


def test_mirror_images_count_as_people():
    mask = ragged((7, 6, 5))
    images = (np.random.default_rng(4).standard_normal((12, 7, 6, 5)) + np.arange(7)[:, None, None]).astype("f4")
    index = mirror_index(mask)
    np.testing.assert_array_equal(index[index], np.arange(mask.sum()))
    core, flat = fit_core(images, 5, mask, mirror=True), images[:, mask]
    doubled = np.zeros((24, 7, 6, 5), "f4")
    doubled[:, mask] = np.concatenate([flat, flat.mean(0) + mirrored(flat - flat.mean(0), mask)])
    plain = fit_core(doubled, 5, mask)
    np.testing.assert_allclose(core.mean, plain.mean, atol=1e-5)  # the mean keeps its asymmetry
    np.testing.assert_allclose(core.eigenvalues, plain.eigenvalues, rtol=1e-4)
    assert core.noise_variance == pytest.approx(plain.noise_variance, rel=1e-4)
    np.testing.assert_allclose(abs(np.sum(core.axes * plain.axes, axis=1)), 1, atol=1e-4)


def test_without_a_prior_nothing_changes_by_a_bit():
    images, mask = np.random.default_rng(5).standard_normal((11, 6, 5, 4)).astype("f4"), ragged((6, 5, 4))
    condition = np.random.default_rng(6).standard_normal((11, 2)).astype("f4")
    core, flat = fit_core(images, 20, mask, condition), images[:, mask]
    design = np.column_stack([np.ones(11), condition])
    fitted = np.linalg.pinv(design).astype("f4") @ flat
    centred = flat - design.astype("f4") @ fitted
    values, vectors = np.linalg.eigh(centred.astype("f8") @ centred.T.astype("f8") / 11)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    noise = float((values.sum() - values[:7].sum()) / (mask.sum() - 7))
    np.testing.assert_array_equal(core.axes[:7], np.float32((vectors[:, :7] / np.sqrt(values[:7] * 11)).T @ centred))
    np.testing.assert_array_equal(core.axes[7:], 0)
    np.testing.assert_array_equal(core.eigenvalues, np.r_[values[:7], np.full(13, noise)])
    np.testing.assert_array_equal(core.slopes, fitted[1:])
    assert core.noise_variance == noise
    assert core[5:] == Core(core.mean, core.axes, core.eigenvalues, noise, core.slopes)[5:]


@pytest.mark.parametrize("kind", ["variance", "deformation"])
def test_of_few_people_a_prior_learns_more_and_is_found(kind):
    few, others = population(kind, 30, 1), population(kind, 300, 2)
    core = fit_core(few, 12, BRAIN, prior="auto", spacing_mm=(4, 4, 4))
    assert core.priors[0].kind == kind
    assert core.choice.explained > core.choice.without
    plain = fit_core(few, 12, BRAIN)
    assert explained(core, others) > explained(plain, others) + 0.03
    # what was said of people left out holds for new ones, and σ² is theirs; plain σ² is far too small
    assert core.choice.explained == pytest.approx(explained(core, others), abs=0.05)
    around = [np.square(others[:, BRAIN] - c.mean).sum() * (1 - explained(c, others)) for c in (core, plain)]
    core_ratio, plain_ratio = (
        c.noise_variance * (BRAIN.sum() - 12) * 300 / a for c, a in zip((core, plain), around, strict=True)
    )
    assert core_ratio == pytest.approx(1, abs=0.1)
    assert plain_ratio < 0.8
    named = "deformation" if kind == "variance" else "variance"
    assert fit_core(few, 12, BRAIN, prior=named, spacing_mm=(4, 4, 4)).priors[0].kind == named


def test_noise_alone_has_no_prior_or_a_harmless_one():
    images = np.random.default_rng(7).standard_normal((20, *SHAPE)).astype("f4")
    core = fit_core(images, 4, BRAIN, prior="auto", spacing_mm=(4, 4, 4))
    assert core.choice.explained < 0.02


def test_the_choice_is_made_by_nearly_exact_axes():
    images = population("variance", 24, 3)
    flat, design = images[:, BRAIN], np.ones((24, 1))
    choice = choose_prior(flat, design, BRAIN, (4, 4, 4), 6, None, np.arange(24))
    x, left, whole = flat.astype("f8"), 0.0, 0.0
    # Ψ is a constant: relative to the fewer learners of a fold it had a larger share
    more = 24 / np.mean([len(train) for train, _ in folds_of(range(24))])
    prior = more * dense(choice.priors, x.mean(0), x.std(0), BRAIN, (4, 4, 4))
    for train, test in folds_of(range(24)):
        learned, other = x[train] - x[train].mean(0), x[test] - x[train].mean(0)
        scatter = learned.T @ learned / len(train)
        last = (BRAIN.sum() - 6, BRAIN.sum() - 1)
        axes = eigh(scatter + np.trace(scatter) * prior, subset_by_index=last)[1]
        left, whole = left + np.square(other @ axes).sum(), whole + np.square(other).sum()
    assert choice.explained == pytest.approx(left / whole, abs=0.005)


def test_same_arguments_same_core_whatever_the_global_seed():
    images = population("variance", 12, 4)
    cores = []
    for seed in (0, 1):
        np.random.seed(seed)
        cores.append(fit_core(images, 5, BRAIN, mirror=True, prior="auto", spacing_mm=(4, 4, 4)))
    for one, two in zip(cores[0][:5], cores[1][:5], strict=True):
        np.testing.assert_array_equal(one, two)
    assert cores[0][5:] == cores[1][5:]
    other = fit_core(images, 5, BRAIN, mirror=True, prior=cores[0].priors, spacing_mm=(4, 4, 4), seed=1)
    assert np.rad2deg(subspace_angles(other.axes.T, cores[0].axes.T)).max() < 0.5


def test_folds_never_divide_a_person():
    people = ["a", "b", "b", "c", "c", "c", "d", "e", "f"]
    folds = folds_of(people)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(9))
    for train, test in folds:
        assert not {people[i] for i in train} & {people[i] for i in test}
    assert len(folds_of(["a", "b", "c"])) == 3


def test_covariates_are_taken_out_before():
    rng, images = np.random.default_rng(8), population("variance", 30, 5)
    age = rng.standard_normal((30, 1)).astype("f4")
    images = images + BRAIN * age[:, :, None, None]
    core = fit_core(images, 6, BRAIN, age, mirror=True, prior="auto", spacing_mm=(4, 4, 4))
    plain = fit_core(images, 6, BRAIN, age)
    np.testing.assert_array_equal(core.slopes, plain.slopes)
    new = population("variance", 200, 6)
    assert explained(core, new) > explained(plain, new)


def test_the_model_is_the_gaussian_that_the_core_says():
    mask, q = ragged((6, 5, 4)), 3
    loadings = np.random.default_rng(9).standard_normal((3, 6, 5, 4))
    rng = np.random.default_rng(10)
    images = np.einsum("nk,kxyz->nxyz", rng.standard_normal((40, 3)), loadings) + 0.3 * rng.standard_normal(
        (40, 6, 5, 4)
    )
    images = (images + 1).astype("f4")
    core = fit_core(images, q, mask, mirror=True, prior=PRIORS[0], spacing_mm=SPACING)
    networks = dense_encoder((6, 5, 4), 2 * q), dense_decoder((6, 5, 4), q)
    likelihood = NormalLikelihood(mask=mask)
    likelihood.set_sigma(core.noise_variance**0.5)
    model = VAE(*linear_start(*networks, core, mask), likelihood=likelihood)
    w = core.axes.T.astype("f8") * np.sqrt(np.maximum(core.eigenvalues - core.noise_variance, 0))
    covariance = w @ w.T + core.noise_variance * np.eye(mask.sum())
    evidence = stats.multivariate_normal(core.mean, covariance).logpdf(images[:, mask])
    assert np.mean(model.elbo(images, samples=400)["elbo"]) == pytest.approx(np.mean(evidence), rel=2e-3)


def test_one_damaged_image_decides_nothing():
    few, others = population("variance", 30, 1), population("variance", 300, 2)
    options = {"mirror": True, "prior": "auto", "spacing_mm": (4, 4, 4)}
    clean = fit_core(few, 12, BRAIN, **options)
    few[3] *= 15
    core, plain = fit_core(few, 12, BRAIN, **options), fit_core(few, 12, BRAIN)
    centre = others[:, BRAIN].mean(0)
    ours, pca, before = (explained(c._replace(mean=centre), others) for c in (core, plain, clean))
    assert ours > pca + 0.03
    assert ours > before - 0.1
    around = np.square(others[:, BRAIN] - core.mean).sum() * (1 - explained(core, others)) / 300 / (BRAIN.sum() - 12)
    assert 0.8 < core.noise_variance / around < 1.6


@pytest.mark.parametrize("people", [3, 5, 20])
def test_few_people_and_many_latents(people):
    images = population("variance", people, 11)
    images[0] += 50 * BRAIN * population("variance", 1, 12)[0]  # one outlier
    core = fit_core(images, 64, BRAIN, mirror=True, prior="auto", spacing_mm=(4, 4, 4))
    assert core.axes.shape == (64, BRAIN.sum())
    assert all(np.isfinite(part).all() for part in core[:5])
    inactive = core.eigenvalues <= core.noise_variance
    assert inactive[people - 2 :].all()
    assert np.all(np.diff(core.eigenvalues) <= 0)
    assert core.noise_variance > 0


@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        (np.eye(9, dtype="f4"), {"prior": SmoothPrior("variance", 8, 1), "spacing_mm": (4,)}, "slices or volumes"),
        (np.eye(9, dtype="f4"), {"prior": "variance", "spacing_mm": (4,)}, "slices or volumes"),
        (np.eye(9, dtype="f4"), {"mirror": True}, "slices or volumes"),
        (np.eye(9, dtype="f4").reshape(9, 3, 3), {"prior": "auto"}, "spacing_mm"),
        (np.eye(9, dtype="f4").reshape(9, 3, 3), {"prior": "auto", "spacing_mm": (4, 4, 4)}, "2 distances"),
        (np.eye(9, dtype="f4").reshape(9, 3, 3), {"prior": "smooth", "spacing_mm": (4, 4)}, "'smooth'"),
        (np.eye(9, dtype="f4").reshape(9, 3, 3), {"groups": [1, 2]}, "groups"),
        (
            np.eye(9, dtype="f4").reshape(9, 3, 3),
            {"prior": "variance", "spacing_mm": (4, 4), "groups": 9 * [1]},
            "enough",
        ),
        (np.ones((9, 3, 3), "f4"), {"prior": "auto", "spacing_mm": (4, 4)}, "differ"),
        (np.ones((9, 3, 3), "f4"), {"prior": PRIORS[0], "spacing_mm": (4, 4)}, "differ"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(images, options, words):
    with pytest.raises(ArgumentError, match=words):
        fit_core(images, 2, **options)


@pytest.mark.parametrize(("kind", "width", "share"), [("rough", 8, 1), ("variance", 0, 1), ("variance", 8, np.nan)])
def test_priors_check_their_numbers(kind, width, share):
    with pytest.raises(ArgumentError):
        SmoothPrior(kind, width, share)


def test_vectors_have_no_prior_to_choose_and_no_left_and_right():
    images = np.random.default_rng(0).standard_normal((9, 30)).astype("f4")
    core = fit_core(images, 2, prior="auto", mirror="auto")
    np.testing.assert_array_equal(core.axes, fit_core(images, 2).axes)
    assert core.priors == ()
    assert core.mirrored is False


@pytest.mark.parametrize("prior", [None, "auto"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mirror_images_are_taken_where_they_help_people_left_out(symmetric, prior):
    """Patterns as strong on either side, or only on the left: mirror images are then half of what is looked at."""
    rng, shape = np.random.default_rng(8), BRAIN.shape
    patterns = blurred(4, shape, 1.5, rng)
    if symmetric:
        patterns = np.concatenate([patterns + patterns[:, ::-1], patterns - patterns[:, ::-1]])
    else:
        patterns[:, shape[0] // 2 :] = 0
    codes, count = rng.standard_normal((120, len(patterns))), len(patterns)
    images = np.einsum("nk,kxyz->nxyz", codes, patterns / patterns.std())
    images = (images + 2 * rng.standard_normal(images.shape)).astype("f4")
    options = {"prior": prior, "spacing_mm": (4, 4, 4)}
    core = fit_core(images[:25], count, BRAIN, mirror="auto", **options)
    both = [fit_core(images[:25], count, BRAIN, mirror=mirror, **options) for mirror in (False, True)]
    assert core.mirrored is symmetric
    np.testing.assert_array_equal(core.axes, both[symmetric].axes)
    new = [explained(each, images[25:]) for each in both]
    assert (new[1] > new[0]) == symmetric
    np.testing.assert_allclose(core.mirror_images, new, atol=0.1)  # of few people, roughly what new ones show
    without = "without" if symmetric else "with"
    kept, other = core.mirror_images[symmetric], core.mirror_images[not symmetric]
    said = f"they explain {kept:.3f} of the variance, {without} mirror images {other:.3f}"
    assert said in core.describe()


def test_few_people_are_mirrored_unasked():
    core = fit_core(
        np.random.default_rng(0).standard_normal((4, 6, 5)).astype("f4"), 2, mirror="auto", groups=[0, 0, 1, 1]
    )
    assert (core.mirrored, core.mirror_images) == (True, None)


@pytest.mark.parametrize("prior", ["auto", "none", "variance"])
def test_a_recipe_asks_for_it(prior):
    content = {
        "pipeline": {"intensity": {"kind": "zscore"}},
        "model": {"latent_size": 3, "network": "dense", "core_prior": prior, "core_mirror": prior != "none"},
    }
    grid, said = SimpleNamespace(spacing=(4.0, 4.0, 4.0)), []
    images = population("variance", 15, 13)
    people = [f"p{i}" for i in range(15)]
    pipeline = SimpleNamespace(mask=BRAIN, grid=grid)
    model = build_model(Recipe.model_validate(content), images, pipeline, people=people, tell=said.append).model
    options = {} if prior == "none" else {"prior": prior, "spacing_mm": (4, 4, 4), "mirror": True}
    core = fit_core(images, 3, BRAIN, groups=people, **options)
    assert said == [core.describe()]
    np.testing.assert_allclose(model.decode(np.zeros((1, 3), "f4"))[0][BRAIN], core.mean, atol=1e-5)
    assert ("variance prior" in said[0]) == (prior != "none")
