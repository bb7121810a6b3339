"""PEFT with a finished prompt: it generates, the label of a text too."""

from pathlib import Path

import torch
from peft import PeftModel

from ptlit.benchmark.answers import Answers, Questions, Texts, Tokens, cut_at_end, left_padded
from ptlit.benchmark.case import Node
from ptlit.lm import FrozenLM
from ptlit.peft_format import read_config
from ptlit.products import restore


class PeftAnswers(Answers):
    def __init__(self, lm: FrozenLM, adapter: Path, prompt: Node, questions: Questions):
        self.lm, self.questions = lm, questions
        restore(lm.model)
        self.model = PeftModel.from_pretrained(lm.model, str(adapter)).eval()
        self.held = len(read_config(adapter)["leading"])  # tokens of the text that the adapter brings

    def begin(self) -> None:
        """It computes the virtual tokens anew for every batch."""

    def classify(self, texts: Texts) -> list[Tokens]:
        longest = max(map(len, self.questions.labels))
        said = self._written(texts, longest)
        found = [[label for label in self.questions.labels if new[: len(label)] == label] for new in said]
        return [labels[0] if labels else new for labels, new in zip(found, said, strict=True)]

    def generate(self, texts: Texts) -> list[Tokens]:
        return self._written(texts, self.questions.new_tokens)

    @torch.no_grad()
    def _written(self, texts: Texts, new_tokens: int) -> list[Tokens]:
        end = self.lm.model.generation_config.eos_token_id
        ids, mask = left_padded([text[self.held :] for text in texts], end or 0, self.lm.device)
        written = self.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False
        )
        return [cut_at_end(row, end) for row in written[:, ids.shape[1] :].tolist()]


class OneByOne(PeftAnswers):
    """As its tutorials read texts, and everybody who has no batches of one length."""

    def _written(self, texts: Texts, new_tokens: int) -> list[Tokens]:
        return [tokens for text in texts for tokens in super(OneByOne, self)._written([text], new_tokens)]
