"""Rows in tokens, a million of them: four bytes a token, where Python's own lists take ten times that."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import overload

import torch

from ptlit.data.collate import IndexedRow
from ptlit.data.example import NOT_LEARNED, EncodedRow


def _numbers() -> "array[int]":
    return array("i")


@dataclass
class TokenRows(Sequence[IndexedRow]):
    input_ids: "array[int]" = field(default_factory=_numbers)  # of all rows, end to end
    labels: "array[int]" = field(default_factory=_numbers)
    ends: "array[int]" = field(default_factory=lambda: array("q"))  # of each row, in those two
    label: "array[int]" = field(default_factory=_numbers)
    row: "array[int]" = field(default_factory=_numbers)

    def extend(self, rows: Iterable[EncodedRow], places: Iterable[int]) -> None:
        for row, place in zip(rows, places, strict=True):
            self.input_ids.extend(row["input_ids"])
            self.labels.extend(row["labels"])
            self.ends.append(len(self.input_ids))
            self.label.append(row["label"])
            self.row.append(place)

    @property
    def lengths(self) -> list[int]:
        return [end - start for start, end in zip([0, *self.ends], self.ends, strict=False)]

    def common_tokens(self, count: int) -> list[int]:
        """Those that the rows hold most often, the most frequent first."""
        if not self.input_ids:
            return []
        held = torch.frombuffer(self.input_ids, dtype=torch.int32)
        counts = held[held >= 0].bincount()  # below are the places of virtual tokens
        order = counts.argsort(descending=True, stable=True)[:count]
        return order[counts[order] > 0].tolist()

    def texts(self, count: int) -> list[list[int]]:
        """The first rows, each as far as the LM reads before it first has to speak."""
        read = [takewhile(lambda pair: pair[1] == NOT_LEARNED, pairs(row)) for row in self[:count]]
        return [text for row in read if (text := [token for token, _ in row if token >= 0])]

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> IndexedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[IndexedRow]: ...
    def __getitem__(self, index: int | slice) -> IndexedRow | list[IndexedRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        here = slice(self.ends[place - 1] if place else 0, self.ends[place])
        return IndexedRow(
            input_ids=self.input_ids[here].tolist(),
            labels=self.labels[here].tolist(),
            label=self.label[place],
            row=self.row[place],
        )


def pairs(row: EncodedRow) -> Iterator[tuple[int, int]]:
    """Every token with its label."""
    return zip(row["input_ids"], row["labels"], strict=True)
