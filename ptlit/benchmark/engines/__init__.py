"""Ways to train on a batch, behind one interface; named in ENGINES, or by a dotted name of your own."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from ptlit.benchmark.case import Row
from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.products import restore
from ptlit.prompt import SoftPrompt
from ptlit.signature import guess

# Names, not functions: a worker imports what its own engine needs, and no more.
ENGINES = {
    "ptlit": "ptlit.benchmark.engines.own.ptlit",
    "ptlit_recomputing": "ptlit.benchmark.engines.own.ptlit_recomputing",
    "ptlit_compiled": "ptlit.benchmark.engines.own.ptlit_compiled",
    "ptlit_concatenated": "ptlit.benchmark.engines.own.ptlit_concatenated",
    "peft": "ptlit.benchmark.engines.of_peft.peft",
    "peft_trainer": "ptlit.benchmark.engines.hf_trainer.peft_trainer",
    "lora": "ptlit.benchmark.engines.of_peft.lora",
    "full": "ptlit.benchmark.engines.full.full",
}
NEED_PEFT = ("peft", "peft_trainer", "lora")
WITHOUT_PROMPT = ("lora", "full")  # for context: they train something else

Rows = Sequence[Row]


def checked_engines(key: str, names: list[str]) -> list[str]:
    for name in names:
        if name not in ENGINES and "." not in name:
            raise UserMistake(f"benchmark.{key}: {name} is no engine: {guess(name, list(ENGINES))}")
    if not set(names) - set(WITHOUT_PROMPT):
        raise UserMistake(f"benchmark.{key}={names} has to name an engine that trains a soft prompt.")
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class Setup:
    """What an engine is given."""

    lm: FrozenLM
    prompt: SoftPrompt | None  # on the LM's device, at its start
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    batches: Sequence[Rows]  # all that it will meet, in this order, round and round

    @property
    def plain_model(self) -> PreTrainedModel:
        """The LM without anything of ptlit's in it."""
        restore(self.lm.model)
        return self.lm.model


class Engine(ABC):
    """Interface."""

    @abstractmethod
    def judge(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss without dropout, and the gradient of all that is learned, by name; nothing is changed."""

    @abstractmethod
    def step(self, rows: Rows) -> None:
        """One optimizer step."""


class PlainLoop(Engine):
    """Forward, backward, step: the loop that everybody writes, around a function from rows to their loss."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Rows], Tensor],
        learned: Mapping[str, nn.Parameter],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    ):
        self.model, self.loss, self.learned = model.train(), loss, dict(learned)
        self.optimizer = optimizer(self.learned.values())

    def judge(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        return judged(self.model, self.loss, self.learned, rows)

    def step(self, rows: Rows) -> None:
        self.loss(rows).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def judged(
    model: nn.Module, loss: Callable[[Rows], Tensor], learned: Mapping[str, nn.Parameter], rows: Rows
) -> tuple[Tensor, dict[str, Tensor]]:
    model.eval()
    value = loss(rows)
    gradients = torch.autograd.grad(value, list(learned.values()))
    model.train()
    return value.detach(), dict(zip(learned, gradients, strict=True))
