"""What a client asks and what it is told, whatever carries it; nothing here sends anything."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from kerasvae.errors import ArgumentError, ServingError

__all__ = [
    "SERVERS", "Arrays", "Calls", "Covariates", "Encoded", "Part", "Scan", "Server", "content_of", "nifti_for",
    "numbers_of", "plain", "refuse", "understood",
]  # fmt: skip

Arrays = dict[str, NDArray[Any]]
Covariates = Mapping[str, Any]
Part = Literal["encoder", "decoder"]
Scan = str | os.PathLike[str] | bytes
Server = Literal["kerasvae", "triton", "tf-serving"]
SERVERS = ("kerasvae", "triton", "tf-serving")


@dataclass(frozen=True)
class Encoded:
    """What a server says of a scan.

    Args:
        outputs: The encoder's outputs by name, without a batch axis.
        in_distribution: Whether the model knows its like; None: nothing is said of it.
        reasons: Why not.
        scores: Of `kerasvae.scoring`, by name.
        percentiles: Theirs among the reference people.
        keeps_contract: Whether the scan keeps the alignment contract; None: nothing is said of it.
    """

    outputs: dict[str, NDArray[Any]]
    in_distribution: bool | None = None
    reasons: tuple[str, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    percentiles: dict[str, float] = field(default_factory=dict)
    keeps_contract: bool | None = None


class Calls(Protocol):
    """What a server can be asked: each method gives the call for a transport, or says why there is none.

    Raises:
        ArgumentError: If this server, or this way to it, does not take that.
    """

    def of_version(self, version: int) -> Self:
        """The calls of another version."""

    def ready(self) -> Any:
        """Whether it would answer, a bool."""

    def models(self) -> Any:
        """What kerasvae's own server says of its models, a list of JSON objects."""

    def encode(self, scan: Scan, covariates: Covariates | None) -> Any:
        """A scan's `Encoded`."""

    def score(self, scan: Scan, covariates: Covariates | None) -> Any:
        """A scan's `Encoded`, without outputs."""

    def map_of(self, kind: str, scan: Scan, covariates: Covariates | None, space: str) -> Any:
        """A map's bytes."""

    def infer(self, part: Part, arrays: Arrays) -> Any:
        """Outputs of encoder or decoder, `Arrays`."""


def refuse(server: Server, what: str) -> ArgumentError:
    """Why a server of this kind does not take scans, or not for this."""
    if what == "encode":
        return ArgumentError(
            "server",
            rule="be kerasvae or tf-serving for scans: Triton gets the graphs alone",
            got=server,
            fix="Prepare the scan by Engine.pipeline, and use `infer`",
        )
    return ArgumentError("server", rule=f"be kerasvae for {what}", got=server, fix="Use `kerasvae serve`")


def content_of(scan: Scan) -> bytes:
    """The bytes of a scan's file.

    Raises:
        ArgumentError: If it cannot be read.
    """
    if isinstance(scan, bytes):
        return scan
    try:
        return Path(scan).read_bytes()
    except OSError as error:
        got = error.strerror or str(error)
        raise ArgumentError(f"{scan}", rule="be a readable file", got=got.lower(), fix="Check the path") from error


def nifti_for(scan: Scan, covariates: Covariates | None) -> bytes:
    """What TF Serving's signature `encode_nifti` takes of a scan.

    Raises:
        ArgumentError: If there are covariates: their numbers are in the manifest, which the server does not give.
    """
    if covariates is not None:
        raise ArgumentError("covariates", rule="be left out for tf-serving", got="some", fix="Use `infer`")
    return content_of(scan)


def numbers_of(arrays: Arrays) -> Arrays:
    """What graphs are given: float32."""
    return {name: np.ascontiguousarray(value, np.float32) for name, value in arrays.items()}


def understood(read: Callable[[Any], Any], answer: Any) -> Any:
    """What an answer says.

    Raises:
        ServingError: If it is none that this kind of server gives.
    """
    try:
        return read(answer)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        rule, fix = "be one that this kind of server gives", "Check url and server"
        raise ServingError("The answer", rule=rule, got=f"another: {error}"[:200], fix=fix) from error


def plain(words: str) -> str:
    r"""A server's words for people: without what TensorFlow puts around them, its operation and place in the graph.

    >>> plain("assertion failed: [The file must be a NIfTI file.]\n\t [[{{node map/while/Assert}}]]")
    'The file must be a NIfTI file.'
    """
    first = words.split("\n\t [[")[0]
    inner = re.fullmatch(r"assertion failed: \[(.*)\]", first, re.DOTALL)
    return inner.group(1) if inner else first
