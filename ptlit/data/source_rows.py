"""Rows as they were read, a million of them: on disk, but for the two numbers that splits ask of each."""

import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy

from ptlit.data.shelf import Shelf, Shelved
from ptlit.data.splitting import Places, Traits, key_of

R = TypeVar("R")
GROUP = 1024  # rows that are written together


class SourceRows(Shelved[R], Generic[R]):
    def __init__(self, source: str, shelf: Shelf, traits: Traits, places: Places) -> None:
        self.source = source  # as the user named it
        self.shelf = shelf
        self.traits = traits
        self.places = places  # on the shelf

    def at(self, chosen: Places) -> "SourceRows[R]":
        return SourceRows(self.source, self.shelf, self.traits.at(chosen), self.places[chosen])

    def shown(self, show: Callable[[R], Any]) -> "ShownRows":
        return ShownRows(self.shelf, self.places, show)

    def __len__(self) -> int:
        return len(self.places)

    def _at(self, place: int) -> R:
        row: R = json.loads(self.shelf[self.places[place]])
        return row


class ShownRows(Shelved[Any]):
    """The same as a person would look at them."""

    def __init__(self, shelf: Shelf, places: Places, show: Callable[[Any], Any]) -> None:
        self.shelf = shelf
        self.places = places
        self.show = show

    def __len__(self) -> int:
        return len(self.places)

    def _at(self, place: int) -> Any:
        return self.show(json.loads(self.shelf[self.places[place]]))


def put_on_disk(
    source: str, rows: Iterable[R], seed: int, text: Callable[[R], str], stratum: Callable[[R], str]
) -> SourceRows[R]:
    """What makes two rows copies of each other is `text`; splits take the same share of each `stratum`."""
    shelf, keys, strata, numbers = Shelf(), array("Q"), array("i"), dict[str, int]()
    for group in _groups(rows):
        shelf.extend(json.dumps(row).encode() for row in group)
        keys.extend(key_of(text(row), seed) for row in group)
        strata.extend(numbers.setdefault(stratum(row), len(numbers)) for row in group)
    traits = Traits(numpy.array(keys), numpy.array(strata), tuple(numbers))
    return SourceRows(source, shelf, traits, numpy.arange(len(shelf), dtype=numpy.int32))


def _groups(rows: Iterable[R]) -> Iterator[list[R]]:
    remaining = iter(rows)
    while group := list(islice(remaining, GROUP)):
        yield group
