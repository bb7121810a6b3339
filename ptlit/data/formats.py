"""One file to numbered records: CSV, TSV, JSON, JSON Lines and Parquet.

A record that cannot be read is a string that says why, so one broken line never hides the others.
"""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ptlit.mistake import UserMistake

Record = dict[str, object] | str
UNDECODABLE = "\udc80"  # a lone surrogate: no valid file decodes to one

codecs.register_error("ptlit.mark", lambda error: (UNDECODABLE, error.end))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Table:
    name: str  # the file or data set, as the user named it
    unit: str  # "line" or "row"
    records: list[tuple[int, Record]]
    columns: tuple[str, ...] | None = None  # where the format declares them


def read_table(file: Path, encoding: str | None = None) -> Table:
    if not file.is_file():
        raise UserMistake(f"There is no file {file}.")
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise UserMistake(f"{file} is of no known format: its name must end in {', '.join(READERS)}.")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserMistake(f"{file} cannot be read: {error.strerror}.") from error
    table = reader(file, content, encoding or "utf-8-sig")
    if not table.records:
        raise UserMistake(f"{file} is empty: it holds no row.")
    return table


def _decoded(file: Path, content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding, errors="ptlit.mark")
    except LookupError as error:
        raise UserMistake(f"data.encoding={encoding!r} is no encoding that Python knows.") from error


def _csv(file: Path, content: bytes, encoding: str) -> Table:
    lines = list(io.StringIO(_decoded(file, content, encoding), newline=""))
    rows = _csv_rows(lines, "\t" if file.suffix.lower() == ".tsv" else ",")
    first = next(rows, None)
    if first is None:
        raise UserMistake(f"{file} is empty: it holds no row.")
    _, header = first
    if isinstance(header, str) or any(problem_with_text(name) for name in header):
        raise UserMistake(f"{file}, line 1: the header cannot be read as {encoding}; set data.encoding.")
    columns = tuple(name.strip() for name in header)
    if repeated := {name for name in columns if name and columns.count(name) > 1}:
        raise UserMistake(f"{file}, line 1: the column {min(repeated)!r} stands there more than once.")
    return Table(str(file), "line", [(line, _csv_record(row, columns)) for line, row in rows], columns)


def _csv_rows(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """A broken row ends with its line: a quote left open does not swallow the rest of the file."""
    start = 0
    while start < len(lines):
        reader = csv.reader(islice(lines, start, None), delimiter=delimiter, strict=True)
        done = 0
        try:
            for row in reader:
                if row:  # not a blank line
                    yield start + done + 1, row
                done = reader.line_num
            return
        except csv.Error as error:
            yield start + done + 1, f"broken CSV ({error}; is a quote left open?)"
            start += done + 1


def _csv_record(row: list[str] | str, columns: tuple[str, ...]) -> Record:
    if isinstance(row, str):
        return row
    if len(row) != len(columns):
        return f"{len(row)} fields where the header has {len(columns)}"
    return dict(zip(columns, row, strict=True))


def _jsonl(file: Path, content: bytes, encoding: str) -> Table:
    lines = _decoded(file, content, encoding).split("\n")
    records = [(i, _json_record(line)) for i, line in enumerate(lines, start=1) if line.strip()]
    return Table(str(file), "line", records)


def _json_record(line: str) -> Record:
    if problem := problem_with_text(line):
        return problem
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return f"broken JSON ({error.msg} at column {error.colno})"
    return value if isinstance(value, dict) else "not a JSON object"


def _json(file: Path, content: bytes, encoding: str) -> Table:
    text = _decoded(file, content, encoding)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserMistake(
            f"{file}, line {error.lineno}: broken JSON ({error.msg} at column {error.colno}); a file with one"
            " object per line wants the name *.jsonl."
        ) from error
    if not isinstance(values, list):
        raise UserMistake(f"{file} must hold a JSON list of objects, not a {type(values).__name__}.")
    records = [(i, v if isinstance(v, dict) else "not a JSON object") for i, v in enumerate(values, start=1)]
    return Table(str(file), "row", records)


def _parquet(file: Path, content: bytes, encoding: str) -> Table:
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(content))
    except pyarrow.ArrowException as error:
        raise UserMistake(f"{file} is not a Parquet file that can be read: {error}.") from error
    columns = tuple(table.column_names)
    values = [table.column(name).combine_chunks() for name in columns]

    def record(i: int) -> Record:
        try:
            return {name: column[i].as_py() for name, column in zip(columns, values, strict=True)}
        except UnicodeDecodeError:
            return "bytes that are not utf-8"

    return Table(str(file), "row", [(i + 1, record(i)) for i in range(table.num_rows)], columns)


READERS: dict[str, Callable[[Path, bytes, str], Table]] = {
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
    return None
