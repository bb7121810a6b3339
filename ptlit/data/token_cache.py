"""Tokens of rows that were met before, in the user's cache: known by rows, tokenizer and all settings."""

import hashlib
import inspect
import io
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from zipfile import BadZipFile

import numpy
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ptlit.data import example
from ptlit.data.example import EncodedRow
from ptlit.wheels import cache_folder

LEAST = 1000  # rows that are worth a file
MOST = 2 << 30  # bytes; the oldest go first


class Tokens(NamedTuple):
    """What was made of some source rows, each known by its place among them."""

    rows: list[EncodedRow]
    places: Sequence[int]  # of each, that of its source; a source may give several
    cut: Collection[int] = ()
    bad: Sequence[tuple[int, str]] = ()  # those of which nothing could be made, and why


class TokenCache:
    """`how` are the modules in which source rows become tokens: another version may do it otherwise."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, how: Iterable[ModuleType], settings: object
    ) -> None:
        self.folder = cache_folder() / "tokens"
        self.usable = isinstance(tokenizer, PreTrainedTokenizerFast)  # others cannot tell what they are
        if not self.usable:
            return
        self.about = hashlib.sha256()
        for module in (example, *how):
            self.about.update(inspect.getsource(module).encode())
        self.about.update(tokenizer.backend_tokenizer.to_str().encode())
        self.about.update(repr((tokenizer.special_tokens_map, settings)).encode())

    def tokens(self, contents: Sequence[object], encode: Callable[[], Tokens]) -> Tokens:
        """What `encode` makes of source rows of these contents, or made of them once."""
        if not self.usable or len(contents) < LEAST:
            return encode()
        digest = self.about.copy()
        for content in contents:
            digest.update(repr(content).encode("utf-8", "surrogatepass"))
        file = self.folder / f"{digest.hexdigest()}.npz"
        found = read(file)
        if found is None:
            found = encode()
            if not found.bad:  # those are to be mended
                write(file, found)
        return found


def read(file: Path) -> Tokens | None:
    """None where it is not there, or broken."""
    try:
        with numpy.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            ids, labels, lengths, label, row, cut = (arrays[name].tolist() for name in NAMES)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    ends = numpy.cumsum(lengths).tolist()
    rows = [
        EncodedRow(input_ids=ids[end - length : end], labels=labels[end - length : end], label=of_row)
        for length, end, of_row in zip(lengths, ends, label, strict=True)
    ]
    return Tokens(rows, row, frozenset(cut))


NAMES = ("input_ids", "labels", "lengths", "label", "row", "cut")


def write(file: Path, tokens: Tokens) -> None:
    """A cache that cannot be written is none."""
    rows = tokens.rows
    columns = (
        [token for row in rows for token in row["input_ids"]],
        [token for row in rows for token in row["labels"]],
        [len(row["input_ids"]) for row in rows],
        [row["label"] for row in rows],
        list(tokens.places),
        sorted(tokens.cut),
    )
    contents = io.BytesIO()
    arrays = {name: numpy.array(column, numpy.int32) for name, column in zip(NAMES, columns, strict=True)}
    numpy.savez(contents, **arrays)  # type: ignore[arg-type]
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(contents.getvalue())
        part.replace(file)
        forget_oldest(file.parent)
    except OSError:
        part.unlink(missing_ok=True)


def forget_oldest(folder: Path) -> None:
    found = sorted((each.stat().st_mtime, each.stat().st_size, each) for each in folder.glob("*.npz"))
    too_much = sum(size for _, size, _ in found) - MOST
    for _, size, file in found:
        if too_much <= 0:
            return
        file.unlink(missing_ok=True)
        too_much -= size
