"""The command line: the composition root, the one place that may import everything, and does so when needed.

Exit status: 0 done, 1 the work failed, 2 the call was wrong.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kerasvae.backend import require_tensorflow
from kerasvae.errors import KerasVAEError
from kerasvae.terminal import bar, err, out, resumable

if TYPE_CHECKING:
    from kerasvae.training.run import Run

__all__ = ["app", "main"]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up notes are not for users of a command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="From a folder of brain images to a deployable encoder that you can trust.",
)

EXTRAS = {
    "train": (
        "tensorflow", "keras", "tf_keras", "tensorflow_probability", "bids", "pandas", "sklearn", "statsmodels",
        "nilearn", "matplotlib", "jinja2", "markupsafe",
    ),
    "export": ("tf2onnx", "onnx", "tensorflow_serving"),
    "serve": (
        "onnxruntime", "starlette", "uvicorn", "httptools", "multipart", "orjson", "grpc", "google", "httpx",
        "prometheus_client",
    ),
    "telemetry": ("opentelemetry",),
    "sign": ("model_signing", "OpenSSL"),
    "ray": ("ray", "pyarrow"),
}  # fmt: skip
"""What each extra brings, for the sentence about a missing one."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
RecipeArgument = Annotated[str, typer.Argument(help="A TOML file, or a shipped recipe: demo, t1-4mm, gm-4mm.")]
DataOption = Annotated[Path, typer.Option(help="BIDS derivative folder, or a table with a `path` column.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override: section.key=value.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `kerasvae train` wrote.")]
PrecisionOption = Annotated[str, typer.Option(help="Of the ONNX graphs: float32, or what the bundle has.")]
ProviderOption = Annotated[str, typer.Option(help="What runs them: auto, cpu, cuda, openvino.")]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder that `kerasvae export` wrote.")]


