"""Freed memory is there for the next tensors: who needs the same again asks the system for nothing."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="another C library")

PROGRAM = """
import resource
from ptlit.kept_memory import keep_freed_memory
{call}
def layer():
    blocks = [bytearray(8_000_000) for _ in range(6)]
layer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    layer()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 10 * 6 * 8_000_000 // os.sysconf("SC_PAGE_SIZE")  # in all blocks


def pages_asked_for(call: str, **environment: str) -> tuple[bool, int]:
    """In a process of its own, as all of it is changed."""
    program = [sys.executable, "-c", PROGRAM.format(call=call)]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    said = subprocess.run(
        program, env=plain | environment, capture_output=True, text=True, check=True
    ).stdout.split()
    return said[0] == "True", int(said[1])


def test_the_system_is_asked_once() -> None:
    """The first call shows that there is something to gain; where it is not so, the C library is another."""
    without = pages_asked_for("kept = False")
    if without[1] < PAGES / 2:
        pytest.skip("this C library keeps large blocks by itself")
    kept, pages = pages_asked_for("kept = keep_freed_memory()")
    assert kept and pages < PAGES / 100


def test_what_the_environment_says_stands() -> None:
    kept, pages = pages_asked_for("kept = keep_freed_memory()", MALLOC_TRIM_THRESHOLD_="100000")
    assert not kept and pages > PAGES / 2
