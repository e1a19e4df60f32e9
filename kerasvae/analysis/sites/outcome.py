"""What ComBat did to how well codes tell the site, in words: a comparison of before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from kerasvae.analysis.sites.readings import FOLDS, SiteReading
from kerasvae.analysis.words import number

__all__ = ["Outcome", "outcome_of", "scored_of", "who_is_scored"]

LEVEL = 0.05
FEW = 0.2
"""An accuracy that must exceed chance by more than this to be told from it leaves too much unseen."""
MOVED = 0.05
"""A smaller change of the accuracy is none."""
Z = 1.645
"""One-sided 5 % point of a normal distribution."""
MORE_PEOPLE = "Give more people of each site to calibration and test."
STILL_THERE = "Hold the site the same as a covariate in what you ask of the codes, or train with independent_of."


class Outcome(NamedTuple):
    """One thing to say.

    Attributes:
        level: As of `kerasvae.analysis.report.verdict.Finding`.
        text: What is the case.
        advice: What to do, or nothing.
    """

    level: Literal["good", "note", "warning"]
    text: str
    advice: str = ""


def scored_of(judged: Mapping[str, int]) -> dict[str, int]:
    """People of the sites that are told apart: of others there are too few for cross-validation.

    >>> scored_of({"A": 7, "B": 4, "C": 9})
    {'A': 7, 'C': 9}

    Args:
        judged: People of each site whom nothing was fitted to.
    """
    enough = {name: people for name, people in judged.items() if people >= FOLDS}
    return enough if len(enough) > 1 else {}


def who_is_scored(site: str, judged: Mapping[str, int]) -> str:
    """Of whom the accuracy of the site is.

    >>> who_is_scored("site", {"A": 7, "B": 4, "C": 9})
    'site: scored on 16 people, 7 of A, 9 of C; not on B, which has fewer than 5'

    Args:
        site: Name of the column.
        judged: People of each site whom nothing was fitted to.
    """
    scored = scored_of(judged)
    without = [name for name in judged if name not in scored]
    if not scored:
        return f"{site}: not scored, as fewer than two of them have {FOLDS} of these people"
    said = f"{site}: scored on {sum(scored.values())} people, "
    said += ", ".join(f"{people} of {name}" for name, people in scored.items())
    if not without:
        return said
    return f"{said}; not on {', '.join(without)}, which {'has' if len(without) == 1 else 'have'} fewer than {FOLDS}"


def outcome_of(
    site: str,
    before: SiteReading | None,
    after: SiteReading | None,
    alone: float | None,
    judged: Mapping[str, int],
) -> Outcome:
    """Whether ComBat took the site out of codes.

    It did where the site was told before (p at most 0.05), is told no longer, and its accuracy fell. Where it rose,
    that is worse, whatever p; where the site was not told from the start, nothing shows that ComBat was needed.

    Args:
        site: Name of the column.
        before: What was read from codes; None where people are too few.
        after: The same after ComBat.
        alone: Accuracy of what is kept, without codes.
        judged: People of each site whom nothing was fitted to.
    """
    scored = scored_of(judged)
    if before is None or after is None or not scored:
        text = f"Whether {site} can be read from harmonised codes is not known: too few people outside the training."
        return Outcome("note", text, MORE_PEOPLE)
    was, now = before.p <= LEVEL, after.p <= LEVEL
    rose, fell = after.accuracy - before.accuracy > MOVED, before.accuracy - after.accuracy > MOVED
    figures = (
        f"balanced accuracy {number(before.accuracy, 2)} before, p {number(before.p)}; "
        f"{number(after.accuracy, 2)} after, p {number(after.p)}; chance {number(after.chance, 2)}"
    )
    if now and (alone or 0) >= after.accuracy:
        text = f"After ComBat the codes still tell {site} ({figures}), but no better than what is kept alone does."
        return Outcome("note", text, "Sites differ in what is kept: codes that know it must tell them.")
    if now and rose:
        text = f"ComBat made it worse: the codes tell {site} better than without it ({figures})."
        advice = f"Use the codes as they are, with {site} held the same as a covariate; fit ComBat to more people."
        return Outcome("warning", text, advice)
    if now:
        less = "less well" if fell else "as well as before"
        return Outcome("warning", f"After ComBat the codes still tell {site}, {less} ({figures}).", STILL_THERE)
    worse = f"By these people ComBat made it worse: {figures}" if rose else f"{figures[0].upper()}{figures[1:]}"
    if _unseen(scored, after.chance) > FEW:
        people = sum(scored.values())
        text = f"{worse}. But {people} people are too few to say whether the codes tell {site}."
        return Outcome("warning" if rose else "note", text, MORE_PEOPLE)
    if was and fell:
        return Outcome("good", f"ComBat took {site} out: the codes told it before and do no longer ({figures}).")
    if was:
        return Outcome("note", f"{worse}. Whether the codes still tell {site} is not clear.", STILL_THERE)
    text = f"{worse}. The codes tell {site} neither before nor after ComBat: nothing shows that it was needed."
    return Outcome("warning" if rose else "note", text, "Use the codes as they are.")


def _unseen(scored: Mapping[str, int], chance: float) -> float:
    """How far above chance a balanced accuracy must be to be told from it, people's answers being independent."""
    return Z * math.sqrt(sum(chance * (1 - chance) / people for people in scored.values())) / len(scored)
