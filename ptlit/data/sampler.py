"""Batches of rows, in an order that depends on nothing but the seed and the epoch.

How many batches an epoch has depends on neither, so that a trainer can count on it.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
import torch.distributed
from torch.utils.data import Sampler

STEP = 8  # tokens: lengths that `max_tokens` takes for alike
POOL = 50  # batches that are sorted by length together: like lengths within a batch, chance between batches


class Batches(Sampler[list[int]]):
    """With `shuffle` every rank gets equally many batches, without it every row goes to exactly one rank.

    A batch has `batch_size` rows, of like length unless `by_length` is off; or, with `max_tokens`, as many
    rows of like length as that many tokens hold.

    With `classes`, the class of each row, an epoch shows every class equally often: as often as the largest
    has rows, those of the others come again.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        max_tokens: int | None = None,
        by_length: bool = True,
        classes: Sequence[int] | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.by_length = by_length
        self.classes = classes
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
            return -(-len(self._formed(self._drawn(range(len(self.lengths))))) // world_size)
        return -(-len(range(rank, len(self.lengths), world_size)) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rank, world_size = _rank_and_world_size()
        batches = self._shuffled(rank, world_size) if self.shuffle else self._longest_first(rank, world_size)
        return iter(batches[self.start :])

    def _shuffled(self, rank: int, world_size: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = self._drawn(torch.randperm(len(self.lengths), generator=generator).tolist())
        if self.classes is not None:  # copies of a row stand side by side
            order = [order[i] for i in torch.randperm(len(order), generator=generator).tolist()]
        batches = self._formed(order)
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        missing = -len(batches) % world_size
        batches += (batches * world_size)[:missing]
        return batches[rank::world_size]

    def _drawn(self, order: Sequence[int]) -> Sequence[int]:
        """All rows; of smaller classes again and again, each as often as any other, or once more."""
        if self.classes is None:
            return order
        rows_of = defaultdict(list)
        for row in order:
            rows_of[self.classes[row]].append(row)
        most = max(map(len, rows_of.values()))
        drawn: list[int] = []
        for rows in rows_of.values():
            times, rest = divmod(most, len(rows))
            drawn += rows * times
            if self.max_tokens is None:
                drawn += rows[:rest]  # by chance
            else:  # of the same lengths in every epoch, so that they fill as many batches
                rows.sort(key=self._steps)
                drawn += [rows[i * len(rows) // rest] for i in range(rest)]
        return drawn

    def _formed(self, order: Sequence[int]) -> list[list[int]]:
        if self.max_tokens is not None:
            return self._filled(order, self.max_tokens)
        if not self.by_length:
            return _chunks(order, self.batch_size)
        rest = len(order) % self.batch_size
        batches = []
        for pool in _chunks(order[rest:], POOL * self.batch_size):
            batches += _chunks(sorted(pool, key=self.lengths.__getitem__), self.batch_size)
        return batches + _chunks(order[:rest], self.batch_size)  # rows by chance, not the longest ones

    def _filled(self, order: Sequence[int], max_tokens: int) -> list[list[int]]:
        """Lengths count as the next multiple of STEP: rows of one step trade places from epoch to epoch, and
        the number of batches stays.
        """
        batches: list[list[int]] = []
        taken = max_tokens
        for row in sorted(order, key=self._steps):
            tokens = self._steps(row) * STEP
            if taken + tokens > max_tokens:
                batches.append([])
                taken = 0
            batches[-1].append(row)
            taken += tokens
        return batches

    def _steps(self, row: int) -> int:
        return -(-self.lengths[row] // STEP)

    def _longest_first(self, rank: int, world_size: int) -> list[list[int]]:
        """If memory does not suffice, it shows in the first batch."""
        order = sorted(range(len(self.lengths)), key=lambda row: -self.lengths[row])
        return _chunks(order[rank::world_size], self.batch_size)


def _chunks(rows: Sequence[int], size: int) -> list[list[int]]:
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]


def _rank_and_world_size() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
