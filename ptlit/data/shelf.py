"""Records in a temporary file, read back by their places: in memory stays where each of them ends.

A file that is mapped into memory counts as memory as far as it was ever read, a read by place does not.
"""

import fcntl
import os
import tempfile
import weakref
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar, overload

from ptlit.mistake import UserMistake

T = TypeVar("T")
PREFIX = "ptlit-rows-"


class Shelf:
    """The file goes with the shelf that made it. Copies in other processes, forked or sent there, read it."""

    def __init__(self) -> None:
        self._path, self._file = _new_file()
        self.ends = array("q")
        weakref.finalize(self, _put_away, self._file, self._path, os.getpid())

    def extend(self, records: Iterable[bytes]) -> None:
        end = self.ends[-1] if self.ends else 0
        try:
            for record in records:
                self._file.write(record)
                end += len(record)
                self.ends.append(end)
            self._file.flush()
        except OSError as error:
            raise UserMistake(
                f"{self._path.parent} cannot hold the rows that are read ({error.strerror}): make room there,"
                " or set TMPDIR to another folder."
            ) from error

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: int) -> bytes:
        start = self.ends[place - 1] if place else 0
        # Not seek and read: workers that were forked share where the file stands.
        return os.pread(self._file.fileno(), self.ends[place] - start, start)

    def __getstate__(self) -> tuple[Path, "array[int]"]:
        return self._path, self.ends

    def __setstate__(self, state: tuple[Path, "array[int]"]) -> None:
        self._path, self.ends = state
        self._file = self._path.open("rb")
        weakref.finalize(self, _put_away, self._file, self._path, None)


def _new_file() -> tuple[Path, BinaryIO]:
    """Locked as long as its process lives: one that nobody holds was left by a process that was killed."""
    handle, name = tempfile.mkstemp(prefix=f".{PREFIX}")
    fcntl.flock(handle, fcntl.LOCK_EX)
    path = Path(name).rename(name.replace(f".{PREFIX}", PREFIX))
    for other in path.parent.glob(f"{PREFIX}*"):
        with suppress(OSError), other.open("rb") as file:  # held, gone, or another user's
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            other.unlink()
    return path, os.fdopen(handle, "r+b")


def _put_away(file: BinaryIO, path: Path, owner: int | None) -> None:
    with suppress(OSError):  # what a full disk did not take
        file.close()
    if os.getpid() == owner:
        path.unlink(missing_ok=True)


class Shelved(Sequence[T]):
    """Rows that stand on a shelf, made when they are asked for."""

    @abstractmethod
    def _at(self, place: int) -> T: ...

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        places = range(len(self))[index]
        return self._at(places) if isinstance(places, int) else [self._at(place) for place in places]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Shelved):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]
