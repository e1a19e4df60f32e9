"""The maps of a run: of dimensions, of what goes with columns of the cohort, and of tests of each voxel."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.latents import Latents, asked_latents
from kerasvae.analysis.maps.decoded import Decode
from kerasvae.analysis.maps.folder import MapFolder
from kerasvae.analysis.maps.groups import refuse_visits
from kerasvae.analysis.maps.regions import place_labels, read_label_names
from kerasvae.analysis.maps.slopes import contrasts_of
from kerasvae.analysis.maps.work import MapWork
from kerasvae.errors import ArgumentError, RunError
from kerasvae.preprocess import as_volume
from kerasvae.training.run import Run
from kerasvae.types import Mask

__all__ = ["Maps", "decoder_of", "map_run"]

BENT = ("relaxed_categorical", "vector_quantised", "power_spherical", "von_mises_fisher")
"""Posteriors whose codes cannot be moved along a line: they lie on a sphere, or are whole numbers."""
IMAGES = ("images", "reconstructions")
FEW = 64
"""Reconstructions that are made at once."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Maps:
    """What `map_run` left.

    Args:
        folder: Where.
        written: Images and tables, in their order; beside each image lies its sidecar.
        sentences: What they show.
    """

    folder: Path
    written: list[Path]
    sentences: list[str]


def map_run(
    run: Run,
    variables: Sequence[str] = (),
    covariates: Sequence[str] = (),
    *,
    dimensions: Sequence[int] = (),
    roles: Sequence[str] | None = None,
    voxelwise: Sequence[str] = (),
    labels: str | os.PathLike[str] | None = None,
    label_names: str | os.PathLike[str] | None = None,
    native: str | os.PathLike[str] | None = None,
    bootstraps: int = 1000,
    permutations: int = 1000,
    cluster_p: float = 0.001,
    tfce: bool = False,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    command: str = "",
    progress: Progress = lambda stage, done, total: None,
) -> Maps:
    """Write maps of a run; files of the same names are replaced.

    Args:
        run: Finished.
        variables: Columns that are asked about; see `kerasvae.analysis.latents.asked_latents`.
        covariates: Columns that are held the same.
        dimensions: Of the latent code, from 0: each gets a Jacobian and a traversal.
        roles: Whose codes; None: all people's.
        voxelwise: What each voxel of is tested: images, reconstructions.
        labels: A label image that maps are summarised in; see `place_labels`.
        label_names: A table of the labels' names; see `read_label_names`.
        native: A scan in whose own space maps are written too.
        bootstraps: See `association_map`.
        permutations: See `voxel_test`.
        cluster_p: See `voxel_test`.
        tfce: See `voxel_test`.
        seed: Of both.
        out: A folder; by default ``maps`` in the run's.
        command: That made them, for the sidecars.
        progress: Told what is done: stage, done, total.

    Raises:
        ArgumentError: If nothing is asked for, a column, dimension or role is none, or see `voxel_test`.
        RunError: If the run is not finished, or its codes cannot be moved along a line.
        VolumeError: If `labels` or `native` cannot be read.
    """
    latents = asked_latents(run, variables, roles)
    size = latents.codes.shape[1]
    if not variables and not dimensions:
        rule, fix = "have something to show", "Add --variables age, or --dimensions 0,1"
        raise ArgumentError("The maps", rule=rule, got="no variable and no dimension", fix=fix)
    if wrong := [each for each in dimensions if not 0 <= each < size]:
        rule = f"be whole numbers from 0 to {size - 1}"
        raise ArgumentError("--dimensions", rule=rule, got=wrong[0], fix="Name others")
    if unknown := [each for each in voxelwise if each not in IMAGES]:
        raise ArgumentError("--voxelwise", rule=f"be {' or '.join(IMAGES)}", got=unknown[0], fix="Correct it")
    for what, given, other, needed in (
        ("--voxelwise", voxelwise, "--variables", variables),
        ("--label-names", label_names, "--labels", labels),
        ("--tfce", tfce, "--voxelwise", voxelwise),
    ):
        if given and not needed:
            raise ArgumentError(what, rule=f"come with {other}", got="none", fix=f"Add {other}")
    asked = [latents.term(name) for name in dict.fromkeys(variables)]
    held = [latents.term(name) for name in dict.fromkeys(covariates)]
    contrasts = [contrast for term in asked for contrast in contrasts_of(term, held)]
    for contrast in contrasts if tfce else []:  # before anything is written
        refuse_visits(np.asarray(latents.people)[contrast.known].tolist())
    pipeline = run.pipeline
    inside = pipeline.inside
    about = {"Roles": sorted(set(latents.roles)), "Seed": seed, "Command": command}
    folder = MapFolder(
        Path(out) if out is not None else run.path / "maps",
        pipeline,
        inside,
        about,
        None if native is None else as_volume(native),
        None if labels is None else place_labels(labels, pipeline),
        {} if label_names is None else read_label_names(label_names),
    )
    work = MapWork(folder, latents, decoder_of(run, inside))
    for done, dimension in enumerate(dimensions):
        work.dimension(dimension)
        progress("dimensions", done + 1, len(dimensions))
    sentences = []
    for done, contrast in enumerate(contrasts):
        sentences.append(work.association(contrast, bootstraps, seed))
        progress("variables", done + 1, len(contrasts))
    options = {"permutations": permutations, "cluster_p": cluster_p, "tfce": tfce, "seed": seed}
    for kind in voxelwise:
        values = _values_of(run, latents, inside, kind, progress)
        sentences += [work.test(contrast, values, kind, options, progress) for contrast in contrasts]
    folder.close()
    return Maps(folder.path, folder.written, sentences)


def decoder_of(run: Run, inside: Mask) -> Decode:
    """The decoder of a run's model as a function of codes; a model with covariates is asked at its typical ones.

    Args:
        run: Finished.
        inside: (x, y, z): what is outside is 0.

    Raises:
        RunError: If the codes cannot be moved along a line.
    """
    model = run.model
    if (kind := model.posterior.kind) in BENT:
        rule = "have codes that can be moved along a line"
        raise RunError(
            run.path, rule=rule, got=f"a posterior of the kind {kind}", fix="Train one with a normal posterior"
        )

    def decode(codes: NDArray[np.float64]) -> NDArray[np.floating]:
        given = None if model.covariates is None else np.repeat(model.covariates.typical(), len(codes), axis=0)
        return np.asarray(model.decode(codes, covariates=given) * inside)

    return decode


def _values_of(run: Run, latents: Latents, inside: Mask, kind: str, progress: Progress) -> NDArray[np.float32]:
    """Images of all scans in the mask, or what the model reconstructs of them, (n, v)."""
    found = np.empty((len(latents.people), int(inside.sum())), np.float32)
    names = list(zip(latents.people, latents.sessions, strict=True))
    for start in range(0, len(names), FEW):
        part = slice(start, min(start + FEW, len(names)))
        if kind == "images":
            made = run.store.load([run.named_scans[name] for name in names[part]])
        else:
            model = run.model
            given = None
            if model.covariates is not None:
                given = {name: latents.columns[name][part] for name in model.covariates.names}
            made = model.decode(latents.codes[part], covariates=given)
        found[part] = made[:, inside]
        progress(kind, part.stop, len(names))
    return found
