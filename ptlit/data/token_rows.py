"""Rows in tokens, a million of them: on disk, but for where each ends and its label."""

from array import array
from collections.abc import Iterable, Iterator
from itertools import takewhile

import numpy
from numpy.typing import NDArray

from ptlit.data.collate import IndexedRow
from ptlit.data.example import NOT_LEARNED, EncodedRow
from ptlit.data.shelf import Shelf, Shelved

SIZE = array("i").itemsize
TOGETHER = 1024  # rows that are counted together


class TokenRows(Shelved[IndexedRow]):
    def __init__(self) -> None:
        self.shelf = Shelf()  # of each row `row`, its ids and their labels
        self.label = array("i")

    def extend(self, rows: Iterable[EncodedRow], places: Iterable[int]) -> None:
        self.shelf.extend(self._records(rows, places))

    def _records(self, rows: Iterable[EncodedRow], places: Iterable[int]) -> Iterator[bytes]:
        for row, place in zip(rows, places, strict=True):
            self.label.append(row["label"])
            yield array("i", [place, *row["input_ids"], *row["labels"]]).tobytes()

    @property
    def lengths(self) -> NDArray[numpy.int32]:
        sizes = numpy.diff(numpy.array(self.shelf.ends), prepend=0) // SIZE
        return ((sizes - 1) // 2).astype(numpy.int32)

    def common_tokens(self, count: int) -> list[int]:
        """Those that the rows hold most often, the most frequent first."""
        counts = numpy.zeros(0, numpy.int64)
        for start in range(0, len(self), TOGETHER):
            places = range(start, min(start + TOGETHER, len(self)))
            held = numpy.concatenate([self._input_ids(place) for place in places])
            here = numpy.bincount(held[held >= 0], minlength=len(counts))  # below are those of virtual tokens
            here[: len(counts)] += counts
            counts = here
        order = numpy.argsort(-counts, kind="stable")[:count]
        return order[counts[order] > 0].tolist()

    def texts(self, count: int) -> list[list[int]]:
        """The first rows, each as far as the LM reads before it first has to speak."""
        read = [takewhile(lambda pair: pair[1] == NOT_LEARNED, pairs(row)) for row in self[:count]]
        return [text for row in read if (text := [token for token, _ in row if token >= 0])]

    def __len__(self) -> int:
        return len(self.shelf)

    def _input_ids(self, place: int) -> NDArray[numpy.int32]:
        numbers = numpy.frombuffer(self.shelf[place], numpy.int32)
        return numbers[1 : (len(numbers) + 1) // 2]

    def _at(self, place: int) -> IndexedRow:
        numbers = array("i", self.shelf[place]).tolist()
        middle = (len(numbers) + 1) // 2
        return IndexedRow(
            input_ids=numbers[1:middle],
            labels=numbers[middle:],
            label=self.label[place],
            row=numbers[0],
        )


def pairs(row: EncodedRow) -> Iterator[tuple[int, int]]:
    """Every token with its label."""
    return zip(row["input_ids"], row["labels"], strict=True)
