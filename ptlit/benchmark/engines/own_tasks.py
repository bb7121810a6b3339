"""ptlit with a prompt for each task: all rows in one batch, or those of one task after those of another."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ptlit.benchmark.answers import Texts, Tokens
from ptlit.benchmark.case import Node, made
from ptlit.benchmark.engines.own_answers import right_padded
from ptlit.benchmark.tasks import Server, rows_of
from ptlit.data import LabelWords
from ptlit.kept_memory import keep_freed_memory
from ptlit.lm import FrozenLM
from ptlit.many_prompts import ManyPrompts
from ptlit.peft_format import read_adapter
from ptlit.prefix import Prefix
from ptlit.prompted_lm import PromptedLM


class OneBatch(Server):
    def __init__(self, lm: FrozenLM, adapters: Sequence[Path], prompt: Node, labels: Sequence[Tokens]):
        keep_freed_memory()  # as the commands do
        self.prompts = {str(task): each for task, each in enumerate(opened(lm, adapters, prompt))}
        names = tuple(map(str, range(len(labels))))
        self.words = LabelWords(names, tuple((name,) for name in names), tuple(labels), False)
        self.device = lm.device

    def begin(self) -> None:
        self.many = ManyPrompts(self.prompts, dict.fromkeys(self.prompts, self.words))

    def scores(self, texts: Texts, tasks: Sequence[int]) -> torch.Tensor:
        return self.many.label_scores([str(task) for task in tasks], *right_padded(texts, self.device))


class TaskByTask(Server):
    def __init__(self, lm: FrozenLM, adapters: Sequence[Path], prompt: Node, labels: Sequence[Tokens]):
        self.prompts, self.labels, self.device = opened(lm, adapters, prompt), tuple(labels), lm.device

    @torch.no_grad()
    def begin(self) -> None:
        self.prefixes: list[Prefix | None] = [each.prefix() for each in self.prompts]

    @torch.no_grad()
    def scores(self, texts: Texts, tasks: Sequence[int]) -> torch.Tensor:
        found = torch.zeros(len(texts), len(self.labels), device=self.device)
        for task, rows in rows_of(tasks).items():
            read = right_padded([texts[row] for row in rows], self.device)
            found[rows] = self.prompts[task].label_scores(*read, self.labels, self.prefixes[task])
        return found


def opened(lm: FrozenLM, adapters: Sequence[Path], prompt: Node) -> list[PromptedLM]:
    found = []
    for adapter in adapters:
        own = made(prompt, shape=lm.shape)
        read_adapter(adapter, own)
        found.append(PromptedLM(lm, own.eval().to(lm.device)).eval())
    return found
