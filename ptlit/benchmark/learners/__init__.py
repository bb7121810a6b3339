"""Who learns from the rows, behind one interface: ptlit, PEFT, the whole LM, and those that learn nothing."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ptlit.benchmark.trial import Plan, Recipe, Trial
from ptlit.data import Batch, TextData
from ptlit.data.collate import IndexedRow
from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.signature import guess

# Names, not functions: a worker imports what its own learner needs, and no more. Told in this order.
LEARNERS = {
    "untrained": "ptlit.benchmark.learners.untaught.Untrained",
    "hard": "ptlit.benchmark.learners.untaught.hard",
    "few_shot": "ptlit.benchmark.learners.untaught.few_shot",
    "majority": "ptlit.benchmark.learners.untaught.Majority",
    "ptlit": "ptlit.benchmark.learners.own.OwnLearner",
    "peft": "ptlit.benchmark.learners.plain.peft",
    "lora": "ptlit.benchmark.learners.plain.lora",
    "full": "ptlit.benchmark.learners.plain.full",
}
NEED_PEFT = ("peft", "lora")
PROMPTS = ("ptlit", "peft")  # train one of the methods
UNTAUGHT = ("untrained", "hard", "few_shot", "majority")
NEED_LABELS = ("hard", "few_shot", "majority")

AfterStep = Callable[[float, list[int]], None]  # is told the loss, and which rows it was of


@dataclass(frozen=True)
class Given:
    """What a learner is given."""

    lm: FrozenLM
    data: TextData[Any]
    rows: Sequence[IndexedRow]  # to learn from
    trial: Trial
    plan: Plan
    recipe: Recipe | None
    steps: int


class Learner(ABC):
    """Interface. All are judged alike, by how likely they think words that they are asked about."""

    model: nn.Module
    learned: Mapping[str, nn.Parameter]

    @abstractmethod
    def fit(self, batches: Iterable[Batch], after_step: AfterStep) -> None:
        """Once through all batches."""

    @abstractmethod
    def word_scores(self, ids: Tensor, mask: Tensor, words: tuple[tuple[int, ...], ...]) -> Tensor:
        """Log-probability of each word's tokens, among all tokens, after right-padded texts: (B, W)."""

    @abstractmethod
    def logits(self, ids: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
        """(N, V), where `keep` (B, T) is True."""

    @abstractmethod
    def begin_judging(self) -> None:
        """Until the next step nothing that is learned changes."""

    def as_kept(self) -> AbstractContextManager[None]:
        """Meanwhile `learned` is what would be kept of this step. For most it always is."""
        return nullcontext()


def checked_learners(names: list[str]) -> list[str]:
    for name in names:
        if name not in LEARNERS:
            raise UserMistake(f"benchmark.engines: {name} is no engine: {guess(name, list(LEARNERS))}")
    if not names:
        raise UserMistake("benchmark.engines=[] names nobody to compare: give [ptlit,peft], for example.")
    return list(dict.fromkeys(names))
