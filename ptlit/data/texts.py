"""A file of texts to be answered, however long: it is gone through several times and never held."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ptlit.data.formats import Record, stream_table
from ptlit.data.outputs import ColumnTypes
from ptlit.data.rows import SHOWN, Columns, SourceRow, clean_row, missing
from ptlit.data.templates import Template
from ptlit.mistake import UserMistake


@dataclass
class Survey:
    """What has to be known of a file before its first text is answered."""

    columns: ColumnTypes
    rows: int = 0
    usable: list[int] = field(default_factory=list)  # rows of each chunk
    bad: int = 0
    reasons: list[str] = field(default_factory=list)  # of the first bad rows

    def bad_rows(self) -> str:
        more = f"; and {self.bad - SHOWN:,} more" if self.bad > SHOWN else ""
        return f"{self.bad:,} bad row{'s' if self.bad > 1 else ''}: {'; '.join(self.reasons)}{more}"


@dataclass(frozen=True)
class TextFile:
    path: Path
    template: Template
    text_column: str = "text"
    encoding: str | None = None

    def rows(self) -> Iterator[tuple[str, Record, SourceRow | str]]:
        """Where each record stands, the record, and its row or why there is none."""
        table = stream_table(self.path, self.encoding)
        columns = Columns(self.text_column, None)
        needed = [name for name in self.template.fields if name != "text"]
        for name in [self.text_column, *needed] if table.columns is not None else []:
            if name not in (table.columns or ()):
                remedy = "; set text_column" if name == self.text_column else ", which the template names"
                raise UserMistake(f"{table.name} {missing(name, table.columns or ())}{remedy}.")
        for number, record in table.records:
            yield f"{table.unit} {number}", record, clean_row(record, columns, None, needed)

    def survey(self, chunk_size: int) -> Survey:
        found = Survey(ColumnTypes.of(self.path))
        for place, record, row in self.rows():
            if found.rows % chunk_size == 0:
                found.usable.append(0)
            found.rows += 1
            if not isinstance(record, str):
                found.columns.see(record)
            if not isinstance(row, str):
                found.usable[-1] += 1
                continue
            found.bad += 1
            if len(found.reasons) < SHOWN:
                found.reasons.append(f"{place}: {row}")
        if not found.rows:
            raise UserMistake(f"{self.path} is empty: it holds no row.")
        return found
