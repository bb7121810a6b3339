"""One thing that the quality benchmark tries, and what it is tried with; all of it fits through a pipe."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """`method` is None where no prompt is trained, `lr` where the method's own experiment says it, or where
    nothing is trained, and `fold` where nothing is folded.
    """

    engine: str
    method: str | None
    lr: float | None
    seed: int
    fold: int | None

    def __str__(self) -> str:
        lr = f" at {self.lr:g}" if self.lr is not None else ""
        fold = f", fold {self.fold}" if self.fold is not None else ""
        return f"{self.engine}{f' {self.method}' if self.method else ''}{lr}, seed {self.seed}{fold}"


@dataclass(frozen=True)
class Plan:
    """What all trials have in common."""

    examples: int | None  # to train on, one after the other
    epochs: int | None  # or so many times through all rows
    batch_size: int | None  # of all; None: what an experiment says, and 8 of those that have none
    validate_every: int  # examples
    num_virtual_tokens: int
    shots: int  # rows of each label that stand in the context
    limit: int | None  # training rows
    val_limit: int | None
    test_limit: int | None
    folds: int | None  # of the training rows, one of which is tested on; nothing is then validated

    def examples_of(self, rows: int) -> int:
        return self.examples if self.examples is not None else (self.epochs or 1) * rows

    def batch_of(self, recipe: "Recipe | None") -> int:
        return self.batch_size or (recipe["batch_size"] if recipe is not None else USUAL_BATCH)


Recipe = dict[str, Any]  # of an experiment: prompt, optim, schedule, trainer, loss, averaging, batch_size

USUAL_BATCH = 8
