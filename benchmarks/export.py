"""The bundle's graphs beside the same network in PyTorch; fewer bits; files; how soon it answers; what is caught.

The network (`network.py`) learns from IXI's T1-weighted scans for a few epochs and is exported. PyTorch gets its
weights, and must compute what Keras computes, before it is timed; it and OpenVINO run in an environment of their own
(`peers.txt`). Ours and theirs take turns in rounds of a second; a ratio is the median over rounds.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import network
import nibabel
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from peer import THREADS, rate
from rows import Row, as_row

from kerasvae import VAE, Pipeline, fit_pipeline
from kerasvae.data import Cohort
from kerasvae.errors import VolumeError
from kerasvae.preprocess import read_volume
from kerasvae.types import Grid
from kerasvae_export import export
from kerasvae_export.pipeline_graph import preprocess
from kerasvae_serving import Engine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.broken import BREAKS, Source, failed

BATCH = 8
ROUNDS = 7
SECONDS = 1.0
EPOCHS = 20
LEARNING, REFERENCE = 100, 40
PRECISIONS = ("float16", "int8")
PACKAGES = ("kerasvae", "tensorflow", "keras", "onnx", "onnxruntime", "numpy")


def run(folder: Path, *, work: Path, epochs: int = EPOCHS) -> list[Row]:
    """Train and export what is not there yet; the rows of the benchmark."""
    source, images, paths = _source(folder, work, epochs)
    bundle = _bundle(source, images, work)
    peers = _environment(work)
    rows = [*_files(paths), *_speed(source.model, images, bundle, peers, work), *_few_bits(bundle)]
    rows += [_first_answer(bundle, source.scan), _caught(bundle, source)]
    versions = {name: version(name) for name in PACKAGES} | _versions(peers)
    return [row | {"versions": versions} for row in rows]


# --- what is measured --------------------------------------------------------------------------------


def _source(folder: Path, work: Path, epochs: int) -> tuple[Source, NDArray[np.float32], list[Path]]:
    """The trained model, everyone's images, first those it learned from, and all files."""
    cohort = Cohort.read(folder, select={"suffix": "T1w", "desc": "brain"}, exclude={"qc": ["fail"]})
    paths = [Path(scan.path) for scan in cohort.scans]
    chosen = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))[: LEARNING + REFERENCE]]
    pipeline = fit_pipeline(chosen[:LEARNING], grid=network.grid(), intensity={"kind": "zscore"})
    images = np.stack([pipeline.apply(path, check=False) for path in chosen])
    model, weights = network.model(pipeline.mask), work / f"epochs{epochs}.weights.h5"
    if not weights.is_file():
        print(f"training for {epochs} epochs", flush=True)
        work.mkdir(parents=True, exist_ok=True)
        model.compile(keras.optimizers.Adam(1e-3))
        model.fit(images[:LEARNING], epochs=epochs, batch_size=BATCH, verbose=2)
        model.save_weights(weights)
    else:
        model.load_weights(weights)
    return Source(model, pipeline, chosen[0]), images, paths


def _bundle(source: Source, images: NDArray[np.float32], work: Path) -> Path:
    place = work / "bundle"
    shutil.rmtree(place, ignore_errors=True)
    codes = source.model.encode(images[:LEARNING])["mean"]
    options = {"train_images": images[:LEARNING], "reference": images[LEARNING:], "learned_codes": codes}
    return export(source.model, source.pipeline, place, name="bench", quantize=PRECISIONS, **options)


