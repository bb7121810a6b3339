"""Rows to one file, as they come: CSV, TSV, JSON Lines or Parquet by its name."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ptlit.mistake import UserMistake

Row = Mapping[str, object]
Types = Mapping[str, pyarrow.DataType]
GROUP = 1024  # rows that are looked at or written together
TEXT = pyarrow.string()


class ColumnTypes:
    """The columns of a file and, for those who need one type a column, what all of their values fit into."""

    def __init__(self, known: Types | None = None) -> None:
        self.found: dict[str, pyarrow.DataType] = dict(known or {})
        self.is_known = known is not None
        self._beyond_double: set[str] = set()  # columns with integers that would be rounded
        self._waiting: list[Row] = []

    @classmethod
    def of(cls, file: Path) -> "ColumnTypes":
        """Parquet says them."""
        if file.suffix.lower() != ".parquet":
            return cls()
        return cls({each.name: each.type for each in pyarrow.parquet.read_schema(file)})

    def see(self, record: Row) -> None:
        if not self.is_known:
            self._waiting.append(record)
            if len(self._waiting) == GROUP:
                self._look()

    def types(self) -> dict[str, pyarrow.DataType]:
        self._look()
        return {name: self._settled(name, kind) for name, kind in self.found.items()}

    def _settled(self, name: str, kind: pyarrow.DataType) -> pyarrow.DataType:
        is_rounded = pyarrow.types.is_floating(kind) and name in self._beyond_double
        return TEXT if is_rounded or pyarrow.types.is_null(kind) else kind

    def _look(self) -> None:
        names = dict.fromkeys(name for record in self._waiting for name in record)
        for name in names:
            values = [record.get(name) for record in self._waiting]
            here = type_of(values)
            self.found[name] = common_type(self.found.get(name, pyarrow.null()), here)
            if pyarrow.types.is_integer(here) and not fit_double(values):
                self._beyond_double.add(name)
        self._waiting.clear()


def type_of(values: list[object]) -> pyarrow.DataType:
    try:
        kind = pyarrow.array(values).type
    except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError):
        return TEXT
    return TEXT if pyarrow.types.is_nested(kind) else kind  # as JSON


def fit_double(integers: list[object]) -> bool:
    try:
        pyarrow.array(integers, pyarrow.float64())
    except pyarrow.ArrowException:
        return False
    return True


def common_type(one: pyarrow.DataType, other: pyarrow.DataType) -> pyarrow.DataType:
    schemas = [pyarrow.schema([("values", kind)]) for kind in (one, other)]
    try:
        return pyarrow.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pyarrow.ArrowException:
        return TEXT


def check_output(file: Path, overwrite: bool) -> None:
    if file.suffix.lower() not in WRITERS:
        raise UserMistake(f"output={file}: its name must end in {', '.join(WRITERS)}.")
    if file.is_dir() or not nearest_folder(file).is_dir():
        raise UserMistake(f"output={file} is no place for a file.")
    check_writable(file)
    if file.exists() and not overwrite:
        raise UserMistake(f"output={file} exists: give overwrite=true to replace it, or another name.")


def check_writable(file: Path) -> None:
    """Before any time is spent on what it is to hold. Its folder need not be there yet."""
    folder = nearest_folder(file)
    if not folder.is_dir():
        raise UserMistake(f"{file} cannot be written: {folder} is no folder.")
    if not os.access(folder, os.W_OK):
        raise UserMistake(f"{file} cannot be written: {folder} is write-protected.")


def nearest_folder(file: Path) -> Path:
    """The part of its path that is there already."""
    return next(folder for folder in file.absolute().parents if folder.exists())


def write_rows(file: Path, types: Types, rows: Iterable[Row]) -> None:
    """Under another name until the last row is there: an earlier file stays whole."""
    part = file.with_name(f".{file.name}.part")
    try:
        WRITERS[file.suffix.lower()](part, types, rows, file.suffix.lower())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def _csv(part: Path, types: Types, rows: Iterable[Row], suffix: str) -> None:
    with part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        lines = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
        lines.writerow(types)
        lines.writerows([_text(row.get(name)) for name in types] for row in rows)


def _jsonl(part: Path, types: Types, rows: Iterable[Row], suffix: str) -> None:
    with part.open("w", encoding="utf-8", errors="backslashreplace") as file:  # which are JSON's escapes too
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _parquet(part: Path, types: Types, rows: Iterable[Row], suffix: str) -> None:
    schema = pyarrow.schema(list(types.items()))
    with pyarrow.parquet.ParquetWriter(part, schema) as file:
        for group in groups(rows):
            columns = [_column([row.get(name) for row in group], kind) for name, kind in types.items()]
            file.write_table(pyarrow.table(columns, schema=schema))


def _column(values: list[object], kind: pyarrow.DataType) -> pyarrow.Array:
    if kind == TEXT:
        texts = [None if value is None else _text(value) for value in values]
        values = [text and text.encode("utf-8", "backslashreplace").decode() for text in texts]
    return pyarrow.array(values, kind)


def _text(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return (
        json.dumps(value, ensure_ascii=False) if isinstance(value, int | float | dict | list) else str(value)
    )


def groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while group := list(islice(remaining, GROUP)):
        yield group


WRITERS: dict[str, Callable[[Path, Types, Iterable[Row], str], None]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
