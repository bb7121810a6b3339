"""One file to numbered records: CSV, TSV, JSON, JSON Lines and Parquet.

A record that cannot be read is a string that says why, so one broken line never hides the others.
"""

import codecs
import csv
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ptlit.mistake import UserMistake

Record = dict[str, object] | str
UNDECODABLE = "\udc80"  # a lone surrogate: no valid file decodes to one
BYTE_ORDER_MARK = "\ufeff"  # as Excel writes it; no part of the text
UNREADABLE_JSON = "JSON with a number too long, or lists too deep, to be read"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # an escape in JSON can make one, and no tokenizer takes it
LONG_FIELD = 2**17  # characters in a CSV; Python's own limit, which the text of a book is beyond
LONGEST_FIELD = 2**24

csv.field_size_limit(LONGEST_FIELD)  # of the whole process: there is no other
codecs.register_error("ptlit.mark", lambda error: (UNDECODABLE, error.end))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Records(Iterable[tuple[int, Record]]):
    """Numbered, read as they are asked for, and each time from the first one on."""

    begin: Callable[[], Iterator[tuple[int, Record]]]

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        return self.begin()


@dataclass(frozen=True)
class Table:
    name: str  # the file or data set, as the user named it
    unit: str  # "line" or "row"
    records: Iterable[tuple[int, Record]]
    columns: tuple[str, ...] | None = None  # where the format declares them


def read_table(file: Path, encoding: str | None = None) -> Table:
    """Its records are read as they are asked for; there are some."""
    table = stream_table(file, encoding)
    if next(iter(table.records), None) is None:
        raise UserMistake(f"{file} is empty: it holds no row.")
    return table


def stream_table(file: Path, encoding: str | None = None) -> Table:
    if not file.is_file():
        raise UserMistake(f"There is no file {file}.")
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise UserMistake(f"{file} is of no known format: its name must end in {', '.join(READERS)}.")
    return reader(file, encoding or "utf-8")


def _lines(file: Path, encoding: str, newline: str) -> Iterator[str]:
    try:
        with file.open(encoding=encoding, errors="ptlit.mark", newline=newline) as lines:
            if first := next(lines, "").removeprefix(BYTE_ORDER_MARK):
                yield first
            yield from lines
    except LookupError as error:
        raise UserMistake(f"data.encoding={encoding!r} is no encoding that Python knows.") from error
    except UnicodeError as error:  # a whole stream is refused: bytes that do not fit are marked
        raise UserMistake(
            f"{file} cannot be read as {encoding} ({error}): set another data.encoding, such as utf-16-le."
        ) from error
    except OSError as error:
        raise UserMistake(f"{file} cannot be read: {error.strerror}.") from error


def _csv(file: Path, encoding: str) -> Table:
    first = next(_csv_rows(file, encoding), None)
    if first is None:
        raise UserMistake(f"{file} is empty: it holds no row.")
    _, header = first
    if isinstance(header, str) or any(problem_with_text(name) for name in header):
        raise UserMistake(f"{file}, line 1: the header cannot be read as {encoding}; set data.encoding.")
    columns = _named([name.strip() for name in header])
    if repeated := {name for name in columns if columns.count(name) > 1}:
        raise UserMistake(f"{file}, line 1: the column {min(repeated)!r} stands there more than once.")

    def records() -> Iterator[tuple[int, Record]]:
        rows = islice(_csv_rows(file, encoding), 1, None)
        return ((line, _csv_record(row, columns)) for line, row in rows)

    return Table(str(file), "line", Records(records), columns)


def _named(header: list[str]) -> tuple[str, ...]:
    """One name may be blank, as that of an index is; further blank ones would hide each other's values."""
    blank = header.index("") if "" in header else None
    return tuple(name or ("" if i == blank else f"unnamed {i + 1}") for i, name in enumerate(header))


