"""What is to be seen in images: `maps`, `deviate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kerasvae.cli.app import app, open_run
from kerasvae.cli.options import JsonOption, RunArgument, answer, command_line, names, whole_numbers
from kerasvae.terminal import bar

if TYPE_CHECKING:
    pass

__all__ = ["deviate", "maps"]


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
    opened = open_run(run)
    from kerasvae.analysis.maps.run import map_run
    from kerasvae.analysis.words import count

    with bar() as show:
        found = map_run(
            opened,
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
            command=command_line(),
            progress=show,
        )
    last = f"Maps: {count(len(found.written), 'file', 'files')} in {found.folder}"
    answer(json_, {"maps": [str(path) for path in found.written]}, found.sentences, last)


@app.command()
def deviate(
    run: RunArgument,
    covariates: Annotated[str, typer.Option(help="Columns that expectations depend on: age,sex.")] = "",
    roles: Annotated[str, typer.Option(help="Whom to judge.")] = "test",
    labels: Annotated[Path | None, typer.Option(help="Label image whose regions are judged.")] = None,
    label_names: Annotated[Path | None, typer.Option(help="Table with the columns index and name.")] = None,
    maps_: Annotated[bool, typer.Option("--maps/--no-maps", help="Write maps of each person.")] = True,
    native: Annotated[bool, typer.Option(help="In the space of each scan, too.")] = False,
    out_: Annotated[Path | None, typer.Option("--out", help="Folder; by default deviations in the run's.")] = None,
    json_: JsonOption = False,
) -> None:
    """Who deviates, and where? Example: `kerasvae deviate run --covariates age,sex`.

    Writes deviations.tsv: of each test person how unusual image, single places, code and regions are, with conformal
    p-values against calibration people; and maps of z. Files of the same names are replaced.
    """
    opened = open_run(run)
    from kerasvae.analysis.deviation.run import deviate_run

    with bar() as show:
        found = deviate_run(
            opened,
            names(covariates),
            roles=names(roles),
            labels=labels,
            label_names=label_names,
            maps=maps_,
            native=native,
            out=out_,
            command=command_line(),
            progress=show,
        )
    answer(json_, found.rows, found.describe(), f"Deviations: {found.folder / 'deviations.tsv'}")
