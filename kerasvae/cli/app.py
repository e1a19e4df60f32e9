"""The command and how it ends: exit status 0 done, 1 the work failed, 2 the call was wrong."""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kerasvae.backend import require_tensorflow
from kerasvae.errors import KerasVAEError
from kerasvae.terminal import err

if TYPE_CHECKING:
    from kerasvae.training.run import Run

__all__ = ["app", "load_tensorflow", "main", "open_run", "swift_imports"]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up notes are not for users of a command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="From a folder of brain images to a deployable encoder that you can trust.",
)


def _say_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"kerasvae {importlib.metadata.version('kerasvae')}\n")
        raise typer.Exit


@app.callback()
def _of_all(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of no command in particular."""


INTERRUPTED = 130
"""Exit status after Ctrl-C."""
EXTRAS = {
    "train": (
        "tensorflow", "keras", "tf_keras", "tensorflow_probability", "bids", "pandas", "sklearn", "statsmodels",
        "nilearn", "matplotlib", "PIL", "jinja2", "markupsafe",
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


@contextmanager
def swift_imports() -> Iterator[None]:
    """Within, no garbage is looked for: imports make none, and looking takes an eighth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def load_tensorflow() -> None:
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


def open_run(path: Path) -> Run:
    """A run whose model is needed: a folder that is none is refused before TensorFlow is loaded, in seconds."""
    from kerasvae.training.run import load_run

    run = load_run(path)
    load_tensorflow()
    return run


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


def _leave_at_once(status: int) -> None:
    """End without taking TensorFlow down: in the middle of a training its threads can wait for one another for ever."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def main() -> None:
    """Run the command line; errors made on purpose become one sentence and an exit status."""
    _open_standard_streams()
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED and "tensorflow" in sys.modules:
            _leave_at_once(INTERRUPTED)
        raise
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
