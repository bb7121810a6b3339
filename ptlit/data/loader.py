"""A DataLoader that knows how far it is, so that a run stopped within an epoch just goes on."""

from collections.abc import Iterator, Sequence
from typing import TypedDict

import torch
from torch.utils.data import DataLoader

from ptlit.data.collate import Batch, Collate, IndexedRow
from ptlit.data.sampler import Batches


class Progress(TypedDict):
    epoch: int
    batches: int


class ResumableLoader(DataLoader[Batch]):
    """Lightning stores `state_dict()` in its checkpoints.

    The generator is the loader's own, so nothing that happens elsewhere, a validation included, moves it.
    """

    def __init__(
        self,
        rows: Sequence[IndexedRow],
        batches: Batches,
        collate: Collate,
        *,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        super().__init__(
            rows,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=num_workers,
            generator=generator,
        )
        self.batches = batches
        self.yielded = 0
        self.resumed: Progress | None = None

    def state_dict(self) -> Progress:
        return Progress(epoch=self.batches.epoch, batches=self.yielded % max(len(self), 1))

    def load_state_dict(self, state: Progress) -> None:
        self.resumed = state
        self.batches.set_epoch(state["epoch"])
        self.yielded = state["batches"]

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator, so that nothing is decided before the first batch is asked for: Lightning makes the
        # iterator first and announces the epoch afterwards. What is left of another epoch is not made up for.
        resumed, self.resumed = self.resumed, None
        here = resumed is not None and resumed["epoch"] == self.batches.epoch
        self.yielded = self.batches.start = resumed["batches"] if resumed is not None and here else 0
        for batch in super().__iter__():
            self.yielded += 1
            yield batch
