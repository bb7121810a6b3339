"""One run a folder at a time: two would write the same files, and the results be of neither.

Runs that begin in the same second are given the same folder. The lock is the system's, which frees it when
the process ends, however that ends: a run that was killed stands in nobody's way.
"""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

LOCK = ".lock"
held = ExitStack()  # what Hydra's callbacks took for this process, until its command ends


class FolderTaken(SystemExit):
    """A user's mistake in the form that Hydra lets a callback raise, and that ends a sweep."""


@contextmanager
def own_folder(folder: Path, key: str) -> Iterator[None]:
    """`key` is where another one could be said. No process that is forked meanwhile holds the lock too."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK
    with lock.open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise FolderTaken(
                f"{folder}: another run is at work there just now: wait for its end, or give another {key}."
            ) from None
        except OSError:  # a file system that has no locks
            pass
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def hold(folder: Path, key: str) -> None:
    with suppress(OSError):  # a folder that cannot be made: Hydra will say so
        held.enter_context(own_folder(folder, key))
