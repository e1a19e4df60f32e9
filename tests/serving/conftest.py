"""Two bundles of small images, and a server of both that the tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kerasvae_serving import Engine
from tests.conftest import blob, blob_affine, write_image
from tests.serving.servers import Running

LEARNERS, REFERENCE, OTHERS = 24, 30, 12


def scan(person: int):
    import nibabel

    image = nibabel.Nifti1Image(blob(person).astype("f4"), blob_affine())
    image.set_sform(blob_affine(), 4)
    return image


@pytest.fixture(scope="session")
def bundles(tmp_path_factory) -> Path:
    """A folder with `blobs`, a linear model with a contract and reference people, and `aged`, with covariates."""
    from kerasvae import VAE, Covariate, Covariates, NormalLikelihood, dense_decoder, dense_encoder
    from kerasvae.networks import fit_core, linear_start
    from kerasvae.preprocess import fit_pipeline
    from kerasvae_export import export

    folder = tmp_path_factory.mktemp("bundles")
    people = [
        write_image(folder / "people" / f"{person}.nii.gz", blob(person), blob_affine()) for person in range(LEARNERS)
    ]
    pipeline = fit_pipeline(people, grid="native", intensity={"kind": "zscore"})
    learned = np.stack([pipeline.apply(path) for path in people])
    held_out = np.stack([pipeline.apply(scan(person)) for person in range(LEARNERS, LEARNERS + REFERENCE)])
    core = fit_core(learned, 3, pipeline.mask)
    model = VAE(*linear_start(None, None, core, pipeline.mask), likelihood=NormalLikelihood(mask=pipeline.mask))
    served = folder / "served"
    codes = np.asarray(model.encode(learned)["mean"])
    export(model, pipeline, served / "blobs-1", name="blobs", reference=held_out, learned_codes=codes)
    covariates = Covariates([
        Covariate(name="age", kind="continuous", unit="years", mean=50, stddev=10, low=0, high=120),
        Covariate(name="sex", kind="categorical", levels=("F", "M"), shares=(0.5, 0.5)),
    ])  # fmt: skip
    shape, width = pipeline.grid.shape, covariates.width
    networks = dense_encoder(shape, 6, (8,), condition_size=width), dense_decoder(shape, 3, (8,), condition_size=width)
    export(VAE(*networks, covariates=covariates), pipeline, served / "aged-1", name="aged")
    return served


@pytest.fixture(scope="session")
def server(bundles):
    """A server of both, that nothing in it changes."""
    with Running([bundles], "--workers", "2") as running:
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="session")
def engine(bundles) -> Engine:
    """The same model without a server between."""
    return Engine(bundles / "blobs-1")


@pytest.fixture(scope="session")
def prepared(engine) -> np.ndarray:
    """Preprocessed images of other people."""
    first = LEARNERS + REFERENCE
    return np.stack([engine.pipeline.apply(scan(person)) for person in range(first, first + OTHERS)])


@pytest.fixture
def scan_file(tmp_path) -> Path:
    """A scan of somebody new."""
    return write_image(tmp_path / "scan.nii.gz", blob(LEARNERS + REFERENCE), blob_affine())