@contextmanager
def _swift_imports() -> Iterator[None]:
    """Within, no garbage is looked for: imports make none, and looking takes an eighth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _load_tensorflow() -> None:
    """Import TensorFlow without the notes its libraries print on standard error; they are shown if it fails."""
    require_tensorflow()
    with tempfile.TemporaryFile() as notes:
        kept = os.dup(2)
        os.dup2(notes.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except BaseException:
            notes.seek(0)
            os.write(kept, notes.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


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
    _load_tensorflow()
    from kerasvae.training.train import train as run_training

    with resumable(out_) as report:
        run = run_training(chosen, data, out_, resume=resume, progress=report)
    _report(run)
    _say_metrics(run.metrics)
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
    _load_tensorflow()
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


@app.command()
def evaluate(run: RunArgument, json_: JsonOption = False) -> None:
    """Compute the figures on the test people again. Example: `kerasvae evaluate run --json`."""
    _load_tensorflow()
    from kerasvae.training.evaluate import evaluate as run_evaluation
    from kerasvae.training.run import load_run

    metrics = run_evaluation(load_run(run))
    if json_:
        sys.stdout.write(json.dumps(metrics) + "\n")
    else:
        _say_metrics(metrics)


@app.command()
def report(
    run: RunArgument,
    beside: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Another run on the same images, to be shown beside this one.")
    ] = None,
) -> None:
    """Write the report page again. Example: `kerasvae report run --beside textbook-run`."""
    from kerasvae.training.run import load_run

    out.print(f"Report: {_report(load_run(run), beside)}")


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

    asked, held = map(_names, (variables, covariates))
    whose = None if roles == "all" else _names(roles)
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
def export(
    run: RunArgument,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="New bundle folder.")],
    name: Annotated[str | None, typer.Option(help="Name of the model; by default the recipe's.")] = None,
    version: Annotated[int, typer.Option(min=1, help="Version of the model.")] = 1,
    quantize: Annotated[str, typer.Option(help="Further ONNX graphs with fewer bits: float16,int8.")] = "",
) -> None:
    """Export SavedModel, ONNX and manifest as one folder. Example: `kerasvae export run bundle --name brain`."""
    with err.console.status("Writing SavedModel and ONNX, and comparing them with the model …"):
        _load_tensorflow()
        from kerasvae_export import export_run

        path = export_run(run, bundle, name=name, version=version, quantize=_names(quantize))
    out.print(f"Bundle: {path}")


@app.command()
def sign(
    bundle: BundleArgument,
    key: Annotated[
        Path | None, typer.Option(help="Private key (PEM, elliptic curve); without it, as a person.")
    ] = None,
) -> None:
    """Sign a bundle; without a key through sigstore, in a browser. Example: `kerasvae sign bundle --key key.pem`."""
    _load_tensorflow()
    from kerasvae_export import sign as put_signature

    out.print(f"Signature: {put_signature(bundle, key)}")


@app.command()
def verify(
    bundle: BundleArgument,
    engine: Annotated[str, typer.Option(help="onnx, saved_model, tf_serving, or all of them.")] = "all",
    key: Annotated[Path | None, typer.Option(help="Public key of who must have signed it.")] = None,
    identity: Annotated[str | None, typer.Option(help="Who must have signed it through sigstore.")] = None,
    issuer: Annotated[str | None, typer.Option(help="URL of who vouches for the identity.")] = None,
    json_: JsonOption = False,
) -> None:
    """Check a bundle: hashes, golden case, parity of engines and more. Example: `kerasvae verify bundle`."""
    from kerasvae.errors import ArgumentError

    if (identity is None) != (issuer is None) or (key is not None and identity is not None):
        given = {"--key": key, "--identity": identity, "--issuer": issuer}
        raise ArgumentError(
            "A signer",
            rule="be named by --key alone, or by --identity together with --issuer",
            got=", ".join(name for name, value in given.items() if value is not None),
            fix="Give one or the other",
        )
    with err.console.status("Running the engines on the golden case …"):
        _load_tensorflow()
        from kerasvae_export import Signer
        from kerasvae_export import verify as run_checks

        by = None if key is None and identity is None else Signer(key, identity, issuer)
        try:
            checks = run_checks(bundle, engine, signed_by=by)
        except KerasVAEError as error:
            if json_:
                content = {"bundle": str(bundle), "ok": False, "error": str(error), "checks": []}
                sys.stdout.write(json.dumps(content) + "\n")
            raise
    failed = [check for check in checks if check.ok is False]
    if json_:
        each = [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in checks]
        sys.stdout.write(json.dumps({"bundle": str(bundle), "ok": not failed, "checks": each}) + "\n")
    else:
        for check in checks:
            mark, colour = {True: ("ok", "green"), False: ("FAILED", "red"), None: ("not run", "yellow")}[check.ok]
            out.say(mark, colour, f"  {check.name}: {check.detail}")
    if failed:
        raise typer.Exit(1)


@app.command()
def deploy(
    bundle: BundleArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Model folder of the server.")],
    server: Annotated[str, typer.Option(help="tf-serving or triton.")] = "tf-serving",
    base_path: Annotated[str, typer.Option(help="Where the server finds the folder: an absolute path.")] = "/models",
    batch: Annotated[int, typer.Option(min=1, help="Images in one batch, at most.")] = 8,
    precision: PrecisionOption = "float32",
) -> None:
    """Lay a bundle out for a server, with its configuration. Example: `kerasvae deploy bundle models`."""
    from kerasvae_serving import deploy as lay_out

    out.print(
        f"Version: {lay_out(bundle, folder, server=server, base_path=base_path, most=batch, precision=precision)}"
    )


@app.command()
def encode(
    paths: Annotated[list[Path], typer.Argument(metavar="BUNDLE INPUT…", help="A bundle; images, or folders of them.")],
    out_: Annotated[Path, typer.Option("--out", help="Table of latents to write.")] = Path("latents.tsv"),
    covariates: Annotated[Path | None, typer.Option(help="Table of covariates, for a model that takes them.")] = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave out images that cannot be used.")] = False,
    provider: ProviderOption = "auto",
    precision: PrecisionOption = "float32",
    url: Annotated[str | None, typer.Option(help="Ask this server instead; no BUNDLE then.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the server's model; needed with --url.")] = None,
    api_key: Annotated[Path | None, typer.Option(help="File with the key for the server.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Encode part I of N alone, counted from 0 as by Slurm's arrays and Kubernetes' Indexed Jobs; "
            "`kerasvae gather` makes one table of all.",
        ),
    ] = None,
    restart: Annotated[bool, typer.Option(help="Forget what was done before, instead of going on.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Let Ray's workers do it: local, auto, or the address of a cluster."),
    ] = None,
) -> None:
    """Encode new images with ONNX Runtime; no TensorFlow. Example: `kerasvae encode bundle scans/ --out z.tsv`.

    What is done is kept in the folder OUT.parts until the table is written: the same command goes on after an end of
    any kind.
    """
    from kerasvae.allocator import keep_memory
    from kerasvae.errors import ArgumentError
    from kerasvae_serving import Client, Engine, encode_files
    from kerasvae_serving.shards import WHOLE, parse_shard, part_of

    part = None if shard is None else parse_shard(shard)
    inputs = paths if url else paths[1:]
    if not inputs:
        raise ArgumentError(
            "INPUT", rule="be an image or a folder of images", got="none", fix="Name one after the bundle"
        )
    for name, given in (
        ("--ray", ray is not None),
        ("--precision", precision != "float32"),
        ("--provider", provider != "auto"),
    ):
        if url and given:
            raise ArgumentError(name, rule="go with a bundle", got="--url too", fix="Leave one of the two out")
    for name, given in (("--model", model is not None), ("--api-key", api_key is not None)):
        if given and not url:
            raise ArgumentError(name, rule="go with --url", got="a bundle", fix="Add --url, or leave it out")
    if url and not model:
        raise ArgumentError("--model", rule="name the server's model", got="nothing", fix="Add --model NAME")
    journal = part_of(out_, part or WHOLE)
    with ExitStack() as held, resumable(journal, "Give the same command to go on") as show:
        source: Client | Engine
        keep_memory()
        if url and model:
            source = held.enter_context(Client(url, model, key=None if api_key is None else _key_in(api_key)))
        else:
            source = Engine(paths[0], provider=provider, precision=precision)
        try:
            encode_all = partial(encode_files, source)
            if ray is not None and isinstance(source, Engine):
                from kerasvae_serving import encode_with_ray

                encode_all = partial(encode_with_ray, source, address=ray)
            left_out = encode_all(
                inputs,
                out_,
                covariates=covariates,
                skip_bad=skip_bad,
                shard=part,
                restart=restart,
                progress=lambda done, total: show("encode", done, total),
            )
        except KerasVAEError as error:
            if error.exit_code == 1 and journal.is_file():
                err.print(f"What was done is kept in {journal}: the same command goes on.")
            raise
    _say_left_out(left_out)
    out.print(f"Latents: {out_}" if part is None else f"Part: {journal}\nWhen all are done: kerasvae gather {out_}")


@app.command()
def gather(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="The --out that the parts were given.")],
) -> None:
    """Make one table of the parts of `kerasvae encode --shard`. Example: `kerasvae gather latents.tsv`."""
    from kerasvae_serving import gather as put_together

    _say_left_out(put_together(table))
    out.print(f"Latents: {table}")


def _names(text: str) -> list[str]:
    """What stands between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _say_left_out(left_out: dict[str, str]) -> None:
    for path, reason in left_out.items():
        err.say("Left out", "yellow", f" {path}: {reason}")


