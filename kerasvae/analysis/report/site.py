"""Whether codes tell the site before and after ComBat, for a page: harmonization.json as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kerasvae.analysis.report.files import View, read_object
from kerasvae.analysis.report.verdict import Finding
from kerasvae.analysis.words import number

__all__ = ["site_view"]

LEVEL = 0.05
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
    judged = sum(each["people_judged"] for each in found["sites"].values())
    content = {
        "site": site,
        "sites": found["sites"],
        "left_out": found["scans_left_out"],
        "judged": judged,
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
    return View(content, _findings(site, spaces))


def _findings(site: str, spaces: Sequence[Space]) -> list[Finding]:
    by = {(space["name"], bool(space["harmonized"])): space for space in spaces}
    before, after, alone = by.get(("latents", False)), by.get(("latents", True)), by.get(("kept alone", False))
    if before is None or after is None or after["site_accuracy"] is None:
        text = f"Whether {site} can be read from harmonised codes is not known: too few people outside the training."
        return [Finding("site", "note", text, "Give more people of each site to calibration and test.")]
    findings = []
    told = f"balanced accuracy {number(after['site_accuracy'], 2)}, chance {number(after['site_chance'], 2)}"
    told += f", p {number(after['site_p'])}"
    if after["site_p"] > LEVEL:
        text = f"After ComBat the codes do not tell {site} ({told}); before {number(before['site_accuracy'], 2)}."
        findings.append(Finding("site", "good", text))
    elif alone is not None and (alone["site_accuracy"] or 0) >= after["site_accuracy"]:
        text = f"After ComBat the codes still tell {site} ({told}), but no better than what is kept alone does."
        findings.append(
            Finding("site", "note", text, "Sites differ in what is kept: codes that know it must tell them.")
        )
    else:
        text = f"Harmonised codes still tell {site} ({told}; before {number(before['site_accuracy'], 2)})."
        advice = "Hold the site the same as a covariate in what you ask of the codes, or train with independent_of."
        findings.append(Finding("site", "warning", text, advice))
    for name, value in before["kept"].items():
        now = after["kept"].get(name)
        if value is not None and now is not None and value - now > LOST:
            text = f"ComBat lost some of {name}: {after['measures'][name]} {number(value, 2)} before, "
            text += f"{number(now, 2)} after."
            findings.append(Finding("site", "warning", text, "Use the codes as they are to study it."))
    return findings