def _speed(model: VAE, images: NDArray[np.float32], bundle: Path, peers: Path, work: Path) -> list[Row]:
    batch = images[LEARNING : LEARNING + BATCH]
    codes = model.encode(batch)["mean"]
    arrays = {"image": batch, "z": codes}
    for part in ("encoder", "decoder"):
        arrays |= {f"{part}_{i}": value for i, value in enumerate(getattr(model, part).get_weights())}
    np.savez(work / "torch.npz", **arrays)
    graphs = {part: np.array(str(bundle / f"{part}.onnx")) for part in ("encoder", "decoder")}
    np.savez(work / "openvino.npz", image=batch, z=codes, **graphs)
    engines = {name: Engine(bundle, threads=THREADS, precision=name) for name in ("float32", *PRECISIONS)}
    ours: dict[str, Callable[[], Any]] = {}
    for name, engine in engines.items():
        ours[f"ours encoder {name}"] = lambda engine=engine: engine.encode(batch)
        ours[f"ours decoder {name}"] = lambda engine=engine: engine.decode(codes)
    keras_calls = {
        "keras encoder": tf.function(model.encode_tensors),
        "keras decoder": tf.function(model.decode_tensors),
    }
    given = {"keras encoder": tf.constant(batch), "keras decoder": tf.constant(codes)}
    for name, function in keras_calls.items():
        ours[name] = lambda function=function, name=name: function(given[name])
    with _peer(peers, "torch", work / "torch.npz") as torch, _peer(peers, "openvino", work / "openvino.npz") as vino:
        _same_network(model, batch, codes, torch("check"))
        correlations = _openvino_correlations(vino("check"))
        theirs = {
            f"torch {part} {layout}": torch for part in ("encoder", "decoder") for layout in ("plain", "channels_last")
        }
        theirs |= {f"vino {part} {bits}": vino for part in ("encoder", "decoder") for bits in ("float32", "bfloat16")}
        rounds: dict[str, list[float]] = {name: [] for name in (*ours, *theirs)}
        for _ in range(ROUNDS):
            for name in rounds:
                if name in ours:
                    rounds[name].append(rate(ours[name], BATCH, SECONDS))
                else:
                    rounds[name].append(theirs[name](name.split(" ", 1)[1]))
    return _ratios(rounds) + correlations


def _ratios(rounds: dict[str, list[float]]) -> list[Row]:
    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(rounds[one], rounds[other], strict=True))

    rows = []
    for part, layout, words, least, aim in (
        ("encoder", "plain", "PyTorch eager", 0.7, 1.2),
        ("decoder", "channels_last", "PyTorch channels-last", 1.0, 2.0),
    ):
        value = ratio(f"ours {part} float32", f"torch {part} {layout}")
        name = f"{part} in ONNX Runtime, against {words}"
        rows.append(as_row(name, value, "ratio", words, least, aim, value >= least))
    for name, each in rounds.items():
        rows.append(as_row(f"speed: {name}", statistics.median(each), "volumes/s"))
    few = [("ours", bits) for bits in PRECISIONS] + [("vino", "bfloat16")]
    for engine, bits in few:
        for part in ("encoder", "decoder"):
            words = {"ours": "ONNX Runtime", "vino": "OpenVINO"}[engine]
            value = ratio(f"{engine} {part} {bits}", f"{engine} {part} float32")
            rows.append(as_row(f"{part} {bits} in {words}", value, "ratio", f"float32 in {words}", None, 2.0))
    return rows


