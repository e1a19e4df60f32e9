"""What a run is worth: `evaluate`, `report`, `stability`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from kerasvae.cli.app import app, open_run
from kerasvae.cli.make import say_metrics
from kerasvae.cli.options import JsonOption, RunArgument, names
from kerasvae.terminal import out

if TYPE_CHECKING:
    from kerasvae.analysis.rotation import Kind

__all__ = ["evaluate", "report", "stability"]


AXES = {"none": "axes as trained", "principal": "principal axes", "varimax": "varimax axes"}


@app.command()
def evaluate(run: RunArgument, json_: JsonOption = False) -> None:
    """Compute the figures on the test people again. Example: `kerasvae evaluate run --json`."""
    opened = open_run(run)
    from kerasvae.training.evaluate import evaluate as run_evaluation

    metrics = run_evaluation(opened)
    if json_:
        sys.stdout.write(json.dumps(metrics) + "\n")
    else:
        say_metrics(metrics)


@app.command()
def report(
    run: RunArgument,
    beside: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Another run on the same images, to be shown beside this one.")
    ] = None,
) -> None:
    """Write the report page again. Example: `kerasvae report run --beside textbook-run`."""
    from kerasvae.analysis.report.page import write_report

    out.print(f"Report: {write_report(run, beside=beside)}")


@app.command()
def stability(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Two run folders or more, on one cohort.")],
    axes: Annotated[
        str, typer.Option(help="Axes to compare one by one, too: none (as trained), principal, varimax.")
    ] = "",
    json_: JsonOption = False,
) -> None:
    """Did trainings find the same latent space? Example: `kerasvae stability run-seed0 run-seed1 --axes principal`."""
    from kerasvae.analysis.agreement import agreement_of

    found = agreement_of(runs, axes=cast("list[Kind]", names(axes)))
    if json_:
        pairs: list[dict[str, Any]] = [
            pair._asdict() | {"first": str(runs[pair.first]), "second": str(runs[pair.second])} for pair in found.pairs
        ]
        for kind, matched in found.axes.items():
            for row, each in zip(pairs, matched, strict=True):
                row.setdefault("axes", {})[kind] = each._asdict() | {"pairs": [two._asdict() for two in each.pairs]}
        content = {"people": found.people, "test_people_only": found.new, "pairs": pairs}
        sys.stdout.write(json.dumps(content) + "\n")
        return
    out.print(f"{found.describe()} 1: the same space up to a rotation; in brackets, what chance gives.")
    for index, pair in enumerate(found.pairs):
        out.print(f"{runs[pair.first]} and {runs[pair.second]}")
        out.print(
            f"  Procrustes R² of people not aligned on  {pair.procrustes:6.3f}  ({pair.procrustes_null:.3f}; "
            f"p = {pair.procrustes_p:.3f})"
        )
        out.print(
            f"  centred kernel alignment, unbiased      {pair.cka:6.3f}  ({pair.cka_null:.3f}; p = {pair.cka_p:.3f})"
        )
        for kind, matched in found.axes.items():
            each = matched[index]
            label = f"{AXES[kind]}, matched: mean |r|"
            out.print(f"  {label:38}  {each.mean:6.3f}  ({each.chance:.3f}; p = {each.p:.3f})")
            for two in each.pairs:
                label = f"  {two.first} with {two.second}"
                out.print(f"  {label:38}  {two.r:6.3f}  ({two.chance:.3f}; p = {two.p:.3f})")
