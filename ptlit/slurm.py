"""A job that SLURM is about to end (sbatch --signal=USR1@90) leaves a checkpoint and is queued again.

Lightning would save in the middle of a step, into the folder that the command was given in, where any other
run would pick it up. Here the step is finished first, as for SIGTERM, and last.ckpt is what is left.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from lightning.pytorch.utilities.exceptions import SIGTERMException


@contextmanager
def requeued_before_the_end() -> Iterator[None]:
    """Outside of a SLURM job nothing changes."""
    job = job_id(os.environ)
    if job is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if not callable(signal.getsignal(signal.SIGTERM)):  # Lightning is not listening: no step is under way
            raise SIGTERMException
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGUSR1, stop)  # Lightning keeps what it finds
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
        if asked and os.environ.get("SLURM_PROCID", "0") == "0":
            requeue(job)


def job_id(environment: Mapping[str, str]) -> str | None:
    """In scontrol's words, of one task where the job is an array of them."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment.get("SLURM_JOB_ID")


def requeue(job: str) -> None:
    try:
        done = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True, text=True)
        reason = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        reason = str(error)
    if reason:
        print(f"SLURM job {job} could not be requeued: {reason}", file=sys.stderr, flush=True)
    else:
        print(f"SLURM job {job} is requeued.", flush=True)
