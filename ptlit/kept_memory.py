"""Memory that was freed stays with the process, for the next tensor of that size.

The C library gives large blocks back to the system at once, and the system hands them out again page by page,
each filled with zeros: where no gradients keep blocks in use, as when labels are scored, every layer waits
for that. What a process needs at most stays the same.
"""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
NEVER = 2**31 - 1
LARGEST = (2**30, 2**25)  # blocks to keep; the second is what older versions of glibc allow
CHOSEN_OUTSIDE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """From now on, in the whole process; whether it is so. Nothing where another C library is at work, or
    where the environment says how memory is to be had.
    """
    if sys.platform != "linux" or any(name in os.environ for name in CHOSEN_OUTSIDE):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(TRIM_THRESHOLD, NEVER)) and any(mallopt(MMAP_THRESHOLD, size) for size in LARGEST)
