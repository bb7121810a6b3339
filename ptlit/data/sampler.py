"""Batches of rows, in an order that depends on nothing but the seed and the epoch.

How many batches an epoch has depends on neither, so that a trainer can count on it.
"""

from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy
import torch
import torch.distributed
from numpy.typing import NDArray
from torch.utils.data import Sampler

STEP = 8  # tokens: lengths that `max_tokens` takes for alike
POOL = 50  # batches that are sorted by length together: like lengths within a batch, chance between batches

Places = NDArray[numpy.integer]


class Formed(NamedTuple):
    """Batches as two arrays: a million rows as lists of Python's numbers would fill memory."""

    rows: Places  # batch after batch
    bounds: Places  # where each begins, and where the last one ends

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def batches(self, order: Places) -> Iterator[list[int]]:
        for i in order:
            yield self.rows[self.bounds[i] : self.bounds[i + 1]].tolist()


class Batches(Sampler[list[int]]):
    """With `shuffle` every rank gets equally many batches, without it every row goes to exactly one rank.

    A batch has `batch_size` rows, of like length unless `by_length` is off; or, with `max_tokens`, as many
    rows of like length as that many tokens hold.

    With `classes`, the class of each row, either or both of: `balanced`, where an epoch shows every class
    equally often, as often as the largest has rows, and those of the others come again; `stratified`, where
    every batch has the classes in the shares that the epoch has them in (with `max_tokens`: that the rows of
    its length have them in).
    """

    def __init__(
        self,
        lengths: Sequence[int] | Places,
        batch_size: int,
        *,
        max_tokens: int | None = None,
        by_length: bool = True,
        classes: Sequence[int] | Places | None = None,
        balanced: bool = False,
        stratified: bool = False,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.lengths = numpy.asarray(lengths)
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.by_length = by_length
        self.classes = numpy.zeros_like(self.lengths) if classes is None else numpy.asarray(classes)
        self.balanced, self.stratified = balanced, stratified
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.start = 0  # batches of this rank to leave out: where a resumed run goes on

    @property
    def sampler(self) -> "Batches":
        """Lightning announces the epoch to `batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        rank, world_size = _rank_and_world_size()
        if self.shuffle:
            return -(-self._count // world_size)
        return -(-len(range(rank, len(self.lengths), world_size)) // self.batch_size)

    @cached_property
    def _count(self) -> int:
        """Of the batches of all ranks. Every checkpoint asks; of a million rows it takes half a second."""
        order = self._drawn(numpy.arange(len(self.lengths)))
        return len(self._formed(order, torch.Generator()))

    def __iter__(self) -> Iterator[list[int]]:
        rank, world_size = _rank_and_world_size()
        if not self.shuffle:
            formed = self._longest_first(rank, world_size)
            return formed.batches(numpy.arange(self.start, len(formed)))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = self._drawn(_mixed(len(self.lengths), generator))
        if self.balanced:  # copies of a row stand side by side
            order = order[_mixed(len(order), generator)]
        formed = self._formed(order, generator)
        shared = _mixed(len(formed), generator)
        shared = numpy.resize(shared, -(-len(shared) // world_size) * world_size)  # the first ones come again
        return formed.batches(shared[rank::world_size][self.start :])

    def _drawn(self, order: Places) -> Places:
        """All rows; of smaller classes again and again, each as often as any other, or once more."""
        if not self.balanced:
            return order
        classes = self.classes[order]
        names, first, sizes = numpy.unique(classes, return_index=True, return_counts=True)
        drawn: list[Places] = []
        for name in names[numpy.argsort(first)]:
            rows = order[classes == name]
            times, rest = divmod(sizes.max(), len(rows))
            drawn += [rows] * times
            if self.max_tokens is not None:  # of the same lengths in every epoch: they fill as many batches
                rows = rows[numpy.argsort(self._steps(rows), kind="stable")]
                rows = rows[numpy.arange(rest) * len(rows) // max(rest, 1)]
            drawn.append(rows[:rest])  # else by chance
        return numpy.concatenate(drawn)

    def _formed(self, order: Places, generator: torch.Generator) -> Formed:
        if self.max_tokens is not None:
            return self._filled(order, self.max_tokens, generator)
        if not self.by_length:
            nothing = numpy.zeros_like(order)
            return _chunks(self._spread_out(order, nothing, nothing, generator), self.batch_size)
        rest = len(order) % self.batch_size
        others = order[rest:]
        pools = numpy.arange(len(others)) // (POOL * self.batch_size)
        others = self._spread_out(others, pools, self.lengths[others], generator)
        # A rest by chance, not the longest ones.
        return _chunks(numpy.append(others, order[:rest]), self.batch_size)

    def _filled(self, order: Places, max_tokens: int, generator: torch.Generator) -> Formed:
        """Lengths count as the next multiple of STEP: rows of one step trade places from epoch to epoch, and
        the number of batches stays.
        """
        rows = self._spread_out(order, self._steps(order), numpy.zeros_like(order), generator)
        bounds = array("q")
        taken = max_tokens
        for place, tokens in enumerate((self._steps(rows) * STEP).data):
            if taken + tokens > max_tokens:
                bounds.append(place)
                taken = 0
            taken += tokens
        return Formed(rows, numpy.array([*bounds, len(rows)]))

    def _spread_out(self, order: Places, groups: Places, keys: Places, generator: torch.Generator) -> Places:
        """Group after group, each in the order of its keys. Stratified, the rows of each of its classes are
        in that order, and stand as evenly among the others as they are many, from a first place by chance:
        classes of a single row would else all meet in the middle.
        """
        if not self.stratified:
            return order[numpy.lexsort((keys, groups))]
        classes = self.classes[order]
        ranked = numpy.lexsort((keys, classes, groups))
        new_group, new_class = (numpy.diff(each[ranked], prepend=-1) != 0 for each in (groups, classes))
        first = numpy.flatnonzero(new_group | new_class)
        sizes = numpy.diff(first, append=len(ranked))
        begin = torch.rand(len(first), generator=generator).numpy()
        rank = numpy.arange(len(ranked)) - numpy.repeat(first, sizes)
        place = (rank + numpy.repeat(begin, sizes)) / numpy.repeat(sizes, sizes)
        return order[ranked[numpy.lexsort((ranked, place, groups[ranked]))]]

    def _steps(self, rows: Places) -> Places:
        return -(-self.lengths[rows] // STEP)

    def _longest_first(self, rank: int, world_size: int) -> Formed:
        """If memory does not suffice, it shows in the first batch."""
        order = numpy.argsort(-self.lengths, kind="stable")
        return _chunks(order[rank::world_size], self.batch_size)


def _mixed(count: int, generator: torch.Generator) -> Places:
    found: Places = torch.randperm(count, generator=generator).numpy()
    return found


def _chunks(rows: Places, size: int) -> Formed:
    return Formed(rows, numpy.append(numpy.arange(0, len(rows), size), len(rows)))


def _rank_and_world_size() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
