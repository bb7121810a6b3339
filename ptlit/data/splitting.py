"""Rows set aside and rows left out: both stratified, both the same for the same seed.

Of each row only two numbers are asked for, so that it does not matter how many there are.
"""

import hashlib
import random
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

HELD_OUT = 0.1  # of each stratum (a label), for val and for test

Places = NDArray[numpy.integer]


def same_text(text: str) -> str:
    """Equal for copies of one text that differ in case, spacing or punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def key_of(text: str, seed: int) -> int:
    """The same for copies of a text; which of two texts has the smaller one is chance, and the seed's."""
    return int.from_bytes(hashlib.sha256(f"{seed} {same_text(text)}".encode()).digest()[:8], "big")


@dataclass(frozen=True)
class Traits:
    keys: NDArray[numpy.uint64]  # (N,) of `key_of`
    strata: Places  # (N,) places in `names`
    names: tuple[str, ...]

    def at(self, places: Places) -> "Traits":
        return Traits(self.keys[places], self.strata[places], self.names)

    def counts(self) -> dict[str, int]:
        """Rows of each stratum that has any."""
        found = numpy.bincount(self.strata, minlength=len(self.names)).tolist()
        return {name: count for name, count in zip(self.names, found, strict=True) if count}


def split_by_content(rows: Traits, wanted: Sequence[str]) -> dict[str, Places]:
    """The places of train and of the `wanted` of val and test; copies of one text land in one split."""
    texts, text_of = _by_stratum(rows)
    split_of = numpy.zeros(len(rows.keys), numpy.int8)  # of each text; 0 is train
    for some in texts:
        count = max(1, round(len(some) * HELD_OUT)) if len(some) > len(wanted) else 0
        for i in range(len(wanted)):
            split_of[some[i * count : (i + 1) * count]] = i + 1
    return {split: numpy.flatnonzero(split_of[text_of] == i) for i, split in enumerate(("train", *wanted))}


def fold_by_content(rows: Traits, folds: int, fold: int) -> tuple[Places, Places]:
    """The places of the other folds, and of one of `folds` equal parts; copies of one text share a fold."""
    texts, text_of = _by_stratum(rows)
    chosen = numpy.zeros(len(rows.keys), bool)
    chosen[numpy.concatenate(texts)[fold::folds]] = True  # dealt out like cards, stratum after stratum
    return numpy.flatnonzero(~chosen[text_of]), numpy.flatnonzero(chosen[text_of])


def _by_stratum(rows: Traits) -> tuple[list[Places], Places]:
    """The distinct texts of each stratum, numbered in the order of their keys; and the text of each row.

    Copies belong where most of them do. What comes first in the rows decides between strata.
    """
    _, first, text_of = numpy.unique(rows.keys, return_index=True, return_inverse=True)
    pairs, seen, count = numpy.unique(
        text_of * len(rows.names) + rows.strata, return_index=True, return_counts=True
    )
    text, stratum = numpy.divmod(pairs, len(rows.names))
    usual = numpy.lexsort((seen, -count, text))
    usual = usual[numpy.diff(text[usual], prepend=-1) > 0]  # of each text
    stratum = stratum[usual]
    begins = numpy.full(len(rows.names), len(rows.keys))
    numpy.minimum.at(begins, stratum, first)
    order = numpy.argsort(begins[stratum], kind="stable")
    return numpy.split(order, numpy.flatnonzero(numpy.diff(stratum[order])) + 1), text_of


def few_of_each(rows: Traits, count: int, seed: int) -> Places:
    """So many of every stratum, or all that it has."""
    order, rank = _by_chance(rows, seed)
    return numpy.sort(order[rank < count])


def limited(rows: Traits, limit: int | None, seed: int) -> Places:
    """About the same share of every stratum, and at least one row of each where the limit allows it."""
    if limit is None or limit >= len(rows.keys):
        return numpy.arange(len(rows.keys))
    order, rank = _by_chance(rows, seed)
    strata = rows.strata[order]
    # Each row's rank within its stratum, as a share: the smallest shares are a stratified sample of any size.
    share = (rank + 0.5) / numpy.bincount(strata)[strata]
    by_name = numpy.argsort(numpy.argsort(numpy.array(rows.names, dtype=object)))[strata]
    return numpy.sort(order[numpy.lexsort((order, by_name, share, rank > 0))[:limit]])


def _by_chance(rows: Traits, seed: int) -> tuple[Places, Places]:
    """All rows mixed, and of each its rank among those of its stratum."""
    mixed = array("i", range(len(rows.keys)))
    random.Random(seed).shuffle(mixed)
    order = numpy.array(mixed)
    strata = rows.strata[order]
    together = numpy.argsort(strata, kind="stable")
    starts = numpy.cumsum(numpy.bincount(strata)) - numpy.bincount(strata)
    rank = numpy.empty(len(order), numpy.int64)
    rank[together] = numpy.arange(len(order)) - starts[strata[together]]
    return order, rank
