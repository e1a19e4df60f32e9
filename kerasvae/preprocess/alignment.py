"""The alignment contract: what an encoder needs of an image's position, and a test of it before anything is encoded.

A scan that was not registered still lands somewhere on an MNI grid, and its latents are then silently wrong. The
contract says in words what is needed and holds limits fitted on the training people; `AlignmentContract.check`
compares an image, on the grid but before intensity and mask, with these limits. Five numbers are compared:

- *coverage*: fraction of mask voxels that have signal;
- *outside*: fraction of signal voxels that lie outside the mask;
- *correlation*: Pearson correlation with the mean training image over the whole grid, both averaged over blocks of
  about 1/24 of the grid's longest side (8 mm on an MNI grid);
- *distance*: between the intensity-weighted centres of the image and of the mean training image, in mm;
- *handedness*: (d · a) / (a · a), where d is the image's block-averaged signal minus its mirror image along x and a
  the mean of d over the training people: about 1 for an image like them, about −1 for a mirrored one.

*Signal* is a value above a tenth of the 98th percentile of the image's positive values.

Each limit is the median of the training people (each compared with the mean of the others) plus `slack` times the
distance from the median to the 95th percentile, on the side where images get worse, no tighter than a floor, and
widened by 3/n for n people. The default slack of 4 is 6.6 standard deviations of a normal distribution: another
scanner or a patient shall pass, a rotation of 15° or a shift of 20 mm shall not.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from kerasvae.errors import AlignmentError, ArgumentError
from kerasvae.preprocess.signature import Signature
from kerasvae.types import Array, Grid, Mask

__all__ = ["AlignmentContract", "AlignmentLimits", "CoarseImage", "fit_contract"]

_FLOORS = {"coverage": 0.05, "outside": 0.05, "correlation": 0.02, "distance_mm": 4.0}
"""The least departure from perfect that a limit allows, so that few or very uniform people do not make it absurd."""
_PEOPLE_FOR_HANDEDNESS = 20
_UPPER = {"outside", "distance_mm"}
"""Numbers that get worse as they grow; the others as they shrink."""
_WORDS = {
    "coverage": "part of the brain mask with signal",
    "outside": "part of the signal outside the brain mask",
    "correlation": "correlation with the mean training image",
    "distance_mm": "distance of the centres in mm",
    "handedness": "handedness",
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CoarseImage(_Frozen):
    """A small array as JSON: 8-bit levels in C order as base64; value = level × scale."""

    shape: tuple[int, int, int]
    scale: float
    levels: str

    @classmethod
    def of(cls, values: NDArray) -> Self:
        """Pack an array; the error is at most half of 1/127 of its largest absolute value."""
        scale = float(np.abs(values).max()) / 127.0 or 1.0
        levels = np.rint(values / scale).astype(np.int8)
        x, y, z = values.shape
        return cls(shape=(x, y, z), scale=scale, levels=base64.b64encode(levels.tobytes()).decode("ascii"))

    @property
    def values(self) -> NDArray[np.float32]:
        """The array, float32."""
        levels = np.frombuffer(base64.b64decode(self.levels), dtype=np.int8).reshape(self.shape)
        return levels.astype(np.float32) * np.float32(self.scale)


class AlignmentLimits(_Frozen):
    """Limits an image must keep; None where one is not used.

    Args:
        coverage: Least fraction of mask voxels with signal.
        outside: Largest fraction of signal outside the mask.
        correlation: Least correlation with the mean training image.
        distance_mm: Largest distance between the centres, mm.
        handedness: Least handedness; None where the training people do not tell left from right.
    """

    coverage: float | None = None
    outside: float | None = None
    correlation: float | None = None
    distance_mm: float | None = None
    handedness: float | None = None


class AlignmentContract(_Frozen):
    """What an encoder needs of an image, in words and in limits.

    Args:
        space: Coordinate space of the grid.
        registration: How images were brought there.
        skull_stripped: Whether everything but the brain was removed.
        modality: E.g. ``"T1w"``.
        units: Of intensity, e.g. ``"arbitrary"`` or ``"fraction"``.
        sform_codes: NIfTI codes that are accepted, or None for any. ITK-based tools write 1 (scanner) into images
            that are in MNI space, so the code alone proves nothing and the default accepts all.
        people: Number of training people the limits were fitted on.
        limits: See `AlignmentLimits`.
        centre_mm: Mean centre of the training people, mm.
        mean_image: Their mean, block-averaged.
        mirror: Mean difference from the mirrored image, block-averaged.
    """

    space: str
    registration: str = "affine to MNI152"
    skull_stripped: bool = True
    modality: str = "T1w"
    units: str = "arbitrary"
    sform_codes: tuple[int, ...] | None = None
    people: int
    limits: AlignmentLimits
    centre_mm: tuple[float, float, float]
    mean_image: CoarseImage
    mirror: CoarseImage

    def check(
        self, data: Array, mask: Mask | None, grid: Grid, *, sform_code: int | None = None, source: str = "image"
    ) -> dict[str, float]:
        """Compare an image with the limits.

        Args:
            data: Image on the grid before intensity and mask, shape (x, y, z).
            mask: The model's mask, or None.
            grid: The model's grid.
            sform_code: Of the file, or None where the format has none.
            source: Name for messages.

        Returns:
            The numbers that were compared, by the names of `AlignmentLimits`.

        Raises:
            AlignmentError: If any limit is broken; it says what the image looks like.
        """
        if self.sform_codes is not None and sform_code is not None and sform_code not in self.sform_codes:
            accepted = ", ".join(str(code) for code in self.sform_codes)
            raise self._refusal(source, f"sform code {sform_code} where {accepted} is accepted")
        found = Signature.of(data, mask, grid, source=source)
        measured = _compare(found, self.mean_image.values, np.array(self.centre_mm), self.mirror.values)
        broken = {name for name, value in measured.items() if _breaks(name, value, getattr(self.limits, name))}
        if broken:
            looks = self._looks(found, measured, broken)
            numbers = ", ".join(
                f"{_WORDS[name]} {measured[name]:.3g} ({'at most' if name in _UPPER else 'at least'} "
                f"{getattr(self.limits, name):.3g})"
                for name in measured
                if name in broken
            )
            raise self._refusal(source, f"one that {looks}: {numbers}")
        return measured

    def _looks(self, found: Signature, measured: dict[str, float], broken: set[str]) -> str:
        """What the broken limits point to, most telling first."""
        if broken == {"handedness"}:
            return "looks mirrored left to right, or tilted to one side"
        for axis, words in ((1, "looks flipped front to back"), (2, "looks turned upside down")):
            if self._closer_when_flipped(found.image, axis):
                return words
        if "handedness" in broken and self._closer_when_flipped(found.image, 0):
            return "looks unregistered: mirrored left to right, or rotated"
        if "distance_mm" in broken:
            x, y, z = found.centre_mm - np.array(self.centre_mm)
            return f"looks unregistered: it is shifted by ({x:.0f}, {y:.0f}, {z:.0f}) mm"
        # a rotation pushes a little signal out of the mask; a skull or a larger head much more
        much = "outside" in broken and measured["outside"] > 2 * (self.limits.outside or 0.0)
        if "coverage" not in broken and (much or broken == {"outside"}):
            return (
                "looks not skull-stripped, or larger than the training images" if self.skull_stripped else "is larger"
            )
        if "coverage" in broken and "outside" not in broken:
            return "looks unregistered: smaller than the training images, or a part of the brain is missing"
        if broken <= {"correlation", "handedness"}:
            return "looks unregistered (rotated, scaled or deformed) or has another contrast"
        return "looks unregistered: rotated, scaled or deformed"

    def _closer_when_flipped(self, image: NDArray, axis: int) -> bool:
        """Whether the image, moved to the mean image's centre, is clearly more like it after a flip."""
        reference = self.mean_image.values
        plain, flipped = (
            _correlation(_recentred(each, reference), reference) for each in (image, np.flip(image, axis))
        )
        return flipped > plain + 0.02

    def _refusal(self, source: str, got: str) -> AlignmentError:
        stripped = "skull-stripped" if self.skull_stripped else "whole-head"
        return AlignmentError(
            source,
            rule=f"lie as the training images do ({stripped} {self.modality}, {self.registration}, {self.space})",
            got=got,
            fix="Prepare it as the training images were",
        )


