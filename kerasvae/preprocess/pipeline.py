"""The pipeline: from a file to the float32 array that an encoder takes, and back. Frozen, serialisable, digested.

The order is fixed: read → RAS+ → Gaussian → resample to the grid (or crop and pad) → alignment check → intensity →
mask. Training, export and serving all call this code.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError

from kerasvae.errors import ArgumentError, KerasVAEError, VolumeError, nearest
from kerasvae.preprocess.alignment import AlignmentContract
from kerasvae.preprocess.grid import fit_to_shape, named_grid, unfit_from_shape
from kerasvae.preprocess.intensity import Intensity, PercentileIntensity, Scaling
from kerasvae.preprocess.nifti import as_volume, image_of, sform_code_of
from kerasvae.preprocess.orient import orientation_of
from kerasvae.preprocess.resample import Interpolation, resample, smooth
from kerasvae.types import Array, Grid, Mask, Volume, pack_mask, unpack_mask

__all__ = ["Pipeline"]

Image = str | os.PathLike[str] | Volume | Any
"""A path, a `Volume` or a nibabel image."""


def _as_grid(value: Any) -> Any:
    """A grid from its name, its config or itself."""
    if isinstance(value, str):
        return named_grid(value)
    if not isinstance(value, Mapping):
        return value
    if set(value) != {"shape", "affine", "space"}:
        raise ArgumentError("grid", rule="have shape, affine and space", got=sorted(value), fix="Give all three")
    return Grid.from_config(dict(value))


def _as_mask(value: Any) -> Mask | None:
    """A read-only mask from its config, an array or None."""
    if value is None:
        return None
    mask: Mask = unpack_mask(dict(value)) if isinstance(value, Mapping) else np.array(value, dtype=bool)
    mask.setflags(write=False)
    return mask


def _as_json(mask: Mask | None) -> dict[str, Any] | None:
    return None if mask is None else pack_mask(mask)


class Pipeline(BaseModel):
    """Frozen preprocessing.

    Args:
        grid: The model's grid: a `Grid`, its config, or a name such as ``"mni-4mm"``.
        placement: "resample" brings images to the grid by their affines; "crop" keeps each image's own voxels and
            crops or pads it, centred, to the grid's shape (its voxel size must be the grid's within 1 %).
        interpolation: "linear", or "nearest" for labels (no Gaussian then).
        smooth_fwhm_mm: Smoothing beyond anti-aliasing, full width at half maximum in mm, 0..50.
        intensity: Percentile, z-score or range; see `kerasvae.preprocess.intensity`.
        mask: Boolean array on the grid, or None. Values outside become 0.
        alignment: The contract images must keep, or None.
        modality: E.g. ``"T1w"``.

    >>> pipeline = Pipeline(grid="mni-4mm", intensity={"kind": "range", "low": 0, "high": 255})
    >>> pipeline.grid.shape
    (46, 55, 46)
    >>> Pipeline.from_config(pipeline.to_config()) == pipeline
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)

    version: Literal[1] = 1
    grid: Annotated[Grid, BeforeValidator(_as_grid), PlainSerializer(Grid.to_config)]
    placement: Literal["resample", "crop"] = "resample"
    interpolation: Interpolation = "linear"
    smooth_fwhm_mm: float = Field(default=0.0, ge=0.0, le=50.0)
    intensity: Intensity = PercentileIntensity()
    mask: Annotated[Mask | None, PlainValidator(_as_mask), PlainSerializer(_as_json)] = None
    alignment: AlignmentContract | None = None
    modality: str = "T1w"

    def model_post_init(self, context: Any, /) -> None:
        """Check that the mask fits the grid; VolumeError otherwise."""
        if self.mask is None:
            return
        if self.mask.shape != self.grid.shape:
            raise VolumeError(
                "mask", rule=f"have the grid's shape {self.grid.shape}", got=self.mask.shape, fix="Resample the mask"
            )
        if not self.mask.any():
            raise VolumeError("mask", rule="hold at least one voxel", got="none", fix="Lower the mask rule's threshold")

    @property
    def inside(self) -> Mask:
        """Voxels that count, shape `grid.shape`: those of the mask, all where there is none."""
        return np.ones(self.grid.shape, bool) if self.mask is None else np.asarray(self.mask)

    def apply(self, image: Image, *, check: bool = True) -> Array:
        """The image as the encoder takes it.

        Args:
            image: A path, a `Volume` or a nibabel image.
            check: False skips the alignment contract.

        Returns:
            float32, C-contiguous, shape `grid.shape`, in model units; 0 outside the mask.

        Raises:
            VolumeError: If the image cannot be read or has nothing to normalise by.
            AlignmentError: If it breaks the alignment contract.
        """
        volume = as_volume(image)
        data = self.place(volume)
        if check and self.alignment is not None:
            self.alignment.check(data, self.mask, self.grid, sform_code=volume.sform_code, source=volume.source)
        out = self.intensity.scaling(data, self.mask, source=volume.source).apply(data)
        if self.mask is not None:
            out *= self.mask
        return np.ascontiguousarray(out, dtype=np.float32)

    def place(self, image: Image) -> Array:
        """The image on the grid in its own units: before alignment check, intensity and mask.

        Returns:
            float32, C-contiguous, shape `grid.shape`.
        """
        volume = as_volume(image)
        if self.placement == "resample":
            return resample(
                volume.data,
                volume.affine,
                self.grid,
                interpolation=self.interpolation,
                smooth_fwhm_mm=self.smooth_fwhm_mm,
            )
        spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
        if not np.allclose(spacing, self.grid.spacing, rtol=0.01):
            raise VolumeError(
                volume.source,
                rule=f"have voxels of {_mm(self.grid.spacing)} as the grid, which it is cropped to",
                got=_mm(spacing),
                fix="Resample it, or use placement 'resample'",
            )
        data = volume.data
        if self.interpolation == "linear" and self.smooth_fwhm_mm > 0:
            data = smooth(data, volume.affine, np.full(3, self.smooth_fwhm_mm**2 / (8 * np.log(2))))
        return np.ascontiguousarray(fit_to_shape(data, self.grid.shape))

    def scaling(self, image: Image) -> Scaling:
        """The intensity line that `apply` used for this image."""
        volume = as_volume(image)
        return self.intensity.scaling(self.place(volume), self.mask, source=volume.source)

    def invert(
        self, values: NDArray, image: Image, *, interpolation: Interpolation = "linear", intensity: bool = False
    ) -> Any:
        """A map on the model's grid as an image in the native space of a file.

        Args:
            values: Map, shape `grid.shape`; bool, integer or float.
            image: The file it belongs to; only its shape and affine count, unless `intensity` is True.
            interpolation: "linear", or "nearest" for labels.
            intensity: True brings model units (a reconstruction) back to the image's own units.

        Returns:
            A nibabel Nifti1Image, float32, with the shape, voxel order and affine of the file; 0 beyond the grid.

        Raises:
            ArgumentError: If the map has another shape.
        """
        volume = as_volume(image)
        if np.shape(values) != self.grid.shape:
            raise ArgumentError(
                "map", rule=f"have the grid's shape {self.grid.shape}", got=np.shape(values), fix="Use the pipeline's"
            )
        data = np.ascontiguousarray(values, dtype=np.float32)
        if intensity:
            data = self.scaling(volume).invert(data)
            data = data if self.mask is None else data * self.mask
        own = Grid.of(volume.data.shape, volume.affine, "native")
        if self.placement == "resample":
            ras = resample(data, self.grid.matrix, own, interpolation=interpolation)
        else:
            ras = unfit_from_shape(data, own.shape)
        affine = volume.affine if volume.native_affine is None else volume.native_affine
        native = np.ascontiguousarray(orientation_of(affine).from_ras(ras))
        return image_of(native, affine, volume.sform_code or sform_code_of("native"))

    def with_mask(self, mask: Mask | None) -> Self:
        """The same pipeline with another mask."""
        return self._with(mask=mask)

    def with_interpolation(self, interpolation: Interpolation) -> Self:
        """The same pipeline with another interpolation: "nearest" places labels as images are placed."""
        return self._with(interpolation=interpolation)

    def with_alignment(self, contract: AlignmentContract | None) -> Self:
        """The same pipeline with another alignment contract."""
        return self._with(alignment=contract)

    def to_config(self) -> dict[str, Any]:
        """A JSON-serialisable description; `from_config` reverses it exactly."""
        return self.model_dump(mode="json")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The pipeline that `to_config` described, or one given by hand.

        Raises:
            ArgumentError: If a key is unknown (the nearest valid one is named) or a value is outside its rule.
            VolumeError: If the mask does not fit the grid.
        """
        try:
            return cls(**config)
        except ValidationError as error:
            raise _explain(error, cls) from error

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of `to_config`: sorted keys, no spaces, ASCII.

        The mask enters by the hash of its bits, since compressed bytes differ between versions of zlib.
        """
        config = self.to_config()
        if self.mask is not None:
            bits = np.packbits(self.mask.ravel()).tobytes()
            config["mask"] = {"shape": list(self.mask.shape), "sha256": hashlib.sha256(bits).hexdigest()}
        text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def __eq__(self, other: object) -> bool:
        """Whether the other pipeline does the same: digests are compared, since masks are arrays."""
        return isinstance(other, Pipeline) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def _with(self, **changes: Any) -> Self:
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**fields, **changes})


