"""A bundle, ready to answer: checked files, the pipeline, and ONNX Runtime sessions."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.bundle import Manifest, largest_difference, read_bundle
from kerasvae.covariates import Covariates
from kerasvae.errors import ArgumentError, BundleError, UnsupportedError
from kerasvae.preprocess import Pipeline
from kerasvae.runtime import onnxruntime
from kerasvae.scoring import Reference, deviation, distance, normal_surprise, percentiles, residual
from kerasvae.types import Array, Mask, Volume
from kerasvae_serving.providers import AUTO, PROVIDERS, candidates, chain

__all__ = ["Engine"]

SOFTWARE = ("kerasvae", "numpy", "scipy")
"""Packages whose versions may change a latent's last digits; ONNX Runtime too, which has several names."""
TOGETHER = 2**18
"""Numbers of images that one call of ONNX Runtime gets, unless one image has more."""
TRIALS = 5
"""Runs of the golden case by which the fastest provider is found."""
TOLERANCE = 1e-3
"""Largest accepted difference from the golden case, relative to the largest value: engines and processors differ."""


class Engine:
    """Inference from a bundle.

    Args:
        path: The bundle's folder.
        threads: Threads of one call, each with volumes of its own; a call with one volume uses them all for it.
        provider: What runs the graphs: "cpu", "cuda", "openvino"; "auto": of those that this ONNX Runtime has, the one
            that encodes the golden case soonest, and right.
        precision: "float32", or one that the bundle has graphs of: "float16", "int8".
        check: Compare the hash of every file and run the golden case first.

    Raises:
        BundleError: If a file was altered or the golden case comes out differently.
        ArgumentError: If there is no such provider here.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int = 1,
        provider: str = AUTO,
        precision: str = "float32",
        check: bool = True,
    ) -> None:
        self._bundle = read_bundle(path, check=check)
        self._graphs = {part: self._bundle.graph(part, precision) for part in ("encoder", "decoder")}
        self._precision = precision
        self._sessions: dict[tuple[str, int], onnxruntime.InferenceSession] = {}
        self._names: dict[str, list[str]] = {}
        few = self.manifest.reduced.get(precision)
        self._tolerance = TOLERANCE if few is None else TOLERANCE + 2 * few.golden_difference
        if threads < 1:
            raise ArgumentError("threads", rule="be 1 or more", got=threads, fix="Give the number of cores")
        self._threads = threads
        self.provider, self.passed_over = self._choose(provider, check)

    def _choose(self, provider: str, check: bool) -> tuple[str, list[str]]:
        """The provider that runs the bundle soonest, and why others do not run it at all."""
        names = candidates(provider)
        reasons: list[str] = []
        fastest = (math.inf, names[0], self._sessions)
        for name in names:
            self.provider, self._sessions = name, {}
            try:
                if check:
                    self._self_test()
                seconds = self._seconds() if len(names) > 1 else 0.0
            except BundleError as error:
                if len(names) == 1 + len(reasons):
                    raise
                reasons.append(f"{name} is passed over: {error}")
                continue
            fastest = min(fastest, (seconds, name, self._sessions), key=lambda each: each[0])
        _, chosen, self._sessions = fastest
        return chosen, reasons

    def _seconds(self) -> float:
        """Shortest time in which the golden image is encoded."""
        golden = self._bundle.golden()
        times = []
        for _ in range(1 + TRIALS):
            begun = time.perf_counter()
            self.encode(golden["image"], golden.get("covariates"))
            times.append(time.perf_counter() - begun)
        return min(times[1:])

    @property
    def path(self) -> Path:
        """The bundle's folder."""
        return self._bundle.path

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def identity(self) -> dict[str, str]:
        """What decides the latents: model, precision, provider, packages, a digest of weights and preprocessing."""
        manifest = self.manifest
        graph = manifest.sha256.get(self._graphs["encoder"].name)
        known = [covariate.model_dump(mode="json") for covariate in manifest.covariates]
        parts = json.dumps([manifest.weights_digest, manifest.pipeline_digest, graph, known], sort_keys=True)
        digest = hashlib.sha256(parts.encode()).hexdigest()
        return {
            "model": f"{manifest.name} {manifest.version}",
            "precision": self._precision,
            "provider": self.provider,
            "digest": digest,
            "software": ", ".join(
                [*(f"{name} {version(name)}" for name in SOFTWARE), f"onnxruntime {onnxruntime.__version__}"]
            ),
        }

    @cached_property
    def pipeline(self) -> Pipeline:
        """The model's preprocessing.

        Raises:
            UnsupportedError: If the bundle has none.
        """
        if self.manifest.pipeline is None:
            raise UnsupportedError(
                self._words, rule="have a pipeline to read images", got="none", fix="Pass arrays to `encode` instead"
            )
        return Pipeline.from_config(self.manifest.pipeline)

    @cached_property
    def covariates(self) -> Covariates | None:
        """What the model takes beside the image; None: nothing."""
        return Covariates(self.manifest.covariates) if self.manifest.covariates else None

    def warm(self) -> None:
        """Read now what would be read when first needed: pipeline, and maps of the reference people."""
        if self.manifest.pipeline is not None:
            _ = self.pipeline
        if self.manifest.reference is not None and self.manifest.reference.degrees is not None:
            _ = self._maps

    def prepare(self, image: Any, *, check: bool = True) -> Array:
        """What the model is given for what its users have.

        Args:
            image: A scan (a path, the bytes of a file, a `Volume` or a nibabel image), a list of scans, or
                preprocessed images, (n, *data_shape), which stay as they are.
            check: False skips the alignment contract of scans.

        Returns:
            (n, *data_shape).

        Raises:
            VolumeError: If a scan cannot be used.
            ArgumentError: If the shape is wrong.
        """
        if _is_scan(image):
            image = [image]
        if isinstance(image, list | tuple) and image and _is_scan(image[0]):
            image = np.stack([self.pipeline.apply(scan, check=check) for scan in image])
        return _checked("image", image, self.manifest.data_shape, "Apply the engine's pipeline first")

    def encode(self, image: Any, covariates: Any = None, *, check: bool = True) -> dict[str, NDArray]:
        """The encoder's deterministic outputs by name, each (n, …), in the manifest's order and dtypes.

        Args:
            image: Scans or preprocessed images, see `prepare`.
            covariates: For a model that takes them: a table, column name to n cells, or numbers of shape (n, k); see
                `kerasvae.covariates.Covariates.matrix`.
            check: False skips the alignment contract of scans.

        Raises:
            VolumeError: If a scan cannot be used.
            ArgumentError: If a shape is wrong, or a covariate is missing or outside its rule.
        """
        x = self.prepare(image, check=check)
        found = self._run("encoder", {"image": x}, covariates)
        return {output.name: found[output.name] for output in self.manifest.outputs}

    def decode(self, z: NDArray, covariates: Any = None) -> Array:
        """The mean image of each code: (n, latent_size) to (n, *data_shape); covariates as for `encode`."""
        codes = _checked("z", z, (self.manifest.latent_size,), "Give one row a code")
        return self._run("decoder", {"z": codes}, covariates)["reconstruction"]

    def reconstruct(self, image: Any, covariates: Any = None, *, check: bool = True) -> Array:
        """The deterministic reconstruction on the model's grid, (n, *data_shape); arguments as for `encode`."""
        x = self.prepare(image, check=check)
        return self.decode(self._center(self.encode(x, covariates)), covariates)

    def score(self, image: Any, covariates: Any = None, *, check: bool = True) -> dict[str, NDArray[np.float64]]:
        """How unusual each image is among the bundle's reference people; arguments as for `encode`.

        Returns:
            Arrays (n,): `residual` (model units), `distance`, `surprise` (nats; only of models with normal posterior,
            prior and likelihood and one σ, of others the SavedModel gives it), and of each its `…_percentile`, 0 to
            100. See `kerasvae.scoring`.

        Raises:
            UnsupportedError: If the bundle has no reference people.
        """
        x = self.prepare(image, check=check)
        return self.score_of(x, self.encode(x, covariates), covariates)

    @property
    def reference(self) -> Reference:
        """People to place a scan among.

        Raises:
            UnsupportedError: If the bundle has none.
        """
        if self.manifest.reference is None:
            raise UnsupportedError(
                self._words,
                rule="have reference people to score a scan among",
                got="none",
                fix="Export a run with calibration people",
            )
        return self.manifest.reference

    def score_of(self, x: Array, codes: dict[str, NDArray], covariates: Any = None) -> dict[str, NDArray[np.float64]]:
        """`score` of preprocessed images (n, *data_shape) that were encoded before."""
        reference, center = self.reference, self._center(codes)
        made, mask = self.decode(center, covariates), self._mask
        found = {
            "residual": residual(x, made, mask),
            "distance": distance(center, reference.center, reference.precision),
        }
        if reference.sigma is not None:
            found["surprise"] = normal_surprise(x, made, codes["mean"], codes["stddev"], reference.sigma, mask)
        places = {f"{name}_percentile": percentiles(found[name], getattr(reference, name)) for name in found}
        return found | places

    def deviation_map(self, image: Any, covariates: Any = None, *, check: bool = True) -> Array:
        """Where and how far each image differs from its reconstruction more than the reference people's do.

        Returns:
            On the model's grid, (n, *data_shape), as quantiles of the standard normal distribution; 0 outside the mask.
            `engine.pipeline.invert` puts one into a scan's own space. See `kerasvae.scoring.deviation`.

        Raises:
            UnsupportedError: If the bundle has no maps of reference people.
        """
        maps = self._maps
        x = self.prepare(image, check=check)
        return deviation(x, self.reconstruct(x, covariates), *maps)

    @property
    def _words(self) -> str:
        """The bundle as errors name it: a server's clients need not know where it lies."""
        return f"{self.manifest.name} {self.manifest.version}"

    def _center(self, codes: dict[str, NDArray]) -> NDArray:
        """The code that stands for a person: the encoder's first output."""
        return codes[self.manifest.outputs[0].name]

    @property
    def _mask(self) -> Mask | None:
        return None if self.manifest.pipeline is None else self.pipeline.mask

    @cached_property
    def _maps(self) -> tuple[NDArray, NDArray, float]:
        return self._bundle.maps()

    def _session(self, part: str, threads: int) -> onnxruntime.InferenceSession:
        if (part, threads) not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            path = self._graphs[part]
            try:
                made = onnxruntime.InferenceSession(str(path), options, providers=chain(self.provider))
            except Exception as error:  # ONNX Runtime's errors share no base class but Exception
                reason = str(error).splitlines()[0]
                rule = "be a graph ONNX Runtime can load"
                raise BundleError(path, rule=rule, got=reason, fix="Export again") from error
            used = made.get_providers()[0]
            if used != PROVIDERS[self.provider][0]:  # ONNX Runtime falls back without an error
                rule = f"run on {self.provider}"
                raise BundleError(path, rule=rule, got=used, fix="Check the drivers, or use another --provider")
            self._names[part] = [output.name for output in made.get_outputs()]
            self._sessions[part, threads] = made
        return self._sessions[part, threads]

    def _run(self, part: str, given: dict[str, Array], covariates: Any) -> dict[str, NDArray]:
        """The outputs of a graph, a few rows at a time: what a thread works on then stays in its cache."""
        rows = len(next(iter(given.values())))
        given = given | self._given(covariates, rows)
        few = max(1, TOGETHER // math.prod(self.manifest.data_shape))
        step = rows if self.provider == "cuda" else few
        starts = range(0, rows, step)
        session = self._session(part, self._threads if len(starts) == 1 else 1)
        names = self._names[part]

        def run(start: int) -> list[NDArray]:
            found: list[NDArray] = session.run(names, {key: x[start : start + step] for key, x in given.items()})
            return found

        if len(starts) == 1:  # nothing to put together: a large image is not copied
            return dict(zip(names, run(0), strict=True))
        parts = map(run, starts) if self._threads == 1 else self._workers.map(run, starts)
        return {name: np.concatenate(each) for name, each in zip(names, zip(*parts, strict=True), strict=True)}

    @cached_property
    def _workers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, "engine")

    def _given(self, covariates: Any, rows: int) -> dict[str, NDArray[np.float32]]:
        """The input `covariates`, where the model has it."""
        if self.covariates is None:
            if covariates is not None:
                raise ArgumentError("covariates", rule="be left out", got="some", fix="This model takes none")
            return {}
        if covariates is None:
            names = ", ".join(self.covariates.names)
            raise ArgumentError(
                "covariates", rule=f"be given with every image: {names}", got="none", fix="Add a table or numbers"
            )
        return {"covariates": self.covariates.matrix(covariates, rows=rows)}

    def _self_test(self) -> None:
        """Run the golden case."""
        golden = self._bundle.golden()
        rest = golden.get("covariates")
        found = {**self.encode(golden["image"], rest), "reconstruction": self.decode(golden["z"], rest)}
        for name, value in found.items():
            difference = largest_difference(value, golden[name])
            if not difference <= self._tolerance:
                raise BundleError(
                    f"{self.path}: {name} of the golden case",
                    rule=f"come out within {self._tolerance:.2g} of the largest value",
                    got=f"a difference of {difference:.1e}",
                    fix="Check the ONNX Runtime version and provider, or export again",
                )


def _is_scan(value: Any) -> bool:
    """A path, the bytes of a file, a volume or a nibabel image."""
    return isinstance(value, str | bytes | os.PathLike | Volume) or hasattr(value, "dataobj")


def _checked(name: str, value: Any, shape: tuple[int, ...], fix: str) -> Array:
    value = np.ascontiguousarray(value, dtype=np.float32)
    if value.shape[1:] != shape or not len(value):
        rule = f"have shape (n, {', '.join(map(str, shape))}) with n at least 1"
        raise ArgumentError(name, rule=rule, got=value.shape, fix=fix)
    return value
