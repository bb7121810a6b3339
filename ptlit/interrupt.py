"""Ctrl-C while a run is trained: the step under way is finished first, as it is for SIGTERM."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lightning.pytorch.utilities.exceptions import SIGTERMException


@contextmanager
def interrupted_between_steps() -> Iterator[None]:
    """A KeyboardInterrupt may break in anywhere, into a lock of a writer's thread too. So the first Ctrl-C
    asks Lightning to stop, which it does between steps with a checkpoint; a second one is obeyed at once.
    """
    if threading.current_thread() is not threading.main_thread():  # signals come to no other
        yield
        return
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        signal.signal(signal.SIGINT, before)
        if not callable(signal.getsignal(signal.SIGTERM)):  # Lightning is not listening yet, or no more
            raise KeyboardInterrupt
        asked = True
        print("\nStopping after this step; Ctrl-C again stops at once.", flush=True)
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    except SIGTERMException:
        if asked:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)
