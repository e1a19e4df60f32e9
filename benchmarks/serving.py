"""The server beside the engine that it runs, each time in one process and one run.

The network is that of `network.py`, with random weights, behind a pipeline for scans of IXI's kind. A load (`load.py`)
runs in a process of its own on the same cores, as it would for any server that is measured on one machine. What a
rolling restart loses is counted behind a real Envoy (`serving_restart.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import network
import nibabel
import numpy as np
import onnxruntime
from load import answer
from peer import rate
from rows import Row, as_row

from kerasvae import fit_pipeline
from kerasvae.allocator import keep_memory
from kerasvae.data import Cohort
from kerasvae.types import Grid
from kerasvae_export import export
from kerasvae_serving import Engine

LEARNING, REFERENCE = 40, 30
ROUNDS = 15
TURNS = 240
SECONDS = 1.5
STARTS = 5
COMPILED = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""The environment of a server whose modules are compiled once, as those are that pip installs."""
PACKAGES = ("kerasvae", "onnxruntime", "starlette", "uvicorn", "uvloop", "httptools", "grpcio", "numpy")


def run(folder: Path, *, work: Path, only: str | None = None) -> list[Row]:
    """The rows of the benchmark.

    Args:
        folder: The IXI derivative.
        work: Where the bundle is kept.
        only: speed, abuse, gate, cohort, or restart; the last two need no data.
    """
    rows: list[Row] = []
    if only in (None, "speed", "abuse"):
        bundle, image, scan = _bundle(folder, work)
    if only in (None, "speed"):
        keep_memory()  # as the server does: what is compared is the way to the work
        rows += [_ready(bundle), *_throughput(bundle, image), _overhead(bundle, scan)]
    if only in (None, "abuse"):
        from serving_abuse import abuse_rows

        rows += abuse_rows(bundle, image)
    if only in (None, "gate"):
        from serving_gate import gate_rows

        rows += gate_rows(folder)
    if only in (None, "cohort"):
        from serving_cohort import cohort_rows

        rows += cohort_rows(work)
    if only in (None, "restart"):
        from serving_restart import restart_rows

        rows += restart_rows()
    versions = {name: version(name) for name in PACKAGES}
    return [row | {"versions": versions} for row in rows]


def _bundle(folder: Path, work: Path) -> tuple[Path, np.ndarray, bytes]:
    """The bundle, a preprocessed image, and a scan of 2 mm as the bytes of a .nii.gz file."""
    cohort = Cohort.read(folder, select={"suffix": "T1w", "desc": "brain"}, exclude={"qc": ["fail"]})
    paths = [Path(scan.path) for scan in cohort.scans][: LEARNING + REFERENCE]
    pipeline = fit_pipeline(paths[:LEARNING], grid=network.grid(), intensity={"kind": "zscore"})
    images = np.stack([pipeline.apply(path, check=False) for path in paths])
    place = work / "bundle"
    shutil.rmtree(place, ignore_errors=True)
    model = network.model(pipeline.mask)
    codes = model.encode(images[:LEARNING])["mean"]
    export(model, pipeline, place, name="bench", reference=images[LEARNING:], learned_codes=codes)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-90.0, -126.0, -72.0)
    fine = Grid.of((91, 109, 91), affine, "MNI152NLin6Asym")
    from kerasvae.preprocess import read_volume
    from kerasvae.preprocess.resample import resample

    volume = read_volume(paths[-1])
    data = resample(volume.data, volume.affine, fine, interpolation="linear")
    scan = nibabel.Nifti1Image(np.rint(data).astype(np.int16), affine)
    scan.set_sform(affine, 4)
    with tempfile.NamedTemporaryFile(suffix=".nii.gz") as file:
        nibabel.save(scan, file.name)
        return place, images[-1], Path(file.name).read_bytes()


@contextmanager
def _server(bundle: Path, *options: str) -> Iterator[tuple[str, int, Callable[[], float]]]:
    """Host, port, and a function that waits until it is ready and tells how long it took since its start."""
    call = [
        sys.executable,
        "-m",
        "kerasvae.cli",
        "serve",
        str(bundle),
        "--port",
        "0",
        "--grpc-port",
        "0",
        "--drain",
        "0",
    ]
    with ExitStack() as held:
        client = held.enter_context(httpx.Client())  # which takes a while to make, and is not the server's
        log = held.enter_context(tempfile.NamedTemporaryFile("w+", suffix=".log"))
        begun = time.perf_counter()
        process = subprocess.Popen([*call, *options], stderr=log, env=COMPILED)
        held.callback(process.wait, 60)
        held.callback(process.terminate)
        while "\n" not in (told := Path(log.name).read_text()):
            if process.poll() is not None:
                raise RuntimeError(f"the server ended: {told}")
            time.sleep(0.005)
        host, port = json.loads(told.splitlines()[0])["http"].split(":")

        def ready() -> float:
            while client.get(f"http://{host}:{port}/v2/health/ready").status_code != 200:
                time.sleep(0.005)
            return time.perf_counter() - begun

        yield host, int(port), ready


