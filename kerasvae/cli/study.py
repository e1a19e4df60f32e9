"""What a run says: `evaluate`, `report`, `stability`, `associate`, `maps`, `harmonize`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from kerasvae.cli.app import app, load_tensorflow
from kerasvae.cli.make import say_metrics
from kerasvae.cli.options import JsonOption, RunArgument, names, whole_numbers
from kerasvae.terminal import bar, out

__all__ = ["associate", "evaluate", "harmonize", "maps", "report", "stability"]


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
def maps(
    run: RunArgument,
    variables: Annotated[str, typer.Option(help="Columns of the cohort that are asked about: age,sex,score.")] = "",
    covariates: Annotated[str, typer.Option(help="Columns that are held the same: site,head_size.")] = "",
    dimensions: Annotated[str, typer.Option(help="Of the latent code, from 0: 0,1.")] = "",
    roles: Annotated[str, typer.Option(help="Whose codes: all, or e.g. validation,test.")] = "all",
    voxelwise: Annotated[str, typer.Option(help="Test each voxel of: images,reconstructions.")] = "",
    labels: Annotated[Path | None, typer.Option(help="Label image; maps are summarised in its regions.")] = None,
    label_names: Annotated[Path | None, typer.Option(help="Table with the columns index and name.")] = None,
    native: Annotated[Path | None, typer.Option(help="Scan in whose own space maps are written too.")] = None,
    bootstraps: Annotated[int, typer.Option(min=99, help="Cohorts drawn anew that intervals come from.")] = 1000,
    permutations: Annotated[int, typer.Option(min=99, help="Random orders that p of --voxelwise comes from.")] = 1000,
    cluster_p: Annotated[float, typer.Option(min=1e-9, max=0.5, help="Of voxels that make clusters.")] = 0.001,
    tfce: Annotated[bool, typer.Option("--tfce", help="Enhance without a threshold, too: slow.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    out_: Annotated[Path | None, typer.Option("--out", help="Folder; by default maps in the run's.")] = None,
    json_: JsonOption = False,
) -> None:
    """What the code means in the image. Example: `kerasvae maps run --variables age --covariates sex`.

    Writes NIfTI maps with sidecars and pictures: how the decoded image moves with each variable, with a bootstrap over
    people; with --dimensions how it moves along the axes of the code; with --voxelwise permutation tests of each voxel.
    Maps of the same names are replaced.
    """
    asked, held, tested = map(names, (variables, covariates, voxelwise))
    along = whole_numbers(dimensions, "--dimensions")
    load_tensorflow()
    from kerasvae.analysis.map_run import map_run
    from kerasvae.analysis.words import count
    from kerasvae.training.run import load_run

    with bar() as show:
        found = map_run(
            load_run(run),
            asked,
            held,
            dimensions=along,
            roles=None if roles == "all" else names(roles),
            voxelwise=tested,
            labels=labels,
            label_names=label_names,
            native=native,
            bootstraps=bootstraps,
            permutations=permutations,
            cluster_p=cluster_p,
            tfce=tfce,
            seed=seed,
            out=out_,
            command=shlex.join(["kerasvae", *sys.argv[1:]]),
            progress=show,
        )
    if json_:
        sys.stdout.write(json.dumps({"maps": [str(path) for path in found.written]}) + "\n")
        return
    for line in found.sentences:
        out.print(line)
    out.print(f"Maps: {count(len(found.written), 'file', 'files')} in {found.folder}")


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
