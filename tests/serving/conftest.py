"""Two bundles of small images, and a server of both that the tests share."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest

from kerasvae_serving import Engine, deploy
from tests.conftest import blob, blob_affine, write_image
from tests.serving.servers import WAIT_S, Running
from tests.serving.tools import Tools

collect_ignore = ["operator_kinds.py"]  # a program of the tools' own environment
LEARNERS, REFERENCE, OTHERS = 24, 30, 12
TRITON = ("nvidia-pytriton==0.7.0", "numpy<2", "onnxruntime<1.20")


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


@pytest.fixture(scope="session")
def tf_serving(bundles, tmp_path_factory):
    """What stands for TF Serving, with both models as `deploy` lays them out; see `saved_model_server`."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("blobs-1", "aged-1"):
        deploy(bundles / name, folder, base_path=str(folder))
    script = Path(__file__).parent / "saved_model_server.py"
    with Running.of([sys.executable, str(script), str(folder / "models.config")]) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def scan_file(tmp_path) -> Path:
    """A scan of somebody new."""
    return write_image(tmp_path / "scan.nii.gz", blob(LEARNERS + REFERENCE), blob_affine())


class Triton(NamedTuple):
    """Where a Triton answers."""

    url: str
    grpc: str


@pytest.fixture(scope="session")
def triton(bundles, tmp_path_factory):
    """A real Triton with the same model as `deploy` lays it out, in an environment of its own; see `oracle`.

    KERASVAE_TRITON names the Python of one that is there already.
    """
    folder = tmp_path_factory.mktemp("triton")
    python = os.environ.get("KERASVAE_TRITON")
    if python is None:
        python = str(folder / "venv" / "bin" / "python")
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *TRITON], check=True)
    deploy(bundles / "blobs-1", folder / "models", server="triton", most=64)
    http_port, grpc_port = free_port(), free_port()
    call = [python, Path(__file__).parent / "oracle.py", folder / "models", folder / "work", http_port, grpc_port]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([str(each) for each in call], stdout=log, stderr=log)
    found = Triton(f"http://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}")
    try:
        end = time.monotonic() + WAIT_S
        while True:
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < end, (folder / "log").read_text()[-2000:]
            try:
                if all(
                    httpx.get(f"{found.url}/v2/models/{name}/ready").status_code == 200
                    for name in ("blobs", "blobs-decoder")
                ):
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield found
    finally:
        process.terminate()
        process.wait(WAIT_S)


@pytest.fixture(scope="session")
def tools(tmp_path_factory) -> Tools:
    """Validators and Envoy, in an environment of their own."""
    return Tools(tmp_path_factory.mktemp("tools"))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A certificate of this machine, by itself, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    made, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", made],
        check=True, capture_output=True,
    )  # fmt: skip
    return made, key


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]
