"""Files are written whole or not at all: under another name first, what was there staying until then."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name with the same ending to write to, which becomes `path` when all went well; of each of several
    processes another one.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    with replaced(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
