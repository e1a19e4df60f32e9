"""From nothing to a trained run: `simulate`, `train`, `cross-validate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kerasvae.cli.app import app, load_tensorflow
from kerasvae.cli.options import DataOption, JsonOption, RecipeArgument, SetOption
from kerasvae.terminal import bar, out, resumable

__all__ = ["cross_validate", "say_metrics", "simulate", "train"]


@app.command()
def simulate(
    directory: Annotated[Path, typer.Argument(help="New folder for the BIDS derivative.")],
    people: Annotated[int, typer.Option(min=1, help="Number of people.")],
    visits: Annotated[int, typer.Option(min=1, help="Visits of each person.")] = 1,
    sites: Annotated[int, typer.Option(min=1, help="Number of scanners.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed; the same seed gives the same images.")] = 0,
) -> None:
    """Simulate a cohort with known ground truth. Example: `kerasvae simulate cohort --people 60 --seed 1`."""
    from kerasvae.data.simulate import simulate as run_simulation

    with bar() as report:
        path = run_simulation(
            directory,
            people=people,
            visits=visits,
            sites=sites,
            seed=seed,
            progress=lambda done, total: report("simulate", done, total),
        )
    out.print(f"Cohort: {path}\nTruth:  {path / 'ground_truth.tsv'}")


@app.command()
def train(
    recipe: RecipeArgument,
    data: DataOption,
    out_: Annotated[Path, typer.Option("--out", help="New run folder.")],
    set_: SetOption = None,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted run.")] = False,
) -> None:
    """Train a model. Example: `kerasvae train t1-4mm --data DERIVATIVE --out run --set training.epochs=20`."""
    from kerasvae.training.recipe import load_recipe

    chosen = load_recipe(recipe, set_ or [])
    load_tensorflow()
    from kerasvae.analysis.report.page import write_report
    from kerasvae.training.train import train as run_training

    with resumable(out_) as report:
        run = run_training(chosen, data, out_, resume=resume, progress=report)
    write_report(run.path)
    say_metrics(run.metrics)
    excluded = [row for row in run.scans if row["role"] == "excluded"]
    if excluded:
        out.print(f"Left out {len(excluded)} scans; reasons in {run.path / 'scans.tsv'}")
    out.print(f"Run:    {run.path}\nReport: {run.path / 'report.html'}")


@app.command()
def cross_validate(
    recipe: RecipeArgument,
    data: DataOption,
    out_: Annotated[Path, typer.Option("--out", help="New folder of run folders.")],
    folds: Annotated[int, typer.Option(help="Parts of the people; each is the test once.")] = 5,
    seeds: Annotated[int, typer.Option(help="Trainings of each fold.")] = 1,
    set_: SetOption = None,
    resume: Annotated[bool, typer.Option(help="Go on with what was interrupted.")] = False,
    json_: JsonOption = False,
) -> None:
    """Test on everyone once, fold by fold. Example: `kerasvae cross-validate t1-4mm --data DERIVATIVE --out folds`."""
    from kerasvae.training.recipe import load_recipe

    chosen = load_recipe(recipe, set_ or [])
    load_tensorflow()
    from kerasvae.analysis.cross_validation import cross_validate as run_all

    with resumable(out_) as report:
        found = run_all(chosen, data, out_, folds=folds, seeds=seeds, resume=resume, progress=report)
    if json_:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    gain, named = found["explained_variance"], found["identification"]
    better = "ours" if gain["low"] > 0 else "PCA" if gain["high"] < 0 else "neither"
    interval = f"95 % {gain['low']:.3f} to {gain['high']:.3f}: {better} is better"
    each = f"each tested in one of {found['folds']} folds, {found['seeds']} seeds"
    out.print(f"{found['people']} people, {each} (PCA in brackets):")
    out.print(f"  explained variance between people  {gain['model']:.3f}  ({gain['pca']:.3f})")
    out.print(f"  difference                         {gain['difference']:.3f}  ({interval})")
    out.print(f"  identification within a fold       {named['model']:.3f}  ({named['pca']:.3f})")
    for name, both in found["agreement"].items():
        out.print(f"  codes agree between {name:5}, R²      {both['procrustes']:.3f}  (chance {both['chance']:.3f})")
    out.print(f"Runs: {out_}")


def say_metrics(metrics: dict[str, Any]) -> None:
    """The figures that decide, with PCA beside them, and who won."""
    ours, peer = metrics["explained_variance"], metrics["explained_variance_pca"]
    n, chance = metrics[f"n_{metrics['role']}"], metrics["identification_chance"]
    scans = metrics.get("n_scans", n)
    of = "" if scans == n else f" ({scans} scans)"
    out.print(f"On {n} {metrics['role']} people{of}, {metrics['latent_size']} latents (PCA with as many in brackets):")
    out.print(
        f"  explained variance between people  {ours:.3f}  ({peer:.3f}: {'ours' if ours > peer else 'PCA'} is better)"
    )
    out.print(
        f"  identification                     {metrics['identification']:.2f}   "
        f"({metrics['identification_pca']:.2f}; chance {chance:.2f})"
    )
    out.print(f"  active units                       {metrics['active_units']} of {metrics['latent_size']}")
    if "target_error" in metrics:
        out.print(
            f"  mean absolute error of the target  {metrics['target_error']:.2f}   "
            f"(always saying the mean: {metrics['target_error_of_mean']:.2f})"
        )
    out.print(
        f"  ELBO                               {metrics['elbo_nats']:.0f} nats "
        f"({metrics['elbo_nats_per_voxel']:.3f} a voxel), KL {metrics['kl_nats']:.0f}"
    )
