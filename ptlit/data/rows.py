"""Records to rows: one that cannot be used is reported with its file and line, or counted and left out."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypedDict, TypeVar

from ptlit.data.formats import Record, Table, problem_with_text
from ptlit.mistake import UserMistake

SHOWN = 5
R = TypeVar("R")


class SourceRow(TypedDict):
    text: str
    label: str
    fields: dict[str, str]  # the other columns


class PlacedRow(SourceRow):
    place: str  # in its file


@dataclass(frozen=True)
class Columns:
    text: str
    label: str | None  # None: rows to be answered, whatever else stands in them


class BadRows:
    """Of one source: how many there are, and what is wrong with the first of them."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.count = 0
        self.first: list[str] = []

    def add(self, reason: str) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(reason)

    def complain(self, on_bad_row: str, any_left: bool) -> None:
        """Unless they are to be skipped and others are left."""
        if self.count and (on_bad_row == "error" or not any_left):
            more = self.count - len(self.first)
            shown = "; ".join(self.first) + (f"; and {more} more" if more else "")
            remedy = "Mend them or set data.on_bad_row=skip" if any_left else "No row is left"
            count = "1 bad row" if self.count == 1 else f"{self.count} bad rows"
            raise UserMistake(f"{self.source} has {count}: {shown}. {remedy}.")


class UsableRows(Iterable[R]):
    """What `row_of(record, place)` makes of each record of a table, as they are asked for; a string says why
    it can make nothing of it. Once all have been asked for, `bad` is complete.
    """

    def __init__(self, table: Table, row_of: Callable[[dict[str, object], str], R | str]) -> None:
        self.table = table
        self.row_of = row_of
        self.bad = BadRows(table.name)

    def __iter__(self) -> Iterator[R]:
        for number, record in self.table.records:
            place = f"{self.table.unit} {number}"
            row = record if isinstance(record, str) else self.row_of(record, place)
            if isinstance(row, str):
                self.bad.add(f"{place}: {row}")
            else:
                yield row


def clean_rows(
    table: Table,
    columns: Columns,
    labels: Collection[str] | None,
    needed: Collection[str] = (),
) -> UsableRows[SourceRow]:
    """`labels` are the ones allowed, None allows any. Each row must have the columns `needed`, as far as any
    row has them.
    """
    needed = [name for name in needed if name not in ("text", columns.text, columns.label)]
    if needed:
        offered = _columns(table)
        needed = [name for name in needed if name in offered]
    if table.columns is not None:
        for key, name in (("text_column", columns.text), ("label_column", columns.label)):
            if name is not None and name not in table.columns:
                raise UserMistake(f"{table.name} {missing(name, table.columns)}; set data.{key}.")
    return UsableRows(table, lambda record, place: clean_row(record, columns, labels, needed))


def _columns(table: Table) -> Collection[str]:
    """Where the format does not declare them, all rows have to be looked at."""
    if table.columns is not None:
        return table.columns
    return {name for _, record in table.records if isinstance(record, dict) for name in record}


def clean_row(
    record: Record, columns: Columns, labels: Collection[str] | None, needed: Collection[str] = ()
) -> SourceRow | str:
    """The row, or why there is none."""
    if isinstance(record, str):
        return record
    for name in (columns.text, columns.label):
        if name is not None and name not in record:
            return missing(name, record)
    values = {name: _as_text(value) for name, value in record.items() if not _is_nothing(value)}
    for value in values.values():
        if problem := problem_with_text(value):
            return problem
    text = values.pop(columns.text, "").strip()
    label = values.pop(columns.label, "").strip() if columns.label is not None else ""
    for name, column in (("text", columns.text), ("label", columns.label)):
        given = record[column] if column is not None else None
        if given is not None and not isinstance(given, str | int | float):
            return f"the {name} is a {type(given).__name__}, not a string"
    if not text:
        return "empty text"
    if columns.label is not None and not label:
        return "no label"
    if labels is not None and label not in labels:
        return f"the label {label!r} is none of {', '.join(labels)}"
    row = SourceRow(text=text, label=label, fields=values)
    return lacking(row, needed) or row


def lacking(row: SourceRow, needed: Collection[str]) -> str | None:
    empty = [name for name in needed if name not in row["fields"]]
    return f"nothing in the column {empty[0]!r}, which the template names" if empty else None


def missing(name: str, columns: Collection[str]) -> str:
    nearest = get_close_matches(name, columns, n=1)
    if nearest:
        return f"has no column {name!r} (nearest: {nearest[0]!r})"
    return f"has no column {name!r} (it has {', '.join(map(repr, columns)) or 'none'})"


def _is_nothing(value: object) -> bool:
    """Missing; what writes tables says so by NaN, the one value that differs from itself."""
    return value is None or (isinstance(value, float) and value != value)


def _as_text(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
