"""Threads that wait for each other do so briefly, then let go of their core.

A step is thousands of short computations, after each of which one thread waits for the other, by default
spinning. Where another program has the core that the other thread needs, it spins in vain each time, and a
step takes many times as long. A thirtieth of it is enough for whoever has the machine to themselves.
"""

import os

SPINS = "GOMP_SPINCOUNT"  # of GNU's OpenMP, which PyTorch on Linux brings; read once, when torch is imported
CHOSEN_OUTSIDE = (SPINS, "OMP_WAIT_POLICY")


def wait_briefly() -> None:
    """Nothing where the environment says how threads wait."""
    if not any(name in os.environ for name in CHOSEN_OUTSIDE):
        os.environ[SPINS] = "10000"
