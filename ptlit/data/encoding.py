"""Source rows to rows in tokens, some thousands at a time."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy
from tqdm import tqdm

from ptlit.data.rows import BadRows
from ptlit.data.source_rows import SourceRows
from ptlit.data.splitting import Places
from ptlit.data.token_cache import TokenCache, Tokens
from ptlit.data.token_rows import TokenRows

R = TypeVar("R")

CHUNK = 4096  # rows that are tokenised together
MANY = 20_000  # rows, from which on one wants to see how far it is


@dataclass
class Encoded:
    """One split in tokens. Rows that turned out bad only now leave no gap: `IndexedRow.row` and `cut` count
    the others.
    """

    bad: BadRows
    tokens: TokenRows = field(default_factory=TokenRows)
    cut: bytearray = field(default_factory=bytearray)  # of each row, whether it was too long
    good: "array[int]" = field(default_factory=lambda: array("i"))  # their places among the source's

    @property
    def places(self) -> Places:
        return numpy.array(self.good)


def encode_rows(
    rows: SourceRows[R],
    tokens_of: Callable[[Sequence[R]], Tokens],
    content: Callable[[R], object],
    cache: TokenCache,
) -> Encoded:
    """`content` is what of a row becomes tokens."""
    done = Encoded(BadRows(rows.source))
    with tqdm(total=len(rows), desc="Tokenising", unit=" rows", disable=len(rows) < MANY) as bar:
        for start in range(0, len(rows), CHUNK):
            here = rows[start : start + CHUNK]
            found = cache.tokens([content(row) for row in here], partial(tokens_of, here))
            bad, cut = dict(found.bad), set(found.cut)
            good = [place for place in range(len(here)) if place not in bad]
            place_of = {place: len(done.good) + i for i, place in enumerate(good)}
            done.tokens.extend(found.rows, [place_of[place] for place in found.places])
            done.good.extend(start + place for place in good)
            done.cut.extend(place in cut for place in good)
            for why in bad.values():
                done.bad.add(why)
            bar.update(len(here))
    return done
