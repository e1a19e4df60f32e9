"""What ComBat did, on people whom it was not fitted to: is the site still there, and what was to be kept?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasvae.analysis.design import Term, columns_of
from kerasvae.analysis.sites.combat import ComBat
from kerasvae.analysis.sites.readings import SiteReading, measure_of, read_site, read_term
from kerasvae.analysis.words import number

__all__ = ["Parts", "Space", "kept_alone", "principal", "spaces_of"]

Numbers = NDArray[np.float64]
Projection = Callable[[Numbers], Numbers]


@dataclass(frozen=True)
class Space:
    """What can be read from one kind of codes, see `kerasvae.analysis.sites.readings`.

    Args:
        name: ``"latents"``; ``"PCA of voxels"``; ``"kept alone"``, what is kept in the place of codes.
        harmonized: Whether ComBat was applied.
        dimensions: Of the codes.
        site_accuracy: Balanced accuracy in telling the site; None where people are too few, as below.
        site_chance: What guessing gives.
        site_p: p of the accuracy by permutation.
        kept: Of each variable that is kept, how well it is told. ComBat was not told the people's own values for this,
            which are a part of the codes that it gives otherwise.
        measures: In what: r, AUC or balanced accuracy.
    """

    name: str
    harmonized: bool
    dimensions: int
    site_accuracy: float | None
    site_chance: float | None
    site_p: float | None
    kept: dict[str, float | None]
    measures: dict[str, str]

    @property
    def reading(self) -> SiteReading | None:
        """How well the site is told."""
        if self.site_accuracy is None or self.site_chance is None or self.site_p is None:
            return None
        return SiteReading(self.site_accuracy, self.site_chance, self.site_p)

    def describe(self, site: str = "site") -> str:
        """A line.

        Args:
            site: Name of the column.
        """
        p = "" if self.site_p is None else f" (chance {number(self.site_chance)}, p {number(self.site_p)})"
        told = [f"{name} {number(value)} ({self.measures[name]})" for name, value in self.kept.items()]
        when = " after ComBat" if self.harmonized else ""
        return f"{self.name}{when}: " + ", ".join([f"{site} {number(self.site_accuracy)}{p}", *told])


@dataclass(frozen=True)
class Parts:
    """Whom ComBat is fitted to, and whom it is judged on.

    Args:
        site: (n,): of all scans.
        terms: What is kept, known of both parts.
        fit: Rows that are fitted to.
        judged: Rows of others, one a person.
        permutations: See `read_site`.
        seed: See `read_site`.
    """

    site: NDArray[np.str_]
    terms: Sequence[Term]
    fit: NDArray[np.int64]
    judged: NDArray[np.int64]
    permutations: int = 199
    seed: int = 0

    @property
    def kept(self) -> Numbers:
        """Columns of the terms, (n, k)."""
        return columns_of(self.terms, len(self.site))

    def read(self, name: str, codes: Numbers, blind: Numbers | None = None) -> Space:
        """What codes of the judged people tell, (m, d), and what the same without their kept values do."""
        found = read_site(codes, self.site[self.judged], permutations=self.permutations, seed=self.seed)
        source = codes if blind is None else blind
        terms = [Term(term.name, term.levels, term.values[self.judged]) for term in self.terms]
        told: dict[str, Any] = {
            "kept": {term.name: read_term(source, term, seed=self.seed) for term in terms},
            "measures": {term.name: measure_of(term) for term in terms},
        }
        accuracy, chance, p = found or (None, None, None)
        return Space(name, blind is not None, codes.shape[1], accuracy, chance, p, **told)


def spaces_of(
    name: str, parts: Parts, fit: Numbers, judged: Numbers, project: Callable[[Numbers], Projection]
) -> list[Space]:
    """Codes before and after ComBat on their features.

    Args:
        name: Of the codes.
        parts: Who is who.
        fit: Features of the people fitted to, (n, v).
        judged: Of those judged, (m, v).
        project: Makes of features of the former what turns features into codes.
    """
    site, kept = parts.site, parts.kept
    combat = ComBat.fit(fit, site[parts.fit], kept[parts.fit])
    before = project(fit)
    after = project(combat.apply(fit, site[parts.fit], kept[parts.fit]))
    where = site[parts.judged]
    return [
        parts.read(name, before(judged)),
        parts.read(name, after(combat.apply(judged, where, kept[parts.judged])), after(combat.apply(judged, where))),
    ]


def kept_alone(parts: Parts) -> Space:
    """How well the site is told by what is kept: where sites differ in it, no harmonised code should tell less."""
    found = parts.read("kept alone", parts.kept[parts.judged])
    return Space(**(vars(found) | {"kept": {}, "measures": {}}))


def principal(components: int) -> Callable[[Numbers], Projection]:
    """PCA by scikit-learn with so many components, or as many as there are."""
    from sklearn.decomposition import PCA

    def project(features: Numbers) -> Projection:
        usable = min(components, len(features) - 1, features.shape[1])
        transform: Projection = PCA(usable, svd_solver="full").fit(features).transform
        return transform

    return project
