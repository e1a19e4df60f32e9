"""What codes have to do with the people: `associate`, `predict`, `harmonize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kerasvae.cli.app import app
from kerasvae.cli.options import JsonOption, RunArgument, answer, names
from kerasvae.terminal import bar

if TYPE_CHECKING:
    pass

__all__ = ["associate", "harmonize", "predict"]


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
    out_: Annotated[Path | None, typer.Option("--out", help="Table; by default associations.tsv in the run's.")] = None,
    permutations: Annotated[int, typer.Option(min=99, help="Random orders that p comes from.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of these.")] = 0,
    json_: JsonOption = False,
) -> None:
    """What goes with the latent code? Example: `kerasvae associate run --variables age,sex --covariates site`.

    Writes associations.tsv into the run's folder: a row for each variable and dimension, and one for all dimensions
    together, with slopes, partial correlations, their intervals, and p by permutation, corrected for many tests. A
    table of the same name is replaced.
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
            out=out_,
            progress=lambda done, total: show("permute", done, total),
        )
    answer(json_, [row.as_json() for row in found.rows], found.describe(), f"Associations: {found.path}")


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
    answer(json_, found.figures, found.describe(), f"Predictions: {found.path}")


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
    from kerasvae.analysis.sites.run import harmonize_run
    from kerasvae.training.run import load_run

    with bar() as show:
        found = harmonize_run(
            load_run(run), site, names(keep), voxels=voxels, permutations=permutations, seed=seed, progress=show
        )
    answer(json_, found.as_json(), found.describe(), f"Harmonised codes: {found.path}")
