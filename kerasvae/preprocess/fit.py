"""Fitting a pipeline: the group mask and the alignment contract, from the training people and nobody else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kerasvae.errors import ArgumentError, VolumeError
from kerasvae.preprocess.alignment import fit_contract
from kerasvae.preprocess.grid import grid_of
from kerasvae.preprocess.nifti import as_volume
from kerasvae.preprocess.pipeline import Pipeline
from kerasvae.preprocess.signature import signal
from kerasvae.types import Array, Grid, Mask

__all__ = ["MaskRule", "fit_mask", "fit_pipeline"]

CONTRACT_PEOPLE = 500
"""The alignment contract is fitted on at most so many people, evenly spaced in the list."""


class MaskRule(BaseModel):
    """Which voxels belong to the group mask.

    Args:
        kind: "signal": voxels that have signal (see `kerasvae.preprocess.alignment`) in at least this part of the
            people, holes filled: for anatomical images. "mean": voxels whose mean is above the threshold: for
            tissue fractions.
        threshold: The part of people, or the mean value; 0.5 for "signal" and 0.05 for "mean" are usual.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    kind: Literal["signal", "mean"]
    threshold: float = Field(ge=0.0)

    @classmethod
    def of(cls, rule: MaskRule | str | Mapping[str, Any]) -> MaskRule:
        """A rule from itself, from its name (with the usual threshold) or from its config.

        >>> MaskRule.of("signal").threshold
        0.5
        """
        if isinstance(rule, MaskRule):
            return rule
        usual = {"signal": 0.5, "mean": 0.05}
        config = {"kind": rule} if isinstance(rule, str) else dict(rule)
        kind = config.get("kind")
        if kind not in usual or not set(config) <= {"kind", "threshold"}:
            raise ArgumentError("mask rule", rule="be 'signal' or 'mean', with a threshold", got=rule, fix="Choose one")
        threshold = config.get("threshold", usual[kind])
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold < float("inf"):
            raise ArgumentError("mask rule threshold", rule="be 0 or more", got=threshold, fix="Try 0.5 or 0.05")
        return cls.model_validate({"kind": kind, "threshold": threshold})


def fit_mask(volumes: Iterable[Array], rule: MaskRule | str | Mapping[str, Any] = "signal") -> Mask:
    """The group mask on the model's grid.

    Args:
        volumes: Images on the grid before intensity and mask, of training people; one is held at a time.
        rule: See `MaskRule`.

    Returns:
        Boolean array, shape (x, y, z).

    Raises:
        VolumeError: If there is no volume, or the mask is empty.
    """
    rule = MaskRule.of(rule)
    total: np.ndarray | None = None
    people = 0
    for data in volumes:
        share = signal(data) if rule.kind == "signal" else data
        total = share.astype(np.float64) if total is None else total + share
        people += 1
    if total is None:
        raise VolumeError("volumes", rule="hold at least one image", got="none", fix="Give the training people")
    if rule.kind == "signal":
        from scipy.ndimage import binary_fill_holes

        mask: Mask = binary_fill_holes(total / people >= max(rule.threshold, 1e-12))
    else:
        mask = total / people > rule.threshold
    if not mask.any():
        raise VolumeError(
            "mask", rule="hold at least one voxel", got=f"none by {rule.kind} {rule.threshold:g}", fix="Lower it"
        )
    return mask


def fit_pipeline(
    paths: Sequence[str | os.PathLike[str] | Any],
    *,
    grid: Grid | str | Mapping[str, Any] = "mni-4mm",
    shape: tuple[int, int, int] | None = None,
    interpolation: str = "linear",
    smooth_fwhm_mm: float = 0.0,
    intensity: Mapping[str, Any] | BaseModel | None = None,
    mask_rule: MaskRule | str | Mapping[str, Any] | None = "signal",
    modality: str = "T1w",
    alignment: bool = True,
    registration: str = "affine to MNI152",
    skull_stripped: bool = True,
    units: str = "arbitrary",
    sform_codes: tuple[int, ...] | None = None,
    on_error: Callable[[Any, VolumeError], None] | None = None,
) -> Pipeline:
    """A pipeline with the mask and the alignment contract of the *training people*; give no others.

    Files are read twice (for the mask, then for the contract), one at a time; memory does not grow with the cohort.

    Args:
        paths: Images of training people: paths, `Volume` or nibabel images.
        grid: The model's grid, its name, or "native": the first readable image's own voxels, to which the others
            are cropped or padded.
        shape: With "native", the shape instead of the first image's.
        interpolation: "linear" or "nearest".
        smooth_fwhm_mm: Smoothing beyond anti-aliasing, mm.
        intensity: Intensity step or its config; None for percentiles 1 to 99.
        mask_rule: See `MaskRule`; None for no mask.
        modality: E.g. ``"T1w"``.
        alignment: Whether to fit a contract.
        registration: How the images were brought to their space, in words.
        skull_stripped: Whether everything but the brain was removed.
        units: Of intensity.
        sform_codes: NIfTI codes that are accepted, or None for any.
        on_error: Called with the item and the error of an image that cannot be used, which is then left out; None
            raises the error.

    Raises:
        VolumeError: If an image cannot be used and `on_error` is None, or none is left.
        ArgumentError: If a value is outside its rule.
    """
    bad: set[int] = set()

    def readable(build: Callable[[Any], Any], chosen: Iterable[int]) -> Iterator[Any]:
        for index in chosen:
            if index in bad:
                continue
            try:
                result = build(paths[index])
            except VolumeError as error:
                if on_error is None:
                    raise
                bad.add(index)
                on_error(paths[index], error)
                continue
            yield result

    config: dict[str, Any] = {
        "grid": grid,
        "interpolation": interpolation,
        "smooth_fwhm_mm": smooth_fwhm_mm,
        "modality": modality,
    }
    if intensity is not None:
        config["intensity"] = intensity
    if grid == "native":
        first = next(readable(as_volume, range(len(paths))), None)
        if first is None:
            raise VolumeError("paths", rule="hold a readable image", got="none", fix="Check the training people")
        own = grid_of(first)
        config["grid"] = Grid.of(shape or own.shape, own.matrix, own.space)
        config["placement"] = "crop"
    pipeline = Pipeline.from_config(config)

    def placed(path: Any) -> Array:
        data = pipeline.place(path)
        signal(data, source=str(path))  # an image that misses the grid is an error of this image, not of the mask
        return data

    if mask_rule is not None:
        pipeline = pipeline.with_mask(fit_mask(readable(placed, range(len(paths))), mask_rule))
    if alignment:
        step = max(1.0, len(paths) / CONTRACT_PEOPLE)
        chosen = [int(i * step) for i in range(int(len(paths) / step))]
        contract = fit_contract(
            readable(placed, chosen),
            pipeline.mask,
            pipeline.grid,
            registration=registration,
            skull_stripped=skull_stripped,
            modality=modality,
            units=units,
            sform_codes=sform_codes,
        )
        pipeline = pipeline.with_alignment(contract)
    return pipeline
