"""Prefix tuning and P-tuning v2: free keys and values in every layer.

Li, Liang (2021), "Prefix-Tuning: Optimizing Continuous Prompts for Generation";
Liu, Ji, Fu et al. (2022), "P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning".
"""

import torch
from torch import Tensor, nn

from ptlit.lm import LMShape
from ptlit.prompt.base import KeyValuePrompt, Offset, checked_rate, checked_size, peft_rows


class PrefixTuning(KeyValuePrompt):
    """Keys and values are the parameters themselves."""

    peft_type = "PREFIX_TUNING"

    def __init__(self, shape: LMShape, num_virtual_tokens: int = 20, lm_scale: bool = False):
        super().__init__(num_virtual_tokens, shape, lm_scale)
        self.embedding = nn.Embedding(num_virtual_tokens, shape.num_layers * 2 * self.key_width)

    def forward(self) -> Tensor:
        return self.scale(self.key_values(self.embedding.weight))  # type: ignore[no-any-return]  # (L, 2, P, K, D)

    @torch.no_grad()
    def start_at(self, target: Tensor) -> None:
        self.embedding.weight.copy_(peft_rows(self.scale.undone(target)))


class PrefixProjection(KeyValuePrompt):
    """Keys and values are read from a narrow table through a tanh perceptron, as the paper trains them."""

    peft_type = "PREFIX_TUNING"

    def __init__(
        self,
        shape: LMShape,
        num_virtual_tokens: int = 20,
        hidden_size: int = 128,
        lm_scale: bool = False,
    ):
        super().__init__(num_virtual_tokens, shape, lm_scale)
        hidden = checked_size("hidden_size", hidden_size)
        self.embedding = nn.Embedding(num_virtual_tokens, self.key_width)
        self.transform = nn.Sequential(
            nn.Linear(self.key_width, hidden),
            nn.Tanh(),
            nn.Linear(hidden, shape.num_layers * 2 * self.key_width),
        )
        self.offset = Offset(*self.axes)
        # PEFT is given the finished keys and values, so for it there is no projection left to do.
        self._options: dict[str, object] = {"encoder_hidden_size": hidden, "prefix_projection": False}

    def forward(self) -> Tensor:
        made = self.key_values(self.transform(self.embedding.weight))  # (L, 2, P, K, D)
        return self.offset(self.scale(made))

    @torch.no_grad()
    def start_at(self, target: Tensor) -> None:
        self.offset.bring(self, target)

    def peft_options(self) -> dict[str, object]:
        return self._options


class PtuningV2(KeyValuePrompt):
    """Deep prompts, with dropout on the keys and values if asked: the LM then leans less on single ones, and
    learning takes long.
    """

    peft_type = "PREFIX_TUNING"

    def __init__(
        self,
        shape: LMShape,
        num_virtual_tokens: int = 20,
        dropout: float = 0.0,
        lm_scale: bool = False,
    ):
        super().__init__(num_virtual_tokens, shape, lm_scale)
        self.embedding = nn.Embedding(num_virtual_tokens, shape.num_layers * 2 * self.key_width)
        self.dropout = nn.Dropout(checked_rate("dropout", dropout))

    def forward(self) -> Tensor:
        return self.dropout(self.scale(self.key_values(self.embedding.weight)))  # (L, 2, P, K, D)

    @torch.no_grad()
    def start_at(self, target: Tensor) -> None:
        self.embedding.weight.copy_(peft_rows(self.scale.undone(target)))
