"""Batches of rows of like length, in an order that depends on nothing but the seed and the epoch."""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed
from torch.utils.data import Sampler

POOL = 50  # batches that are sorted by length together: like lengths within a batch, chance between batches


class LengthBucketedBatches(Sampler[list[int]]):
    """With `shuffle` every rank gets equally many batches, without it every row goes to exactly one rank."""

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0
        self.start = 0  # batches of this rank to leave out: where a resumed run goes on

    @property
    def sampler(self) -> "LengthBucketedBatches":
        """Lightning announces the epoch to `batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        rank, world_size = _rank_and_world_size()
        if self.shuffle:
            whole, rest = divmod(len(self.lengths), self.batch_size)
            return -(-(whole + (rest > 0 and not self.drop_last)) // world_size)
        return -(-len(range(rank, len(self.lengths), world_size)) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rank, world_size = _rank_and_world_size()
        batches = self._shuffled(rank, world_size) if self.shuffle else self._longest_first(rank, world_size)
        return iter(batches[self.start :])

    def _shuffled(self, rank: int, world_size: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        rest = len(order) % self.batch_size
        last = [order[:rest]] if rest and not self.drop_last else []  # rows by chance, not the longest ones
        batches = []
        for pool in _chunks(order[rest:], POOL * self.batch_size):
            batches += _chunks(sorted(pool, key=self.lengths.__getitem__), self.batch_size)
        batches += last
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        missing = -len(batches) % world_size
        batches += (batches * world_size)[:missing]
        return batches[rank::world_size]

    def _longest_first(self, rank: int, world_size: int) -> list[list[int]]:
        """If memory does not suffice, it shows in the first batch."""
        order = sorted(range(len(self.lengths)), key=lambda row: -self.lengths[row])
        return _chunks(order[rank::world_size], self.batch_size)


def _chunks(rows: list[int], size: int) -> list[list[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _rank_and_world_size() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
