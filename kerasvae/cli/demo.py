"""The whole job in one command: `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kerasvae.cli.app import app
from kerasvae.cli.make import simulate, train
from kerasvae.cli.ship import export, verify
from kerasvae.cli.use import encode
from kerasvae.terminal import out

__all__ = ["demo"]


@app.command()
def demo(
    out_: Annotated[Path, typer.Option("--out", help="New folder for everything.")],
    people: Annotated[int, typer.Option(min=12, help="People to simulate.")] = 80,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulation.")] = 0,
) -> None:
    """Simulate, train, report, export, verify and encode: the whole job. Example: `kerasvae demo --out demo`."""
    from kerasvae.errors import ArgumentError
    from kerasvae.storage import is_vacant

    if not is_vacant(out_):
        raise ArgumentError("--out", rule="be a new or empty folder", got=f"{out_} with files", fix="Choose another")
    cohort, run, bundle, latents = out_ / "cohort", out_ / "run", out_ / "bundle", out_ / "latents.tsv"
    newcomers = out_ / "new-people"
    simulate(cohort, people=people, visits=1, sites=1, seed=seed)
    train("demo", data=cohort, out_=run)
    export(run, bundle, name="demo")
    verify(bundle)
    simulate(newcomers, people=4, visits=1, sites=1, seed=seed + 1)
    encode([bundle, *sorted(newcomers.glob("sub-*/anat/*_desc-brain_T1w.nii.gz"))], out_=latents)
    out.print(
        f"\nOpen {run / 'report.html'} first. Figures: {run / 'metrics.json'}. To deploy: {bundle}. "
        f"Latents of four new people, by ONNX Runtime: {latents}."
    )