def _same_network(model: VAE, batch: NDArray[np.float32], codes: NDArray[np.float32], path: str) -> None:
    with np.load(path) as found:
        for name, expected in (("parameters", model.encoder(batch)), ("reconstruction", model.decode(codes))):
            away = np.abs(found[name] - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max()
            if not away < 1e-4:
                raise RuntimeError(f"PyTorch's {name} differ from Keras's by {away:.1e} of the largest")


def _openvino_correlations(path: str) -> list[Row]:
    """Of the means in bfloat16 with those in float32, over one batch of people."""
    with np.load(path) as found:
        pairs = zip(found["mean_bfloat16"].T, found["mean_float32"].T, strict=True)
        least = min(float(np.corrcoef(a, b)[0, 1]) for a, b in pairs)
    name = f"latents in bfloat16 (OpenVINO), least correlation of a dimension over {BATCH} people"
    return [as_row(name, least, "r", "float32", None, 0.999)]


def _few_bits(bundle: Path) -> list[Row]:
    manifest = Engine(bundle).manifest
    rows = []
    for bits, promised in manifest.reduced.items():
        least = min(promised.latent_correlation)
        name = f"latents in {bits}, least correlation of a dimension over {promised.people} people"
        rows.append(as_row(name, least, "r", "float32", 0.99, 0.999, least >= 0.99))
    return rows


def _files(paths: list[Path]) -> list[Row]:
    """The graph of files against the shared pipeline, on all scans and on the images that nibabel is tested with."""
    worst, count = 0.0, 0
    pipeline = Pipeline(grid=network.grid(), smooth_fwhm_mm=4.0, intensity={"kind": "zscore"})
    function = tf.function(preprocess(pipeline), input_signature=[tf.TensorSpec((), tf.string)])
    for path in paths:
        worst, count = max(worst, _difference(pipeline, function, path)), count + 1
    for path in sorted((Path(nibabel.__file__).parent / "tests" / "data").glob("*.nii*")):
        try:
            volume = read_volume(path)
        except VolumeError:
            continue  # a series, or something else that neither takes
        middle = volume.affine @ (*(np.array(volume.data.shape) / 2), 1.0)
        affine = np.diag([3.0, 3.0, 3.0, 1.0])
        affine[:3, 3] = middle[:3] - 15
        grid = Grid.of((11, 11, 11), affine, "there")
        there = Pipeline(grid=grid, intensity={"kind": "range", "clip": False})
        worst, count = max(worst, _difference(there, tf.function(preprocess(there)), path)), count + 1
    name = f"encode_nifti's preprocessing of {count} files, largest difference of a voxel"
    return [as_row(name, worst, "of the range", "the shared pipeline", 1e-3, 1e-5, worst <= 1e-3)]


def _difference(pipeline: Pipeline, function: Any, path: Path) -> float:
    expected = pipeline.apply(path)
    found = function(tf.constant(path.read_bytes())).numpy()
    return float(np.abs(found - expected).max() / (np.ptp(expected) or 1))


def _first_answer(bundle: Path, scan: Path) -> Row:
    """From the start of a process to the latents of a scan."""
    code = f"from kerasvae_serving import Engine; print(Engine({str(bundle)!r}).encode({str(scan)!r})['mean'].shape)"
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        times.append(time.perf_counter() - begun)
    value = statistics.median(times)
    name = "bundle opens and answers its first scan, start of the process included"
    return as_row(name, value, "s", None, 2.0, 0.7, value <= 2.0)


def _caught(bundle: Path, source: Source) -> Row:
    missed = []
    for name, broken in BREAKS.items():
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copytree(bundle, Path(folder) / "bundle"))
            broken.how(copy, source)
            if not set(broken.failed) <= set(failed(copy)):
                missed.append(name)
    name = "broken bundles caught by verify, by the very checks meant for them"
    name += f" (missed: {', '.join(missed)})" if missed else ""
    return as_row(name, len(BREAKS) - len(missed), "bundles", None, len(BREAKS), None, not missed)


# --- peers -------------------------------------------------------------------------------------------


def _environment(work: Path) -> Path:
    """A Python with the peers of `peers.txt`, made once."""
    wanted = Path(__file__).with_name("peers.txt")
    place = work / "peers"
    python, made = place / "bin" / "python", place / "made-of.txt"
    if not made.is_file() or made.read_text() != wanted.read_text():
        print("installing the peers", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(wanted)], check=True)
        made.write_text(wanted.read_text())
    return python


def _versions(python: Path) -> dict[str, str]:
    code = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in ('torch', 'openvino')}))"
    return json.loads(subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout)


@contextmanager
def _peer(python: Path, kind: str, arrays: Path) -> Iterator[Callable[[str], Any]]:
    """A peer's process; the function that asks it."""
    command = [str(python), str(Path(__file__).with_name("peer.py")), kind, str(arrays), str(SECONDS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def answer() -> Any:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the peer {kind} ended; its message is above")
            return json.loads(line)

        def ask(command: str) -> Any:
            process.stdin.write(command + "\n")
            process.stdin.flush()
            return answer()

        answer()
        yield ask
        process.stdin.close()
