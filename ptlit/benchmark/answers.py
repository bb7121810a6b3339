"""What lives in a worker that uses a finished prompt: it names the labels of texts, or writes on."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from pkgutil import resolve_name

import torch

from ptlit.benchmark.case import Node, Nodes, made
from ptlit.benchmark.clock import Spent, peak_mb, spent
from ptlit.lm import FrozenLM

ANSWERERS = {
    "ptlit": "ptlit.benchmark.engines.own_answers.OwnAnswers",
    "peft": "ptlit.benchmark.engines.peft_answers.PeftAnswers",
    "peft_one_by_one": "ptlit.benchmark.engines.peft_answers.OneByOne",
}
Texts = Sequence[Sequence[int]]  # token ids
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Questions:
    """Texts in batches, and what is asked about them."""

    batches: list[list[list[int]]]
    labels: tuple[Tokens, ...]
    new_tokens: int


class Answers(ABC):
    """Interface: what an engine says of a batch of texts."""

    @abstractmethod
    def begin(self) -> None:
        """A pass through all texts begins."""

    @abstractmethod
    def classify(self, texts: Texts) -> list[Tokens]:
        """The label of each text, as tokens; or what the engine said instead of a label."""

    @abstractmethod
    def generate(self, texts: Texts) -> list[Tokens]:
        """The most likely tokens after each text."""


class AnswersAtWork:
    def __init__(
        self, engine: str, task: str, nodes: Nodes, adapter: Path, prompt: Node, questions: Questions
    ):
        self.device, self.questions = torch.device(nodes.device), questions
        self.lm: FrozenLM = made(nodes.model).to(self.device)
        self.engine: Answers = resolve_name(ANSWERERS[engine])(self.lm, adapter, prompt, questions)
        self.answer = self.engine.classify if task == "classification" else self.engine.generate
        self.loaded_mb = peak_mb(self.device)
        self.answers: dict[int, list[Tokens]] = {}

    def step(self, index: int) -> Spent:
        def work() -> None:
            if index == 0:
                self.engine.begin()
            self.answers[index] = self.answer(self.questions.batches[index])

        return spent(work, self.device)

    def said(self) -> list[Tokens]:
        return [answer for _, batch in sorted(self.answers.items()) for answer in batch]

    def peaks_mb(self) -> tuple[float, float]:
        """Before the first step, and by now."""
        return self.loaded_mb, peak_mb(self.device)


def left_padded(texts: Texts, pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (B, T), as generation wants them."""
    longest = max(map(len, texts))
    ids = torch.tensor([[pad] * (longest - len(text)) + list(text) for text in texts], device=device)
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts], device=device)
    return ids, mask


def cut_at_end(new: Sequence[int], end: int | None) -> Tokens:
    """Without the end of the text and the padding after it."""
    return tuple(takewhile(lambda token: token != end, new))
