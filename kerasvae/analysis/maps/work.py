"""The maps of a run one by one: what each is called, what its sidecar says, and how it is drawn."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from itertools import count as count_from
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.contents import read_json
from kerasvae.analysis.latents import Latents
from kerasvae.analysis.maps.decoded import Decode, association_map, jacobian, spread_of, traverse
from kerasvae.analysis.maps.figures import Frame, map_figure, save_png, traversal_figure
from kerasvae.analysis.maps.folder import MapFolder
from kerasvae.analysis.maps.groups import voxel_test
from kerasvae.analysis.maps.slopes import Contrast
from kerasvae.analysis.maps.steps import Steps, steps_of_contrast, steps_of_dimension
from kerasvae.analysis.words import count
from kerasvae.types import Mask

__all__ = ["MapWork"]

POSITIONS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
"""Steps of a traversal."""
LEVEL = 0.05
UNIT = "model units"


@dataclass(frozen=True)
class MapWork:
    """What the maps of one call share.

    Args:
        folder: Where they are written.
        latents: Codes of the people.
        decode: The decoder.
    """

    folder: MapFolder
    latents: Latents
    decode: Decode

    def dimension(self, dimension: int) -> None:
        """Jacobian and traversal of a dimension, in standard deviations of the codes.

        Args:
            dimension: From 0.
        """
        centre, stddev = spread_of(self.latents.codes)
        direction = np.zeros_like(centre)
        direction[dimension] = stddev[dimension]
        name = f"dimension-{dimension:02d}"
        about = self._people(np.ones(len(self.latents.people), bool))
        about["StandardDeviation"] = float(stddev[dimension])
        moved = jacobian(self.decode, centre, direction[None])[0]
        text = f"how the decoded image moves per standard deviation of dimension {dimension}, at the mean code"
        self.folder.write(f"{name}_jacobian", moved, text, f"{UNIT} per standard deviation", **about)
        self._figure(f"{name}_jacobian", moved, f"dimension {dimension}: {UNIT} per standard deviation")
        steps = steps_of_dimension(dimension, self.latents.codes, POSITIONS)
        self._traversal(name, centre, direction, steps, f"dimension {dimension}", about)

    def association(self, contrast: Contrast, bootstraps: int, seed: int) -> str:
        """Map of an association with its interval, z, partial correlation and traversal; a sentence about it.

        Args:
            contrast: What is asked about.
            bootstraps: See `association_map`.
            seed: See there.
        """
        known, held, name = contrast.known, contrast.words, self._name(contrast)
        people = np.asarray(self.latents.people)[known].tolist()
        codes, inside = self.latents.codes[known], self.folder.inside
        found = association_map(self.decode, codes, people, contrast, inside, bootstraps=bootstraps, seed=seed)
        about = self._asked(contrast) | {"Bootstraps": found.draws}
        about |= {"Bend": found.bend, "Reach": contrast.reach}
        per = _unit(contrast)
        text = f"how the decoded image moves for {contrast.meaning}{held}, at the mean code"
        self.folder.write(f"{name}_slope", found.slope, text, per, interval=found.mean_of, **about)
        ends = f"end of each voxel's 95 % interval of {name}_slope, not corrected for their number"
        self.folder.write(f"{name}_low", found.low, f"lower {ends}", per, **about)
        self.folder.write(f"{name}_high", found.high, f"upper {ends}", per, **about)
        self.folder.write(f"{name}_z", found.z, f"{name}_slope over its bootstrap standard error", "none", **about)
        text = "partial correlation with the decoded voxel, which is larger than with the voxel itself"
        self.folder.write(f"{name}_r", found.r, f"{text}: {contrast.meaning}{held}", "none", **about)
        self._figure(f"{name}_slope", found.slope, f"{per}{held}")
        self._figure(f"{name}_z", found.z, f"{contrast.meaning}{held}: slope over its standard error")
        steps = steps_of_contrast(contrast, POSITIONS)
        self._traversal(name, found.centre, found.code_slope * contrast.reach, steps, contrast.name, about)
        clear = float(((found.low > 0) | (found.high < 0))[inside].mean())
        return (
            f"{contrast.name}, {count(about['People'], 'person', 'people')}{held}: {100 * clear:.0f} % of voxels have "
            f"an interval without 0, not corrected for their number; the decoder's bend is {100 * found.bend:.0f} %."
        )

    def test(
        self,
        contrast: Contrast,
        values: NDArray[np.float32],
        kind: str,
        options: Mapping[str, Any],
        progress: Callable[[str, int, int], None],
    ) -> str:
        """Maps of a test of each voxel; a sentence about it.

        Args:
            contrast: What is asked about.
            values: (n, v): of all scans, in the mask.
            kind: What they are, images or reconstructions.
            options: Of `voxel_test`.
            progress: Told what is done: stage, done, total.
        """
        known, held, name = contrast.known, contrast.words, f"{self._name(contrast)}_{kind}"
        people = np.asarray(self.latents.people)[known].tolist()
        progress(name, 0, options["permutations"])
        found = voxel_test(
            values[known], contrast, people, self.folder.inside, self.folder.pipeline.grid,
            progress=lambda done, total: progress(name, done, total), **options,
        )  # fmt: skip
        about = self._asked(contrast) | _upper(options)
        about |= {"Degrees": found.degrees, "Voxels": found.voxels, "ClusterThreshold": found.threshold}
        asked = f"{contrast.meaning}, {kind}{held}"
        self.folder.write(f"{name}_t", found.t, f"Student's t of each voxel: {asked}", "none", **about)
        how = "two-sided, by permutation, family-wise"
        written = {
            "logp": (found.logp, f"−log10 of each voxel's p, {how} (largest t): {asked}"),
            "logp-size": (found.logp_size, f"−log10 of the cluster's p, {how} (largest number of voxels): {asked}"),
            "logp-mass": (found.logp_mass, f"−log10 of the cluster's p, {how} (largest mass): {asked}"),
            "logp-tfce": (found.logp_tfce, f"−log10 of each voxel's p, {how} (largest enhanced t): {asked}"),
        }
        for ending, (image, text) in written.items():
            if image is not None:
                self.folder.write(f"{name}_{ending}", image, text, "none", **about)
        clear, in_clusters = (image >= -np.log10(LEVEL) for image in (found.logp, found.logp_size))
        self._figure(f"{name}_t", found.t, f"{asked}: t, outlined where p ≤ {LEVEL} family-wise", clear)
        return (
            f"{contrast.name} on {kind}, {count(about['People'], 'person', 'people')}{held}: {clear.sum()} of "
            f"{found.voxels} voxels at family-wise p ≤ {LEVEL}, {in_clusters.sum()} in clusters of such p."
        )

    @cached_property
    def background(self) -> NDArray[np.floating]:
        """The image of the mean code, (x, y, z)."""
        return self.decode(self.latents.codes.mean(axis=0, keepdims=True))[0]

    def _traversal(
        self, name: str, centre: NDArray, direction: NDArray, steps: Steps, along: str, about: Mapping[str, Any]
    ) -> None:
        images = traverse(self.decode, centre, direction, POSITIONS)
        text = f"decoded images along {along}, through the mean code"
        told = {**about, **steps.as_sidecar()}
        self.folder.write(f"{name}_traversal", np.moveaxis(images, 0, -1), text, UNIT, **told)
        frame = Frame(self.folder.inside, self.folder.pipeline.grid.matrix)
        save_png(
            traversal_figure(images, frame, steps.titles, steps.caption), self.folder.path / f"{name}_traversal.png"
        )

    def _figure(self, name: str, values: NDArray, label: str, outline: Mask | None = None) -> None:
        inside, grid = self.folder.inside, self.folder.pipeline.grid
        figure = map_figure(values, self.background, inside, grid, label=label, outline=outline)
        save_png(figure, self.folder.path / f"{name}.png")

    def _name(self, contrast: Contrast) -> str:
        """How names of a contrast's files begin: with a number where the folder holds another's of the same letters."""
        plain = re.sub(r"[^A-Za-z0-9-]+", "-", contrast.name).strip("-") or "variable"
        own = {"Contrast": contrast.name, "Unit": _unit(contrast)}

        def is_free(name: str) -> bool:
            there = read_json(self.folder.path / f"{name}_slope.json")
            return all(there.get(key, value) == value for key, value in own.items())

        return next(filter(is_free, chain([plain], (f"{plain}-{index}" for index in count_from(2)))))

    def _asked(self, contrast: Contrast) -> dict[str, Any]:
        told = {"Contrast": contrast.name, "Covariates": list(contrast.covariates)}
        return self._people(contrast.known) | told

    def _people(self, known: NDArray[np.bool_]) -> dict[str, Any]:
        people = np.asarray(self.latents.people)[known]
        return {"People": len(set(people.tolist())), "Scans": len(people)}


def _unit(contrast: Contrast) -> str:
    """Of the map of a slope."""
    return f"{UNIT} for {contrast.meaning}"


def _upper(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as keys of a sidecar."""
    return {"".join(word.capitalize() for word in name.split("_")): value for name, value in options.items()}
