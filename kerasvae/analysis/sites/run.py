"""Codes and images as if everyone had been scanned at one site.

Codes by ComBat (`kerasvae.analysis.sites.combat`), fitted to training and validation people and applied to everyone.
Images by a conditional VAE, encoded with their own site and decoded with another, as in Moyer, Ver Steeg, Tax &
Thompson 2020, Scanner invariant representations for diffusion MRI harmonization, Magn. Reson. Med. 84:2174.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasvae.analysis.contents import read_json
from kerasvae.analysis.design import column_of
from kerasvae.analysis.latents import Latents, read_latents
from kerasvae.analysis.sites.combat import FEWEST, ComBat
from kerasvae.analysis.sites.judged import Parts, Space, kept_alone, principal, spaces_of
from kerasvae.analysis.sites.outcome import outcome_of, scored_of, who_is_scored
from kerasvae.covariates import MISSING
from kerasvae.errors import ArgumentError, ModelError, RunError, nearest
from kerasvae.training.run import Run, write_json, write_table

if TYPE_CHECKING:
    from kerasvae.models import VAE

__all__ = ["Harmonized", "harmonize_images", "harmonize_run"]

WHO = ("participant_id", "session_id", "role")
LEARNED = ("train", "validation")
"""Roles of the people whom ComBat is fitted to, by the first scan of each at a site; it is judged on the others."""
EUCLIDEAN = ("normal", "full_normal", "low_rank_normal", "ladder", "point")
"""Posteriors whose codes may be shifted and stretched."""
CENTRE = re.compile(r"mean_(\d+)")
SPREAD = re.compile(r"(?:stddev|diagonal|factor|scale_tril)_(\d+)(?:_\d+)?")
"""Columns of latents.tsv in the unit of a dimension, which is the first number of their names."""


@dataclass(frozen=True)
class Harmonized:
    """What `harmonize_run` did.

    Args:
        path: Of the harmonised codes.
        site: Column.
        sites: Of each, how many scans were fitted to, how many people judged, and on how many of these the site was
            scored: none where there are fewer than five, or of one site alone.
        left_out: Scans whose site, or what is kept of them, is not known.
        few: Sites with fewer people than ComBat needs, none of whose scans are harmonised: how many it had.
        spaces: What can be read from codes, before and after.
    """

    path: Path
    site: str
    sites: dict[str, dict[str, int]]
    left_out: int
    few: dict[str, int]
    spaces: list[Space]

    def as_json(self) -> dict[str, Any]:
        """The content of harmonization.json."""
        own = {"site": self.site, "sites": self.sites, "scans_left_out": self.left_out}
        own |= {"sites_left_out": self.few}
        return own | {"spaces": [vars(space) for space in self.spaces]}

    def describe(self) -> list[str]:
        """Whom the figures are of, a line for each kind of codes, and what ComBat did."""
        fitted = sum(site["scans_fitted"] for site in self.sites.values())
        judged = {name: site["people_judged"] for name, site in self.sites.items()}
        without = (
            f"; {self.left_out} scans without a site or without what is kept are left out" if self.left_out else ""
        )
        by = {(space.name, space.harmonized): space for space in self.spaces}
        before, after, alone = (by.get(each) for each in (("latents", False), ("latents", True), ("kept alone", False)))
        found = outcome_of(
            self.site,
            before.reading if before else None,
            after.reading if after else None,
            alone.site_accuracy if alone else None,
            judged,
        )
        few = ", ".join(f"{name} ({people})" for name, people in self.few.items())
        gone = f"Left out, with fewer than {FEWEST} training and validation people, none of whose codes are written: "
        return [
            *([f"{gone}{few}."] if few else []),
            f"ComBat, fitted to {fitted} scans of {len(self.sites)} sites{without}. What codes tell of "
            f"{sum(judged.values())} other people, in cross-validation ({who_is_scored(self.site, judged)}):",
            *(f"  {space.describe(self.site)}" for space in self.spaces),
            " ".join(filter(None, (found.text, found.advice))),
        ]


def harmonize_run(
    run: Run,
    site: str,
    keep: Sequence[str] = (),
    *,
    voxels: bool = True,
    permutations: int = 199,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Harmonized:
    """Take the site out of a run's codes by ComBat, and say what that did.

    Writes latents_harmonized.tsv, with those columns of latents.tsv that are harmonised: standard deviations are
    divided as the codes are; scores of the codes as they were stay in latents.tsv. Scans of sites with too few people
    to be fitted to are not in it. latents_harmonized.json explains the columns and holds what `ComBat.from_config`
    takes, and harmonization.json the report.

    Args:
        run: Finished.
        site: Column that says where each scan was made.
        keep: Columns that codes may follow whatever the site.
        voxels: Whether the report has the same for the images in the mask, with PCA of them.
        permutations: See `kerasvae.analysis.sites.readings.read_site`.
        seed: See `kerasvae.analysis.sites.readings.read_site`.
        progress: Told of the spaces that were read.

    Raises:
        ArgumentError: If a column is missing or unfit, fewer than two sites have people enough to be fitted to, or
            what is kept follows from the site.
        RunError: If the run is not finished, or its codes must not be shifted.
        VolumeError: With `voxels`, if an image is gone.
    """
    latents, rows, (site, _) = read_latents(run), _rows(run.path / "latents.tsv"), column_of(site)
    kind = run.recipe.model.posterior
    if kind not in EUCLIDEAN:
        rule = f"have a posterior whose codes may be shifted: {', '.join(EUCLIDEAN)}"
        raise RunError(run.path, rule=rule, got=repr(kind), fix="Train it with another posterior")
    if site in keep:
        raise ArgumentError("--keep", rule="leave the site out", got=site, fix="Take it out of one of them")
    parts, known, few = _parts(latents, site, keep, permutations, seed)
    combat = ComBat.fit(latents.codes[parts.fit], parts.site[parts.fit], parts.kept[parts.fit])
    made = _harmonized(rows, latents, combat, parts, known)
    spaces = _spaces(run, rows, latents, parts, voxels, progress) if len(parts.judged) else []
    counts = {
        name: {
            "scans_fitted": int((parts.site[parts.fit] == name).sum()),
            "people_judged": int((parts.site[parts.judged] == name).sum()),
        }
        for name in combat.sites
    }
    scored = scored_of({name: each["people_judged"] for name, each in counts.items()})
    for name, each in counts.items():
        each["people_scored"] = scored.get(name, 0)
    unknown = int((~known & ~np.isin(parts.site, list(few))).sum())
    found = Harmonized(run.path / "latents_harmonized.tsv", site, counts, unknown, few, spaces)
    names = [*WHO, *(name for name in rows[0] if CENTRE.fullmatch(name) or SPREAD.fullmatch(name))]
    write_table(found.path, made, names)
    about = {"site": site, "keep": {term.name: term.meaning for term in parts.terms}, "fitted_to": list(LEARNED)}
    described = {name: text for name, text in read_json(run.path / "latents.json").items() if name in names}
    described["Harmonization"] = about | combat.to_config()
    write_json(found.path.with_suffix(".json"), described)
    write_json(run.path / "harmonization.json", found.as_json())
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    """Cells of latents.tsv, in the order in which `read_latents` has them."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def _parts(
    latents: Latents, site: str, keep: Sequence[str], permutations: int, seed: int
) -> tuple[Parts, NDArray[np.bool_], dict[str, int]]:
    """Who is fitted to, who is judged, (n,) who is harmonised, and people fitted to of each site with too few."""
    latents.term(f"C({site})")  # says what is wrong with the column
    terms = [latents.term(name) for name in dict.fromkeys(keep)]
    cells = np.array([cell.strip() for cell in latents.columns[site]])
    known = np.array([cell.casefold() not in MISSING for cell in cells])
    known = np.logical_and.reduce([known, *(term.known for term in terms)])
    learned = np.isin(latents.roles, LEARNED)
    people = {name: set[str]() for name in np.unique(cells[known]).tolist()}
    for row in np.flatnonzero(known & learned).tolist():
        people[cells[row]].add(latents.people[row])
    few = {name: len(own) for name, own in people.items() if len(own) < FEWEST}
    if len(people) - len(few) < 2:
        rule = f"have two levels or more with {FEWEST} training and validation people each"
        got = ", ".join(f"{len(own)} of {name!r}" for name, own in people.items())
        fix = "Join sites in a new column of the cohort's table, or train with more people"
        raise ArgumentError(site, rule=rule, got=got[:200], fix=fix)
    known &= ~np.isin(cells, list(few))
    fit = {(latents.people[row], str(cells[row])): row for row in np.flatnonzero(known & learned)[::-1].tolist()}
    first = {latents.people[row]: row for row in np.flatnonzero(known & ~learned)[::-1].tolist()}
    judged = np.array(sorted(first.values()), np.int64)
    return Parts(cells, terms, np.array(sorted(fit.values()), np.int64), judged, permutations, seed), known, few


