"""PEFT with an adapter for each task: it switches to one, reads the rows of that task, and so on."""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel

from ptlit.benchmark.answers import Texts, Tokens
from ptlit.benchmark.case import Node
from ptlit.benchmark.tasks import Server, rows_of
from ptlit.lm import FrozenLM
from ptlit.products import restore


class Switching(Server):
    def __init__(self, lm: FrozenLM, adapters: Sequence[Path], prompt: Node, labels: Sequence[Tokens]):
        self.device, self.heads = lm.device, [token for (token,) in labels]
        restore(lm.model)
        self.model = PeftModel.from_pretrained(lm.model, str(adapters[0]), adapter_name="0").eval()
        for task, adapter in enumerate(adapters[1:], start=1):
            self.model.load_adapter(str(adapter), adapter_name=str(task))

    def begin(self) -> None:
        """It computes the virtual tokens anew for every batch."""

    @torch.no_grad()
    def scores(self, texts: Texts, tasks: Sequence[int]) -> torch.Tensor:
        """Of labels of one token: the texts are of one length, so all are said at the last position."""
        found = torch.zeros(len(texts), len(self.heads), device=self.device)
        for task, rows in rows_of(tasks).items():
            self.model.set_adapter(str(task))
            ids = torch.tensor([list(texts[row]) for row in rows], device=self.device)
            read = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            logits = self.model(**read, logits_to_keep=1).logits[:, -1]  # (rows, V)
            found[rows] = logits.float().log_softmax(-1)[:, self.heads]
        return found
