"""Memory that is kept: counted in page faults, which tell whether the system was asked again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
import numpy as np
from kerasvae.allocator import keep_memory

kept = "keep" in sys.argv and keep_memory()
found = []

def image_after_image():
    for _ in range(20):
        for size in (2**20, 3 * 2**20, 2**21):  # as the stages of a pipeline make them
            np.ones(size, np.float32)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(20):
        held = [np.ones(size, np.float32) for size in (2**20, 3 * 2**20, 2**21)]
        del held
    found.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

image_after_image()
thread = threading.Thread(target=image_after_image)
thread.start()
thread.join()
print(kept, *found)
"""


def faults(*arguments):
    call = [sys.executable, "-c", PROGRAM, *arguments]
    kept, *found = subprocess.run(call, capture_output=True, text=True, check=True, timeout=120).stdout.split()
    return kept, [int(each) for each in found]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_pages_of_one_image_serve_the_next():
    kept, few = faults("keep")
    untold, many = faults()
    assert (kept, untold) == ("True", "False")
    assert max(few) < max(many) / 10


def test_another_library_is_left_alone(monkeypatch):
    from kerasvae.allocator import keep_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_memory() is False