def fit_contract(
    volumes: Iterable[Array],
    mask: Mask | None,
    grid: Grid,
    *,
    registration: str = "affine to MNI152",
    skull_stripped: bool = True,
    modality: str = "T1w",
    units: str = "arbitrary",
    sform_codes: tuple[int, ...] | None = None,
    slack: float = 4.0,
) -> AlignmentContract:
    """Fit the limits on images of training people, and of nobody else.

    One volume is held at a time; of each person two block-averaged images are kept (about 100 kB on an MNI grid).

    Args:
        volumes: Images on the grid before intensity and mask, shape (x, y, z) each; at least two.
        mask: The model's mask, or None (coverage and outside are then not limited).
        grid: The model's grid.
        registration: How the images were brought there, in words.
        skull_stripped: Whether everything but the brain was removed.
        modality: E.g. ``"T1w"``.
        units: Of intensity.
        sform_codes: NIfTI codes that are accepted, or None for any.
        slack: How many distances from the median to the 95th percentile an image may lie from the median, > 0.

    Raises:
        ArgumentError: If there are fewer than two volumes or the slack is not positive.
    """
    if not slack > 0:
        raise ArgumentError("slack", rule="be above 0", got=slack, fix="Leave it at 4")
    people = [Signature.of(data, mask, grid) for data in volumes]
    n = len(people)
    if n < 2:
        raise ArgumentError("volumes", rule="hold two images or more", got=n, fix="Give the training people")
    image = np.sum([p.image for p in people], axis=0)
    mirror = np.sum([p.mirror for p in people], axis=0)
    centre = np.sum([p.centre_mm for p in people], axis=0)
    rows = [
        _compare(p, (image - p.image) / (n - 1), (centre - p.centre_mm) / (n - 1), (mirror - p.mirror) / (n - 1))
        for p in people
    ]
    limits: dict[str, float] = {}
    for name, floor in _FLOORS.items():
        if name in rows[0]:
            perfect = 0.0 if name in _UPPER else 1.0
            badness = np.array([abs(perfect - row[name]) for row in rows])
            median, tail = np.quantile(badness, [0.5, 0.95])
            # few people know little of the tail: 3/n widens a limit from 10 by a third, from 100 by 3 %
            allowed = max(float(median + slack * (tail - median)), floor) * (1 + 3 / n)
            limits[name] = allowed if name in _UPPER else perfect - allowed
    hands = np.array([row["handedness"] for row in rows])
    if n >= _PEOPLE_FOR_HANDEDNESS and hands.min() > 0:
        limits["handedness"] = -0.25 * float(np.median(hands))
    x, y, z = (float(v) for v in centre / n)
    return AlignmentContract(
        space=grid.space,
        registration=registration,
        skull_stripped=skull_stripped,
        modality=modality,
        units=units,
        sform_codes=sform_codes,
        people=n,
        limits=AlignmentLimits(**limits),
        centre_mm=(x, y, z),
        mean_image=CoarseImage.of(image / n),
        mirror=CoarseImage.of(mirror / n),
    )


