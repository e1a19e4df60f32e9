"""How a server is to run."""

from __future__ import annotations

import hashlib
import hmac
import math
from dataclasses import dataclass
from pathlib import Path

from kerasvae.errors import ArgumentError

__all__ = ["Keys", "Settings", "key_of"]


@dataclass(frozen=True)
class Settings:
    """How a server is to run; every size is in bytes, every time in seconds.

    Args:
        host: Address to listen on; that of this machine alone unless told.
        port: Of HTTP; 0 takes a free one.
        grpc_port: Of gRPC; 0 takes a free one, None has no gRPC.
        workers: Pieces of work at a time: threads with one core each.
        queue: Requests that may wait.
        deadline: Longest time until an answer.
        batch: Rows of several requests that may run together, see `Batches`; more workers than that are needed.
        batch_wait: Time that the first of them waits.
        max_body: Largest body, unpacked.
        max_voxels: Largest scan.
        patience: Longest silence within a request.
        poll: Time between two looks at the bundles.
        keep: Versions of a model in memory.
        drain: Time between the first sign of going (not ready) and the end of listening.
        strict: Refuse scans that are out of distribution.
        verbose: Log every answer, not only refusals.
        telemetry: Send traces, see `traced`.
        keys: File with one API key a line; None: anybody may ask.
        certificate: TLS certificate (PEM); None: no TLS.
        private_key: Its key.
        provider: What runs the graphs, see `Engine`.
        precision: Of the graphs.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    workers: int = 2
    queue: int = 32
    deadline: float = 30.0
    batch: int = 1
    batch_wait: float = 0.002
    max_body: int = 64 * 2**20
    max_voxels: int = 2**25
    patience: float = 10.0
    poll: float = 5.0
    keep: int = 2
    drain: float = 5.0
    strict: bool = False
    verbose: bool = False
    telemetry: bool = False
    keys: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    provider: str = "auto"
    precision: str = "float32"

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for name in ("deadline", "max_body", "max_voxels", "patience", "poll"):
            if not 0 < getattr(self, name) < math.inf:
                raise ArgumentError(
                    f"--{name.replace('_', '-')}", rule="be a number above 0", got=getattr(self, name), fix="Raise it"
                )
        if self.port == self.grpc_port != 0:
            raise ArgumentError("--grpc-port", rule="be another than --port", got=self.port, fix="Choose another")
        if not 0 <= self.batch_wait <= 1:
            raise ArgumentError("--batch-wait", rule="be 0 to 1 s", got=self.batch_wait, fix="Use 0.002")
        if not 0 <= self.drain < math.inf:
            raise ArgumentError("--drain", rule="be 0 or more seconds", got=self.drain, fix="Use 5")
        if (self.certificate is None) != (self.private_key is None):
            raise ArgumentError(
                "--tls-certificate and --tls-key", rule="come together", got="one of them", fix="Give both"
            )


class Keys:
    """API keys, of which only hashes are kept.

    Args:
        path: File with one key a line; what begins with # is a comment.

    Raises:
        ArgumentError: If it cannot be read or holds none.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError("--api-keys", rule="be a readable file", got=str(error), fix="Check it") from error
        self._known = [_hash(line) for line in lines if line and not line.startswith("#")]
        if not self._known:
            raise ArgumentError("--api-keys", rule="hold a key", got=f"none in {path}", fix="Write one a line")

    def know(self, key: str) -> bool:
        """Whether a key is one of them; the time that takes says nothing about it."""
        given = _hash(key)
        return sum(hmac.compare_digest(given, each) for each in self._known) > 0  # all of them are compared


def key_of(authorization: str, other: str | None) -> str | None:
    """The key that a caller sends, as `Authorization: Bearer KEY` or else by itself, in `X-API-Key`."""
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else other


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
