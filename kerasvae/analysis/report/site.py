"""Whether codes tell the site before and after ComBat, for a page: harmonization.json as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kerasvae.analysis.report.files import View, read_object
from kerasvae.analysis.report.verdict import Finding
from kerasvae.analysis.sites.outcome import outcome_of, who_is_scored
from kerasvae.analysis.sites.readings import SiteReading
from kerasvae.analysis.words import number

__all__ = ["site_view"]

LOST = 0.1
"""A kept variable that is told so much worse after ComBat was not kept."""
Space = Mapping[str, Any]


def site_view(path: Path) -> View:
    """Of a run folder.

    Raises:
        KeyError: If a field is missing; or what `kerasvae.analysis.report.files.told_if_damaged` turns into a
            `RunError`.
    """
    found = read_object(path / "harmonization.json")
    spaces, site = found["spaces"], str(found["site"])
    kept = list(dict.fromkeys((name, measure) for space in spaces for name, measure in space["measures"].items()))
    judged = {name: int(each["people_judged"]) for name, each in found["sites"].items()}
    content = {
        "site": site,
        "sites": found["sites"],
        "left_out": found["scans_left_out"],
        "few": found.get("sites_left_out", {}),
        "judged": sum(judged.values()),
        "scored": who_is_scored(site, judged),
        "kept": kept,
        "rows": [
            {
                "codes": space["name"] + (", after ComBat" if space["harmonized"] else ""),
                "accuracy": number(space["site_accuracy"]),
                "chance": number(space["site_chance"]),
                "p": number(space["site_p"]),
                "kept": [number(space["kept"].get(name)) for name, _ in kept],
            }
            for space in spaces
        ],
    }
    return View(content, _findings(site, spaces, judged))


def _findings(site: str, spaces: Sequence[Space], judged: Mapping[str, int]) -> list[Finding]:
    by = {(space["name"], bool(space["harmonized"])): space for space in spaces}
    before, after, alone = by.get(("latents", False)), by.get(("latents", True)), by.get(("kept alone", False))
    found = outcome_of(site, _reading(before), _reading(after), alone["site_accuracy"] if alone else None, judged)
    findings = [Finding("site", *found)]
    if before is None or after is None:
        return findings
    for name, value in before["kept"].items():
        now = after["kept"].get(name)
        if value is not None and now is not None and value - now > LOST:
            text = f"ComBat lost some of {name}: {after['measures'][name]} {number(value, 2)} before, "
            text += f"{number(now, 2)} after."
            findings.append(Finding("site", "warning", text, "Use the codes as they are to study it."))
    return findings


def _reading(space: Space | None) -> SiteReading | None:
    if space is None or space["site_accuracy"] is None:
        return None
    return SiteReading(float(space["site_accuracy"]), float(space["site_chance"]), float(space["site_p"]))
