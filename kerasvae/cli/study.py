"""What a run says: `evaluate`, `report`, `stability`, `associate`, `predict`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from kerasvae.cli.app import app, load_tensorflow
from kerasvae.cli.make import say_metrics
from kerasvae.cli.options import JsonOption, RunArgument, names
from kerasvae.terminal import bar, out

if TYPE_CHECKING:
    from kerasvae.analysis.rotation import Kind

__all__ = ["associate", "evaluate", "predict", "report", "stability"]

AXES = {"none": "axes as trained", "principal": "principal axes", "varimax": "varimax axes"}


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


@app.command()
def associate(
    run: RunArgument,
    variables: Annotated[str, typer.Option(help="Columns of the cohort that are asked about: age,sex,score.")],
    covariates: Annotated[str, typer.Option(help="Columns that are held the same: site,head_size.")] = "",
    roles: Annotated[str, typer.Option(help="Whose codes: all, or e.g. validation,test.")] = "all",
    rotation: Annotated[
        Literal["none", "principal", "varimax"],
        typer.Option(help="Axes that dimensions are those of; none: as trained."),
    ] = "none",
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
            rotation=rotation,
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
def predict(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A run, or the folds of a cross-validation.")],
    variables: Annotated[str, typer.Option(help="Columns of the cohort that are predicted: age,sex.")],
    covariates: Annotated[str, typer.Option(help="Columns to predict from, alone and with the codes: site.")] = "",
    beside: Annotated[Literal["pca", "none"], typer.Option(help="What is put beside the codes.")] = "pca",
    out_: Annotated[
        Path | None, typer.Option("--out", help="Table to write; by default predictions.tsv in a single RUN.")
    ] = None,
    permutations: Annotated[int, typer.Option(min=0, help="Of the variable, for p; 0: none.")] = 199,
    seed: Annotated[int, typer.Option(min=0, help="Of these, and of all else that is drawn.")] = 0,
    json_: JsonOption = False,
) -> None:
    """What do the codes predict of new people? Example: `kerasvae predict folds/fold* --variables age --out age.tsv`.

    Each run's test people are predicted by what is learned from the codes of its other people: numbers by ridge,
    categories by logistic regression, with the same from PCA and from covariates beside. Writes a row for each
    prediction, and figures with intervals into the .json of the same name.
    """
    from kerasvae.analysis.prediction import predict_runs
    from kerasvae.training.run import load_run

    asked, held = map(names, (variables, covariates))
    with bar() as show:
        found = predict_runs(
            [load_run(run) for run in runs],
            asked,
            held,
            pca=beside == "pca",
            permutations=permutations,
            seed=seed,
            out=out_,
            progress=lambda done, total: show("permute", done, total),
        )
    if json_:
        sys.stdout.write(json.dumps(found.figures) + "\n")
        return
    for line in found.describe():
        out.print(line)
    out.print(f"Predictions: {found.path}")