def _key_in(path: Path) -> str:
    """The first line of a file: a key on the command line would stand in the list of processes."""
    from kerasvae.errors import ArgumentError

    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError("--api-key", rule="be a readable file", got=str(error), fix="Check it") from error
    if not lines:
        raise ArgumentError("--api-key", rule="hold a key", got="an empty file", fix="Write it there")
    return lines[0]


@app.command()
def serve(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE…", help="Bundles, or folders of bundles.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of HTTP; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=-1, max=65535, help="Of gRPC; -1 for none.")] = 8001,
    workers: Annotated[int, typer.Option(help="Requests at work at a time, a core each; by default all.")] = 0,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more are refused with 429.")] = 32,
    deadline: Annotated[float, typer.Option(help="Seconds until an answer must be there, or 504.")] = 30.0,
    batch: Annotated[int, typer.Option(help="Rows of several requests in one run; for GPUs.")] = 1,
    batch_wait: Annotated[float, typer.Option(help="Seconds that the first of them waits.")] = 0.002,
    max_body: Annotated[int, typer.Option(help="Bytes of a request, unpacked; more are refused with 413.")] = 2**26,
    max_voxels: Annotated[int, typer.Option(help="Voxels of a scan; more are refused with 422.")] = 2**25,
    patience: Annotated[float, typer.Option(help="Seconds that a request may be silent, or 408.")] = 10.0,
    poll: Annotated[float, typer.Option(help="Seconds between two looks at the bundles.")] = 5.0,
    keep: Annotated[int, typer.Option(help="Versions of a model in memory.")] = 2,
    drain: Annotated[float, typer.Option(help="Seconds of not being ready before going.")] = 5.0,
    strict: Annotated[bool, typer.Option(help="Refuse scans that are out of distribution.")] = False,
    verbose: Annotated[bool, typer.Option(help="Log every answer, not only refusals.")] = False,
    telemetry: Annotated[bool, typer.Option(help="Send traces to where OTEL_EXPORTER_OTLP_ENDPOINT says.")] = False,
    api_keys: Annotated[Path | None, typer.Option(help="File with one key a line; without it anybody may ask.")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="Certificate chain (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    provider: ProviderOption = "auto",
    precision: PrecisionOption = "float32",
) -> None:
    """Answer over HTTP and gRPC; no TensorFlow. Example: `kerasvae serve bundle --port 8000`."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the log is JSON
    with _swift_imports():
        from kerasvae.allocator import keep_memory
        from kerasvae_serving.server import serve as run_server
        from kerasvae_serving.settings import Settings

    keep_memory()
    settings = Settings(
        host=host,
        port=port,
        grpc_port=None if grpc_port < 0 else grpc_port,
        workers=workers or len(os.sched_getaffinity(0)),
        queue=queue,
        deadline=deadline,
        batch=batch,
        batch_wait=batch_wait,
        max_body=max_body,
        max_voxels=max_voxels,
        patience=patience,
        poll=poll,
        keep=keep,
        drain=drain,
        strict=strict,
        verbose=verbose,
        telemetry=telemetry,
        keys=api_keys,
        certificate=tls_certificate,
        private_key=tls_key,
        provider=provider,
        precision=precision,
    )
    run_server(bundles, settings)


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


def _report(run: Run, beside: Path | None = None) -> Path:
    from kerasvae.analysis.report import write_report

    return write_report(run.path, beside=beside)


def _say_metrics(metrics: dict[str, Any]) -> None:
    """The figures that decide, with PCA beside them, and who won."""
    ours, peer = metrics["explained_variance"], metrics["explained_variance_pca"]
    n, chance = metrics[f"n_{metrics['role']}"], metrics["identification_chance"]
    out.print(f"On {n} {metrics['role']} people, {metrics['latent_size']} latents (PCA with as many in brackets):")
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


def _open_standard_streams() -> None:
    """Let a closed standard stream be one that leads nowhere: else the next file opened would take its place."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123


def main() -> None:
    """Run the command line; errors made on purpose become one sentence and an exit status."""
    _open_standard_streams()
    try:
        app()
    except KerasVAEError as error:
        about = "".join(f" {note}:" for note in getattr(error, "__notes__", []))
        err.say("Error:", "red", f"{about} {error}")
        raise SystemExit(error.exit_code) from None
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        extra = {module: name for name, modules in EXTRAS.items() for module in modules}
        if missing not in extra:
            raise
        needed = "export" if set(sys.argv[1:2]) & {"export", "verify", "sign"} else extra[missing]
        err.say("Error:", "red", f" this command needs {missing}. Install kerasvae with the extra {needed!r}")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
