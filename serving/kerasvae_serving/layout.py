"""Lay a bundle out for a server: TF Serving's or Triton's folders, with their configuration. No TensorFlow.

TF Serving wants `MODEL/VERSION/saved_model.pb` and refuses a relative base path; Triton wants
`MODEL/VERSION/model.onnx` beside a `config.pbtxt`. Both look the folders over while they run, so each version is put in
place by one rename.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from kerasvae.bundle import Bundle, Tensor, read_bundle
from kerasvae.errors import ArgumentError
from kerasvae.storage import atomic_path

__all__ = ["SERVERS", "deploy"]

MARK = "# Written by kerasvae deploy, and written anew by each call."
"""First line of every file of configuration that is ours."""
TRITON_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int32": "TYPE_INT32", "int64": "TYPE_INT64"}


def deploy(
    bundle: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    server: str = "tf-serving",
    base_path: str = "/models",
    most: int = 8,
    precision: str = "float32",
) -> Path:
    """Copy what a server needs of a bundle to a folder, and write its configuration.

    Other models and versions in the folder stay. The configuration is written anew and names them all; `base_path` and
    `most` of the last call hold for all of them. Triton gets the two ONNX graphs, so its clients send preprocessed
    images; TF Serving gets every signature.

    Args:
        bundle: A bundle, whose hashes are checked first.
        folder: The server's model folder on this machine; made where it is not there.
        server: "tf-serving" or "triton".
        base_path: Where the server will find this folder, an absolute path.
        most: Images in one batch, at most.
        precision: Of the graphs that Triton gets: "float32", or what the bundle has.

    Returns:
        The folder of the new version.

    Raises:
        BundleError: If the bundle is damaged, or has no graphs of this precision.
        ArgumentError: If the version is there already, the configuration was written by somebody else, or an argument
            is outside its rule.
        StorageError: If the folder cannot be written to.
    """
    if server not in SERVERS:
        raise ArgumentError("--server", rule=f"be {' or '.join(SERVERS)}", got=repr(server), fix="Choose one")
    if not PurePosixPath(base_path).is_absolute():
        raise ArgumentError(
            "--base-path",
            rule="be absolute, as TF Serving wants",
            got=repr(base_path),
            fix="Give the path inside the server's container, e.g. /models",
        )
    if most < 1:
        raise ArgumentError("--batch", rule="be 1 or more", got=most, fix="Use 8")
    if server == "tf-serving" and precision != "float32":
        raise ArgumentError(
            "--precision", rule="be float32 for TF Serving", got=repr(precision), fix="Use Triton, or kerasvae serve"
        )
    return SERVERS[server](read_bundle(bundle), Path(folder), base_path.rstrip("/"), most, precision)


def _tf_serving(bundle: Bundle, folder: Path, base_path: str, most: int, precision: str) -> Path:
    name, version = bundle.manifest.name, str(bundle.manifest.version)
    _ours(folder / "models.config", folder / "batching.config", folder / "monitoring.config")
    place = _new(folder / name / version)
    with atomic_path(place) as temporary:
        shutil.copytree(bundle.saved_model, temporary)
    served = sorted(each.name for each in folder.iterdir() if any(each.glob("*/saved_model.pb")))
    entries = [
        f'  config {{\n    name: "{each}"\n    base_path: "{base_path}/{each}"\n    model_platform: "tensorflow"\n  }}'
        for each in served
    ]
    _write(folder / "models.config", "\n".join(["model_config_list {", *entries, "}", ""]))
    _write(
        folder / "batching.config",
        f"max_batch_size {{ value: {most} }}\nbatch_timeout_micros {{ value: 1000 }}\n"
        "max_enqueued_batches { value: 64 }\nnum_batch_threads { value: 2 }\n",
    )
    metrics = 'prometheus_config {\n  enable: true\n  path: "/monitoring/prometheus/metrics"\n}\n'
    _write(folder / "monitoring.config", metrics)
    return place


def _triton(bundle: Bundle, folder: Path, base_path: str, most: int, precision: str) -> Path:
    manifest = bundle.manifest
    rest = manifest.inputs[1:]
    code = Tensor(name="z", shape=(manifest.latent_size,), meaning="code")
    made = Tensor(name="reconstruction", shape=manifest.data_shape, meaning="mean image")
    places = []
    for part, model, inputs, outputs in (
        ("encoder", manifest.name, manifest.inputs, manifest.outputs),
        ("decoder", f"{manifest.name}-decoder", (code, *rest), (made,)),
    ):
        file = bundle.graph(part, precision)
        _ours(folder / model / "config.pbtxt")
        place = _new(folder / model / str(manifest.version))
        with atomic_path(place) as temporary:
            temporary.mkdir()
            shutil.copyfile(file, temporary / "model.onnx")
        _write(folder / model / "config.pbtxt", _triton_config(model, inputs, outputs, most))
        places.append(place)
    return places[0]


def _triton_config(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], most: int) -> str:
    def tensors(kind: str, entries: Sequence[Tensor]) -> str:
        rows = ",\n".join(
            f'  {{ name: "{entry.name}", data_type: {TRITON_TYPES[entry.dtype]}, '
            f"dims: [ {', '.join(map(str, entry.shape or (1,)))} ]"
            + (" }" if entry.shape else ", reshape: { shape: [ ] } }")
            for entry in entries
        )
        return f"{kind} [\n{rows}\n]\n"

    return (
        f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: {most}\n{tensors("input", inputs)}'
        f"{tensors('output', outputs)}dynamic_batching {{ max_queue_delay_microseconds: 1000 }}\n"
        "version_policy: { latest: { num_versions: 2 } }\n"
    )


def _new(place: Path) -> Path:
    if place.exists():
        raise ArgumentError(
            "The version", rule="be new to the folder", got=str(place), fix="Export it with a higher --version"
        )
    return place


def _ours(*paths: Path) -> None:
    """Refuse to write over what somebody wrote by hand."""
    for path in paths:
        if path.is_file() and not path.read_text(encoding="utf-8", errors="replace").startswith(MARK):
            got = f"{path}, which was written by somebody else"
            rule = f"be a file that begins with {MARK!r}"
            raise ArgumentError("The configuration", rule=rule, got=got, fix="Move it away, or choose another folder")


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(f"{MARK}\n{text}", encoding="utf-8")


SERVERS: dict[str, Callable[[Bundle, Path, str, int, str], Path]] = {"tf-serving": _tf_serving, "triton": _triton}
"""What lays a bundle out, by server."""
