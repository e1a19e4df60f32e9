"""The sections of a report that a study adds: each where its files are, else the command that makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kerasvae.analysis.contents import without_folders
from kerasvae.analysis.report.associations import associations_view
from kerasvae.analysis.report.deviations import deviations_view
from kerasvae.analysis.report.files import View, told_if_damaged
from kerasvae.analysis.report.maps import maps_view
from kerasvae.analysis.report.predictions import predictions_view
from kerasvae.analysis.report.site import site_view
from kerasvae.analysis.report.verdict import Finding
from kerasvae.errors import KerasVAEError

__all__ = ["PARTS", "Part", "Section", "sections_of"]


class Part(NamedTuple):
    """A section that a page may have.

    Attributes:
        name: Of its anchor and its template.
        title: Above it.
        file: In the run folder; without it there is no such section.
        view: Reads the run folder.
        command: What makes the files.
        question: What they answer.
    """

    name: str
    title: str
    file: str
    view: Callable[[Path], View]
    command: str
    question: str


PARTS = (
    Part(
        "associations", "Associations", "associations.tsv", associations_view,
        "kerasvae associate RUN --variables age,sex --covariates site", "what goes with the latent code",
    ),
    Part(
        "predictions", "Predictions", "predictions.json", predictions_view,
        "kerasvae predict RUN --variables age,sex", "what codes say about new people, beside PCA",
    ),
    Part(
        "maps", "Maps", "maps", maps_view,
        "kerasvae maps RUN --variables age --covariates sex --dimensions 0,1", "what the code means in the image",
    ),
    Part(
        "deviations", "Deviations", "deviations/deviations.tsv", deviations_view,
        "kerasvae deviate RUN --covariates age,sex", "who is unlike what is expected of such a person",
    ),
    Part(
        "site", "Site", "harmonization.json", site_view,
        "kerasvae harmonize RUN --site site --keep age,sex", "whether codes tell the scanner, and codes without it",
    ),
)  # fmt: skip
"""In the order of the page."""


@dataclass(frozen=True)
class Section:
    """A section of this page.

    Args:
        part: Which.
        content: For its template; nothing where its files are damaged.
        damaged: What is wrong with them.
        findings: For the top of the page.
    """

    part: Part
    content: dict[str, Any]
    damaged: str = ""
    findings: list[Finding] = field(default_factory=list)


def sections_of(path: Path, folders: Sequence[str] = ()) -> tuple[list[Section], list[Part]]:
    """The sections that a run folder has files for, and the parts that it has none for.

    Args:
        path: The run folder.
        folders: Paths that are not told.
    """
    sections, missing = [], []
    for part in PARTS:
        if not (path / part.file).exists():
            missing.append(part)
            continue
        try:
            with told_if_damaged(part.file, f"Make it again with {part.command.partition(' RUN')[0]}"):
                view = part.view(path)
            sections.append(Section(part, view.content, "", view.findings))
        except KerasVAEError as error:
            said = without_folders(str(error), [str(path), *folders])
            sections.append(Section(part, {}, said, [Finding(part.name, "warning", said)]))
    return sections, missing