def _compare(found: Signature, image: NDArray, centre_mm: NDArray[np.float64], mirror: NDArray) -> dict[str, float]:
    """The five numbers (three without a mask) against a mean image, centre and mirror difference."""
    if found.image.shape != image.shape:
        raise ArgumentError("image", rule=f"give blocks {image.shape}", got=found.image.shape, fix="Use its grid")
    measured = (
        {}
        if found.coverage is None or found.outside is None
        else {"coverage": found.coverage, "outside": found.outside}
    )
    measured["correlation"] = _correlation(found.image, image)
    measured["distance_mm"] = float(np.linalg.norm(found.centre_mm - centre_mm))
    power = float((mirror.astype(np.float64) ** 2).sum())
    measured["handedness"] = float((found.mirror * mirror).sum() / power) if power > 0 else 0.0
    return measured


def _recentred(image: NDArray, reference: NDArray) -> NDArray:
    """The image moved by whole blocks to the reference's centre."""
    blocks = np.indices(image.shape).reshape(3, -1)
    centres = [blocks @ a.ravel() / a.sum() for a in (image, reference)]
    shift = np.rint(centres[1] - centres[0]).astype(int)
    return np.roll(image, tuple(int(s) for s in shift), axis=(0, 1, 2))


def _breaks(name: str, value: float, limit: float | None) -> bool:
    if limit is None:
        return False
    return value > limit if name in _UPPER else value < limit


def _correlation(a: NDArray, b: NDArray) -> float:
    """Pearson correlation; 0 where one of the two is constant."""
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else 0.0
