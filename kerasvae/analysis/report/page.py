"""The report of a run: one HTML page without scripts or outside resources, made from the files of the run folder.

It loads no model and imports no TensorFlow, so it can be written again anywhere the folder can be read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from kerasvae.analysis import contents, figures
from kerasvae.analysis.panel import Examples, person_panel
from kerasvae.analysis.report.beside import pair_of, people_figure
from kerasvae.analysis.report.sections import sections_of
from kerasvae.analysis.report.verdict import MONITOR, best_epoch, headline, verdict
from kerasvae.analysis.words import count, duration, number
from kerasvae.errors import RunError
from kerasvae.metrics import active_units
from kerasvae.storage import atomic_path
from kerasvae.training.run import Run, load_run

__all__ = ["write_report"]

SHOWN_AT_ONCE = 3
"""People of the mean-brain panel that are in sight; the others unfold."""


def write_report(run_path: str | os.PathLike[str], *, beside: str | os.PathLike[str] | None = None) -> Path:
    """Write ``report.html`` into a run folder, in place of the one that stood there.

    Args:
        run_path: A finished run folder. Files but recipe.toml, metrics.json and scans.tsv may be missing: the page says
            what cannot be shown. What `kerasvae associate`, `predict`, `maps`, `deviate` and `harmonize` left in it has
            a section each; of damaged files of theirs the page says so.
        beside: Another finished run on the same images, e.g. of the recipe that `kerasvae.textbook` makes: one figure
            then shows several test people, what each run reconstructs of them and what it misses.

    Returns:
        The page's path.

    Raises:
        RunError: If one is not a finished run folder, or they are not of the same people, images and grid.
        StorageError: If the page cannot be written.
    """
    run = load_run(run_path)
    target = run.path / "report.html"
    other = None if beside is None else _beside(run, load_run(beside))
    page = _template().render(**_context(run), beside=other)
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _template() -> jinja2.Template:
    folder = resources.files("kerasvae.analysis.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")


def _context(run: Run) -> dict[str, Any]:
    scans, recipe, role = run.scans, run.recipe, run.metrics.get("role", "test")
    metrics = {"n_scans": sum(row["role"] == role for row in scans), **run.metrics}
    history = contents.read_table(run.path / "history.csv")
    first_candidate = recipe.first_candidate()
    linear_start = recipe.model.start == "linear"
    findings = verdict(metrics, history, first_candidate=first_candidate, linear_start=linear_start)
    best = best_epoch(history, first_candidate)
    whose = "validation" if metrics.get("n_validation", 1) else "train"
    environment = contents.read_json(run.path / "environment.json")
    known = contents.read_json(run.path / "run.json")
    watch = contents.read_json(run.path / "guard.json")
    folders = [row["path"] for row in scans] + [str(known.get("data") or "")]
    sections, missing = sections_of(run.path, folders)
    findings += [finding for section in sections for finding in section.findings]
    return {
        "name": recipe.name,
        "role": role,
        "n": metrics.get(f"n_{role}"),
        "n_scans": metrics["n_scans"],
        "modality": recipe.pipeline.modality,
        "date": str(environment.get("date", ""))[:10],
        "headline": headline(findings),
        "findings": findings,
        "figures": contents.figures_of(metrics),
        "metrics": metrics,
        "groups": contents.groups_of(scans),
        "age_figure": _age_figure(scans),
        "excluded": _excluded(scans, folders),
        "curves": _curves(history, best, metrics, whose),
        "best_epoch": None if best is None else int(history[best]["epoch"]),
        "spells": contents.spells_of(watch),
        "watched": bool(watch),
        "stopped": watch.get("stopped", ""),
        "epochs": int(history[-1]["epoch"]) if history else 0,
        "whose": whose,
        "panels": _panels(contents.read_examples(run.path / "examples.npz")),
        "shown_at_once": SHOWN_AT_ONCE,
        **_latents(run, metrics, scans),
        "sections": sections,
        "missing": missing,
        "grid": contents.read_json(run.path / "pipeline.json").get("grid"),
        "environment": environment,
        "by_command": " train " in f"{environment.get('command', '')} ",
        "start": known.get("start", ""),
        "duration": duration(metrics.get("seconds")),
        "deterministic": recipe.training.deterministic,
        "recipe": contents.without_folders((run.path / "recipe.toml").read_text(encoding="utf-8"), folders),
    }


def _excluded(scans: Sequence[Mapping[str, str]], folders: Sequence[str]) -> list[dict[str, str]]:
    return [
        {
            "person": row["participant_id"],
            "session": row["session_id"],
            "reason": contents.without_folders(row["reason"], folders) or "not recorded",
        }
        for row in scans
        if row["role"] == "excluded"
    ]


def _age_figure(scans: Sequence[Mapping[str, str]]) -> Markup | None:
    by_role: dict[str, list[float]] = {}
    seen: set[str] = set()
    for row in scans:
        age = contents.age_of(row)
        if row["role"] in figures.ROLE_MARKERS and row["participant_id"] not in seen and math.isfinite(age):
            seen.add(row["participant_id"])
            by_role.setdefault(row["role"], []).append(age)
    if not by_role:
        return None
    by_role = {role: by_role[role] for role in figures.ROLE_MARKERS if role in by_role}
    alt = "Histograms of age: " + "; ".join(
        f"{role}, {len(values)} people aged {min(values):.0f} to {max(values):.0f}" for role, values in by_role.items()
    )
    return figures.to_svg(lambda: figures.ages(by_role), "ages", alt)


def _curves(
    history: Sequence[Mapping[str, float]], best: int | None, metrics: Mapping[str, Any], whose: str
) -> Markup | None:
    if not history:
        return None
    n = metrics.get("n_validation") or metrics.get("n_train")
    alt = f"Curves over {int(history[-1]['epoch'])} epochs of calibrated ELBO, ELBO, KL, explained variance, "
    alt += "identification and active units"
    if best is not None:
        row = history[best]
        alt += (
            f"; best epoch {row['epoch']:.0f} with calibrated ELBO {number(row.get(MONITOR), 1)} "
            f"and explained variance {number(row.get('val_explained_variance'))}"
        )
    size, chance = metrics.get("latent_size", 1), 1 / n if n else math.nan
    return figures.to_svg(
        lambda: figures.learning_curves(history, best, latent_size=size, chance=chance, whose=whose), "curves", alt
    )


def _panels(examples: Examples | None) -> list[dict[str, Any]]:
    """One figure for each person that was kept."""
    return [] if examples is None else [_panel(examples, person) for person in range(len(examples.people))]


def _panel(examples: Examples, person: int) -> dict[str, Any]:
    name = examples.people[person]
    ours, pca = (number(examples.explained(person, a), 2) for a in (examples.reconstruction, examples.pca))
    alt = (
        f"Axial slices of {name}: image, our reconstruction, PCA's reconstruction and the mean brain; below, image, "
        f"ours and PCA less the mean brain. Ours explains {ours}, PCA {pca} of this person's difference from the mean."
    )
    figure = figures.to_svg(lambda: person_panel(examples, person), f"person{person}", alt)
    return {"person": name, "figure": figure, "ours": ours, "pca": pca}


def _beside(run: Run, other: Run) -> dict[str, Any]:
    """The figure of two runs on the same people, and what it shows in words."""
    # read first: a run that is not finished has none, and is refused
    metrics = [(each.metrics.get("explained_variance"), each.metrics.get("identification")) for each in (run, other)]
    ours, theirs = (_kept(each) for each in (run, other))
    pair = pair_of(ours, theirs, other.path)
    name, shares = other.recipe.name, [[number(share, 2) for share in each] for each in pair.explained()]
    said = pair.describe()
    alt = (
        f"{count(len(shares), 'person', 'people')} in rows; in columns axial slices of the image, our "
        f"reconstruction, image less ours, the reconstruction by {name}, image less that. {said} Explained of each "
        f"person's difference from the mean, ours and other: {'; '.join(' and '.join(each) for each in shares)}."
    )
    return {
        "name": name,
        "figure": figures.to_svg(lambda: people_figure(pair), "beside", alt),
        "said": said,
        "people": [(person, *each) for person, each in zip(pair.examples.people, shares, strict=True)],
        "all": [(number(explained), number(identified, 2)) for explained, identified in metrics],
    }


def _kept(run: Run) -> Examples:
    examples = contents.read_examples(run.path / "examples.npz")
    if examples is None:
        raise RunError(
            run.path,
            rule="hold three-dimensional examples to be shown beside another run",
            got="none in examples.npz",
            fix="Run `kerasvae evaluate` on it",
        )
    return examples


def _latents(run: Run, metrics: Mapping[str, Any], scans: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """KL of each dimension, and the two dimensions with the largest KL, or else variance, as a map of the scans."""
    kl = metrics.get("kl_per_dimension") or []
    codes = contents.read_codes(run.path / "latents.tsv", len(kl) or metrics.get("latent_size", 0))
    held_out = codes.means[np.array([role == metrics.get("role", "test") for role in codes.roles], bool)]
    active = [active_units(column[:, None]) == 1 for column in held_out.T] if len(held_out) > 1 else None
    alt = f"Bars: KL of {len(kl)} latent dimensions, from {min(kl, default=0):.2f} to {max(kl, default=0):.2f} nats"
    bars = figures.to_svg(lambda: figures.kl_bars(kl, active), "kl", alt) if kl else None
    if codes.means.shape[1] < 2 or not codes.roles:
        return {"kl_figure": bars, "map_figure": None, "has_age": False, "map_dimensions": []}
    told = [f"KL {value:.2f} nats" for value in kl] or [f"variance {value:.2g}" for value in codes.means.var(axis=0)]
    first, second = np.argsort(-np.asarray(kl or codes.means.var(axis=0)), kind="stable")[:2].tolist()
    known = {(row["participant_id"], row["session_id"] or "n/a"): contents.age_of(row) for row in scans}
    ages = np.array([known.get(scan, math.nan) for scan in codes.scans])
    has_age = bool(np.isfinite(ages).any())
    labels = (f"latent {first} ({told[first]})", f"latent {second} ({told[second]})")
    alt = f"Scatter of {len(codes.roles)} scans on latent dimensions {first} and {second}, markers by role"
    points = codes.means[:, [first, second]]
    scatter = figures.to_svg(
        lambda: figures.latent_scatter(points, codes.roles, ages if has_age else None, labels),
        "map",
        alt + (", coloured by age" if has_age else ""),
    )
    return {"kl_figure": bars, "map_figure": scatter, "has_age": has_age, "map_dimensions": [first, second]}