def _ready(bundle: Path) -> Row:
    """From the start of the process to the first 200 of its readiness probe; the first start compiles."""
    times = []
    for _ in range(1 + STARTS):
        with _server(bundle) as (_, _, ready):
            times.append(ready())
    times = times[1:]
    value = statistics.median(times)
    name = f"ready after start, median of {STARTS} ({min(times):.2f} to {max(times):.2f})"
    return as_row(name, value, "s", None, 1.0, 0.6, value <= 1.0)


def _throughput(bundle: Path, image: np.ndarray) -> list[Row]:
    """Binary tensors over HTTP beside the bare ONNX Runtime in a loop, in turns."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(bundle / "encoder.onnx"), options, providers=["CPUExecutionProvider"])
    batch = image[None]
    tensor = {"name": "image", "shape": list(batch.shape), "datatype": "FP32"}
    content = {
        "inputs": [tensor | {"parameters": {"binary_data_size": batch.nbytes}}],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(content).encode()
    body = head + batch.tobytes()
    request = (
        f"POST /v2/models/bench/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(head)}\r\n\r\n"
    ).encode() + body

    def call() -> Any:
        return session.run(None, {"image": batch})

    def raw(threads: int) -> float:
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(lambda _: rate(call, 1, SECONDS), range(threads)))

    rounds: dict[int, list[tuple[float, float]]] = {1: [], 16: []}
    with _server(bundle, "--workers", "2") as (host, port, ready), tempfile.NamedTemporaryFile() as file:
        ready()
        Path(file.name).write_bytes(request)
        for _ in range(ROUNDS):
            for clients in rounds:
                load = [sys.executable, str(Path(__file__).parent / "load.py"), host, str(port), file.name]
                done = subprocess.run([*load, str(clients), str(SECONDS)], capture_output=True, text=True, check=True)
                rounds[clients].append((json.loads(done.stdout)["rate"], raw(1 if clients == 1 else 2)))
    rows = []
    for clients, pairs in rounds.items():
        ours, bare = (statistics.median(each) for each in zip(*pairs, strict=True))
        value = statistics.median(served / alone for served, alone in pairs)
        name = f"HTTP binary throughput, {clients} client{'s' if clients > 1 else ''} ({ours:.0f} volumes/s)"
        peer = f"ONNX Runtime in a loop on {1 if clients == 1 else 2} threads: {bare:.0f} volumes/s"
        rows.append(as_row(name, value, "ratio", peer, 0.65, 0.85, value >= 0.65))
    return rows


def _overhead(bundle: Path, scan: bytes) -> Row:
    """A scan of 2 mm over HTTP beside the same work by an engine in this process, each first in turn.

    The median of the differences within a turn, as the machine's pace changes between turns. The client is a bare
    socket: what a client's library takes is not the server's.
    """
    from kerasvae_serving.gate import examine

    engine = Engine(bundle)
    engine.warm()
    request = (
        f"POST /v1/models/bench:encode HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(scan)}\r\n"
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode() + scan
    served: list[float] = []
    alone: list[float] = []

    def timed(call: Callable[[], Any], times: list[float]) -> None:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)

    with _server(bundle, "--workers", "1") as (host, port, ready):
        ready()
        with socket.create_connection((host, port)) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def ask() -> None:
                client.sendall(request)
                answer(client)

            for index in range(10 + TURNS):
                turns = [(ask, served), (lambda: examine(engine, scan), alone)]
                for call, times in turns[:: 1 if index % 2 else -1]:
                    timed(call, times)
    over, bare = (1000 * np.array(times[10:]) for times in (served, alone))
    drawn = np.random.default_rng(0).integers(0, len(over), (2000, len(over)))
    low, high = np.quantile(np.median((over - bare)[drawn], axis=1), (0.025, 0.975))
    value = float(np.median(over - bare))
    name = (
        f"p50 over the call in process, .nii.gz of 2 mm in, verdict out ({np.median(over):.1f} ms; "
        f"95 %: {low:.1f} to {high:.1f})"
    )
    return as_row(name, value, "ms", f"the same call in process: {np.median(bare):.1f} ms", 3.0, 1.0, value <= 3.0)
