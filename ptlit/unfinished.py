"""The answers to a file that is being gone through: a small file a chunk, so that a stopped run goes on."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from ptlit.mistake import UserMistake
from ptlit.whole_file import replaced, write_json


def contents(file: Path) -> str | None:
    """What tells whether a file is still the same."""
    if not file.is_file():
        return None
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class Unfinished:
    """Beside `target`, removed when it has been written. Chunks of another `plan` are thrown away."""

    def __init__(self, target: Path, plan: Mapping[str, object]):
        self.target, self.plan = target, plan
        self.folder = target.with_name(f"{target.name}.unfinished")
        self.lock = FileLock(target.with_name(f".{target.name}.lock"))

    def __enter__(self) -> "Unfinished":
        try:
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise UserMistake(f"output={self.target}: another process is writing it just now.") from error
        noted = self.folder / "plan.json"
        plan = json.loads(json.dumps(self.plan))
        if not noted.is_file() or json.loads(noted.read_text(encoding="utf-8")) != plan:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_json(noted, plan)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            shutil.rmtree(self.folder)
        self.lock.release()
        Path(self.lock.lock_file).unlink(missing_ok=True)

    def has(self, chunk: int) -> bool:
        return self._file(chunk).is_file()

    def put(self, chunk: int, probabilities: NDArray[numpy.float32]) -> None:
        """(rows of the chunk, C), NaN where a row could not be answered."""
        with replaced(self._file(chunk)) as part:
            numpy.save(part, probabilities)

    def get(self, chunk: int) -> NDArray[numpy.float32]:
        return numpy.load(self._file(chunk), allow_pickle=False)

    def _file(self, chunk: int) -> Path:
        return self.folder / f"{chunk:08}.npy"
