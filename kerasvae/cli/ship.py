"""From a run to what others use: `export`, `sign`, `verify`, `deploy`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from kerasvae.cli.app import app, load_tensorflow
from kerasvae.cli.options import BundleArgument, JsonOption, PrecisionOption, RunArgument, names
from kerasvae.errors import KerasVAEError
from kerasvae.terminal import err, out

__all__ = ["deploy", "export", "sign", "verify"]


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
        load_tensorflow()
        from kerasvae_export import export_run

        path = export_run(run, bundle, name=name, version=version, quantize=names(quantize))
    out.print(f"Bundle: {path}")


@app.command()
def sign(
    bundle: BundleArgument,
    key: Annotated[
        Path | None, typer.Option(help="Private key (PEM, elliptic curve); without it, as a person.")
    ] = None,
) -> None:
    """Sign a bundle; without a key through sigstore, in a browser. Example: `kerasvae sign bundle --key key.pem`."""
    load_tensorflow()
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
        load_tensorflow()
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
