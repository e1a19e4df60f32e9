"""A bundle, ready to answer: checked files, the pipeline, and ONNX Runtime sessions."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from kerasvae.bundle import Manifest, largest_difference, read_bundle
from kerasvae.covariates import Covariates
from kerasvae.errors import ArgumentError, BundleError
from kerasvae.preprocess import Pipeline
from kerasvae.types import Array

__all__ = ["Engine"]

TOLERANCE = 1e-3
"""Largest accepted difference from the golden case, relative to the largest value: engines and processors differ."""


class Engine:
    """Inference from a bundle.

    Args:
        path: The bundle's folder.
        threads: Threads of one call; 0 lets ONNX Runtime choose.
        providers: ONNX Runtime execution providers; by default the CPU.
        precision: "float32", or one that the bundle has graphs of: "float16", "int8".
        check: Compare the hash of every file and run the golden case first.

    Raises:
        BundleError: If a file was altered or the golden case comes out differently.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int = 1,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
        precision: str = "float32",
        check: bool = True,
    ) -> None:
        self._bundle = read_bundle(path, check=check)
        self._graphs = [self._bundle.graph(part, precision) for part in ("encoder", "decoder")]
        few = self.manifest.reduced.get(precision)
        self._tolerance = TOLERANCE if few is None else TOLERANCE + 2 * few.golden_difference
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.log_severity_level = 3
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._providers = list(providers)
        if check:
            self._self_test()

    @property
    def path(self) -> Path:
        """The bundle's folder."""
        return self._bundle.path

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @cached_property
    def pipeline(self) -> Pipeline:
        """The model's preprocessing.

        Raises:
            BundleError: If the bundle has none.
        """
        if self.manifest.pipeline is None:
            raise BundleError(
                self.path, rule="have a pipeline to read images", got="none", fix="Pass arrays to `encode` instead"
            )
        return Pipeline.from_config(self.manifest.pipeline)

    @cached_property
    def covariates(self) -> Covariates | None:
        """What the model takes beside the image; None: nothing."""
        return Covariates(self.manifest.covariates) if self.manifest.covariates else None

    def encode(self, image: NDArray, covariates: Any = None) -> dict[str, NDArray]:
        """The encoder's deterministic outputs by name, each (n, …), in the manifest's order and dtypes.

        Args:
            image: Preprocessed images, (n, *data_shape).
            covariates: For a model that takes them: a table, column name to n cells, or numbers of shape (n, k); see
                `kerasvae.covariates.Covariates.matrix`.

        Raises:
            ArgumentError: If a shape is wrong, or a covariate is missing or outside its rule.
        """
        found = self._run(self._encoder, "image", image, self.manifest.data_shape, covariates)
        return {output.name: found[output.name] for output in self.manifest.outputs}

    def decode(self, z: NDArray, covariates: Any = None) -> Array:
        """The mean image of each code: (n, latent_size) to (n, *data_shape); covariates as for `encode`."""
        return self._run(self._decoder, "z", z, (self.manifest.latent_size,), covariates)["reconstruction"]

    def reconstruct(self, image: NDArray, covariates: Any = None) -> Array:
        """The deterministic reconstruction: (n, *data_shape) to the same; covariates as for `encode`."""
        return self.decode(self.encode(image, covariates)[self.manifest.outputs[0].name], covariates)

    def encode_scan(self, scan: Any, covariates: Any = None, *, check: bool = True) -> dict[str, NDArray]:
        """The outputs for one scan, each without the batch axis.

        Args:
            scan: A path, a `Volume` or a nibabel image.
            covariates: For a model that takes them: their values by name, or numbers of shape (1, k).
            check: False skips the alignment contract.

        Raises:
            VolumeError: If the scan cannot be used.
            ArgumentError: If a covariate is missing or outside its rule.
        """
        outputs = self.encode(self.pipeline.apply(scan, check=check)[None], covariates)
        return {name: value[0] for name, value in outputs.items()}

    @cached_property
    def _encoder(self) -> onnxruntime.InferenceSession:
        return self._session(self._graphs[0])

    @cached_property
    def _decoder(self) -> onnxruntime.InferenceSession:
        return self._session(self._graphs[1])

    def _session(self, path: Path) -> onnxruntime.InferenceSession:
        try:
            return onnxruntime.InferenceSession(str(path), self._options, providers=self._providers)
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            reason = str(error).splitlines()[0]
            raise BundleError(path, rule="be a graph ONNX Runtime can load", got=reason, fix="Export again") from error

    def _run(
        self, session: onnxruntime.InferenceSession, name: str, value: NDArray, shape: tuple[int, ...], covariates: Any
    ) -> dict[str, NDArray]:
        value = np.ascontiguousarray(value, dtype=np.float32)
        if value.shape[1:] != shape or not len(value):
            raise ArgumentError(
                name,
                rule=f"have shape (n, {', '.join(map(str, shape))}) with n at least 1",
                got=value.shape,
                fix="Apply the engine's pipeline first" if name == "image" else "Give one row a code",
            )
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {name: value, **self._given(covariates, len(value))}), strict=True))

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
