"""Time and memory of this process, and when a GPU has really finished."""

import re
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Spent:
    seconds: float
    cpu_seconds: float  # of all threads


def spent(work: Callable[[], object], device: torch.device) -> Spent:
    began, cpu_began = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":  # what was launched is not yet done
        torch.cuda.synchronize(device)
    return Spent(time.perf_counter() - began, time.process_time() - cpu_began)


def peak_mb(device: torch.device) -> float:
    """Of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if STATUS.is_file():  # Linux: its ru_maxrss begins with the size of the process that started this one
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
        if found:
            return int(found[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def total(parts: Iterable[Spent]) -> Spent:
    each = list(parts)
    return Spent(sum(part.seconds for part in each), sum(part.cpu_seconds for part in each))
