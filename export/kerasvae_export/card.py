"""MODEL_CARD.md: for whom a model is, who it was made from, how good it is, where it ends.

Mitchell et al. 2019, Model Cards for Model Reporting, arXiv 1810.03993: the sections.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kerasvae.bundle import Manifest

__all__ = ["model_card"]

FEW = 20
"""People by fewer of whom a percentile or an agreement is rough."""

FIGURES = {
    "role", "explained_variance", "explained_variance_pca", "identification", "identification_pca",
    "identification_chance", "variance_ratio", "variance_ratio_pca", "active_units", "kl_nats", "elbo_nats",
}  # fmt: skip
"""What the card needs of metrics.json."""


def model_card(manifest: Manifest) -> str:
    """The card of a bundle, Markdown."""
    sections = [
        f"# {manifest.name}, version {manifest.version}",
        _details(manifest),
        "## Intended use\n\n"
        "Research: latents of single scans that were prepared as the training images were, for group statistics and "
        "for the study of individual differences. Not a medical device; not for diagnosis.",
        _cohort(manifest.cohort),
        _figures(manifest.metrics),
        _reference(manifest),
        _parity(manifest),
        _reduced(manifest),
        "## Limits\n\n"
        "- A scan from another scanner, protocol, age range or preparation than the cohort's may get misleading "
        "latents. The alignment contract refuses scans that are plainly misplaced; it cannot see everything.\n"
        "- The axes of a latent space are not identifiable: another training gives other axes for the same people.\n"
        "- Figures above are from one division of one cohort.",
        _data(manifest.cohort.get("data", {})),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _details(manifest: Manifest) -> str:
    outputs = "".join(f"\n  - `{tensor.name}` {list(tensor.shape)}: {tensor.meaning}" for tensor in manifest.outputs)
    lines = [
        f"- Variational autoencoder, {manifest.latent_size} latents, made {manifest.created} with "
        f"kerasvae {manifest.versions['kerasvae']}",
        f"- Input: `image` {list(manifest.data_shape)}: {manifest.inputs[0].meaning}",
        f"- Outputs:{outputs}",
    ]
    if manifest.covariates:
        rules = "; ".join(f"{entry.name} must {entry.rule}" for entry in manifest.covariates)
        lines.insert(2, f"- Beside the image it takes covariates: {rules}")
    if manifest.pipeline is not None:
        grid, contract = manifest.pipeline["grid"], manifest.pipeline.get("alignment")
        lines.append(f"- Space: {grid['space']}, {grid['shape']} voxels; the encoder's pipeline is in `manifest.json`")
        if contract:
            stripped = "skull-stripped" if contract["skull_stripped"] else "whole head"
            lines.append(f"- Scans must be: {contract['modality']}, {stripped}, {contract['registration']}")
        else:
            lines.append("- Scans are not checked for alignment: this is up to whoever uses the model")
    return "\n".join(lines)


def _cohort(cohort: dict[str, Any]) -> str:
    if not cohort:
        return "## Cohort\n\nNot recorded."
    people = ", ".join(f"{count} {role}" for role, count in cohort["people"].items())
    lines = [f"## Cohort\n\nPeople, each in one role: {people}. {cohort['scans']} scans."]
    for name, summary in cohort["covariates"].items():
        if "levels" in summary:
            lines.append(f"- {name}: " + ", ".join(f"{level} {count}" for level, count in summary["levels"].items()))
        else:
            low, high = summary["decades"]
            lines.append(f"- {name}: {summary['mean']:.1f} ± {summary['stddev']:.1f}, within {low:g} to {high:g}")
    return "\n".join([lines[0], "", *lines[1:]]) if len(lines) > 1 else lines[0]


def _figures(metrics: dict[str, Any]) -> str:
    if not FIGURES <= set(metrics):
        return "## Figures\n\nNot recorded."
    role = metrics["role"]
    rows = [
        ("explained variance between people", "explained_variance", "explained_variance_pca", ".3f"),
        ("identification", "identification", "identification_pca", ".3f"),
        ("variance ratio", "variance_ratio", "variance_ratio_pca", ".3f"),
        ("active units", "active_units", None, "d"),
        ("KL, nats a person", "kl_nats", None, ".1f"),
        ("ELBO, nats a person", "elbo_nats", None, ".1f"),
    ]
    table = "\n".join(
        f"| {title} | {_cell(metrics[ours], form)} | {_cell(metrics[peer], form) if peer else ''} |"
        for title, ours, peer, form in rows
    )
    return (
        f"## Figures\n\nOn {metrics[f'n_{role}']} {role} people; PCA with as many components, fitted on training and "
        f"validation people, beside it. Chance of identification: {metrics['identification_chance']:.3f}.\n\n"
        f"| | this model | PCA |\n|---|---|---|\n{table}"
    )


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _parity(manifest: Manifest) -> str:
    rows = "\n".join(f"| {name} | {value:.1e} |" for name, value in manifest.parity.items())
    return (
        "## Agreement with the Keras model\n\nLargest difference on a simulated subject, relative to the largest "
        f"value.\n\n| output | difference |\n|---|---|\n{rows}"
    )


def _reference(manifest: Manifest) -> str:
    """What a new scan is placed among."""
    placed = manifest.reference
    if placed is None:
        return "## Reference\n\nNone: scores of a new scan cannot be placed among those of other people."
    rows = []
    for name, unit in (("surprise", "nats"), ("residual", "model units"), ("distance", "")):
        low, middle, high = np.percentile(getattr(placed, name), [5, 50, 95])
        rows.append(f"| {name}{', ' if unit else ''}{unit} | {low:.4g} | {middle:.4g} | {high:.4g} |")
    maps = "" if placed.degrees is None else " Maps of deviation are measured by what their reconstructions miss."
    return (
        f"## Reference\n\nA new scan is placed among {placed.people} {placed.role} people, to whom no weight was "
        f"fitted.{maps}{_caution(placed.people)}\n\n| score | 5 % | median | 95 % |\n|---|---|---|---|\n"
        + "\n".join(rows)
    )


def _reduced(manifest: Manifest) -> str:
    """How far graphs with fewer bits follow."""
    if not manifest.reduced:
        return ""
    rows = "\n".join(
        f"| {name} | {min(each.latent_correlation):.4f} | {each.reconstruction_difference:.2%} |"
        for name, each in manifest.reduced.items()
    )
    people = next(iter(manifest.reduced.values())).people
    return (
        f"## Fewer bits\n\nOn {people} people, on whom int8 was calibrated too: the least correlation of a latent with "
        "the float32 graph's, and the "
        f"difference of reconstructions in parts of that between two people.{_caution(people)}\n\n"
        f"| precision | correlation | difference |\n|---|---|---|\n{rows}"
    )


def _caution(people: int) -> str:
    return f" **They are only {people}: what is said by them is rough.**" if people < FEW else ""


def _data(about: dict[str, str]) -> str:
    """Whose images they were, and what that permits."""
    lines = [f"Trained on {about['Name']}."] if "Name" in about else []
    licence = about.get("License", "")
    lines.append(f"Licence of the data: {licence}." if licence else "The data state no licence.")
    lines += [f"Acknowledge: {about['HowToAcknowledge']}."] if "HowToAcknowledge" in about else []
    lines += [f"DOI: {about['DatasetDOI']}."] if "DatasetDOI" in about else []
    rest = (
        "Licence and consent of the training images govern what may be done with this model; no training image is here."
    )
    return f"## Data\n\n{' '.join(lines)} {rest}"
