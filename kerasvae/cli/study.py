"""What a run says: `evaluate`, `report`, `stability`, `associate`, `harmonize`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from kerasvae.cli.app import app, load_tensorflow
from kerasvae.cli.make import say_metrics
from kerasvae.cli.options import JsonOption, RunArgument, names
from kerasvae.terminal import bar, out

__all__ = ["associate", "evaluate", "harmonize", "report", "stability"]


@app.command()
def evaluate(run: RunArgument, json_: JsonOption = False) -> None:
    """Compute the figures on the test people again. Example: `kerasvae evaluate run --json`."""
    load_tensorflow()
    from kerasvae.training.evaluate import evaluate as run_evaluation
    from kerasvae.training.run import load_run

    metrics = run_evaluation(load_run(run))
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
    from kerasvae.analysis.report import write_report

    out.print(f"Report: {write_report(run, beside=beside)}")


@app.command()
def stability(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Two run folders or more, on one cohort.")],
    json_: JsonOption = False,
) -> None:
    """Did trainings find the same latent space? Example: `kerasvae stability run-seed0 run-seed1`."""
    from kerasvae.analysis.agreement import agreement_of

    found = agreement_of(runs)
    if json_:
        pairs = [
            pair._asdict() | {"first": str(runs[pair.first]), "second": str(runs[pair.second])} for pair in found.pairs
        ]
        content = {"people": found.people, "test_people_only": found.new, "pairs": pairs}
        sys.stdout.write(json.dumps(content) + "\n")
        return
    out.print(f"{found.describe()} 1: the same space up to a rotation; in brackets, what chance gives.")
    for pair in found.pairs:
        out.print(f"{runs[pair.first]} and {runs[pair.second]}")
        out.print(
            f"  Procrustes R² of people not aligned on  {pair.procrustes:6.3f}  ({pair.procrustes_null:.3f}; "
            f"p = {pair.procrustes_p:.3f})"
        )
        out.print(
            f"  centred kernel alignment, unbiased      {pair.cka:6.3f}  ({pair.cka_null:.3f}; p = {pair.cka_p:.3f})"
        )


@app.command()
def associate(
    run: RunArgument,
    variables: Annotated[str, typer.Option(help="Columns of the cohort that are asked about: age,sex,score.")],
    covariates: Annotated[str, typer.Option(help="Columns that are held the same: site,head_size.")] = "",
    roles: Annotated[str, typer.Option(help="Whose codes: all, or e.g. validation,test.")] = "all",
    permutations: Annotated[int, typer.Option(min=99, help="Random orders that p comes from.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of these.")] = 0,
    json_: JsonOption = False,
) -> None:
    """What goes with the latent code? Example: `kerasvae associate run --variables age,sex --covariates site`.

    Writes associations.tsv into the run's folder: a row for each variable and dimension, and one for all dimensions
    together, with slopes, partial correlations, their intervals, and p by permutation, corrected for many tests.
    """
    from kerasvae.analysis.association import associate_run
    from kerasvae.training.run import load_run

    asked, held = map(names, (variables, covariates))
    whose = None if roles == "all" else names(roles)
    with bar() as show:
        found = associate_run(
            load_run(run),
            asked,
            held,
            roles=whose,
            permutations=permutations,
            seed=seed,
            progress=lambda done, total: show("permute", done, total),
        )
    if json_:
        sys.stdout.write(json.dumps([row.as_json() for row in found.rows]) + "\n")
        return
    for line in found.describe():
        out.print(line)
    out.print(f"Associations: {found.path}")


@app.command()
def harmonize(
    run: RunArgument,
    site: Annotated[str, typer.Option(help="Column of the cohort that says where each scan was made.")] = "site",
    keep: Annotated[str, typer.Option(help="Columns that codes may follow whatever the site: age,sex.")] = "",
    voxels: Annotated[bool, typer.Option(help="Do the same to the images, for comparison.")] = True,
    permutations: Annotated[int, typer.Option(min=99, help="Random orders that p comes from.")] = 199,
    seed: Annotated[int, typer.Option(min=0, help="Of these.")] = 0,
    json_: JsonOption = False,
) -> None:
    """Take the site out of the latent codes. Example: `kerasvae harmonize run --site site --keep age,sex`.

    By ComBat, fitted to training and validation people. Writes latents_harmonized.tsv into the run's folder, and
    harmonization.json: whether other people's codes still tell the site, and what was to be kept, before and after.
    """
    from kerasvae.analysis.harmonization import harmonize_run
    from kerasvae.training.run import load_run

    with bar() as show:
        found = harmonize_run(
            load_run(run), site, names(keep), voxels=voxels, permutations=permutations, seed=seed, progress=show
        )
    if json_:
        sys.stdout.write(json.dumps(found.as_json()) + "\n")
        return
    for line in found.describe():
        out.print(line)
    out.print(f"Harmonised codes: {found.path}")
