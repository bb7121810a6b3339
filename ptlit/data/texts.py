"""A file of texts to be answered, however long: it is gone through several times and never held."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ptlit.data.formats import Record, stream_table
from ptlit.data.outputs import ColumnTypes
from ptlit.data.rows import SHOWN, Columns, SourceRow, clean_row, lacking, missing
from ptlit.data.templates import Template
from ptlit.mistake import UserMistake

Numbered = Sequence[tuple[int, SourceRow]]  # rows with their numbers in the file, from 0


@dataclass
class Survey:
    """What has to be known of a file before its first text is answered."""

    columns: ColumnTypes
    rows: int = 0
    usable: list[int] = field(default_factory=list)  # rows of each chunk
    bad: int = 0
    reasons: list[str] = field(default_factory=list)  # of the first bad rows
    without_room: set[int] = field(default_factory=set)  # bad ones that only their tokens tell, by number

    def bad_rows(self) -> str:
        more = f"; and {self.bad - SHOWN:,} more" if self.bad > SHOWN else ""
        return f"{self.bad:,} bad row{'s' if self.bad > 1 else ''}: {'; '.join(self.reasons)}{more}"

    def add_bad(self, reason: str) -> None:
        self.bad += 1
        if len(self.reasons) < SHOWN:
            self.reasons.append(reason)


@dataclass(frozen=True)
class TextFile:
    """Each row is read through the template of the run that its `run_column` names; without such a column
    all are read through the only one.
    """

    path: Path
    templates: Mapping[str, Template]  # by the names of the runs
    text_column: str = "text"
    encoding: str | None = None
    run_column: str | None = None

    def rows(self) -> Iterator[tuple[str, Record, SourceRow | str]]:
        """Where each record stands, the record, and its row or why there is none."""
        table = stream_table(self.path, self.encoding)
        if table.columns is not None:
            self._check_columns(table.name, table.columns)
        for number, record in table.records:
            yield f"{table.unit} {number}", record, self._row(record)

    def run_of(self, row: SourceRow) -> str:
        if self.run_column is None:
            (name,) = self.templates
            return name
        return row["fields"].get(self.run_column, "").strip()

    def _check_columns(self, title: str, columns: Sequence[str]) -> None:
        remedies = {self.text_column: "; set text_column"}
        if self.run_column is not None:  # what a run's template names has to be in its rows alone
            remedies[self.run_column] = "; set run_column"
        else:
            (name,) = self.templates
            remedies |= dict.fromkeys(self._needed(name), ", which the template names")
        for name, remedy in remedies.items():
            if name not in columns:
                raise UserMistake(f"{title} {missing(name, columns)}{remedy}.")

    def _row(self, record: Record) -> SourceRow | str:
        row = clean_row(record, Columns(self.text_column, None), None)
        if isinstance(row, str):
            return row
        name = self.run_of(row)
        if name not in self.templates:
            said = f"the run {name!r}" if name else "nothing"
            return f"{said} in the column {self.run_column!r}, not one of {', '.join(self.templates)}"
        return lacking(row, self._needed(name)) or row

    def _needed(self, name: str) -> list[str]:
        return list(self.templates[name].other_fields)

    def survey(
        self, chunk_size: int, without_room: Callable[[Numbered], Mapping[int, str]] = lambda rows: {}
    ) -> Survey:
        """`without_room` says which rows are too long to be read, and why."""
        found = Survey(ColumnTypes.of(self.path))
        rows = self.rows()
        while here := list(islice(rows, chunk_size)):
            numbered = list(enumerate(here, start=found.rows))
            too_long = without_room([(i, row) for i, (_, _, row) in numbered if not isinstance(row, str)])
            found.without_room.update(too_long)
            found.usable.append(0)
            for i, (place, record, row) in numbered:
                if not isinstance(record, str):
                    found.columns.see(record)
                if isinstance(row, str) or i in too_long:
                    found.add_bad(f"{place}: {row if isinstance(row, str) else too_long[i]}")
                else:
                    found.usable[-1] += 1
            found.rows += len(here)
        if not found.rows:
            raise UserMistake(f"{self.path} is empty: it holds no row.")
        return found
