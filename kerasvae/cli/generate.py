"""Images of people who were not scanned: `generate`, `age`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kerasvae.cli.app import app, open_run
from kerasvae.cli.options import RunArgument, assignments, command_line, names
from kerasvae.errors import ArgumentError
from kerasvae.terminal import bar, err, out

__all__ = ["age", "generate"]

OutOption = Annotated[Path, typer.Option("--out", help="New folder for a BIDS derivative.")]
KnotsOption = Annotated[int, typer.Option(help="Of the curve of each number: 2, a straight line, to 5.")]


@app.command()
def generate(
    run: RunArgument,
    out_: OutOption,
    count: Annotated[int, typer.Option(min=1, help="How many people.")] = 10,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A column's value: age=70. Several times.")] = None,
    noise: Annotated[bool, typer.Option(help="Add the noise that the model has learned.")] = False,
    knots: KnotsOption = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
) -> None:
    """Draw new people. Example: `kerasvae generate run --count 10 --set age=70 --set sex=F --out women`.

    Writes their images on the model's grid, participants.tsv with the values, codes.tsv with each code and the training
    person it is nearest to, and memorisation.json: whether the run draws its training people again.
    """
    values, opened = assignments(set_ or []), open_run(run)
    from kerasvae.analysis.generation.run import generate_run

    with bar() as show:
        found = generate_run(
            opened,
            values,
            out_,
            count=count,
            noise=noise,
            seed=seed,
            knots=knots,
            command=command_line(),
            progress=lambda done, total: show("generate", done, total),
        )
    _warn(found.warnings)
    for line in [] if found.check is None else found.check.describe():
        out.print(line)
    out.print(f"People: {found.path}")


@app.command()
def age(
    run: RunArgument,
    person: Annotated[str, typer.Option(help="Of the run's cohort: sub-01.")],
    out_: OutOption,
    set_: Annotated[list[str] | None, typer.Option("--set", help="What changes: age=60,70,80. Several times.")] = None,
    covariates: Annotated[str, typer.Option(help="Columns that are held the same: sex,site.")] = "",
    session: Annotated[str, typer.Option(help="Of a person with several visits; by default the first.")] = "",
    knots: KnotsOption = 2,
) -> None:
    """One person at other ages. Example: `kerasvae age run --person sub-01 --set age=60,80 --out older`.

    Writes the person's image changed by what the model knows of age, what is decoded, and the difference, on the
    model's grid and in native space; counterfactuals.tsv and identity.json say whether people stay themselves, and
    whether the age asked for is read from their images.
    """
    values = {name: names(text) for name, text in assignments(set_ or []).items()}
    if empty := [name for name, cells in values.items() if not cells]:
        raise ArgumentError("--set", rule="give values, as in age=60,80", got=f"{empty[0]}=", fix="Add one")
    opened = open_run(run)
    from kerasvae.analysis.generation.counterfactual import age_run

    with bar() as show:
        found = age_run(
            opened,
            person,
            values,
            out_,
            covariates=names(covariates),
            session=session,
            knots=knots,
            command=command_line(),
            progress=lambda done, total: show("age", done, total),
        )
    _warn(found.warnings)
    for line in found.describe():
        out.print(line)
    out.print(f"Images: {found.path}")


def _warn(sentences: list[str]) -> None:
    for sentence in sentences:
        err.say("Warning:", "yellow", f" {sentence}")
