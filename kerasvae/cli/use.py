"""A bundle at work, without TensorFlow: `encode`, `gather`, `serve`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from kerasvae.cli.app import app, swift_imports
from kerasvae.cli.options import PrecisionOption, ProviderOption
from kerasvae.errors import KerasVAEError
from kerasvae.terminal import err, out, resumable

__all__ = ["encode", "gather", "serve"]


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
    with swift_imports():
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
