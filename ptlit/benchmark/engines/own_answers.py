"""ptlit with a finished prompt: one prefix for a whole pass, and labels scored by reading the text once."""

from pathlib import Path

import torch

from ptlit.benchmark.answers import Answers, Questions, Texts, Tokens, cut_at_end, left_padded
from ptlit.benchmark.case import Node, made
from ptlit.kept_memory import keep_freed_memory
from ptlit.lm import FrozenLM
from ptlit.peft_format import read_adapter, read_config
from ptlit.prefix import Prefix
from ptlit.prompted_lm import PromptedLM


class OwnAnswers(Answers):
    def __init__(self, lm: FrozenLM, adapter: Path, prompt: Node, questions: Questions):
        keep_freed_memory()  # as the commands do
        own = made(prompt, shape=lm.shape)
        read_adapter(adapter, own)
        self.lm, self.questions = lm, questions
        leading = read_config(adapter)["leading"]
        self.prompted_lm = PromptedLM(lm, own.eval().to(lm.device), leading=leading)
        self.prefix: Prefix | None = None

    @torch.no_grad()
    def begin(self) -> None:
        self.prefix = self.prompted_lm.prefix()

    @torch.no_grad()
    def classify(self, texts: Texts) -> list[Tokens]:
        ids, mask = right_padded(texts, self.lm.device)
        scores = self.prompted_lm.label_scores(ids, mask, self.questions.labels, self.prefix)
        return [self.questions.labels[best] for best in scores.argmax(1).tolist()]

    def generate(self, texts: Texts) -> list[Tokens]:
        end = self.lm.model.generation_config.eos_token_id
        ids, mask = left_padded(texts, end or 0, self.lm.device)
        written = self.prompted_lm.generate(
            ids, mask, self.prefix, max_new_tokens=self.questions.new_tokens, do_sample=False
        )
        return [cut_at_end(row, end) for row in written[:, ids.shape[1] :].tolist()]


def right_padded(texts: Texts, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (B, T), as scoring wants them."""
    ids, mask = left_padded([text[::-1] for text in texts], 0, device)
    return ids.flip(1), mask.flip(1)
