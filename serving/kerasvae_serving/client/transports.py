"""What carries calls: each `ask` is one attempt, and ends with an answer or an error; `AttemptError` allows another."""

from __future__ import annotations

import os
import ssl
from typing import Any, Protocol

from kerasvae.errors import ServingError

__all__ = ["AttemptError", "Transport", "Verify", "unreachable"]

Verify = bool | str | os.PathLike[str] | ssl.SSLContext


class AttemptError(Exception):
    """An attempt that may be made again.

    Args:
        error: What is said if it is not.
        wait: Seconds that the server asks for.
    """

    def __init__(self, error: ServingError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.wait = error, wait


class Transport(Protocol):
    """A way to a server."""

    async def ask(self, call: Any, seconds: float) -> Any:
        """The answer to a call, as the call reads it.

        Args:
            call: Of the kind that this transport carries.
            seconds: How long the caller will wait, for those who can tell the server.

        Raises:
            AttemptError: If the same may be asked again.
            AnswerError: What the server refused, in its words.
            ServingError: If nobody answers, or what answers is no server of this kind.
        """

    async def close(self) -> None:
        """Close its connections."""


def unreachable(url: str, reason: str) -> ServingError:
    """Nobody answers at a URL."""
    return ServingError("A server", rule=f"answer at {url}", got=reason, fix="Start it, or correct the address")