def _harmonized(
    rows: list[dict[str, str]], latents: Latents, combat: ComBat, parts: Parts, known: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Rows of latents_harmonized.tsv."""
    at, site = np.flatnonzero(known), parts.site[known]
    codes, factors = combat.apply(latents.codes[known], site, parts.kept[known]), combat.factors(site)
    made: list[dict[str, Any]] = []
    for row, code, factor in zip(at.tolist(), codes.tolist(), factors.tolist(), strict=True):
        made.append({name: rows[row][name] for name in WHO})
        for name, cell in rows[row].items():
            if centre := CENTRE.fullmatch(name):
                made[-1][name] = code[int(centre[1])]
            elif spread := SPREAD.fullmatch(name):
                made[-1][name] = float(cell) / factor[int(spread[1])]
    return made


def _spaces(
    run: Run,
    rows: list[dict[str, str]],
    latents: Latents,
    parts: Parts,
    voxels: bool,
    progress: Callable[[str, int, int], None],
) -> list[Space]:
    """The report."""
    codes, total = latents.codes, 2 if voxels else 1
    progress("read", 0, total)
    spaces = spaces_of("latents", parts, codes[parts.fit], codes[parts.judged], lambda _: lambda z: z)
    progress("read", 1, total)
    if voxels:
        fit, judged = (_images(run, rows, which) for which in (parts.fit, parts.judged))
        spaces += spaces_of("PCA of voxels", parts, fit, judged, principal(codes.shape[1]))
        progress("read", 2, total)
    return [*spaces, kept_alone(parts)] if parts.terms else spaces


def _images(run: Run, rows: list[dict[str, str]], which: NDArray[np.int64]) -> NDArray[np.float64]:
    """Voxels in the mask of some scans, (n, v)."""
    wanted = [run.named_scans[rows[row]["participant_id"], rows[row]["session_id"]] for row in which.tolist()]
    inside = run.pipeline.inside
    return np.stack([run.store.volume(scan)[inside].astype(np.float64) for scan in wanted])


def harmonize_images(
    model: VAE, x: ArrayLike, covariates: Any, to: Mapping[str, Any], *, detail: bool = False, batch_size: int = 8
) -> NDArray[np.float32]:
    """Images as the model expects them to be with other covariates, e.g. another site: (n, *data_shape).

    The code is read with the covariates as they are and decoded with those that are wanted. That takes the site out
    only as far as codes do not tell it: see `kerasvae.objectives.WithHSIC`.

    Args:
        model: A conditional VAE, see docs/covariates.md.
        x: Images, (n, *data_shape).
        covariates: Theirs, as everywhere.
        to: Names of covariates to the value that all are to have, e.g. ``{"site": "A"}``.
        detail: Whether to add to each image the difference of the two reconstructions, so that what codes do not
            hold stays; else the reconstruction with the new covariates is given.
        batch_size: Images at a time.

    Raises:
        ModelError: If the model takes no covariates.
        ArgumentError: If it takes none of that name, or a value is outside its rule.
    """
    if model.covariates is None:
        fix = 'Train one with model.condition = ["site"]'
        raise ModelError("model", rule="take covariates, to be decoded with others", got="a model without", fix=fix)
    own = model.covariates.matrix(covariates)
    other = own.copy()
    names = model.covariates.names
    for name, value in to.items():
        if name not in names:
            close = nearest(name, names)
            fix = f"Did you mean {close!r}?" if close else "Correct the name"
            raise ArgumentError("to", rule=f"name covariates: {', '.join(names)}", got=repr(name), fix=fix)
        other[:, names.index(name)] = model.covariates[names.index(name)].number(value)
    images = np.asarray(x, np.float32)
    codes = model.encode({"image": images, "covariates": own}, batch_size=batch_size)
    center = np.asarray(model.posterior.center(codes))
    made = model.decode(center, batch_size=batch_size, covariates=other)
    return images + made - model.decode(center, batch_size=batch_size, covariates=own) if detail else made
