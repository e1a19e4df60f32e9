"""An event loop in a thread of its own, for clients that wait: what is awaited can be given up at any moment."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

__all__ = ["run"]

T = TypeVar("T")
_lock = threading.Lock()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives; it is given up if the wait for it is broken off."""
    with _lock:
        loop = _loop(os.getpid())
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    finally:
        future.cancel()


@cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """The loop of a process: threads do not go along into a fork."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="kerasvae-client", daemon=True).start()
    return loop
