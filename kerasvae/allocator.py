"""The C library's allocator, told to keep what it will need again.

By default glibc gives the pages of a freed image back to the system, which must find and clear them anew for the next
one: about a tenth of the time that a scan takes from file to latents. A process whose whole work is one image after
another keeps them instead.
"""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h, for mallopt(3)
_KEPT = 2**26
"""Bytes that may lie free at the top of a heap."""
_APART = 2**25
"""Blocks of as many bytes are the system's own, and go back to it: the most that mallopt(3) takes."""


def keep_memory() -> bool:
    """Let this process keep up to 64 MiB of free memory a thread; for commands, and no library's to decide.

    Returns:
        Whether the allocator is one that can be told: glibc's.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    # in this order, as the first alone would let glibc go on moving the second
    return all(library.mallopt(*each) == 1 for each in ((_MMAP_THRESHOLD, _APART), (_TRIM_THRESHOLD, _KEPT)))
