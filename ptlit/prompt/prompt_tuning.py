"""Prompt tuning: a table of free embeddings.

Lester, Al-Rfou, Constant (2021), "The Power of Scale for Parameter-Efficient Prompt Tuning".
"""

import torch
from torch import Tensor, nn

from ptlit.lm import LMShape
from ptlit.prompt.base import EmbeddingPrompt, Scale


class PromptTuning(EmbeddingPrompt):
    peft_type = "PROMPT_TUNING"

    def __init__(self, shape: LMShape, num_virtual_tokens: int = 20, lm_scale: bool = False):
        super().__init__(num_virtual_tokens)
        self.embedding = nn.Embedding(num_virtual_tokens, shape.hidden_size)
        self.scale = Scale.of_embeddings(shape, lm_scale)

    def forward(self) -> Tensor:
        return self.scale(self.embedding.weight)  # type: ignore[no-any-return]  # (P, H)

    @torch.no_grad()
    def start_at(self, target: Tensor) -> None:
        self.embedding.weight.copy_(self.scale.undone(target))