def _mm(spacing: Iterable[float]) -> str:
    return " × ".join(f"{s:.3g}" for s in spacing) + " mm"


def _explain(error: ValidationError, model: type[BaseModel]) -> KerasVAEError:
    """The first finding of pydantic in the one error form."""
    finding = error.errors()[0]
    cause = finding.get("ctx", {}).get("error")
    if isinstance(cause, KerasVAEError):
        return cause
    # a discriminated union puts the kind into the location; it is no key of the config
    place = ".".join(str(part) for part in finding["loc"] if part not in {"percentile", "zscore", "range"})
    if finding["type"] == "extra_forbidden":
        key = str(finding["loc"][-1])
        valid = _valid_keys(model, finding["loc"][:-1])
        close = nearest(key, valid)
        fix = f"Did you mean {close!r}?" if close else f"Choose from {', '.join(valid)}"
        return ArgumentError(
            place, rule="be a key of the pipeline's configuration", got=f"the unknown key {key!r}", fix=fix
        )
    message = finding["msg"][0].lower() + finding["msg"][1:]
    return ArgumentError(place, rule="be valid", got=f"{_short(finding['input'])}: {message}", fix="Correct this value")


def _valid_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Keys of the (nested) model at this place."""
    from kerasvae.preprocess import alignment, intensity

    nested: dict[str, type[BaseModel]] = {
        "percentile": intensity.PercentileIntensity,
        "zscore": intensity.ZScoreIntensity,
        "range": intensity.RangeIntensity,
        "alignment": alignment.AlignmentContract,
        "limits": alignment.AlignmentLimits,
        "mean_image": alignment.CoarseImage,
        "mirror": alignment.CoarseImage,
    }
    for part in path:
        model = nested.get(str(part), model)
    return list(model.model_fields)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