def _csv_rows(file: Path, encoding: str) -> Iterator[tuple[int, list[str] | str]]:
    """A broken row ends with its line: a quote left open does not swallow the rest of the file."""
    lines = _lines(file, encoding, newline="")
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    number = 1  # of the line on which a row begins
    taken: list[str] = []  # the lines of that row
    again: deque[str] = deque()  # lines that a broken row had swallowed
    width = 0  # of the header

    def feed() -> Iterator[str]:
        while (line := again.popleft() if again else next(lines, None)) is not None:
            taken.append(line)
            yield line

    while True:
        try:
            for row in csv.reader(feed(), delimiter=delimiter, strict=True):
                width = width or len(row)
                if _are_rows(taken[1:-1], width, delimiter):
                    raise csv.Error("a field that holds rows")
                if row:  # not a blank line
                    yield number, row
                number += len(taken)
                taken.clear()
            return
        except csv.Error as error:
            yield number, f"broken CSV ({error}; is a quote left open?)"
            again.extendleft(reversed(taken[1:]))
            number += 1
            taken.clear()


def _are_rows(lines: list[str], width: int, delimiter: str) -> bool:
    """Swallowed by a quote left open, which another one, far below, closes by chance."""
    if width < 2 or sum(map(len, lines)) < LONG_FIELD:
        return False
    return sum(line.count(delimiter) == width - 1 for line in lines) > 0.9 * len(lines)


def _csv_record(row: list[str] | str, columns: tuple[str, ...]) -> Record:
    if isinstance(row, str):
        return row
    if len(row) != len(columns):
        return f"{len(row)} fields where the header has {len(columns)}"
    return dict(zip(columns, row, strict=True))


def _jsonl(file: Path, encoding: str) -> Table:
    def records() -> Iterator[tuple[int, Record]]:
        lines = enumerate(_lines(file, encoding, newline="\n"), start=1)
        return ((i, _json_record(line)) for i, line in lines if line.strip())

    return Table(str(file), "line", Records(records))


def _json_record(line: str) -> Record:
    if problem := problem_with_text(line):
        return problem
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return f"broken JSON ({error.msg} at column {error.colno})"
    except (ValueError, RecursionError):
        return UNREADABLE_JSON
    return value if isinstance(value, dict) else "not a JSON object"


def _json(file: Path, encoding: str) -> Table:
    """Its one list is read whole."""
    text = "".join(_lines(file, encoding, newline=""))
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserMistake(
            f"{file}, line {error.lineno}: broken JSON ({error.msg} at column {error.colno}); a file with one"
            " object per line wants the name *.jsonl."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserMistake(f"{file} holds {UNREADABLE_JSON}.") from error
    if not isinstance(values, list):
        raise UserMistake(f"{file} must hold a JSON list of objects, not a {type(values).__name__}.")
    records = [(i, v if isinstance(v, dict) else "not a JSON object") for i, v in enumerate(values, start=1)]
    return Table(str(file), "row", records)


def _parquet(file: Path, encoding: str) -> Table:
    with _readable_parquet(file):
        columns = tuple(pyarrow.parquet.read_schema(file).names)
    if repeated := {name for name in columns if columns.count(name) > 1}:
        raise UserMistake(f"{file}: the column {min(repeated)!r} stands there more than once.")
    return Table(str(file), "row", Records(lambda: enumerate(_parquet_records(file), start=1)), columns)


def _parquet_records(file: Path) -> Iterator[Record]:
    with _readable_parquet(file), pyarrow.parquet.ParquetFile(file) as opened:
        for batch in opened.iter_batches(1024):
            names, values = batch.schema.names, batch.columns
            for i in range(batch.num_rows):
                try:
                    yield {name: column[i].as_py() for name, column in zip(names, values, strict=True)}
                except UnicodeDecodeError:
                    yield "bytes that are not utf-8"
                except (ValueError, OverflowError) as error:  # a date beyond Python's
                    yield f"a value that cannot be read ({error})"


@contextmanager
def _readable_parquet(file: Path) -> Iterator[None]:
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserMistake(f"{file} is not a Parquet file that can be read: {reason}.") from error


READERS: dict[str, Callable[[Path, str], Table]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
}


def problem_with_text(text: str) -> str | None:
    if UNDECODABLE in text:
        return "bytes that do not fit the encoding; set data.encoding if the file is not utf-8"
    if "\0" in text:
        return "a NUL byte"
    if LONE_SURROGATE.search(text):
        return "half a character (a lone surrogate)"
    return None
