"""What lives in a worker: an engine with the LM, the prompt and the rows it is measured on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ptlit.benchmark.case import Node, Nodes, Row, made
from ptlit.benchmark.clock import Spent, peak_mb, spent
from ptlit.benchmark.engines import ENGINES, Engine, Setup
from ptlit.benchmark.limit import necessary_operations
from ptlit.lm import FrozenLM
from ptlit.prompt import SoftPrompt


@dataclass(frozen=True)
class Judgement:
    """What an engine makes of its first batch, before any step."""

    loss: float
    gradients: dict[str, Any]  # numpy arrays; empty where no prompt is trained
    dtype: str
    operations: float | None  # necessary for all batches once
    loaded_mb: float  # the memory's peak before that


class EngineAtWork:
    def __init__(self, engine: str, nodes: Nodes, prompt: Node | None, batches: Sequence[Sequence[Row]]):
        def optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
            return made(nodes.optim, params=list(parameters))

        self.batches, self.device = batches, torch.device(nodes.device)
        self.lm: FrozenLM = made(nodes.model).to(self.device)
        torch.manual_seed(nodes.seed)
        self.prompt: SoftPrompt | None = made(prompt, shape=self.lm.shape) if prompt is not None else None
        if self.prompt is not None:
            self.prompt.to(self.device)
        self.engine: Engine = resolve_name(ENGINES.get(engine, engine))(
            Setup(self.lm, self.prompt, optimizer, batches)
        )
        self.loaded_mb = peak_mb(self.device)

    def judge(self) -> Judgement:
        loss, gradients = self.engine.judge(self.batches[0])
        return Judgement(
            loss=float(loss),
            gradients={name: value.float().cpu().numpy() for name, value in gradients.items()}
            if self.prompt is not None
            else {},
            dtype=str(self.lm.dtype).removeprefix("torch."),
            operations=sum(necessary_operations(self.lm, self.prompt, rows) for rows in self.batches)
            if self.prompt is not None
            else None,
            loaded_mb=self.loaded_mb,
        )

    def step(self, index: int) -> Spent:
        return spent(lambda: self.engine.step(self.batches[index]), self.device)

    def peak_mb(self) -> float:
        return peak_mb(self.device)
