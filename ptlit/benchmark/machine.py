"""What a benchmark runs on, and what it lacks."""

import importlib.util
import os
import platform
import re
from pathlib import Path

import torch

from ptlit.mistake import UserMistake

CPUINFO = Path("/proc/cpuinfo")


def usable_threads() -> int:
    """Of this process: a container or taskset may leave it fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, torch.get_num_threads())


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    found = re.search(r"model name\s*:\s*(.+)", CPUINFO.read_text()) if CPUINFO.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise UserMistake("benchmark.device=cuda asks for a GPU and none is found: use benchmark.device=cpu.")


def check_peft() -> None:
    if importlib.util.find_spec("peft") is None:
        raise UserMistake(
            "The benchmark compares with PEFT, which is not installed: pip install peft, or leave it out: "
            "benchmark.engines=[ptlit,ptlit_concatenated,full] benchmark.bucketed_engines=[ptlit]."
        )
