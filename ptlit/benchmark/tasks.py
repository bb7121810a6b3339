"""What lives in a worker that answers for several tasks, each with a prompt of its own on the same LM."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import torch

from ptlit.benchmark.answers import Questions, Texts, Tokens
from ptlit.benchmark.case import Node, Nodes, made
from ptlit.benchmark.clock import Spent, peak_mb, spent
from ptlit.lm import FrozenLM

SERVERS = {
    "ptlit": "ptlit.benchmark.engines.own_tasks.OneBatch",
    "ptlit by task": "ptlit.benchmark.engines.own_tasks.TaskByTask",
    "peft by task": "ptlit.benchmark.engines.peft_tasks.Switching",
}


class Server(ABC):
    """Interface: what an engine with several prompts says of a batch of texts."""

    @abstractmethod
    def __init__(self, lm: FrozenLM, adapters: Sequence[Path], prompt: Node, labels: Sequence[Tokens]): ...

    @abstractmethod
    def begin(self) -> None:
        """A pass through all texts begins."""

    @abstractmethod
    def scores(self, texts: Texts, tasks: Sequence[int]) -> torch.Tensor:
        """Log-probability of each label after each text, (B, C), behind the prompt of the text's task."""


class TasksAtWork:
    def __init__(
        self, engine: str, nodes: Nodes, adapters: Sequence[Path], prompt: Node, questions: Questions
    ):
        self.device, self.questions, self.tasks = torch.device(nodes.device), questions, len(adapters)
        self.lm: FrozenLM = made(nodes.model).to(self.device)
        self.engine: Server = resolve_name(SERVERS[engine])(self.lm, adapters, prompt, questions.labels)
        self.loaded_mb = peak_mb(self.device)
        self.found: dict[int, torch.Tensor] = {}

    def step(self, index: int) -> Spent:
        texts = self.questions.batches[index]
        tasks = [place % self.tasks for place in range(len(texts))]

        def work() -> None:
            if index == 0:
                self.engine.begin()
            self.found[index] = self.engine.scores(texts, tasks).cpu()

        return spent(work, self.device)

    def probabilities(self) -> np.ndarray:
        """Of the labels after all texts, (texts, C)."""
        scores = [batch for _, batch in sorted(self.found.items())]
        return torch.cat(scores).float().softmax(1).numpy()

    def peaks_mb(self) -> tuple[float, float]:
        """Before the first step, and by now."""
        return self.loaded_mb, peak_mb(self.device)


def rows_of(tasks: Sequence[int]) -> dict[int, list[int]]:
    """Of each task that has any."""
    return {task: [row for row, each in enumerate(tasks) if each == task] for task in dict.fromkeys(tasks)}
